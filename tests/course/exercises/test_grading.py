"""Grading: whatever a student's function does, there is a verdict and nothing else happens."""

import contextlib
import random
import time

import numpy as np
import pytest
import torch

from rlhf_toy.course import exercises
from rlhf_toy.course.exercises import _EXERCISES, grading

NAME = "log_partition"
solution = _EXERCISES[NAME].solution


def right(ref_logps, rewards, beta):
    return torch.logsumexp(ref_logps + rewards / beta, -1)


def grade(fn):
    return exercises.grade(NAME, fn)


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch):
    monkeypatch.setattr(exercises, "_states", {})
    monkeypatch.setattr(exercises, "_hints_shown", {})


def unwritten_pass(ref_logps, rewards, beta):
    pass


def unwritten_dots(ref_logps, rewards, beta):
    return ...


def unwritten_error(ref_logps, rewards, beta):
    raise NotImplementedError


@pytest.mark.parametrize("fn", [unwritten_pass, unwritten_dots, unwritten_error])
def test_an_empty_body_is_not_attempted(fn, capsys):
    assert grade(fn) == exercises.Verdict("not attempted")
    assert exercises.check(NAME, fn) is solution
    assert capsys.readouterr().out == f"{NAME}: not attempted\n"


def test_check_returns_the_students_own_function_only_if_it_is_right(capsys):
    def mine(ref_logps, rewards, beta):
        return right(ref_logps, rewards, beta)

    def wrong(ref_logps, rewards, beta):
        return right(ref_logps, rewards, 1.0)

    assert exercises.check(NAME, mine) is mine
    assert exercises.check(NAME, wrong) is solution
    printed = capsys.readouterr().out
    assert printed.startswith("log_partition: right\nlog_partition: wrong\n")
    assert "beta = 0.5" in printed and "yours: " in printed and "right: " in printed


def test_the_counterexample_is_the_smallest_case_that_fails():
    verdict = grade(lambda ref_logps, rewards, beta: right(ref_logps, rewards, 1.0))
    assert verdict.counterexample.arguments["rewards"] == "[1, -0.5]"  # at [1, 0] β is 1
    only_when_large = grade(
        lambda ref_logps, rewards, beta: right(ref_logps, rewards, beta) + (rewards.dim() > 1) * 1.0
    )
    assert only_when_large.counterexample.arguments["rewards"].startswith("[[")


def test_an_exception_names_the_students_line():
    def crash(ref_logps, rewards, beta):
        table = {}
        return table["beta"]

    verdict = grade(crash)
    assert verdict.status == "wrong"
    assert 'return table["beta"]' in verdict.hint and "KeyError: 'beta'" in verdict.hint
    assert str(crash.__code__.co_firstlineno + 2) in verdict.hint


def test_an_exception_in_torch_names_the_students_line():
    def crash(ref_logps, rewards, beta):
        return torch.einsum("i,jk->z", ref_logps, rewards)

    assert 'torch.einsum("i,jk->z"' in grade(crash).hint


def test_an_exception_in_a_helper_of_the_students_names_the_helpers_line():
    def helper(rewards):
        return rewards.no_such_method()

    def crash(ref_logps, rewards, beta):
        return helper(rewards)

    assert "rewards.no_such_method()" in grade(crash).hint


@pytest.mark.parametrize(
    "fn, said",
    [
        (lambda: 0.0, "Does your function take the arguments"),
        (lambda ref_logps, rewards, beta: exit(), "SystemExit"),
        (lambda ref_logps, rewards, beta: "log Z", "Expected numbers"),
        (lambda ref_logps, rewards, beta: {"log Z": 1.0}, "Expected numbers"),
        (lambda ref_logps, rewards, beta: [[1.0], [1.0, 2.0]], "Expected numbers"),
        (lambda ref_logps, rewards, beta: torch.zeros(2, 3), "shape [2, 3]"),
        (lambda ref_logps, rewards, beta: float("nan"), "none of the common mistakes"),
        ("no function", "Expected a function called log_partition, got 'no function'"),
        (None, "Pass the function itself"),
    ],
)
def test_whatever_is_passed_or_returned_gets_a_verdict(fn, said):
    verdict = grade(fn)
    assert verdict.status == "wrong"
    assert said in verdict.hint


