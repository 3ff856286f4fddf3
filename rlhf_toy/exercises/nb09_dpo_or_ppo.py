"""The exercises of notebook 09."""

EXERCISES = ()
