"""Who said what: exact advantages of typed words, a policy's beside them, and refusals in words."""

import gymnasium as gym
import pytest
import torch

from rlhf_toy.course.widgets.who_said_what import WhoSaidWhat, states_before
from rlhf_toy.envs import PromptBandit, SlipperyWordMDP, WordMDP
from rlhf_toy.exact import gibbs_policy, response_logps, response_rewards
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import make_generator

WORLD = WordMDP(max_length=3)
CONFIG = GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16)
REFERENCE, POLICY = (PolicyModel(CONFIG, make_generator(seed)) for seed in (0, 1))


@pytest.fixture
def cell():
    return WhoSaidWhat(WORLD, REFERENCE, POLICY, 0.5)


def test_the_states_are_those_of_the_words_before():
    response = WORLD.encode("not very good")
    strings = 1 + WORLD.n_words + WORLD.n_words**2
    so_far = [WORLD.encode(text) for text in ("", "not", "not very")]
    expected = [2 * strings + int(WORLD.response_index(text[None])) for text in so_far]
    assert states_before(WORLD, 2, response).tolist() == expected


@pytest.mark.parametrize("text", ["", "good", "not very good", "  Very   LOUD "])
def test_the_advantages_sum_to_the_optimum_s_implicit_reward(cell, text):
    cell.text.value = text
    ref = response_logps(REFERENCE, WORLD)
    star = gibbs_policy(ref, response_rewards(WORLD), 0.5)
    y = int(WORLD.response_index(WORLD.encode(" ".join(text.lower().split()))[None]))
    x = cell.prompt.index
    exact, theirs = cell.credit.sum(1)
    assert float(exact) == pytest.approx(float(0.5 * (star - ref)[x, y]), abs=1e-5)
    ratio = 0.5 * (response_logps(POLICY, WORLD) - ref)[x, y]
    assert float(theirs) == pytest.approx(float(ratio), abs=1e-5)
    assert f"sum to {exact:+.3f}" in cell.line.value


def test_another_prompt_and_other_words_draw_again(cell, capsys):
    for change in (
        lambda: setattr(cell.prompt, "index", 3),
        lambda: setattr(cell.text, "value", "good"),
    ):
        before, said = cell.chart.value, cell.line.value
        change()
        assert cell.chart.value != before and cell.line.value != said
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text, said", [("good soup", "unknown word"), ("good good good good", "4 words")]
)
def test_what_is_no_response_is_refused_in_words(cell, text, said):
    before, credit = cell.chart.value, cell.credit
    cell.text.value = text
    assert "Not possible" in cell.line.value and said in cell.line.value
    assert cell.chart.value == before and torch.equal(cell.credit, credit)
    cell.text.value = "good"
    assert "Not possible" not in cell.line.value


def test_a_wrapped_world_will_do(cell):
    wrapped = gym.make("rlhf_toy/WordMDP-v0", max_length=3)
    assert WhoSaidWhat(wrapped, REFERENCE, POLICY, 0.5).line.value == cell.line.value


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"world": "words"}, TypeError, "worlds"),
        ({"world": PromptBandit()}, TypeError, "world must be a WordMDP"),
        ({"policy": None}, TypeError, "policy must be a policy such as a PolicyModel"),
        ({"world": WordMDP(max_length=2)}, ValueError, None),
        ({"world": SlipperyWordMDP(0.2, max_length=3)}, (TypeError, ValueError), None),
        ({"beta": 0.0}, ValueError, "beta must be a finite number above 0"),
        ({"prompt": "opera"}, ValueError, "opera"),
        ({"text": "soup"}, ValueError, "soup"),
        ({"text": 3}, TypeError, "text must be words"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"world": WORLD, "reference": REFERENCE, "policy": POLICY, "beta": 0.5}
    with pytest.raises(error, match=message):
        WhoSaidWhat(**{**arguments, **change})
