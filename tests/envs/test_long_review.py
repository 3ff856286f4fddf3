"""The long world: what reviews are worth by a second reading, its reference, and its limits."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch

from rlhf_toy.envs import STAYS, LongReview, LongSpec
from rlhf_toy.envs.long_review import MOST_STATES
from rlhf_toy.exact import response_logps, response_rewards, state_logps, table_reference
from rlhf_toy.training import make_generator

WORLD = LongReview()


def slow_reward(spec, prompt, words):
    """What a review is worth, read from left to right with the spec's dicts and nothing else."""
    kind_of = {word: kind for kind, some in spec.words_by_kind.items() for word in some}
    worths = {aspect: dict(pairs) for aspect, pairs in spec.aspects}
    importance = dict(dict(spec.importance).get(prompt, ()))
    factors = dict(spec.intensifiers) | dict(spec.negations)
    reward, said, clause, seen, last, promised = 0.0, [], "", [], 0.0, 0.0
    for word in words:
        kind = kind_of[word]
        fits = (
            kind
            in {
                "": ("determiners",),
                "D": ("aspects",),
                "N": ("verbs",),
                "V": ("adjectives", "intensifiers", "negations"),
                "n": ("adjectives", "intensifiers"),
                "i": ("adjectives",),
                "a": ("conjunctions",),
            }[clause[-1:]]
        )
        if not fits:
            reward -= spec.grammar_cost
            continue
        if kind == "conjunctions":
            promised = last * dict(spec.conjunctions)[word]
            clause, said = "", []
            continue
        if kind == "aspects" and word in seen:
            reward -= spec.repetition_cost
        if kind == "aspects":
            seen.append(word)
        if kind == "adjectives":
            aspect = seen[-1]
            if word not in worths[aspect]:
                reward -= spec.nonsense_cost
            value = worths[aspect].get(word, 0.0)
            for modifier in said:
                value *= factors[modifier]
            if value * promised < 0:
                reward -= spec.contrast_cost
            last = (value > 0) - (value < 0)
            reward += value * importance.get(aspect, 1.0)
        if kind in ("intensifiers", "negations"):
            said.append(word)
        clause += dict(zip(spec.words_by_kind, "DVNinca", strict=True))[kind]
    return reward if clause.endswith("a") else reward - spec.unfinished_cost


def check_rewards(world, prompts, responses):
    rewards = world.response_rewards(prompts, responses)
    for x, y, reward in zip(prompts.tolist(), responses, rewards.tolist(), strict=True):
        words = world.decode(world.pad(y)).split()
        expected = slow_reward(world.world_spec, world.prompts[x], words)
        assert reward == pytest.approx(expected, abs=1e-12), words


def test_rewards_agree_with_a_slow_reading_of_fluent_reviews_and_of_word_salad():
    generator = make_generator(0)
    check_rewards(WORLD, *WORLD.sample_corpus(1_500, generator))
    salad = torch.randint(WORLD.n_actions, (1_500, 32), generator=generator)
    check_rewards(WORLD, WORLD.sample_prompts(1_500, generator), WORLD.pad(salad))
    # Salad within fluent reviews, where it does the most.
    prompts, responses = WORLD.sample_corpus(3_000, generator)
    noise = torch.randint(WORLD.n_actions, responses.shape, generator=generator)
    hit = torch.rand(responses.shape, generator=generator) < 0.1
    responses = WORLD.pad(torch.where(hit & (responses < WORLD.n_words), noise, responses))
    check_rewards(WORLD, prompts, responses)


@pytest.mark.parametrize(
    ("prompt", "text", "reward"),
    [
        ("hotel", "the room is clean", 1.0),
        ("hotel", "the staff is friendly", 1.3 * 1.1),
        ("hotel", "the room is very clean and the staff is not rude", 1.5 + 1.3 * 0.6 * 1.3),
        ("hotel", "the room is clean but the food is bland", 1.0 - 0.7),
        ("hotel", "the room is clean and the food is bland", 1.0 - 0.7 - 1.0),
        ("hotel", "the room is clean and the room is clean", 1.0 + 1.0 - 2.5),
        ("hotel", "the room is clean clean clean", 1.0 - 2 * 1.0),
        ("hotel", "the staff is tasty", -1.0),
        ("hotel", "the room is clean and", 1.0 - 2.0),
        ("hotel", "great great great", -3 * 1.0 - 2.0),
        ("hotel", "", -2.0),
        ("hostel", "its price was not slightly high", 1.6 * 0.8 * 0.6 * 0.5),
    ],
)
def test_a_person_can_work_out_what_a_review_is_worth(prompt, text, reward):
    index = torch.tensor([WORLD.prompt_index(prompt)])
    found = WORLD.response_rewards(index, WORLD.encode(text)[None])
    assert float(found) == pytest.approx(reward)


