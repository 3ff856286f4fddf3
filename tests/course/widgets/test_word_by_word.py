"""Word by word, without a browser."""

import math

import gymnasium as gym
import pytest
import torch

from rlhf_toy.course.widgets import word_by_word as module
from rlhf_toy.course.widgets.word_by_word import WordByWord, look_at, state_words, value_words
from rlhf_toy.envs import PromptBandit, SlipperyWordMDP, WordMDP
from rlhf_toy.exact import (
    n_states,
    response_logps,
    response_rewards,
    response_scores,
    state_logps,
    tabular_mdp,
)
from rlhf_toy.models import GPTConfig, PolicyModel, RewardModel
from rlhf_toy.training import make_generator


@pytest.fixture(scope="module")
def reward_model(world):
    """A random one, whose head is not zero."""
    model = RewardModel(
        GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16), make_generator(1)
    )
    torch.nn.init.normal_(model.head.weight, generator=make_generator(2))
    return model


@pytest.fixture
def cell(world, policy, reward_model):
    return WordByWord(world, policy, reward_model, prompt="concert")


def ids(world, *said):
    return tuple(world.end_token if word == "<end>" else world.words.index(word) for word in said)


# Arithmetic: everything agrees with the tables of the whole world


@pytest.mark.parametrize(
    "said", [(), ("very",), ("not", "good"), ("<end>",), ("loud", "<end>"), ("very", "not", "and")]
)
@pytest.mark.parametrize("x", [0, 4])
def test_a_state_agrees_with_the_exact_tables(world, policy, reward_model, said, x):
    tokens = ids(world, *said)
    state = look_at(world, policy, x, tokens, reward_model)
    successors, _, _ = tabular_mdp(world)
    by_state, index = state_logps(policy, world), x * (n_states(world) // world.n_prompts)
    logp = 0.0
    for token in tokens:
        logp += float(by_state[index, token])
        index = int(successors[index, token, 0])
    assert state.index == index
    assert state.is_over == (index == n_states(world) - 1)
    assert state.logp == pytest.approx(logp, abs=1e-4)
    if state.is_over:
        assert state.next_logps is None
    else:
        assert torch.allclose(state.next_logps, by_state[index], atol=1e-4)

    words = [word for word in said if word != "<end>"]
    arms = world.response_index(
        torch.stack([world.encode_words(words[:k]) for k in range(len(words) + 1)])
    )
    assert state.true_rewards == pytest.approx(response_rewards(world)[x, arms].tolist())
    scores = response_scores(reward_model, world)[x, arms].tolist()
    assert state.learned_rewards == pytest.approx(scores, abs=1e-4)
    if state.is_over:
        expected = response_logps(policy, world)[x, arms[-1]]
        assert state.logp == pytest.approx(float(expected), abs=1e-4)


def test_without_a_reward_model_nothing_is_said_of_it(world, policy):
    state = look_at(world, policy, 0, ())
    assert state.learned_rewards is None
    assert "learned" not in value_words(world, state)


def test_small_probabilities_are_said_as_one_in_many():
    assert module._probability(math.log(0.25)) == "25.0%"
    assert module._probability(math.log(1 / 4000)) == "1 in 4,000"
    assert module._probability(-1000.0) == "next to 0"


# The widget


def test_clicking_writes_words_and_says_the_state(cell, world, capfd):
    assert cell.chart.value == cell.figure
    before = cell.chart.value
    cell.buttons["very"].click()
    assert cell.chart.value != before
    assert "concert: very …" in cell.written.value
    cell.buttons["loud"].click()
    assert "concert: very loud …" in cell.written.value
    x = world.prompt_index("concert")
    response = world.encode("very loud")[None]
    true = float(world.response_rewards(torch.tensor([x]), response))
    assert f"If it ended here: true reward {true:+.2f}, learned reward " in cell.line.value
    assert "nothing is paid yet" in cell.line.value
    ids = f"tokens ({world.words.index('very')}, {world.words.index('loud')}, {world.pad_token})"
    assert ids in cell.mdp.value
    assert f"state {cell.state.index:,} of" in cell.mdp.value
    assert "Not over, 1 step left" in cell.mdp.value
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("said", [("<end>",), ("good", "<end>"), ("good", "and", "bad")])
def test_what_is_over_takes_no_further_word(cell, world, said):
    for word in said:
        assert not any(button.disabled for button in cell.buttons.values())
        cell.buttons[word].click()
    assert all(button.disabled for button in cell.buttons.values())
    assert not cell.undo.disabled and not cell.reset.disabled
    assert "Paid now" in cell.line.value
    assert f"over: state {n_states(world) - 1:,}" in cell.mdp.value
    state, text = cell.state, cell.written.value
    cell.buttons["good"].click()  # a press that comes in late
    assert cell.state == state and cell.written.value == text
    cell.undo.click()
    assert not any(button.disabled for button in cell.buttons.values())
    assert cell.state.tokens == ids(world, *said[:-1])


def test_undo_and_reset(cell, world):
    assert cell.undo.disabled and cell.reset.disabled
    empty = cell.chart.value
    for word in ("not", "very"):
        cell.buttons[word].click()
    assert not cell.undo.disabled
    cell.undo.click()
    assert cell.state.tokens == ids(world, "not")
    cell.buttons["good"].click()
    cell.reset.click()
    assert cell.state.tokens == ()
    assert cell.undo.disabled and cell.reset.disabled
    assert cell.chart.value == empty
    cell.undo.click()  # a press that comes in late
    cell.reset.click()
    assert cell.state.tokens == () and "Not possible" not in cell.line.value


def test_another_prompt_keeps_the_words(cell, world):
    cell.buttons["loud"].click()
    reward, logp = cell.state.true_rewards[-1], cell.state.logp
    cell.prompt.value = "library"
    assert "library: loud …" in cell.written.value
    assert reward == pytest.approx(1.0) and cell.state.true_rewards[-1] == pytest.approx(-1.2)
    assert cell.state.logp != logp


def test_words_to_start_with_are_in_the_static_figure(world, policy):
    empty, begun = WordByWord(world, policy), WordByWord(world, policy, start="not very")
    assert begun.state.tokens == ids(world, "not", "very")
    assert begun.figure != empty.figure
    assert not begun.undo.disabled
    full = WordByWord(world, policy, start="good but bad")
    assert full.state.is_over and full.buttons["good"].disabled


def test_an_error_behind_a_button_is_said(cell, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(module, "draw_state", fail)
    cell.buttons["good"].click()
    assert "Not possible" in cell.line.value
    assert "RuntimeError: no memory left" in cell.line.value
    monkeypatch.undo()
    cell.reset.click()
    assert "Not possible" not in cell.line.value


def test_a_wrapped_world_will_do_and_two_cells_do_not_meet(policy):
    env = gym.make("rlhf_toy/WordMDP-v0", max_length=3)
    one, other = WordByWord(env, policy), WordByWord(env, policy)
    one.buttons["good"].click()
    assert other.state.tokens == () and other.chart.value == other.figure


def test_every_control_has_a_description(cell, world):
    for control in (cell.prompt, *cell.vocabulary.children):
        assert control.description
    names = [button.description for button in cell.vocabulary.children]
    assert names == [*world.words, "<end>", "↶ undo", "reset"]


def test_nothing_is_trained_and_chance_is_left_alone(cell, policy, reward_model):
    state = torch.get_rng_state()
    cell.buttons["good"].click()
    assert (torch.get_rng_state() == state).all()
    for parameter in (*policy.parameters(), *reward_model.parameters()):
        assert parameter.grad is None


def test_the_state_counts_its_steps(world, policy):
    assert "3 steps left" in state_words(world, look_at(world, policy, 0, ()))


def test_bad_arguments_are_refused_in_words(world, policy, reward_model):
    with pytest.raises(TypeError, match="expected one of the rlhf_toy"):
        WordByWord("world", policy)
    with pytest.raises(ValueError, match="no end token"):
        WordByWord(PromptBandit(), policy)
    with pytest.raises(ValueError, match="slip=0"):
        WordByWord(SlipperyWordMDP(max_length=3), policy)
    with pytest.raises(TypeError, match="reference must be a policy such as a PolicyModel"):
        WordByWord(world, reward_model)
    with pytest.raises(TypeError, match="reward_model must be a RewardModel"):
        WordByWord(world, policy, policy)
    with pytest.raises(ValueError, match="made for another world"):
        WordByWord(WordMDP(), policy)
    with pytest.raises(ValueError, match="unknown prompt 'opera'"):
        WordByWord(world, policy, prompt="opera")
    with pytest.raises(ValueError, match="unknown word 'nice'"):
        WordByWord(world, policy, start="nice")
    with pytest.raises(ValueError, match="4 words"):
        WordByWord(world, policy, start="good and bad and")
    with pytest.raises(TypeError, match="start must be words"):
        WordByWord(world, policy, start=["good"])


def test_a_slippery_world_without_a_slip_will_do(policy):
    assert isinstance(WordByWord(SlipperyWordMDP(0.0, max_length=3), policy), WordByWord)


def test_a_policy_of_the_size_of_the_notebooks():
    world = WordMDP()
    cell = WordByWord(world, PolicyModel(GPTConfig.for_world(world), make_generator(0)))
    for word in ("very", "loud", "but", "dull", "<end>"):
        cell.buttons[word].click()
    assert "film: very loud but dull &lt;end&gt;" in cell.written.value


@pytest.mark.parametrize(
    ("prompt", "tokens", "error", "message"),
    [
        (6, (), ValueError, "prompt must be an integer from 0 to 5, got 6"),
        (0, (1, 11), ValueError, r"tokens\[1\] must be"),
        (0, ("good",), TypeError, r"tokens\[0\] must be an integer"),
        (0, (1, 1, 1, 1), ValueError, "at most 3"),
        (0, (10, 1), ValueError, "none after the end token 10"),
    ],
)
def test_a_state_that_the_world_does_not_have(world, policy, prompt, tokens, error, message):
    with pytest.raises(error, match=message):
        look_at(world, policy, prompt, tokens)
