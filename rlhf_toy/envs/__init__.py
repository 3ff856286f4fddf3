"""The worlds, small enough to be solved exactly; Gymnasium knows them under `rlhf_toy/`."""

from rlhf_toy.envs.automaton import Automaton
from rlhf_toy.envs.long_review import LongReview
from rlhf_toy.envs.long_spec import STAYS, LongSpec
from rlhf_toy.envs.prompt_bandit import QUESTIONS, BanditSpec, PromptBandit
from rlhf_toy.envs.text_world import TextWorld, unwrap
from rlhf_toy.envs.word_mdp import SlipperyWordMDP, WordMDP
from rlhf_toy.envs.word_spec import REVIEWS, WordSpec

__all__ = [
    "QUESTIONS", "REVIEWS", "STAYS", "Automaton", "BanditSpec", "LongReview", "LongSpec",
    "PromptBandit", "SlipperyWordMDP", "TextWorld", "WordMDP", "WordSpec", "unwrap",
]  # fmt: skip