def test_endless_recursion_gets_a_verdict():
    def again(ref_logps, rewards, beta):
        return again(ref_logps, rewards, beta)

    assert "RecursionError" in grade(again).hint


def test_an_endless_loop_is_stopped():
    ticks = []

    def forever(ref_logps, rewards, beta):
        while True:
            ticks.append(len(ticks) % 2)

    start = time.perf_counter()
    verdict = grade(forever)
    assert time.perf_counter() - start < 5
    assert verdict.status == "wrong" and "never ends" in verdict.hint
    time.sleep(0.1)
    before = len(ticks)
    time.sleep(0.1)
    assert len(ticks) == before  # and it no longer runs in the background


def test_a_loop_that_swallows_exceptions_is_stopped_too():
    def forever(ref_logps, rewards, beta):
        while True:
            with contextlib.suppress(Exception):
                rewards.sum()

    assert "never ends" in grade(forever).hint


def test_a_branch_without_a_return_is_wrong_not_unattempted():
    def sometimes(ref_logps, rewards, beta):
        if rewards.dim() == 1:
            return right(ref_logps, rewards, beta)

    verdict = grade(sometimes)
    assert verdict.status == "wrong" and "every branch" in verdict.hint


def test_changing_an_argument_is_wrong():
    def in_place(ref_logps, rewards, beta):
        rewards /= beta
        return torch.logsumexp(ref_logps + rewards, -1)

    verdict = grade(in_place)
    assert verdict.status == "wrong" and "argument rewards in place" in verdict.hint


def test_global_random_states_stay_as_they_were():
    def reseeds(ref_logps, rewards, beta):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        torch.rand(3), np.random.rand(), random.random()
        return right(ref_logps, rewards, beta)

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert grade(reseeds).status == "right"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_numpy_lists_and_plain_numbers_are_accepted():
    def in_numpy(ref_logps, rewards, beta):
        exponent = ref_logps.numpy() + rewards.numpy() / beta
        return np.logaddexp.reduce(exponent, axis=-1)

    def as_lists(ref_logps, rewards, beta):
        return right(ref_logps, rewards, beta).tolist()

    assert grade(in_numpy).status == "right"
    assert grade(as_lists).status == "right"


def test_a_call_inside_no_grad_is_graded_the_same():
    with torch.no_grad():
        assert grade(right).status == "right"


@pytest.mark.parametrize("use", [exercises.grade, exercises.check])
def test_an_unknown_name_is_refused_with_a_guess(use):
    with pytest.raises(ValueError, match="Did you mean 'log_partition'"):
        use("log_partitions", right)
    for other in (exercises.hint, exercises.solution):
        with pytest.raises(ValueError, match=r"called 'nothing like it'\. The exercises"):
            other("nothing like it")
        with pytest.raises(TypeError, match=r"name must be the name .* a string, got \[1\]"):
            other([1])


def test_each_call_shows_one_more_hint(capsys):
    hints = _EXERCISES[NAME].hints
    for shown in range(1, len(hints) + 2):
        exercises.hint(NAME)
        printed = capsys.readouterr().out
        numbers = [line[0] for line in printed.splitlines() if line[:2].rstrip(".").isdigit()]
        assert len(numbers) == min(shown, len(hints))
        assert ("exercises.solution" in printed) == (shown >= len(hints))


def test_progress_tells_done_tried_and_open(capsys):
    exercises.check("log_partition", right)
    exercises.check("gibbs_policy", lambda ref_logps, rewards, beta: rewards)
    exercises.check("log_partition", lambda ref_logps, rewards, beta: rewards)  # done stays done
    capsys.readouterr()
    exercises.progress()
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("06")]
    assert "kl_divergence: open" in line
    assert "log_partition: done" in line
    assert "gibbs_policy: tried" in line


