"""The hidden taste by hand, and the corpus that is written with it in mind."""

from dataclasses import replace

import pytest
import torch

from rlhf_toy.course.worlds import DISHES
from rlhf_toy.envs import REVIEWS, SlipperyWordMDP, WordMDP
from rlhf_toy.envs.word_spec import GRAMMAR
from rlhf_toy.exact import response_rewards
from rlhf_toy.training import make_generator

WORLD, DINNER = WordMDP(), WordMDP(DISHES)
WORTH = dict(REVIEWS.adjectives)
GOOD, GREAT, BAD, DULL = (WORTH[word] for word in ("good", "great", "bad", "dull"))
PROMPT_TASTE = {prompt: dict(taste) for prompt, taste in REVIEWS.prompt_taste}
LONG_MEETING = PROMPT_TASTE["meeting"]["long"]
LOUD_CONCERT = PROMPT_TASTE["concert"]["loud"]
INTENSITY, NEGATION = dict(REVIEWS.intensifiers)["very"], dict(REVIEWS.negations)["not"]
GRAMMAR_COST, REPETITION_COST = REVIEWS.grammar_cost, REVIEWS.repetition_cost
CONTRAST_COST, SILENCE_COST = REVIEWS.contrast_cost, REVIEWS.silence_cost

BY_HAND = {
    # praise and complaint, intensity, negation
    ("film", "great"): GREAT,
    ("film", "dull"): DULL,
    ("film", "very good"): INTENSITY * GOOD,
    ("film", "not bad"): NEGATION * BAD,
    ("film", "not very bad"): NEGATION * INTENSITY * BAD,
    # what depends on the prompt
    ("meeting", "long"): LONG_MEETING,
    ("meeting", "not long"): NEGATION * LONG_MEETING,
    ("concert", "very loud"): INTENSITY * LOUD_CONCERT,
    ("nap", "dull"): PROMPT_TASTE["nap"]["dull"],
    # phrases that fit together, and that do not
    ("film", "good and great"): GOOD + GREAT,
    ("film", "good but dull"): GOOD + DULL,
    ("film", "good but great"): GOOD + GREAT - CONTRAST_COST,
    ("film", "good and dull"): GOOD + DULL - CONTRAST_COST,
    ("film", "not bad and good"): NEGATION * BAD + GOOD,
    ("concert", "loud and good"): LOUD_CONCERT + GOOD,
    ("film", "not good and very great"): NEGATION * GOOD + INTENSITY * GREAT - CONTRAST_COST,
    # repetition
    ("film", "good and good"): 2 * GOOD - REPETITION_COST,
    ("film", "good and good and good"): 3 * GOOD - 2 * REPETITION_COST,
    ("film", "very good and very great"): INTENSITY * (GOOD + GREAT),
    # broken grammar: each word that may not follow the one before it
    ("film", "good great"): GOOD + GREAT - GRAMMAR_COST,
    ("film", "and good"): GOOD - GRAMMAR_COST,
    ("film", "very very good"): INTENSITY * GOOD - GRAMMAR_COST,
    ("film", "very and good"): GOOD - GRAMMAR_COST,  # a conjunction ends the phrase
    ("film", "good and great dull"): GOOD + GREAT + DULL - GRAMMAR_COST,  # nothing joins the last
    ("film", "very not good"): NEGATION * INTENSITY * GOOD - GRAMMAR_COST,
    ("film", "good and but great"): GOOD + GREAT - GRAMMAR_COST - CONTRAST_COST,
    # an end that dangles, before the length limit and at it
    ("film", "very"): -GRAMMAR_COST,
    ("film", "good and"): GOOD - GRAMMAR_COST,
    ("film", "good and great and very"): GOOD + GREAT - GRAMMAR_COST,
    ("film", "great great great great great"): 5 * GREAT - 4 * (GRAMMAR_COST + REPETITION_COST),
    ("film", ""): -SILENCE_COST,
}


@pytest.mark.parametrize(("prompt", "text"), BY_HAND)
def test_the_reward_is_what_the_rules_give_by_hand(prompt, text):
    x = torch.tensor([WORLD.prompt_index(prompt)])
    reward = WORLD.response_rewards(x, WORLD.encode(text)[None])
    assert float(reward[0]) == pytest.approx(BY_HAND[prompt, text], abs=1e-12)


def test_following_each_rule_pays_more_than_breaking_it():
    def reward(text, prompt="film"):
        x = torch.tensor([WORLD.prompt_index(prompt)])
        return float(WORLD.response_rewards(x, WORLD.encode(text)[None]))

    good = reward("good")
    assert reward("very good") > good > 0 > reward("not good")  # intensity and negation
    assert reward("good and great") > reward("good great")  # grammar
    assert reward("good and great") > reward("good but great")  # contrast
    assert 2 * good > reward("good and good")  # repetition
    assert reward("") < 0  # silence
    assert reward("long", "nap") > reward("long", "meeting")  # the prompt decides


