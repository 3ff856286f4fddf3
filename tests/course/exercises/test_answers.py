"""Every exercise accepts right answers however they are written, and explains each mistake."""

import runpy
import time
from pathlib import Path

import pytest
import torch

from rlhf_toy.course import exercises
from rlhf_toy.course.exercises import _EXERCISES, grading
from rlhf_toy.course.exercises.outcomes import run_case, same

ANSWERS = {
    notebook: runpy.run_path(str(Path(__file__).with_name(f"answers_{notebook}.py")))
    for notebook in dict.fromkeys(exercise.notebook for exercise in _EXERCISES.values())
}


def right_answers():
    for name, exercise in _EXERCISES.items():
        for answer in ANSWERS[exercise.notebook]["RIGHT"][name]:
            yield pytest.param(name, answer, id=f"{name}-{answer.__name__}")


def wrong_answers():
    for name, exercise in _EXERCISES.items():
        for i, (answer, mistake) in enumerate(ANSWERS[exercise.notebook]["WRONG"][name]):
            yield pytest.param(name, answer, mistake, id=f"{name}-{i}-{mistake}")


@pytest.mark.parametrize("name, answer", list(right_answers()))
def test_a_right_answer_is_accepted(name, answer):
    verdict = exercises.grade(name, answer)
    assert verdict == grading.Verdict("right"), verdict


@pytest.mark.parametrize("name, answer, mistake", list(wrong_answers()))
def test_a_wrong_answer_is_rejected_with_its_hint(name, answer, mistake):
    verdict = exercises.grade(name, answer)
    assert verdict.status == "wrong"
    assert verdict.counterexample is not None
    hints = {m.name: m.hint for m in _EXERCISES[name].mistakes}
    if mistake is None:
        assert verdict.hint and verdict.hint not in hints.values()
    else:
        named = [known for known, hint in hints.items() if hint == verdict.hint]
        assert named == [mistake], verdict.hint


@pytest.mark.parametrize("name", _EXERCISES)
def test_there_are_enough_answers(name):
    answers = ANSWERS[_EXERCISES[name].notebook]
    assert len(answers["RIGHT"][name]) >= 3
    assert len({mistake for _, mistake in answers["WRONG"][name] if mistake}) >= 6
    # Some test makes each known mistake.
    assert {m.name for m in _EXERCISES[name].mistakes} == {
        mistake for _, mistake in answers["WRONG"][name] if mistake
    }


@pytest.mark.parametrize("name", _EXERCISES)
def test_the_solution_is_right_and_its_source_can_be_shown(name, capsys):
    verdict = exercises.grade(name, _EXERCISES[name].solution)
    assert verdict.status == "the package's own"  # and so its numbers are right
    assert f".{_EXERCISES[name].solution.__name__}." in verdict.hint
    exercises.solution(name)
    assert f"def {_EXERCISES[name].solution.__name__}(" in capsys.readouterr().out


@pytest.mark.parametrize("name", _EXERCISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_answer_may_work_in_either_precision(name, dtype):
    """Plain cases only: the extreme ones come in the precision that they need."""
    exercise = _EXERCISES[name]
    plain = [case for case in exercise.cases() if not case.is_corner]
    for case in plain:
        arguments = {
            key: value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for key, value in case.arguments.items()
        }
        given = grading.Case(arguments)
        one, other = (run_case(exercise, exercise.solution, c) for c in (case, given))
        assert same(one, other)


@pytest.mark.parametrize("name", _EXERCISES)
def test_a_check_is_quick(name):
    """Not a benchmark: the limit is two seconds, and a check takes a small part of that."""
    start = time.perf_counter()
    exercises.grade(name, lambda *arguments: torch.zeros(7))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", _EXERCISES)
def test_every_case_is_drawn_from_a_seed_and_there_are_corners(name):
    first, second = _EXERCISES[name].cases(), _EXERCISES[name].cases()
    for one, other in zip(first, second, strict=True):
        for key, value in one.arguments.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other.arguments[key])
    assert any(case.is_corner for case in first)
