"""The long world as data: frozen, complete, and refused in plain words where it makes no sense."""

import math
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from rlhf_toy.envs import STAYS, LongSpec


def test_the_stays_have_48_words_and_a_dozen_prompts():
    assert len(STAYS.words) == len(set(STAYS.words)) == 48
    assert len(STAYS.prompts) == 12 and STAYS.max_length == 32
    assert STAYS.words[:9] == ("the", "its", "room", "bed", "staff", "food", "view", "price", "is")
    assert sum(map(len, STAYS.words_by_kind.values())) == 48


def test_a_few_lines_are_a_spec_that_is_stored_as_tuples(short_spec):
    assert " ".join(short_spec.words) == "the tea cake is very not and but good hot"
    assert dict(dict(short_spec.aspects)["tea"]) == {"good": 0.5, "hot": 1.0}
    assert dict(short_spec.conjunctions) == {"and": 1.0, "but": -1.0}


def test_a_spec_cannot_be_changed_and_can_be_hashed_and_pickled(short_spec):
    with pytest.raises(FrozenInstanceError):
        short_spec.floor = 0.1
    for twin in (pickle.loads(pickle.dumps(short_spec)), replace(short_spec)):
        assert twin == short_spec and hash(twin) == hash(short_spec)
    assert replace(short_spec, floor=0.001) != short_spec


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("prompts", (), ValueError, "prompts must hold at least one text"),
        ("aspects", ["tea"], TypeError, "aspects must be a mapping such as a dict"),
        ("aspects", {"tea": {}}, ValueError, r"aspects\['tea'\] must hold at least one text"),
        ("aspects", {"tea": {"hot": math.nan}}, ValueError, "must be a finite number, got nan"),
        ("aspects", {"tea": {"so so": 1}}, ValueError, "words must not contain blanks"),
        ("aspects", {"tea": {"very": 1}}, ValueError, "'very' is empty or given twice"),
        ("verbs", "is", TypeError, "verbs must be a tuple or list of texts"),
        ("intensifiers", {"very": 0}, ValueError, "must be a finite number above 0, got 0"),
        ("intensifiers", {}, ValueError, "intensifiers must hold at least one text"),
        ("negations", {"not": 1}, ValueError, "must be a finite number below 0, got 1"),
        ("conjunctions", {"and": 2}, ValueError, "at least -1 and at most 1, got 2"),
        ("importance", {"opera": {}}, ValueError, "each key of importance must be one of"),
        ("importance", {"breakfast": {"tea": 0}}, ValueError, "must be a finite number above 0"),
        ("importance", {"breakfast": {"jam": 1}}, ValueError, "must be one of 'tea', 'cake'"),
        ("corpus_weights", {"cold": 1}, ValueError, "must be one of 'good', 'hot'"),
        ("grammar_cost", -1, ValueError, "grammar_cost must be a finite number at least 0, got -1"),
        ("ended", 0, ValueError, "ended must be a finite number above 0 and at most 1, got 0"),
        ("careless", 0, ValueError, "careless must be a finite number above 0"),
        ("floor", 0, ValueError, "floor must be a finite number above 0 and below 0.0909"),
        ("floor", 0.1, ValueError, "floor must be a finite number above 0 and below 0.0909"),
        ("negated", 0.7, ValueError, "must add up to less than 1, got 0.35 and 0.7"),
        ("max_length", 0, ValueError, "max_length must be an integer of at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused_in_words(short_spec, name, value, error, words):
    with pytest.raises(error, match=words):
        replace(short_spec, **{name: value})


def test_a_spec_needs_every_kind_of_word():
    with pytest.raises(TypeError):
        LongSpec(prompts=("tea",), aspects={"tea": {"hot": 1}}, determiners=("the",))