def test_a_full_review_needs_no_end_token_but_a_complete_clause():
    text = "the room is very clean and " * 3 + "the bed is soft and " * 2 + "the bed is "
    full, cut = (WORLD.encode(text + last)[None] for last in ("soft", "very"))
    assert (full < WORLD.n_words).all() and (cut < WORLD.n_words).all()
    prompts = torch.tensor([WORLD.prompt_index("cottage")])
    check_rewards(WORLD, prompts, full)
    check_rewards(WORLD, prompts, cut)
    lost = float(WORLD.response_rewards(prompts, full) - WORLD.response_rewards(prompts, cut))
    assert lost == pytest.approx(0.9 + 2.0)


def test_the_corpus_is_fluent_and_half_as_long_as_a_review_may_be():
    prompts, responses = WORLD.sample_corpus(4_000, make_generator(0))
    lengths = (responses < WORLD.n_words).sum(1).double()
    assert 12 < lengths.mean() < 16
    words = {WORLD.words[token] for token in responses.unique() if token < WORLD.n_words}
    assert words == set(WORLD.words)
    states = WORLD.automaton().walk(prompts, responses)
    chosen = WORLD.automaton().ref_logps[states[:, :-1], responses.clamp(max=WORLD.end_token)]
    written = responses < WORLD.pad_token
    assert (chosen[written] <= torch.tensor(1.001e-4).log()).double().mean() < 0.01  # salad


def test_reviews_can_be_long_and_still_the_automaton_is_small():
    automaton = WORLD.automaton()
    assert len(automaton.successors) == 4_602 <= MOST_STATES
    assert automaton.horizon == 32 and automaton.rewards.shape == (12, 4_602, 49)
    assert WORLD.automaton() is automaton
    assert float(automaton.ref_logps.exp().min()) == pytest.approx(1e-4)


def test_the_reference_has_the_shares_of_the_spec(short_spec):
    world = LongReview(replace(short_spec, floor=1e-9))
    place = {word: i for i, word in enumerate(world.words)}
    logps = world.automaton().ref_logps

    def chance(text, word):
        tokens = torch.tensor([[place[w] for w in text.split()]]).long()
        state = world.automaton().walk(torch.tensor([0]), tokens.view(1, -1))[0, -1]
        return float(logps[state, place.get(word, world.end_token)].exp())

    assert chance("the", "tea") == pytest.approx(0.5, abs=1e-7)
    assert chance("the tea is", "not") == pytest.approx(0.2, abs=1e-7)
    assert chance("the tea is", "very") == pytest.approx(0.35, abs=1e-7)
    assert chance("the tea is", "hot") == pytest.approx(0.45 / 3, abs=1e-7)  # "good" weighs 2
    assert chance("the tea is not", "very") == pytest.approx(0.35, abs=1e-7)
    assert chance("the tea is hot", "end") == pytest.approx(0.35, abs=1e-7)
    assert chance("the tea is hot", "but") == pytest.approx(0.65 / 2, abs=1e-7)
    assert chance("the tea is hot and the", "tea") == pytest.approx(0.1 / 1.1, abs=1e-7)
    # After "but" praise is careless, unless it is negated.
    assert chance("the tea is hot but the cake is", "good") == pytest.approx(
        0.45 * 0.2 / (0.2 + 1), abs=1e-7
    )


def test_sizes_are_arguments(short_spec):
    assert LongReview(max_length=5).max_length == LongReview(max_length=5).automaton().horizon == 5
    world = gym.make("rlhf_toy/LongReview-v0", spec=short_spec, max_length=7).unwrapped
    assert world.n_words == 10 and world.n_prompts == 2 and world.max_length == 7
    assert world.fingerprint != LongReview(short_spec).fingerprint
    assert world.vocabulary != LongReview(short_spec).vocabulary
    changed = LongReview(replace(STAYS, contrast_cost=0.5))
    assert changed.vocabulary == WORLD.vocabulary and changed.fingerprint != WORLD.fingerprint


@pytest.mark.parametrize(
    "work",
    [
        lambda world: world.all_responses,
        lambda world: world.response_index(torch.zeros(1, 32).long()),
        lambda world: world.level_starts,
        lambda world: response_logps(table_reference(world), world),
        lambda world: state_logps(table_reference(world), world),
        lambda world: response_rewards(world),
    ],
)
def test_what_enumerates_refuses_at_once_where_there_is_too_much(work):
    with pytest.raises(ValueError, match=r"6\.4e\+53 responses to a prompt are too many"):
        work(LongReview())


def test_too_many_states_are_refused():
    aspects = {f"aspect{i}": {"good": 1, "bad": -1} for i in range(8)}
    with pytest.raises(ValueError, match="at most 10,000 states: name fewer aspects"):
        LongReview(replace(STAYS, aspects=aspects, importance={}, corpus_weights={}))
    with pytest.raises(TypeError, match="spec must be a LongSpec such as STAYS"):
        LongReview("STAYS")
    assert isinstance(STAYS, LongSpec)
