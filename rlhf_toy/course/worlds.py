"""The worlds that the command line knows by name.

To add one, write a `WordSpec` here; no file of the core changes. `python -m rlhf_toy tour --world
NAME` runs everything in it. Keep the number of responses, n_words⁰ + n_words¹ + … up to the length
limit, below about 200,000, because exact results enumerate them. A `LongSpec` has no such limit.
"""

from rlhf_toy.envs import REVIEWS, STAYS, LongReview, LongSpec, TextWorld, WordMDP, WordSpec

# What guests write about their food: 14 words, at most 4 of them in a review, 41,371 responses.
DISHES = WordSpec(
    prompts=("soup", "curry", "salad", "cake"),
    adjectives={
        "tasty": 0.8,
        "delicious": 1.3,
        "bland": -0.9,
        "burnt": -1.4,
        "fresh": 0.4,
        "hot": 0.0,
        "sweet": 0.0,
        "crisp": 0.0,
        "oily": -0.5,
    },
    intensifiers={"really": 1.6, "slightly": 0.5},
    negations={"hardly": -0.4},
    conjunctions={"and": 1, "yet": -1},
    prompt_taste={
        "soup": {"hot": 1.0, "sweet": -0.8, "crisp": -0.6},
        "curry": {"hot": 0.7, "sweet": 0.2, "crisp": -0.3, "oily": -0.2},
        "salad": {"hot": -1.2, "crisp": 1.0, "fresh": 0.9},
        "cake": {"hot": -0.3, "sweet": 0.9, "crisp": 0.2},
    },
    repetition_cost=0.8,
    grammar_cost=1.0,
    corpus_weights={"tasty": 4, "delicious": 2, "burnt": 2, "fresh": 3, "oily": 2},
    negated=0.2,
    max_length=4,
)

WORLDS = {"reviews": REVIEWS, "dishes": DISHES, "long": STAYS}


def make_world(name: str) -> TextWorld:
    """Return the world of this name; a KeyError if there is none."""
    spec = WORLDS[name]
    return LongReview(spec) if isinstance(spec, LongSpec) else WordMDP(spec)


def beta_for(world: TextWorld) -> float:
    """Return the KL weight to use: less where a review is long, since its KL is larger still."""
    return 0.1 if isinstance(world, LongReview) else 0.5
