"""A word world as data: what it is about, its words, its grammar, its taste and its corpus.

To make another world, write another `WordSpec` and pass it to `WordMDP` or `SlipperyWordMDP`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

from rlhf_toy.checks import check_choice, check_number, check_settings, check_texts, freeze, shown

KINDS = ("adjectives", "intensifiers", "negations", "conjunctions")
# Which kind of word may follow which. "start" and "end" are the two ends of a review.
GRAMMAR = {
    "start": ("adjectives", "intensifiers", "negations"),
    "adjectives": ("conjunctions", "end"),
    "intensifiers": ("adjectives",),
    "negations": ("adjectives", "intensifiers"),
    "conjunctions": ("adjectives", "intensifiers", "negations"),
}


@dataclass(frozen=True, kw_only=True)
class WordSpec:
    """Everything that an instructor may want to change about a word world.

    Mappings can be given as dicts. They are stored as tuples of pairs, so that a spec can be
    hashed, copied and compared; `dict(spec.adjectives)` gives the dict back. To change a few
    fields, use `dataclasses.replace(REVIEWS, grammar_cost=2.0)`.

    Attributes:
        prompts: what a review can be about.
        adjectives: what each adjective is worth, in logits.
        intensifiers: words that multiply the worth of the next adjective by a factor above 0. If
            a phrase has several, the last one counts.
        negations: the same with a factor below 0, which turns praise into complaint.
        conjunctions: +1 for words like "and", which join two phrases of the same sign, −1 for words
            like "but", which join praise and complaint, or 0 for words that join any two.
        prompt_taste: for each prompt, the adjectives whose worth is different there, in logits.
            Prompts and adjectives that are not named keep the worth in `adjectives`.
        repetition_cost: for every adjective that was said before, in logits like all costs.
        grammar_cost: for every word that may not follow the word before it, and for a review that
            is cut off at the length limit where it may not end.
        contrast_cost: for a conjunction with the wrong sign.
        silence_cost: for a review without a word.
        grammar: for "start" and each kind of word, the kinds that may follow, and "end".
        corpus_weights: how often the corpus has each adjective; 1 where nothing is given. Only
            ratios matter.
        two_phrases: share of the corpus reviews with two phrases, before those that repeat an
            adjective, break the grammar or are too long are left out.
        intensified, negated: shares of the corpus phrases with an intensifier, with a negation.
        max_length: largest number of words in a review, unless the world is given another.

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: no prompt or no word of some kind, a word twice or with a blank in it, an
            unknown prompt, adjective or kind, a number out of range, or a grammar without an end.
    """

    prompts: Sequence[str]
    adjectives: Mapping[str, float]
    intensifiers: Mapping[str, float]
    negations: Mapping[str, float]
    conjunctions: Mapping[str, float]
    prompt_taste: Mapping[str, Mapping[str, float]] = ()
    repetition_cost: float = 1.0
    grammar_cost: float = 1.2
    contrast_cost: float = 0.6
    silence_cost: float = 1.2
    grammar: Mapping[str, Sequence[str]] = tuple(GRAMMAR.items())
    corpus_weights: Mapping[str, float] = ()
    two_phrases: float = 0.6
    intensified: float = 0.3
    negated: float = 0.25
    max_length: int = 5

    def __post_init__(self) -> None:
        freeze(self, check_texts, "prompts")
        freeze(self, checked_numbers, "adjectives", "conjunctions")
        freeze(self, checked_numbers, "intensifiers", above=0)
        freeze(self, checked_numbers, "negations", below=0)
        for kind in KINDS:
            check_texts(kind, [word for word, _ in getattr(self, kind)])
        for word, sign in self.conjunctions:
            if sign not in (-1, 0, 1):
                raise ValueError(f"conjunctions[{word!r}] must be -1, 0 or 1, got {sign}")
        check_texts("words", self.words)
        if " ".join(self.words).split() != list(self.words):
            raise ValueError(f"words must not contain blanks, got {shown(self.words)}")

        adjectives = dict(self.adjectives)
        freeze(self, checked_tables, "prompt_taste", keys=self.prompts, known=adjectives)
        freeze(self, checked_numbers, "corpus_weights", known=adjectives, above=0)
        share = {"low": 0, "high": 1}
        freeze_numbers(self, two_phrases=share, intensified=share, negated=share)

        grammar = checked_mapping("grammar", self.grammar, ("start", *KINDS))
        for kind, following in grammar.items():
            grammar[kind] = check_texts(f"grammar[{kind!r}]", following)
            for after in following:
                check_choice(f"grammar[{kind!r}]", after, (*KINDS, "end"))
        reached = {"start"}
        for _ in grammar:
            reached |= {after for before in reached for after in grammar.get(before, ())}
        if "end" not in reached:
            raise ValueError(f"grammar must lead from 'start' to 'end', got {shown(grammar)}")
        object.__setattr__(self, "grammar", tuple(grammar.items()))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words, kind by kind; a word's place is its token id."""
        return tuple(word for kind in KINDS for word, _ in getattr(self, kind))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each word, in the order of `words`."""
        return tuple(kind for kind in KINDS for _ in getattr(self, kind))

    def is_grammatical(self, kinds: Sequence[str]) -> bool:
        """Whether a review with these kinds of words breaks no rule of the grammar."""
        follows = dict(self.grammar)
        return all(b in follows.get(a, ()) for a, b in pairwise(("start", *kinds, "end")))


def freeze_numbers(spec: Any, **limits: Mapping[str, float]) -> None:
    """Check a spec's numbers by `check_settings`, costs from 0 on, and make its floats floats."""
    costs = {field.name: {"low": 0} for field in fields(spec) if field.name.endswith("cost")}
    check_settings(spec, **costs, **limits)
    floats = [field.name for field in fields(spec) if field.type == "float"]
    freeze(spec, lambda name, value: float(value), *floats)


