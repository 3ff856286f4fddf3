"""The sub-commands of `python -m rlhf_toy`, one file each."""
