"""Worlds and a policy that are small enough for every test to enumerate."""

import pytest

from rlhf_toy.envs import PromptBandit, WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import make_generator


@pytest.fixture(scope="session")
def world():
    """The word world with at most three words: 1,111 responses to each prompt."""
    return WordMDP(max_length=3)


@pytest.fixture(scope="session")
def bandit():
    return PromptBandit()


@pytest.fixture(scope="session")
def policy(world):
    """A random policy for `world`."""
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16)
    return PolicyModel(config, make_generator(0))
