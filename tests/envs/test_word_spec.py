"""A word world as data: frozen, complete, and refused in plain words where it makes no sense."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from rlhf_toy.envs import REVIEWS, WordSpec
from rlhf_toy.envs.word_spec import GRAMMAR

NAN = float("nan")


def test_a_few_lines_are_a_spec():
    spec = WordSpec(
        prompts=["tea"],
        adjectives={"warm": 1, "cold": -1},
        intensifiers={"so": 2},
        negations={"un": -1},
        conjunctions={"or": 1},
    )
    assert spec.words == ("warm", "cold", "so", "un", "or")
    assert spec.kinds == ("adjectives",) * 2 + ("intensifiers", "negations", "conjunctions")
    assert dict(spec.adjectives) == {"warm": 1.0, "cold": -1.0}
    assert dict(spec.grammar) == GRAMMAR and spec.max_length == 5


def test_words_keep_the_order_that_token_ids_depend_on():
    assert " ".join(REVIEWS.words) == "good great bad dull long loud very not and but"


def test_a_spec_cannot_be_changed_and_can_be_hashed_copied_and_pickled():
    given = {"good": 1.0, "bad": -1.0}
    spec = replace(REVIEWS, adjectives=given, prompt_taste={}, corpus_weights={})
    given["good"] = 7.0
    assert dict(spec.adjectives)["good"] == 1.0
    with pytest.raises(FrozenInstanceError):
        spec.grammar_cost = 0.0
    for twin in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec)), replace(spec)):
        assert twin == spec and hash(twin) == hash(spec)
    assert replace(REVIEWS, grammar_cost=2) != REVIEWS


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["adjectives"], True),
        (["negations", "intensifiers", "adjectives", "conjunctions", "adjectives"], True),
        (["adjectives", "adjectives"], False),
        (["adjectives", "conjunctions"], False),
        (["conjunctions", "adjectives"], False),
        ([], False),
    ],
)
def test_the_grammar_says_what_is_a_review(kinds, expected):
    assert REVIEWS.is_grammatical(kinds) == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": ()}, ValueError, "prompts must hold at least one text"),
        ({"prompts": "film"}, TypeError, "prompts must be a tuple or list of texts, got 'film'"),
        ({"prompts": ("film", "film")}, ValueError, "'film' is empty or given twice"),
        ({"prompts": ("film", "")}, ValueError, "'' is empty or given twice"),
        ({"prompts": ("film", 3)}, TypeError, "prompts must be a tuple or list of texts"),
        ({"adjectives": {}}, ValueError, "adjectives must hold at least one text"),
        ({"intensifiers": {}}, ValueError, "intensifiers must hold at least one text"),
        ({"negations": {}}, ValueError, "negations must hold at least one text"),
        ({"conjunctions": {}}, ValueError, "conjunctions must hold at least one text"),
        ({"adjectives": ("good", "bad")}, TypeError, "adjectives must be a mapping such as a dict"),
        ({"adjectives": None}, TypeError, "adjectives must be a mapping such as a dict, got None"),
        ({"adjectives": {"good": "1"}}, TypeError, r"adjectives\['good'\] must be a number"),
        (
            {"adjectives": {"good": NAN}},
            ValueError,
            r"adjectives\['good'\] must be a finite",
        ),
        ({"intensifiers": {"good": 1.5}}, ValueError, "words.*'good' is empty or given twice"),
        ({"intensifiers": {"a bit": 0.5}}, ValueError, "words must not contain blanks"),
        ({"intensifiers": {"very": 0}}, ValueError, "above 0, got 0"),
        ({"negations": {"not": 0.5}}, ValueError, "below 0, got 0.5"),
        ({"negations": {3: -0.5}}, TypeError, "negations must be a tuple or list of texts"),
        ({"conjunctions": {"and": "1"}}, TypeError, r"conjunctions\['and'\] must be a number"),
        ({"conjunctions": {"and": NAN}}, ValueError, "must be a finite number, got nan"),
        *(
            (
                {"conjunctions": {"but": -1, "and": sign}},
                ValueError,
                rf"conjunctions\['and'\] must be -1, 0 or 1, got {float(sign)}$",
            )
            for sign in (2, -2, 0.5, -0.5)
        ),
        (
            {"prompt_taste": {"opera": {}}},
            ValueError,
            "key of prompt_taste must be one of",
        ),
        ({"prompt_taste": {"film": {"sad": 1}}}, ValueError, "one of 'good', .* got 'sad'"),
        (
            {"prompt_taste": {"film": {"very": 1}}},
            ValueError,
            "one of 'good', .* got 'very'",
        ),
        ({"prompt_taste": {"film": 1.0}}, TypeError, r"prompt_taste\['film'\] must be a mapping"),
        ({"prompt_taste": {"film": {"loud": NAN}}}, ValueError, "must be a finite number, got nan"),
        (
            {"corpus_weights": {"sad": 1}},
            ValueError,
            "key of corpus_weights must be one of",
        ),
        ({"corpus_weights": {"good": 0}}, ValueError, "above 0, got 0"),
        ({"repetition_cost": -1.0}, ValueError, "repetition_cost must be.*at least 0, got -1.0"),
        ({"grammar_cost": NAN}, ValueError, "grammar_cost must be a finite number"),
        ({"contrast_cost": "1"}, TypeError, "contrast_cost must be a number, got '1'"),
        ({"silence_cost": None}, TypeError, "silence_cost must be a number, got None"),
        ({"two_phrases": 1.5}, ValueError, "two_phrases must be.*at most 1, got 1.5"),
        ({"intensified": 1.1}, ValueError, "intensified must be.*at most 1, got 1.1"),
        ({"negated": -0.1}, ValueError, "negated must be.*at least 0"),
        ({"max_length": 0}, ValueError, "max_length must be an integer of at least 1, got 0"),
        ({"max_length": 2.5}, TypeError, "max_length must be an integer, got 2.5"),
        ({"grammar": {}}, ValueError, "grammar must lead from 'start' to 'end'"),
        ({"grammar": GRAMMAR | {"adjectives": ("conjunctions",)}}, ValueError, "must lead from"),
        (
            {"grammar": GRAMMAR | {"start": ("end",), "verbs": ()}},
            ValueError,
            "key of grammar must be",
        ),
        (
            {"grammar": GRAMMAR | {"start": ("verbs",)}},
            ValueError,
            r"\['start'\] must be one of",
        ),
        ({"grammar": GRAMMAR | {"start": "end"}}, TypeError, r"grammar\['start'\] must be a tuple"),
        ({"grammar": 3}, TypeError, "grammar must be a mapping such as a dict, got 3"),
    ],
)
def test_bad_specs_are_refused_in_plain_words(changes, error, message):
    with pytest.raises(error, match=message):
        replace(REVIEWS, **changes)
