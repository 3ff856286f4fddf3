"""The automaton: tables that fit, and responses that walk along them."""

import math

import pytest
import torch

from rlhf_toy.envs import Automaton
from rlhf_toy.training import make_generator


def tables(**changes):
    """Two prompts, three states of which the last is the end, a word and the end token."""
    good = {
        "successors": torch.tensor([[1, 2], [0, 2], [2, 2]]),
        "rewards": torch.tensor([[[1.0, 5], [2, 6], [0, 0]], [[3, 7], [4, 8], [0, 0]]]).double(),
        "ref_logps": torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]).double().log(),
        "final_rewards": torch.tensor([[-1.0, -2, 0], [-3, -4, 0]]).double(),
        "start": 0,
        "horizon": 3,
    }
    return good | changes


def test_rewards_are_those_of_the_tokens_and_of_being_cut_off():
    automaton = Automaton(**tables())
    responses = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 2], [0, 2, 2]])
    prompts = torch.tensor([0, 0, 1, 1, 1])
    earned = automaton.response_rewards(prompts, responses)
    # 1 + 2 + 1 and cut off in state 1; 1 + 2 + 5; 3 + 8; 7; 3 and padded, so cut off, in state 1.
    assert earned.tolist() == [2.0, 8.0, 11.0, 7.0, -1.0]
    assert automaton.walk(prompts, responses)[:, -1].tolist() == [1, 2, 2, 2, 1]


def test_every_prompt_may_start_elsewhere_and_have_a_reference_of_its_own():
    logps = torch.stack([tables()["ref_logps"], tables()["ref_logps"].flip(1)])
    automaton = Automaton(**tables(start=torch.tensor([0, 1]), ref_logps=logps))
    prompts, states = torch.tensor([0, 1]), torch.tensor([1, 1])
    assert automaton.starts.tolist() == [0, 1]
    assert automaton.walk(prompts, torch.zeros(2, 1).long())[:, 1].tolist() == [1, 0]
    assert torch.equal(automaton.ref_logps_at(prompts, states), logps[prompts, states])


def test_branches_are_the_different_successors():
    successors = torch.tensor([[1, 1, 2], [0, 2, 2], [2, 2, 2]])
    rewards = torch.zeros(1, 3, 3).double()
    reference = torch.full((3, 3), 1 / 3, dtype=torch.float64).log()
    automaton = Automaton(successors, rewards, reference, rewards[..., 0], 0, 2)
    slots, following = automaton.branches
    assert torch.equal(following.gather(1, slots), successors)
    assert following.shape == (3, 2)


def test_samples_have_the_frequencies_of_the_policy_and_are_padded():
    automaton = Automaton(**tables())
    prompts = torch.zeros(40_000).long()
    draw = lambda t, states: automaton.ref_logps[states]  # noqa: E731
    responses = automaton.sample(prompts, make_generator(0), draw)
    found, counts = responses.unique(dim=0, return_counts=True)
    assert found.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 2]]
    expected = torch.tensor([0.7 * 0.6 * 0.7, 0.7 * 0.6 * 0.3, 0.7 * 0.4, 0.3]) * 40_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # 99.9 % of chi2(3)


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("successors", lambda t: t[:2], ValueError, "expected nonempty tensors"),
        ("successors", lambda t: t + 1, ValueError, "successors must be ids from 0 to 2"),
        ("successors", lambda t: t.tolist(), TypeError, "successors must be a tensor"),
        ("successors", lambda t: t.clone().fill_(0), ValueError, "in state 0 it does not"),
        ("rewards", lambda t: t[0], ValueError, "expected nonempty tensors"),
        ("rewards", lambda t: t * math.nan, ValueError, "rewards must be finite"),
        ("rewards", lambda t: t + 1, ValueError, "never left and earns nothing"),
        ("final_rewards", lambda t: t - 1, ValueError, "never left and earns nothing"),
        ("final_rewards", lambda t: t[:1], ValueError, "expected nonempty tensors"),
        ("ref_logps", lambda t: t + 1, ValueError, "ref_logps must hold log-probabilities"),
        ("ref_logps", lambda t: t[:, :1], ValueError, "expected nonempty tensors"),
        (
            "ref_logps",
            lambda t: torch.tensor([[0.0, -math.inf]] * 3),
            ValueError,
            "give every token a probability above 0",
        ),
        ("start", lambda s: 3, ValueError, "start must be an integer from 0 to 2, got 3"),
        ("start", lambda s: torch.tensor([0, 3]), ValueError, "start must be ids from 0 to 2"),
        ("start", lambda s: torch.tensor([0]), ValueError, "start"),
        ("horizon", lambda h: 0, ValueError, "horizon must be an integer of at least 1"),
        ("horizon", lambda h: 2.5, TypeError, "horizon must be an integer"),
    ],
)
def test_tables_that_do_not_fit_are_refused_in_words(name, change, error, words):
    with pytest.raises(error, match=words):
        Automaton(**tables(**{name: change(tables()[name])}))