@pytest.mark.parametrize(
    ("prompt", "text", "reward"),
    [
        ("soup", "delicious", 1.3),
        ("soup", "slightly hot", 0.5 * 1.0),
        ("salad", "really hot", 1.6 * -1.2),
        ("cake", "hardly really sweet", -0.4 * 1.6 * 0.9),
        ("soup", "really slightly hot", 0.5 * 1.0 - 1.0),  # of two intensifiers the last counts
        ("curry", "oily yet hot", -0.2 + 0.7),
        ("curry", "oily and hot", -0.2 + 0.7 - 0.6),
        ("soup", "tasty and tasty", 2 * 0.8 - 0.8),
        ("soup", "tasty and really", 0.8 - 1.0),
        ("soup", "", -1.2),
    ],
)
def test_another_spec_gives_the_rewards_of_its_own_numbers(prompt, text, reward):
    x = torch.tensor([DINNER.prompt_index(prompt)])
    got = DINNER.response_rewards(x, DINNER.encode(text)[None])
    assert float(got[0]) == pytest.approx(reward, abs=1e-12)


def test_another_grammar_decides_what_costs_and_what_the_corpus_says():
    grammar = GRAMMAR | {"start": ("negations",), "negations": ("intensifiers",)}
    grammar["intensifiers"] = ("adjectives", "end")
    world = WordMDP(replace(REVIEWS, grammar=grammar, prompt_taste={}))
    costs = {"not very bad": 0, "very bad": 1, "not bad": 1, "not very": 0, "bad and bad": 1}
    x = torch.zeros(1, dtype=torch.long)
    free = WordMDP(replace(world.world_spec, grammar_cost=0.0))
    for text, times in costs.items():
        y = world.encode(text)[None]
        paid = free.response_rewards(x, y) - world.response_rewards(x, y)
        assert float(paid) == pytest.approx(times * GRAMMAR_COST, abs=1e-12)
    texts = {world.decode(review) for review in world.fluent_reviews[0]}
    assert "not very bad" in texts
    assert "not very bad and dull" in texts  # the grammar still allows a plain second phrase
    assert all(text.startswith("not very ") for text in texts)


@pytest.mark.parametrize(
    ("spec", "max_length"),
    [
        (replace(REVIEWS, grammar=GRAMMAR | {"start": ("negations",)}), 1),
        (replace(DISHES, two_phrases=1.0), 2),
        (replace(REVIEWS, grammar=GRAMMAR | {"start": ("intensifiers",)}, intensified=0.0), 5),
    ],
)
def test_a_corpus_without_a_review_says_what_to_change(spec, max_length):
    with pytest.raises(ValueError, match=r"no review of the corpus.*change the grammar"):
        WordMDP(spec, max_length=max_length).sample_corpus(3, make_generator(0))


def test_the_best_and_the_number_of_responses_follow_the_spec():
    rewards = response_rewards(DINNER)
    assert rewards.shape == (4, 41_371)
    best = [DINNER.decode(DINNER.all_responses[int(row.argmax())]) for row in rewards]
    assert set(best[0].split()) == {"hot", "and", "really", "delicious"}
    assert len(set(best)) == 4
    assert DINNER.max_length == 4 and WordMDP(DISHES, max_length=2).max_length == 2


def test_the_corpus_has_the_shares_of_the_spec():
    world = WordMDP(max_length=7)  # the longest review of the grammar has seven words
    reviews, probabilities = world.fluent_reviews
    texts = [world.decode(review).split() for review in reviews]
    chance = probabilities[0].tolist()

    def share(*conditions):
        return sum(
            p for p, text in zip(chance, texts, strict=True) if all(c(text) for c in conditions)
        )

    def is_single(text):
        return not {"and", "but"} & set(text)

    weights = dict(REVIEWS.corpus_weights)
    total = sum(weights.values())
    differing = 1 - sum((weight / total) ** 2 for weight in weights.values())
    two = REVIEWS.two_phrases
    odds = two * differing / (1 - two)  # a review has each adjective at most once
    single = share(is_single)
    assert 1 / single - 1 == pytest.approx(odds)
    assert share(is_single, lambda t: "very" in t) / single == pytest.approx(REVIEWS.intensified)
    assert share(is_single, lambda t: "not" in t) / single == pytest.approx(REVIEWS.negated)
    for word, weight in weights.items():
        assert share(is_single, lambda t, w=word: w in t) / single == pytest.approx(weight / total)


