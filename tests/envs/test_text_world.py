"""What all worlds promise: Gymnasium's interface, tensors that agree with it, checks, digests."""

import copy
import random
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rlhf_toy  # noqa: F401 (registers the worlds)
from rlhf_toy.course.worlds import DISHES
from rlhf_toy.envs import (
    QUESTIONS,
    REVIEWS,
    LongReview,
    PromptBandit,
    SlipperyWordMDP,
    WordMDP,
    unwrap,
)
from rlhf_toy.training import make_generator

IDS = [
    f"rlhf_toy/{name}-v0" for name in ("PromptBandit", "WordMDP", "SlipperyWordMDP", "LongReview")
]
SMALL = [
    PromptBandit(),
    WordMDP(max_length=3),
    SlipperyWordMDP(slip=0.3, max_length=3),
    LongReview(max_length=3),
]
WORLD = SMALL[1]


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


@pytest.mark.parametrize("world", SMALL, ids=lambda w: type(w).__name__)
def test_response_index_inverts_all_responses_and_text_round_trips(world):
    responses = world.all_responses
    assert torch.equal(world.response_index(responses), torch.arange(len(responses)))
    for response in responses[:: max(1, len(responses) // 97)]:
        assert torch.equal(world.encode(world.decode(response)), response)


@pytest.mark.parametrize("world", SMALL[1:], ids=lambda w: type(w).__name__)
def test_nothing_after_the_end_counts(world):
    generator = make_generator(1)
    garbage = torch.randint(world.pad_token + 1, (500, world.max_length), generator=generator)
    prompts = world.sample_prompts(500, generator)
    clean = world.pad(garbage.where(garbage < world.pad_token, 0))
    garbage[::5] = torch.tensor([-1, 99, 10**9])
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


def test_a_world_without_render_mode_says_how_to_get_one():
    world = WordMDP()
    world.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='ansi'"):
        assert world.render() is None


# Bad ids


def ids(*rows):
    return torch.tensor(rows)


ROW = WORLD.encode("good")  # good, end, pad
PAD = WORLD.pad_token


@pytest.mark.parametrize(
    ("prompts", "responses", "error", "message"),
    [
        (ids(-1), ROW[None], ValueError, "prompts must be ids from 0 to 5, got ids from -1 to -1"),
        (ids(6), ROW[None], ValueError, "prompts must be ids from 0 to 5, got ids from 6 to 6"),
        (ids(0, 1), ROW[None], ValueError, "got 2 prompts for 1 responses"),
        (ids(0).float(), ROW[None], ValueError, "prompts must be a nonempty int64 tensor"),
        (torch.tensor(0), ROW[None], ValueError, "prompts must be.*of 1 dimension"),
        (0, ROW[None], TypeError, "prompts must be a tensor, got 0"),
        ([0], ROW[None], TypeError, "prompts must be a tensor"),
        (ids(0), ids([0, 99, 0]), ValueError, "responses up to their end must be ids from 0 to 11"),
        (ids(0), ids([0, -1, 0]), ValueError, "responses up to their end must be ids from 0 to 11"),
        (ids(0), ids([PAD, 0, 10]), ValueError, "none after the pad token 11"),
        (ids(0), ids([PAD, PAD, PAD]), ValueError, "none after the pad token 11"),
        (ids(0), ids([0, PAD, 1]), ValueError, "none after the pad token 11"),
        (ids(0), ids([0, 10]), ValueError, r"a row of 3 tokens, got a tensor \[1, 2\]"),
        (ids(0), ids([0, 1, 2, 3]), ValueError, r"a row of 3 tokens, got a tensor \[1, 4\]"),
        (ids(0), ROW, ValueError, r"of 2 dimension\(s\), got a tensor \[3\]"),
        (ids(0), ROW[None].float(), ValueError, "int64.*got a tensor .* of torch.float32"),
        (ids(0), ROW[:0].view(0, 3), ValueError, "nonempty"),
        (ids(0), [[0, 10, 11]], TypeError, "responses must be a tensor"),
        (ids(0), None, TypeError, "responses must be a tensor, got None"),
        (ids(0), torch.tensor(3), ValueError, "a row of 3 tokens"),
    ],
)
def test_rewards_and_indices_refuse_what_is_no_response(prompts, responses, error, message):
    with pytest.raises(error, match=message):
        WORLD.response_rewards(prompts, responses)
    if "prompts" not in message:  # the same for the index, which needs no prompt
        with pytest.raises(error, match=message):
            WORLD.response_index(responses)


def test_a_bandit_refuses_what_is_no_response_too():
    bandit = SMALL[0]
    for prompt, response in ((-1, 0), (4, 0), (0, -1), (0, 8), (0, 9)):
        with pytest.raises(ValueError, match="must"):
            bandit.response_rewards(ids(prompt), ids([response]))


def test_a_response_that_is_not_finished_counts_as_cut_off():
    x, cut = ids(0), ids([7, 0, PAD])  # not good …
    assert torch.equal(
        WORLD.response_rewards(x, cut), WORLD.response_rewards(x, WORLD.encode("not good")[None])
    )
    assert WORLD.decode(cut[0]) == "not good"
    assert WORLD.response_mask(cut).tolist() == [[True] * 3]


@pytest.mark.parametrize("function", ["response_mask", "pad", "decode"])
@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ([-1, -1, 0], ValueError, "must be ids from 0 to 11, got ids from -1 to 0"),
        ([99, 10, 0], ValueError, "must be ids from 0 to 11, got ids from 0 to 99"),
        ([0, 10], ValueError, "must be a row of 3 tokens"),
        ([0, 1, 2, 10], ValueError, "must be a row of 3 tokens"),
        ([0.0, 1.0, 10.0], ValueError, "int64"),
        ([], ValueError, "must be a row of 3 tokens"),
        (None, TypeError, "must be a tensor"),
    ],
)
def test_masks_and_texts_refuse_bad_tokens(function, row, error, message):
    with pytest.raises(error, match=message):
        getattr(WORLD, function)(None if row is None else torch.tensor(row))


