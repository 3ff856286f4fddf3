"""The long world as data: what its reviews are about, its words, its taste and its corpus.

To make another world, write another `LongSpec` and pass it to `LongReview`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_toy.checks import check_texts, freeze, shown
from rlhf_toy.envs.word_spec import checked_numbers, checked_tables, freeze_numbers

KINDS = (
    "determiners", "aspects", "verbs", "intensifiers", "negations", "conjunctions", "adjectives",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LongSpec:
    """Everything that an instructor may want to change about the long world.

    A review is a row of clauses such as "the room is not very clean", joined by conjunctions.
    Mappings can be given as dicts and are stored as tuples of pairs, as in `WordSpec`.

    Attributes:
        prompts: what a review can be about.
        aspects: for each aspect of it, the adjectives that make sense there, and what each is
            worth, in logits.
        importance: for each prompt, factors above 0 by which an aspect's adjectives count more or
            less; 1 where nothing is given.
        determiners, verbs: words that a clause needs and that are worth nothing.
        intensifiers: words that multiply the worth of the next adjective by a factor above 0.
        negations: the same with a factor below 0, which turns praise into complaint.
        conjunctions: +1 for words like "and", which join clauses of the same sign, −1 for words
            like "but", which join praise and complaint, or 0 for words that join any two.
        grammar_cost: for each word that may not stand where it stands, in logits like all costs.
        repetition_cost: for each clause about an aspect that an earlier clause was about.
        nonsense_cost: for an adjective that makes no sense for the aspect.
        contrast_cost: for a clause whose sign is not what the conjunction promises.
        unfinished_cost: for a review that ends, or is cut off, before its clause is complete.
        corpus_weights: how often the corpus has each adjective; 1 where nothing is given. Only
            ratios matter.
        intensified, negated: shares of the corpus clauses with an intensifier, with a negation.
        ended: share of the corpus clauses that are the last.
        careless: how often the corpus repeats an aspect or takes an adjective of the wrong sign,
            as a factor on the word's weight.
        floor: least probability of every word in the reference, so that no KL to it is infinite.
        max_length: largest number of words in a review, unless the world is given another.

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: no word of some kind, a word twice or with a blank in it, an unknown prompt,
            aspect or adjective, a number out of range, or a floor that leaves no room.
    """

    prompts: Sequence[str]
    aspects: Mapping[str, Mapping[str, float]]
    determiners: Sequence[str]
    verbs: Sequence[str]
    intensifiers: Mapping[str, float]
    negations: Mapping[str, float]
    conjunctions: Mapping[str, float]
    importance: Mapping[str, Mapping[str, float]] = ()
    grammar_cost: float = 1.0
    repetition_cost: float = 2.5
    nonsense_cost: float = 1.0
    contrast_cost: float = 1.0
    unfinished_cost: float = 2.0
    corpus_weights: Mapping[str, float] = ()
    intensified: float = 0.35
    negated: float = 0.2
    ended: float = 0.35
    careless: float = 0.1
    floor: float = 1e-4
    max_length: int = 32

    def __post_init__(self) -> None:
        freeze(self, check_texts, "prompts", "determiners", "verbs")
        freeze(self, checked_tables, "aspects")
        for aspect, worths in self.aspects:
            check_texts(f"aspects[{aspect!r}]", [word for word, _ in worths])
        freeze(self, checked_numbers, "intensifiers", above=0)
        freeze(self, checked_numbers, "negations", below=0)
        freeze(self, checked_numbers, "conjunctions", low=-1, high=1)
        for kind in KINDS:
            check_texts(kind, self.words_by_kind[kind])
        check_texts("words", self.words)
        if " ".join(self.words).split() != list(self.words):
            raise ValueError(f"words must not contain blanks, got {shown(self.words)}")

        aspects, adjectives = (self.words_by_kind[kind] for kind in ("aspects", "adjectives"))
        freeze(self, checked_tables, "importance", keys=self.prompts, known=aspects, above=0)
        freeze(self, checked_numbers, "corpus_weights", known=adjectives, above=0)
        ranges = {"intensified": {"low": 0, "below": 1}, "negated": {"low": 0, "below": 1}}
        ranges["ended"] = ranges["careless"] = {"above": 0, "high": 1}
        freeze_numbers(self, floor={"above": 0, "below": 1 / (len(self.words) + 1)}, **ranges)
        if self.intensified + self.negated >= 1:
            got = f"{self.intensified} and {self.negated}"
            raise ValueError(f"intensified and negated must add up to less than 1, got {got}")

    @cached_property
    def words_by_kind(self) -> dict[str, tuple[str, ...]]:
        """The words of each of the KINDS, each adjective once."""
        adjectives = {word: None for _, worths in self.aspects for word, _ in worths}
        words = {kind: getattr(self, kind) for kind in ("determiners", "verbs")}
        for kind in ("aspects", "intensifiers", "negations", "conjunctions"):
            words[kind] = tuple(word for word, _ in getattr(self, kind))
        return words | {"adjectives": tuple(adjectives)}

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words, kind by kind; a word's place is its token id."""
        return tuple(word for kind in KINDS for word in self.words_by_kind[kind])


