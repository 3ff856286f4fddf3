"""The study of estimators: what is known of their bias, and a variance summed by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from rlhf_toy.course.studies import estimators as study
from rlhf_toy.envs.prompt_bandit import QUESTIONS


def found(place, advantage, group_size):
    return study.run({"place": place, "advantage": advantage, "group_size": group_size})


@pytest.mark.parametrize("place", study.PLACES)
def test_only_the_division_by_the_standard_deviation_turns_the_gradient(place):
    for G in (2, 4):
        for advantage in ("reinforce", "baseline", "rloo"):
            assert found(place, advantage, G)["bias"] == pytest.approx([0] * 4, abs=1e-9)
        dr_grpo = found(place, "dr_grpo", G)
        assert dr_grpo["cosine"] == pytest.approx([1] * 4)
        assert dr_grpo["bias"] == pytest.approx([1 / G] * 4)
        assert max(found(place, "grpo", G)["cosine"]) < 1 - 1e-4


def test_the_variance_at_the_reference_is_that_of_one_response():
    taste, habits = np.array(QUESTIONS.taste), np.array(QUESTIONS.habits)
    p = np.exp(habits) / np.exp(habits).sum(1, keepdims=True)
    for G in (2, 4):
        for x, variance in enumerate(found("at the reference", "reinforce", G)["variance"]):
            estimates = taste[x][:, None] * (np.eye(8) - p[x])  # r(y) ∇log π(y)
            mean = p[x] @ estimates
            spread = p[x] @ ((estimates - mean) ** 2).sum(1)
            assert variance == pytest.approx(spread / (mean**2).sum())


def test_the_figure_has_a_curve_for_each_estimator():
    drawn = study.figure([{**task, **study.run(task)} for task in study.tasks()])
    for axes in drawn.axes:  # and a column of dots for each group size
        assert len(axes.lines) == len(study.NAMES) * (1 + len(study.GROUP_SIZES))
    plt.close(drawn)
