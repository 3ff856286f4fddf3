"""The worlds, small enough to be solved exactly; Gymnasium knows them under `rlhf_toy/`."""

from rlhf_toy.envs.prompt_bandit import PromptBandit
from rlhf_toy.envs.text_world import TextWorld, unwrap
from rlhf_toy.envs.word_mdp import SlipperyWordMDP, WordMDP

__all__ = ["PromptBandit", "SlipperyWordMDP", "TextWorld", "WordMDP", "unwrap"]