STAYS = LongSpec(
    prompts=(
        "hotel", "hostel", "motel", "campsite", "cottage", "houseboat", "castle", "spa", "cruise",
        "cabin", "igloo", "treehouse",
    ),
    aspects={
        "room": {
            "good": 0.6, "great": 1.0, "bad": -0.6, "awful": -1.2, "clean": 1.0, "dirty": -1.2,
            "large": 0.5, "small": -0.4, "quiet": 0.8, "loud": -0.9, "cosy": 0.8, "cold": -0.7,
        },
        "bed": {
            "good": 0.6, "great": 1.0, "bad": -0.6, "awful": -1.2, "clean": 0.8, "dirty": -1.4,
            "large": 0.5, "small": -0.5, "soft": 0.9, "hard": -0.8, "warm": 0.6, "cold": -0.6,
        },
        "staff": {
            "good": 0.6, "great": 1.0, "bad": -0.6, "awful": -1.2, "friendly": 1.1, "rude": -1.3,
            "helpful": 1.0, "slow": -0.6, "quick": 0.6, "loud": -0.5,
        },
        "food": {
            "good": 0.6, "great": 1.0, "bad": -0.6, "awful": -1.2, "tasty": 1.1, "bland": -0.7,
            "fresh": 0.9, "stale": -1.1, "warm": 0.4, "cold": -0.6,
        },
        "view": {
            "good": 0.6, "great": 1.0, "bad": -0.6, "awful": -1.2, "pretty": 0.9, "dull": -0.6,
        },
        "price": {
            "good": 0.7, "great": 1.0, "bad": -0.6, "awful": -1.2, "fair": 0.8, "high": -0.8,
            "low": 1.0,
        },
    },
    importance={
        "hotel": {"staff": 1.3, "view": 0.6},
        "hostel": {"price": 1.6, "room": 0.6, "view": 0.4},
        "motel": {"price": 1.4, "bed": 1.3, "view": 0.3},
        "campsite": {"view": 1.4, "bed": 0.4, "room": 0.3},
        "cottage": {"room": 1.3, "staff": 0.4},
        "houseboat": {"view": 1.6, "food": 0.5},
        "castle": {"room": 1.4, "view": 1.3, "price": 0.4},
        "spa": {"staff": 1.5, "bed": 1.2, "price": 0.5},
        "cruise": {"food": 1.6, "staff": 1.2, "room": 0.6},
        "cabin": {"bed": 1.3, "food": 0.6, "staff": 0.5},
        "igloo": {"bed": 1.7, "view": 1.2, "price": 0.6},
        "treehouse": {"view": 1.7, "room": 0.8, "food": 0.4},
    },
    determiners=("the", "its"),
    verbs=("is", "was"),
    intensifiers={"very": 1.5, "really": 1.5, "rather": 0.5, "slightly": 0.5},
    negations={"not": -0.6, "hardly": -0.6},
    conjunctions={"and": 1, "but": -1, "yet": -1},
    corpus_weights={"good": 2, "bad": 2, "great": 0.5, "awful": 0.5},
)  # fmt: skip
