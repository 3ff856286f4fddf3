"""The exercises of notebook 10."""

EXERCISES = ()
