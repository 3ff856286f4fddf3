"""Whatever a function returns or raises is described truly, in few words, as plain data."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from rlhf_toy.course.exercises import _EXERCISES, grading
from rlhf_toy.course.exercises.outcomes import LONGEST_TEXT, Outcome, run_case, same, text_of

EXERCISE = grading.Exercise(
    "f", "00", ("h",), lambda x: x**2, lambda: [], (), differentiable=("x",)
)
CASE = grading.Case({"x": torch.tensor([1.0, 2.0])})


class Nasty:
    def __repr__(self):
        raise RuntimeError("no repr")


class NastyError(Exception):
    def __str__(self):
        raise RuntimeError("no str")


def raises(error):
    def fn(x):
        raise error

    return fn


def itself():
    items = [1.0]
    items.append(items)
    return items


def nested(depth):
    items = []
    for _ in range(depth):
        items = [items]
    return items


@pytest.mark.parametrize(
    ("fn", "raised"),
    [
        (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raises(GeneratorExit()), "GeneratorExit"),
        (raises(SystemExit(3)), "SystemExit"),
        (raises(NastyError()), "NastyError"),
        (raises(BaseExceptionGroup("several", [KeyboardInterrupt()])), "BaseExceptionGroup"),
    ],
)
def test_whatever_is_raised_is_named(fn, raised):
    outcome = run_case(EXERCISE, fn, CASE)
    assert outcome.raised == raised
    assert "`raise error`" in outcome.failure and raised in outcome.failure
    assert not outcome.is_empty


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Nasty(), "cannot be read: RuntimeError: no repr"),
        ([1.0, Nasty()], "cannot be read: RuntimeError: no repr"),
        (itself(), "got [1, [1, [1, "),
        (nested(100_000), "got [[[["),
        (torch.eye(2).to_sparse(), "float32, sparse_coo"),
        (torch.zeros(2, device="meta"), "on the meta device, without values"),
        (torch.tensor([1 + 2j, 0]), "complex64"),
        (np.array([1 + 2j, 0]), "complex128"),
        (torch.zeros(3000, 3000), "has the shape [3000, 3000], far more numbers"),
        (np.zeros((3000, 3000)), "has the shape [3000, 3000], far more numbers"),
        ({1: 2}, "Expected numbers or a tensor, got {1: 2}"),
        (10**400, "Expected numbers or a tensor, got 1000"),
    ],
)
def test_a_result_that_is_no_number_is_named(result, said):
    outcome = run_case(EXERCISE, lambda x: result, CASE)
    assert said in outcome.failure
    assert not outcome.parts and len(outcome.failure) < LONGEST_TEXT + 200


def test_an_operation_that_torch_does_not_have_is_an_error_not_an_empty_body():
    outcome = run_case(EXERCISE, lambda x: torch.linalg.inv(torch.eye(2).to_sparse()), CASE)
    assert outcome.raised == "NotImplementedError" and not outcome.is_empty
    assert run_case(EXERCISE, raises(NotImplementedError("later")), CASE).is_empty


def test_a_long_value_is_cut():
    assert text_of([1.0] * 10**7).startswith("[1, 1, 1, ")
    for value in ([1.0] * 10**7, "x" * 10**7, [[[0] * 99] * 99] * 99, range(10**9)):
        assert len(text_of(value)) < LONGEST_TEXT + 10
    assert text_of((1, [2.0, (3.25,)], "a")) == "(1, [2, [3.25]], 'a')"


OUTCOMES = [
    run_case(EXERCISE, lambda x: x**2, CASE),
    run_case(EXERCISE, lambda x: x.detach() * math.nan, CASE),
    run_case(EXERCISE, lambda x: x.sum() / 0, CASE),
    run_case(EXERCISE, lambda x: None, CASE),
    run_case(EXERCISE, lambda x: x.mul_(2), CASE),
    run_case(EXERCISE, raises(ValueError("é")), CASE),
    Outcome(parts=(torch.zeros(0, 3, dtype=torch.float64),)),
]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_survives_the_way_through_json(outcome):
    again = Outcome.from_json(json.loads(json.dumps(outcome.to_json())))
    assert same(again, outcome)
    for name in ("is_empty", "failure", "raised", "changed", "used_solution", "text"):
        assert getattr(again, name) == getattr(outcome, name)


def test_the_outcomes_above_differ():
    assert not any(same(one, other) for one in OUTCOMES for other in OUTCOMES if one is not other)


@pytest.mark.parametrize(
    "change",
    [
        {"parts": "x"},
        {"parts": [[[1], ["1"]]]},
        {"parts": [[[2], [1.0]]]},
        {"parts": [[[1], [10**400]]]},
        {"parts": {"a": 1}},
        {"gradients": [1.0]},
        {"failure": 1},
        {"is_empty": "no"},
        {"raised": None},
        {"extra": 1},
    ],
)
def test_anything_else_is_refused(change):
    good = json.loads(json.dumps(OUTCOMES[0].to_json()))
    with pytest.raises(ValueError, match=r"expected the fields|are no tensors|must be a"):
        Outcome.from_json(good | change)
    for bad in (None, [], {}, "right"):
        with pytest.raises(ValueError, match="expected the fields of an outcome"):
            Outcome.from_json(bad)


def test_long_texts_from_outside_are_cut():
    data = OUTCOMES[0].to_json() | {"text": "x" * 10**6}
    assert len(Outcome.from_json(data).text) == LONGEST_TEXT


def test_the_solution_is_noticed_under_any_name_and_the_profiler_is_restored():
    exercise = _EXERCISES["log_partition"]
    case = grading.sorted_cases(exercise)[0]
    renamed = exercise.solution
    before = sys.getprofile()
    assert run_case(exercise, lambda *a: [renamed(*a)][0], case).used_solution
    assert not run_case(exercise, lambda a, b, c: (a + b / c).logsumexp(-1), case).used_solution
    assert sys.getprofile() is before
