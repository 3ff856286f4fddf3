"""The hidden taste by hand, and the corpus that is written with it in mind."""

import pytest
import torch

from rlhf_toy.envs import PromptBandit, WordMDP
from rlhf_toy.envs.prompt_bandit import TASTE as BANDIT_TASTE
from rlhf_toy.envs.word_mdp import (
    ADJECTIVE_WEIGHTS,
    CONTRAST_COST,
    GRAMMAR_COST,
    INTENSITY,
    NEGATION,
    NOT_SHARE,
    REPETITION_COST,
    SILENCE_COST,
    TASTE,
    TASTE_OF_PROMPT,
    TWO_PHRASES,
    VERY_SHARE,
)
from rlhf_toy.training import make_generator

WORLD = WordMDP()
GOOD, GREAT, BAD, DULL = (TASTE[word] for word in ("good", "great", "bad", "dull"))
LONG_MEETING = TASTE_OF_PROMPT["meeting"]["long"]
LOUD_CONCERT = TASTE_OF_PROMPT["concert"]["loud"]

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
    ("nap", "dull"): TASTE_OF_PROMPT["nap"]["dull"],
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


def test_the_bandits_reward_is_the_table():
    bandit = PromptBandit()
    prompts = torch.arange(bandit.n_prompts).repeat_interleave(bandit.n_words)
    responses = torch.arange(bandit.n_words).repeat(bandit.n_prompts)[:, None]
    rewards = bandit.response_rewards(prompts, responses)
    assert rewards.tolist() == [reward for row in BANDIT_TASTE for reward in row]


def test_the_corpus_has_the_shares_that_stand_at_the_top():
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

    total = sum(ADJECTIVE_WEIGHTS.values())
    differing = 1 - sum((weight / total) ** 2 for weight in ADJECTIVE_WEIGHTS.values())
    odds = TWO_PHRASES * differing / (1 - TWO_PHRASES)  # an adjective is said once in a review
    single = share(is_single)
    assert 1 / single - 1 == pytest.approx(odds)
    assert share(is_single, lambda t: "very" in t) / single == pytest.approx(VERY_SHARE)
    assert share(is_single, lambda t: "not" in t) / single == pytest.approx(NOT_SHARE)
    for word, weight in ADJECTIVE_WEIGHTS.items():
        assert share(is_single, lambda t, w=word: w in t) / single == pytest.approx(weight / total)


def test_the_corpus_pays_no_cost():
    reviews, probabilities = WORLD.fluent_reviews
    for x, prompt in enumerate(WORLD.prompts):
        worth = TASTE | TASTE_OF_PROMPT[prompt]
        rewards = WORLD.response_rewards(torch.full((len(reviews),), x), reviews)
        for review, probability, reward in zip(reviews, probabilities[x], rewards, strict=True):
            if probability == 0:
                continue
            free, scale = 0.0, 1.0
            for word in WORLD.decode(review).split():
                scale *= {"very": INTENSITY, "not": NEGATION}.get(word, 1.0)
                if word in worth:
                    free, scale = free + scale * worth[word], 1.0
            assert float(reward) == pytest.approx(free, abs=1e-12)


@pytest.mark.parametrize("world", [WORLD, PromptBandit()], ids=["words", "bandit"])
def test_corpus_samples_follow_their_probabilities(world):
    n = 60_000
    prompts, responses = world.sample_corpus(n, make_generator(0))
    index = world.response_index(responses)
    if isinstance(world, WordMDP):
        reviews, table = world.fluent_reviews
        assert torch.allclose(table.sum(1), torch.ones(6, dtype=torch.float64))
        probabilities = torch.zeros(6, len(world.all_responses), dtype=torch.float64)
        probabilities[:, world.response_index(reviews)] = table
    else:
        from rlhf_toy.envs.prompt_bandit import HABITS

        probabilities = torch.tensor(HABITS, dtype=torch.float64).softmax(1)
    probabilities = probabilities / world.n_prompts
    Y = len(world.all_responses)
    counts = torch.bincount(prompts * Y + index, minlength=probabilities.numel()).view_as(
        probabilities
    )
    sigma = (n * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - n * probabilities).abs() <= 5 * sigma + 3).all()
    assert (counts[probabilities == 0] == 0).all()
