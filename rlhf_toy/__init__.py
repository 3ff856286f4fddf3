"""Reinforcement learning from human feedback in worlds small enough to be solved exactly."""

from importlib.metadata import version
from importlib.util import find_spec

__version__ = version("rlhf_toy")

# The worlds register themselves with Gymnasium by name; torch is imported when one is made. Where
# Gymnasium is missing, `python -m rlhf_toy doctor` must still be able to say so.
if find_spec("gymnasium"):
    import gymnasium

    for _name in ("PromptBandit", "WordMDP", "SlipperyWordMDP", "LongReview"):
        gymnasium.register(id=f"rlhf_toy/{_name}-v0", entry_point=f"rlhf_toy.envs:{_name}")
