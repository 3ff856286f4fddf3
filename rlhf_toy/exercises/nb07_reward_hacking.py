"""The exercises of notebook 07."""

EXERCISES = ()