def test_decode_takes_one_response():
    with pytest.raises(ValueError, match="of 1 dimension"):
        WORLD.decode(ROW[None])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: w.prompt_tokens(ids(-1)), ValueError, "prompts must be ids from 0 to 5"),
        (lambda w: w.prompt_tokens(ids([0, 6])), ValueError, "prompts must be ids from 0 to 5"),
        (lambda w: w.prompt_tokens([0]), TypeError, "prompts must be a tensor"),
        (lambda w: w.prompt_index(2), TypeError, "prompt must be a text, got 2"),
        (lambda w: w.prompt_index("opera"), ValueError, "unknown prompt 'opera'"),
        (lambda w: w.encode(None), TypeError, "text must be a text, got None"),
        (lambda w: w.encode_words("good"), TypeError, "words must be a list of words, got 'good'"),
        (
            lambda w: w.sample_prompts(0, make_generator(0)),
            ValueError,
            "n must be an integer of",
        ),
        (lambda w: w.sample_prompts(2.0, make_generator(0)), TypeError, "n must be an integer"),
        (lambda w: w.sample_corpus(2, None), TypeError, "generator must be a torch.Generator"),
        (lambda w: w.transition(ids(-1), torch.zeros(1)), ValueError, "actions must be ids from 0"),
        (lambda w: w.transition(ids(99), torch.zeros(1)), ValueError, "actions must be ids from 0"),
        (lambda w: w.transition(ids(0), torch.zeros(2)), ValueError, "one shape"),
        (lambda w: w.transition(ids(0), 0.5), TypeError, "uniforms must be a tensor"),
    ],
)
def test_bad_calls_are_refused_in_plain_words(call, error, message):
    for world in SMALL[1:3]:
        with pytest.raises(error, match=message):
            call(world)


# Wrappers, and what tells worlds apart


@pytest.mark.parametrize("name", IDS)
def test_unwrap_takes_wrapped_and_bare_worlds(name):
    wrapped = gym.make(name)
    assert wrapped is not wrapped.unwrapped
    assert unwrap(wrapped) is wrapped.unwrapped
    assert unwrap(wrapped.unwrapped) is wrapped.unwrapped


@pytest.mark.parametrize("other", ["film", None, WordMDP, gym.make("FrozenLake-v1")])
def test_unwrap_refuses_everything_else(other):
    with pytest.raises(TypeError, match="one of the rlhf_toy/ worlds, such as WordMDP"):
        unwrap(other)


def test_gymnasium_makes_worlds_of_other_specs():
    env = gym.make("rlhf_toy/SlipperyWordMDP-v0", slip=0.2, spec=DISHES)
    assert unwrap(env).fingerprint == SlipperyWordMDP(0.2, DISHES).fingerprint
    assert unwrap(env).world_spec == DISHES and env.spec.id == "rlhf_toy/SlipperyWordMDP-v0"


def test_the_fingerprint_covers_whatever_decides_rewards_and_transitions():
    worlds = [
        PromptBandit(),
        PromptBandit(replace(QUESTIONS, taste=QUESTIONS.habits)),
        WordMDP(),
        WordMDP(DISHES),
        WordMDP(max_length=3),
        WordMDP(replace(REVIEWS, grammar_cost=1.3)),
        WordMDP(replace(REVIEWS, prompt_taste={})),
        WordMDP(replace(REVIEWS, negations={"not": -0.6})),
        SlipperyWordMDP(0.1),
        SlipperyWordMDP(0.2),
        SlipperyWordMDP(0.2, DISHES),
    ]
    assert len({world.fingerprint for world in worlds}) == len(worlds)
    for world in worlds:
        assert copy.deepcopy(world).fingerprint == world.fingerprint
    assert SlipperyWordMDP(slip=0).fingerprint == SlipperyWordMDP(slip=0.0).fingerprint
    assert WordMDP(max_length=5).fingerprint == WordMDP().fingerprint


def test_the_vocabulary_covers_what_a_model_must_share_and_no_more():
    same = [WordMDP(), SlipperyWordMDP(0.3), WordMDP(replace(REVIEWS, grammar_cost=1.3))]
    assert len({world.vocabulary for world in same}) == 1
    others = [
        WordMDP(max_length=4),
        WordMDP(DISHES),
        WordMDP(replace(REVIEWS, negations={"never": -0.5})),
        WordMDP(replace(REVIEWS, prompts=REVIEWS.prompts[::-1])),
        PromptBandit(),
    ]
    assert len({world.vocabulary for world in (*same, *others)}) == 1 + len(others)


def test_digests_are_the_same_in_every_process_and_version():
    # Saved files hold these: a change here makes them unreadable.
    assert (WordMDP().vocabulary, WordMDP().fingerprint) == ("cfa424800b11", "3c2d2be31058")
    assert SlipperyWordMDP(0.1).fingerprint == "fe482280ef66"
    assert PromptBandit().fingerprint == "e4d218b8eceb"
