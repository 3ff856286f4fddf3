"""The worlds, registered with Gymnasium under `rlhf_toy/`: small enough to be solved exactly."""

import gymnasium as gym

from rlhf_toy.envs.prompt_bandit import PromptBandit
from rlhf_toy.envs.text_world import TextWorld
from rlhf_toy.envs.word_mdp import SlipperyWordMDP, WordMDP

__all__ = ["PromptBandit", "SlipperyWordMDP", "TextWorld", "WordMDP"]

for _world in (PromptBandit, WordMDP, SlipperyWordMDP):
    gym.register(
        id=f"rlhf_toy/{_world.__name__}-v0",
        entry_point=f"{_world.__module__}:{_world.__name__}",
    )
