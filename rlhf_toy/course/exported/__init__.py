"""Scripts that `python -m rlhf_toy export` copies beside a model and its preferences."""
