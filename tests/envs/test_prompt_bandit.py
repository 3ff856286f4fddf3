"""The bandit: its table of rewards, its habits, and the specs that it takes and refuses."""

import copy
from dataclasses import replace

import pytest
import torch

from rlhf_toy.envs import QUESTIONS, BanditSpec, PromptBandit
from rlhf_toy.envs.prompt_bandit import HABITS
from rlhf_toy.training import make_generator

COINS = BanditSpec(
    prompts=["Heads?"], responses=["Yes.", "No."], taste=[[1, -1]], habits=[[0.0, 0.5]]
)


@pytest.mark.parametrize("spec", [QUESTIONS, COINS], ids=["questions", "coins"])
def test_the_reward_is_the_table(spec):
    bandit = PromptBandit(spec)
    prompts = torch.arange(bandit.n_prompts).repeat_interleave(bandit.n_words)
    responses = torch.arange(bandit.n_words).repeat(bandit.n_prompts)[:, None]
    rewards = bandit.response_rewards(prompts, responses)
    assert rewards.tolist() == [reward for row in spec.taste for reward in row]


def test_the_corpus_follows_the_habits():
    n, bandit = 60_000, PromptBandit()
    prompts, responses = bandit.sample_corpus(n, make_generator(0))
    probabilities = torch.tensor(HABITS, dtype=torch.float64).softmax(1) / 4
    counts = torch.bincount(prompts * 8 + responses[:, 0], minlength=32).view(4, 8)
    sigma = (n * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - n * probabilities).abs() <= 5 * sigma).all()


def test_a_spec_is_frozen_whatever_it_was_given():
    assert COINS.taste == ((1.0, -1.0),) and COINS.prompts == ("Heads?",)
    twin = copy.deepcopy(COINS)
    assert twin == COINS and hash(twin) == hash(COINS)
    assert HABITS is QUESTIONS.habits


def test_a_response_has_exactly_one_token():
    with pytest.raises(ValueError, match="exactly 1"):
        PromptBandit().encode_words([])
    assert PromptBandit(COINS).encode("No.").tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": "Heads?"}, TypeError, "prompts must be a tuple or list of texts"),
        ({"prompts": ()}, ValueError, "prompts must hold at least one text"),
        ({"responses": ["Yes.", "Yes."]}, ValueError, "'Yes.' is empty or given twice"),
        ({"responses": ["Yes.", "  "]}, ValueError, "'  ' is empty or given twice"),
        ({"responses": ["Yes.", 3]}, TypeError, "responses must be a tuple or list of texts"),
        ({"taste": [[1.0]]}, ValueError, "taste must have 1 rows, one a prompt, of 2 numbers"),
        ({"taste": [[1.0, 2.0], [1.0]]}, ValueError, "taste must have 1 rows"),
        ({"taste": [[1.0, float("inf")]]}, ValueError, "each entry of taste must be a finite"),
        ({"habits": [[1.0, "2"]]}, TypeError, "each entry of habits must be a number, got '2'"),
        ({"habits": None}, ValueError, "habits must have 1 rows"),
    ],
)
def test_bad_specs_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        replace(COINS, **changes)


def test_a_bandit_takes_no_other_spec():
    with pytest.raises(TypeError, match="spec must be a BanditSpec such as QUESTIONS, got 4"):
        PromptBandit(4)
