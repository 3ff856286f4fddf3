"""What the worlds promise: Gymnasium's interface, and its agreement with the batched tensors."""

import copy
import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rlhf_toy  # noqa: F401 (registers the worlds)
from rlhf_toy.envs import PromptBandit, SlipperyWordMDP, TextWorld, WordMDP
from rlhf_toy.training import make_generator

IDS = ["rlhf_toy/PromptBandit-v0", "rlhf_toy/WordMDP-v0", "rlhf_toy/SlipperyWordMDP-v0"]
SMALL = [PromptBandit(), WordMDP(max_length=3), SlipperyWordMDP(slip=0.3, max_length=3)]


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_finds_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name, render_mode="ansi").unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_docstrings_have_the_sections_that_gymnasiums_own_have(name):
    text = type(gym.make(name).unwrapped).__doc__
    for section in (
        "Description",
        "Action Space",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
    ):
        assert f"## {section}\n" in text


def episode(world, actions, seed):
    """Steps a world through a row of actions; returns prompt, what was written, reward, length."""
    observation, _ = world.reset(seed=seed)
    uniforms = copy.deepcopy(world.np_random)
    total, over, length = 0.0, False, 0
    while not over:
        observation, reward, over, truncated, _ = world.step(int(actions[length]))
        assert not truncated
        assert world.observation_space.contains(observation)
        total += reward
        length += 1
    chance = torch.tensor([uniforms.random() for _ in range(length)], dtype=torch.float64)
    return observation, total, length, chance


@pytest.mark.parametrize("world", SMALL, ids=lambda w: type(w).__name__)
def test_a_gym_episode_is_what_the_batched_tensors_say(world):
    generator = make_generator(0)
    lengths = set()
    for seed in range(200):
        actions = torch.randint(world.n_actions, (world.max_length,), generator=generator)
        observation, total, length, chance = episode(world, actions, seed)
        written = world.transition(actions[:length], chance)
        response = torch.full((world.max_length,), world.pad_token)
        response[:length] = written
        assert observation["response"].tolist() == response.tolist()
        assert int(world.response_mask(response).sum()) == length
        prompts = torch.tensor([observation["prompt"]])
        assert total == float(world.response_rewards(prompts, response[None])[0])
        lengths.add(length)
    assert lengths == set(range(1, world.max_length + 1))


@pytest.mark.parametrize("slip", [0.0, 0.3, 1.0])
def test_the_pen_slips_as_often_as_the_transition_probabilities_say(slip):
    world = SlipperyWordMDP(slip=slip)
    n = 100_000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for action in range(world.n_actions):
        written = world.transition(torch.full((n,), action), uniforms)
        shares = torch.bincount(written, minlength=world.n_actions) / n
        expected = world.transition_probabilities[action]
        assert torch.allclose(shares.double(), expected, atol=2 / n)
    assert world.is_deterministic == (slip == 0)


@pytest.mark.parametrize("world", SMALL, ids=lambda w: type(w).__name__)
def test_response_index_inverts_all_responses_and_text_round_trips(world):
    responses = world.all_responses
    assert torch.equal(world.response_index(responses), torch.arange(len(responses)))
    for response in responses[:: max(1, len(responses) // 97)]:
        assert torch.equal(world.encode(world.decode(response)), response)


def test_the_word_world_has_as_many_responses_as_strings_of_up_to_five_words():
    world = WordMDP()
    assert world.all_responses.shape == (111_111, 5)
    assert (world.n_prompts, world.n_actions) == (6, 11)
    assert world.pad_token != world.end_token


@pytest.mark.parametrize("world", SMALL[1:], ids=lambda w: type(w).__name__)
def test_nothing_after_the_end_counts(world):
    generator = make_generator(1)
    garbage = torch.randint(world.pad_token + 1, (500, world.max_length), generator=generator)
    prompts = world.sample_prompts(500, generator)
    clean = world.pad(garbage.where(garbage < world.pad_token, torch.zeros(())).long())
    dirty = torch.where(world.response_mask(clean), clean, garbage)
    assert not torch.equal(clean, dirty)
    assert torch.equal(world.response_mask(dirty), world.response_mask(clean))
    assert torch.equal(
        world.response_rewards(prompts, dirty), world.response_rewards(prompts, clean)
    )
    assert torch.equal(world.response_index(dirty), world.response_index(clean))
    assert torch.equal(world.pad(dirty), clean)
    assert [world.decode(y) for y in dirty] == [world.decode(y) for y in clean]


def test_the_render_shows_prompt_words_and_end():
    world = WordMDP(render_mode="ansi")
    world.reset(options={"prompt": "nap"})
    world.step(world.words.index("great"))
    assert world.render() == "nap: great …"
    world.step(world.end_token)
    assert world.render() == "nap: great <end>"


def test_reset_takes_a_prompt_by_index_or_text_and_else_draws_all():
    world = WordMDP()
    assert world.reset(options={"prompt": "library"})[0]["prompt"] == 2
    assert world.reset(options={"prompt": 4})[0]["prompt"] == 4
    assert {int(world.reset(seed=s)[0]["prompt"]) for s in range(100)} == set(range(6))
    for bad in (-1, 6, 1.5, [1], "opera"):
        with pytest.raises(ValueError, match="prompt"):
            world.reset(options={"prompt": bad})


def test_steps_out_of_turn_and_bad_actions_are_refused():
    world = WordMDP()
    with pytest.raises(ValueError, match="reset"):
        world.step(0)
    world.reset(seed=0)
    for bad in (-1, world.n_actions, 1.5):
        with pytest.raises(ValueError, match="action"):
            world.step(bad)
    world.step(world.end_token)
    with pytest.raises(ValueError, match="reset"):
        world.step(0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("great opera", "unknown word 'opera'"), ("good and good and good and", "6 words")],
)
def test_texts_that_cannot_be_encoded_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        WordMDP().encode(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WordMDP(max_length=0),
        lambda: WordMDP(max_length=2.0),
        lambda: WordMDP(render_mode="human"),
        lambda: SlipperyWordMDP(slip=1.1),
        lambda: TextWorld([], ["a"], 1, True),
        lambda: TextWorld(["x"], ["a", "a"], 1, True),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_the_same_seed_gives_the_same_episode_and_global_chance_is_left_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    world = SlipperyWordMDP(slip=0.5)
    actions = torch.zeros(5, dtype=torch.long)
    one, other = (episode(world, actions, seed=3)[0]["response"].tolist() for _ in range(2))
    world.sample_corpus(10, make_generator(0))
    assert one == other
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_a_world_without_an_end_token_has_no_shorter_response():
    with pytest.raises(ValueError, match="exactly 1"):
        PromptBandit().encode_words([])


def test_a_world_without_render_mode_says_how_to_get_one():
    world = WordMDP()
    world.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='ansi'"):
        assert world.render() is None