def test_a_conjunction_without_a_sign_joins_any_two_phrases():
    world = WordMDP(replace(DISHES, conjunctions={"and": 1, "yet": -1, "plus": 0}))
    x = torch.zeros(1, dtype=torch.long)
    for second, fitting in (("fresh", "and"), ("oily", "yet")):
        texts = [f"tasty {joint} {second}" for joint in (fitting, "plus")]
        rewards = [world.response_rewards(x, world.encode(text)[None]) for text in texts]
        assert torch.equal(*rewards)
    reviews, chances = world.fluent_reviews
    said = {world.decode(y): p for y, p in zip(reviews, chances[0].tolist(), strict=True)}
    assert said["tasty plus fresh"] > 0 and said["tasty plus oily"] > 0


def test_several_modifiers_share_their_part_of_the_corpus():
    reviews, probabilities = DINNER.fluent_reviews
    texts = [DINNER.decode(review) for review in reviews]
    chance = dict(zip(texts, probabilities[0].tolist(), strict=True))
    assert chance["really hot"] == pytest.approx(chance["slightly hot"])
    modified = DISHES.intensified / (1 - DISHES.intensified)
    assert chance["really hot"] / chance["hot"] == pytest.approx(modified / 2)
    assert chance["tasty"] / chance["bland"] == pytest.approx(4)  # no weight is a weight of 1


@pytest.mark.parametrize("world", [WORLD, DINNER], ids=["reviews", "dishes"])
def test_the_corpus_pays_no_cost(world):
    spec = world.world_spec
    factors = dict(spec.intensifiers) | dict(spec.negations)
    reviews, probabilities = world.fluent_reviews
    for x, prompt in enumerate(world.prompts):
        worth = dict(spec.adjectives) | dict(dict(spec.prompt_taste).get(prompt, ()))
        rewards = world.response_rewards(torch.full((len(reviews),), x), reviews)
        for review, probability, reward in zip(reviews, probabilities[x], rewards, strict=True):
            if probability == 0:
                continue
            free, scale = 0.0, 1.0
            for word in world.decode(review).split():
                scale *= factors.get(word, 1.0)
                if word in worth:
                    free, scale = free + scale * worth[word], 1.0
            assert float(reward) == pytest.approx(free, abs=1e-12)


@pytest.mark.parametrize("world", [WORLD, DINNER], ids=["reviews", "dishes"])
def test_corpus_samples_follow_their_probabilities(world):
    n, X, Y = 60_000, world.n_prompts, len(world.all_responses)
    prompts, responses = world.sample_corpus(n, make_generator(0))
    reviews, table = world.fluent_reviews
    assert torch.allclose(table.sum(1), torch.ones(X, dtype=torch.float64))
    probabilities = torch.zeros(X, Y, dtype=torch.float64)
    probabilities[:, world.response_index(reviews)] = table / X
    index = prompts * Y + world.response_index(responses)
    counts = torch.bincount(index, minlength=X * Y).view(X, Y)
    sigma = (n * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - n * probabilities).abs() <= 5 * sigma + 3).all()
    assert (counts[probabilities == 0] == 0).all()


def test_the_word_world_has_as_many_responses_as_strings_of_up_to_five_words():
    assert WORLD.all_responses.shape == (111_111, 5)
    assert (WORLD.n_prompts, WORLD.n_actions) == (6, 11)
    assert WORLD.pad_token != WORLD.end_token


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


def test_a_slippery_world_takes_a_spec_too():
    slippery = SlipperyWordMDP(0.2, DISHES, max_length=2)
    assert slippery.words == DINNER.words and slippery.transition_probabilities.shape == (15, 15)
    assert torch.equal(response_rewards(slippery), response_rewards(WordMDP(DISHES, max_length=2)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WordMDP(3), TypeError, "spec must be a WordSpec such as REVIEWS, got 3"),
        (lambda: WordMDP({"prompts": ("film",)}), TypeError, "spec must be a WordSpec"),
        (lambda: WordMDP(max_length=0), ValueError, "max_length must be an integer of at least 1"),
        (lambda: WordMDP(max_length=2.0), TypeError, "max_length must be an integer, got 2.0"),
        (lambda: WordMDP(render_mode="human"), ValueError, "render_mode must be None or 'ansi'"),
        (lambda: SlipperyWordMDP(slip=1.1), ValueError, "slip must be a finite number.*got 1.1"),
        (lambda: SlipperyWordMDP(slip=float("nan")), ValueError, "slip must be.*got nan"),
        (lambda: SlipperyWordMDP(slip="0.1"), TypeError, "slip must be a number, got '0.1'"),
        (lambda: SlipperyWordMDP(slip=None), TypeError, "slip must be a number, got None"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