def test_names_are_in_the_order_of_the_notebooks():
    notebooks = [_EXERCISES[name].notebook for name in exercises.names()]
    assert notebooks == sorted(notebooks)


@pytest.mark.parametrize(
    "fn",
    [
        solution,
        lambda ref_logps, rewards, beta: solution(ref_logps, rewards, beta) + 0.0,
        lambda ref_logps, rewards, beta: exercises._EXERCISES[NAME].solution(
            ref_logps, rewards, beta
        ),
    ],
)
def test_calling_the_solution_gets_a_verdict_of_its_own(fn, capsys):
    verdict = grade(fn)
    assert verdict.status == "the package's own"
    assert "calls rlhf_toy.exact.bandit.log_partition" in verdict.hint
    assert exercises.check(NAME, fn) is solution
    assert capsys.readouterr().out.startswith("log_partition: the package's own\n  Your function")
    exercises.progress()
    assert "log_partition: tried" in capsys.readouterr().out


def test_a_wrong_answer_that_calls_the_solution_is_wrong():
    verdict = grade(lambda ref_logps, rewards, beta: solution(ref_logps, rewards, beta) + 1)
    assert (verdict.status, verdict.mistake) == ("wrong", "other")


def test_calling_the_solution_of_another_exercise_is_allowed():
    """`check` leaves the solution in place of a wrong answer, for the next exercise to use."""
    log_partition = solution

    def gibbs_policy(ref_logps, rewards, beta):
        return ref_logps + rewards / beta - log_partition(ref_logps, rewards, beta)[..., None]

    assert exercises.grade("gibbs_policy", gibbs_policy).status == "right"


def test_a_wrong_answer_names_its_mistake():
    assert grade(lambda ref_logps, rewards, beta: right(ref_logps, rewards, 1.0)).mistake in {
        known.name for known in _EXERCISES[NAME].mistakes
    }
    assert grade(lambda ref_logps, rewards, beta: 1 / 0).mistake == "raises ZeroDivisionError"
    assert grade(lambda ref_logps, rewards, beta: torch.zeros(2, 3)).mistake == "shape"
    assert grade("no function").mistake == "no function"


# Exercises made for these tests, for features that the exercise above does not use.


def exercise(solution, cases, **fields):
    return grading.Exercise("f", "00", ("h",), solution, lambda: cases, (), **fields)


CASES = grading.make_cases(["x"], [[torch.tensor([1.0, 2.0])]])


@pytest.mark.parametrize(
    "fn, said",
    [
        (lambda x: (x**2).detach(), "no gradient flows"),
        (lambda x: torch.tensor((x**2).tolist()), "no gradient flows"),
        (lambda x: x * x.detach(), "their gradient is not"),
    ],
)
def test_a_wrong_gradient_is_wrong_even_where_the_numbers_are_right(fn, said):
    square = exercise(lambda x: x**2, CASES, differentiable=("x",))
    verdict = grading.grade(square, fn)
    assert verdict.status == "wrong" and said in verdict.hint
    assert "gradient" in str(verdict.counterexample)
    assert grading.grade(square, lambda x: x * x).status == "right"
    assert grading.grade(square, lambda x: [x[0] ** 2, x[1] ** 2]).status == "right"


def test_several_results_are_compared_part_by_part():
    both = exercise(lambda x: (x + 1, True), CASES, returns=("sum", "flag"))
    assert grading.grade(both, lambda x: [1 + x, 1]).status == "right"
    assert "Expected 2 results (sum, flag)" in grading.grade(both, lambda x: x + 1).hint
    assert "The sum has the shape []" in grading.grade(both, lambda x: (x.sum(), True)).hint
    assert grading.grade(both, lambda x: (x + 1, False)).status == "wrong"