def checked_mapping(name: str, value: Any, known: Collection[str] | None = None) -> dict[str, Any]:
    """A mapping, or the pairs of one, as a new dict; raises unless its keys are known."""
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a mapping such as a dict, got {shown(value)}") from None
    for key in pairs if known else ():
        check_choice(f"each key of {name}", key, known)
    return pairs


def checked_numbers(
    name: str, value: Any, known: Collection[str] | None = None, **limits: float
) -> tuple[tuple[str, float], ...]:
    """A mapping to numbers as a tuple of pairs; raises unless all are finite and within limits."""
    pairs = checked_mapping(name, value, known)
    for key, number in pairs.items():
        check_number(f"{name}[{key!r}]", number, **limits)
    return tuple((key, float(number)) for key, number in pairs.items())


def checked_tables(
    name: str, value: Any, keys: Collection[str] | None = None, **limits: Any
) -> tuple[tuple[str, Any], ...]:
    """A mapping of `keys` to mappings to numbers as a tuple of pairs, see `checked_numbers`."""
    tables = checked_mapping(name, value, keys)
    for key, table in tables.items():
        tables[key] = checked_numbers(f"{name}[{key!r}]", table, **limits)
    return tuple(tables.items())


REVIEWS = WordSpec(
    prompts=("film", "concert", "library", "holiday", "meeting", "nap"),
    adjectives={"good": 0.5, "great": 1.2, "bad": -1.0, "dull": -0.6, "long": 0.0, "loud": 0.0},
    intensifiers={"very": 1.5},
    negations={"not": -0.5},
    conjunctions={"and": 1, "but": -1},
    prompt_taste={
        "film": {"long": -0.3, "loud": 0.3},
        "concert": {"long": 0.6, "loud": 1.0},
        "library": {"long": 0.3, "loud": -1.2},
        "holiday": {"long": 1.0, "loud": -0.6},
        "meeting": {"long": -1.2, "loud": -0.3},
        "nap": {"long": 1.0, "loud": -1.2, "dull": 0.3},
    },
    corpus_weights={"good": 4, "great": 2, "bad": 3, "dull": 3, "long": 3, "loud": 3},
)
