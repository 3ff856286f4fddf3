"""The exercises of notebook 16: a rule that can fail, and the regimes of two published claims."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import t as student_t
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import random_numbers


def decide(effects: Tensor, least: float) -> Tensor:
    """Return 1 for each prediction that is shown, −1 if it is refuted, 0 if it is open, [P].

    Shown: the 95 % interval of the mean over the seeds of `effects` [S, P] lies above `least`.
    Refuted: it lies below.
    """
    seeds = len(effects)
    half = student_t.ppf(0.975, seeds - 1) * effects.std(0) / seeds**0.5
    low, high = effects.mean(0) - half, effects.mean(0) + half
    return (low > least).int() - (high < least).int()


def _sides(mean: Tensor, half: Tensor | float, least: float) -> Tensor:
    """1 where mean ± half lies above `least`, −1 where it lies below, else 0."""
    return (mean - half > least).int() - (mean + half < least).int()


def _decide_with(quantile: Callable[[int], float], root: float = 0.5) -> Callable:
    """A rule with another quantile, for S seeds, or another root of S below the deviation."""
    return lambda effects, least: _sides(
        effects.mean(0), quantile(len(effects)) * effects.std(0) / len(effects) ** root, least
    )


def _decide_cases() -> list[Case]:
    def effects(S: int, least: float, seed: int) -> Tensor:
        # Means at distances, in standard errors, that only the right quantile tells apart.
        t95, t975 = student_t.ppf((0.95, 0.975), S - 1)
        steps = [1.5, (1.96 + t95) / 2, (t95 + t975) / 2, 1.3 * t975, 1.3 * t975 * S**0.5]
        far = torch.tensor(steps, dtype=torch.float64)
        noise = random_numbers(S, 9, seed=seed, scale=1.0)
        distances = torch.cat([-far[1:], far]) * noise.std(0) / S**0.5
        return (100 * (noise - noise.mean(0) + least + distances)).round() / 100

    plain = [
        (effects(S, least, S), least) for S, least in ((3, 1.0), (4, -0.5), (5, 2.0), (6, 0.3))
    ]
    same = torch.tensor([[0.2, 0.5, 0.9]] * 4, dtype=torch.float64)  # exact results: no spread
    return make_cases(("effects", "least"), plain, [(same, 0.4)])


_DECIDE = Exercise(
    name="decide",
    notebook="16",
    hints=(
        "Each column is one prediction, each row one seed. What are the mean of a column and the "
        "standard error of this mean?",
        "effects.std(0) divides by S − 1, so the quantile is that of Student's t with S − 1 "
        "degrees of freedom: scipy.stats.t.ppf(0.975, S − 1).",
        "There are three cases: the interval lies above `least`, below it, or around it.",
    ),
    solution=decide,
    cases=_decide_cases,
    mistakes=(
        Mistake(
            "mean only",
            "You compare the mean and ignore its error. Would the same rule decide the same with "
            "other seeds?",
            lambda effects, least: _sides(effects.mean(0), 0.0, least),
        ),
        Mistake(
            "any effect",
            "You compare with 0. Does the claim say that there is some effect, however small?",
            lambda effects, least: decide(effects, 0.0),
        ),
        Mistake(
            "standard deviation",
            "Your interval is as wide as the spread of single seeds. How much does the mean of S "
            "seeds vary?",
            _decide_with(lambda S: student_t.ppf(0.975, S - 1), root=0.0),
        ),
        Mistake(
            "normal quantile",
            "Your interval is that of a normal distribution. With so few seeds the standard "
            "deviation is uncertain too: whose quantile allows for that?",
            _decide_with(lambda S: 1.959964),
        ),
        Mistake(
            "one side",
            "Your interval leaves 5 % on each side. How much may lie outside in all?",
            _decide_with(lambda S: student_t.ppf(0.95, S - 1)),
        ),
        Mistake(
            "open counts as refuted",
            "Where the interval contains `least` you say −1. Have you then shown that the effect "
            "is smaller?",
            lambda effects, least: 2 * (decide(effects, least) == 1).int() - 1,
        ),
        Mistake(
            "cannot fail",
            "You never return −1. Which result would refute the claim?",
            lambda effects, least: (decide(effects, least) == 1).int(),
        ),
        Mistake(
            "seeds vote",
            "You ask whether all seeds are on one side. With more seeds an exception becomes more "
            "likely. What does a mean become with more seeds?",
            lambda effects, least: (effects > least).all(0).int() - (effects < least).all(0).int(),
        ),
        Mistake(
            "pooled",
            "You give all predictions the same answer. Does each column not have its own mean?",
            lambda effects, least: decide(effects.reshape(-1, 1), least).expand(effects.shape[1]),
        ),
    ),
)


def chosen_gain(W: Tensor, h: Tensor, chosen: int, rejected: int, rate: float) -> Tensor:
    """Return how much log π(chosen) rises for each nat by which the margin rises.

    Gradient steps on the margin move h by W[chosen] − W[rejected] and, `rate` times as fast,
    W[chosen] by h and W[rejected] by −h.
    """
    p, step, size = (W @ h).softmax(0), W[chosen] - W[rejected], h @ h
    rise = (W[chosen] - p @ W) @ step + rate * size * (1 - p[chosen] + p[rejected])
    return rise / (step @ step + 2 * rate * size)


def _gain_over(average: Callable[[Tensor], Tensor | float]) -> Callable:
    """A gain in which another average of W is taken off, and nothing of W's own steps."""

    def answer(W: Tensor, h: Tensor, c: int, r: int, rate: float) -> Tensor:
        step, size = W[c] - W[r], h @ h
        return ((W[c] - average(W)) @ step + rate * size) / (step @ step + 2 * rate * size)

    return answer


def _gain_cases() -> list[Case]:
    def case(Y: int, D: int, seed: int, rate: float, scale: float = 1.0) -> tuple:
        W, h = (random_numbers(*size, seed=seed, scale=1.0) for size in ((Y, D), (D,)))
        return W, scale * h, seed % Y, (seed + 1) % Y, rate

    words = torch.tensor([[2.0], [1.0], [-3.0]], dtype=torch.float64)
    plain = [(words, torch.tensor([0.5], dtype=torch.float64), 1, 0, 0.5)]
    plain += [case(3, 2, 5, 0.1), case(4, 3, 2, 2.0), case(6, 2, 3, 1.0)]
    corners = [case(4, 2, 6, 0.0), case(5, 3, 7, 0.3, scale=200.0)]
    return make_cases(("W", "h", "chosen", "rejected", "rate"), plain, corners)


def _one_vector(W: Tensor, h: Tensor, c: int, r: int, rate: float) -> Tensor:
    """As if training moved W[chosen] and h, but not W[rejected]."""
    p, step, size = (W @ h).softmax(0), W[c] - W[r], h @ h
    return ((W[c] - p @ W) @ step + rate * size * (1 - p[c])) / (step @ step + rate * size)


_GAIN = Exercise(
    name="chosen_gain",
    notebook="16",
    hints=(
        "Take a small step: h changes by s·(W[chosen] − W[rejected]), W[chosen] by s·rate·h, "
        "W[rejected] by −s·rate·h. By how much does each logit W @ h change?",
        "log π(chosen) is its logit minus log Σ exp of all logits. The latter changes by the mean "
        "of the logits' changes, weighted by π.",
        "The margin is the difference of two logits. Divide by how much the same step changes it.",
    ),
    solution=chosen_gain,
    cases=_gain_cases,
    mistakes=(
        Mistake(
            "others forgotten",
            "That is the change of the chosen response's logit. What do the other logits do to its "
            "probability?",
            _gain_over(lambda W: 0.0),
        ),
        Mistake(
            "plain mean",
            "You count all responses alike. Does a response that is never given matter as much as "
            "one that is given often?",
            _gain_over(lambda W: W.mean(0)),
        ),
        Mistake(
            "not per nat",
            "That is the change for one step. By how much does the same step raise the margin?",
            lambda W, h, c, r, rate: (
                chosen_gain(W, h, c, r, rate)
                * ((W[c] - W[r]).square().sum() + 2 * rate * h.square().sum())
            ),
        ),
        Mistake(
            "h alone",
            "You let only h learn. What do the steps of W add, above and below the line?",
            lambda W, h, c, r, rate: chosen_gain(W, h, c, r, 0.0),
        ),
        Mistake(
            "one vector",
            "You move W[chosen] but not W[rejected]. What is the margin's gradient in the latter?",
            _one_vector,
        ),
        Mistake(
            "rejected's",
            "You follow the rejected response. Whose log-probability is asked for?",
            lambda W, h, c, r, rate: chosen_gain(W, h, c, r, rate) - 1,
        ),
        Mistake(
            "sign",
            "Your sign is reversed. In which direction does training move the margin?",
            lambda W, h, c, r, rate: -chosen_gain(W, h, c, r, rate),
        ),
        Mistake(
            "probability",
            "That is the change of the probability. What is the derivative of its logarithm?",
            lambda W, h, c, r, rate: (W @ h).softmax(0)[c] * chosen_gain(W, h, c, r, rate),
        ),
    ),
)


def majority_threshold(
    majority_gain: float, minority_gain: float, temperature: float
) -> tuple[float, float]:
    """Return the share above which A wins: in a fit of noisy answers, and by mean utility."""
    votes = [math.tanh(gain / (2 * temperature)) for gain in (majority_gain, minority_gain)]
    return votes[1] / sum(votes), minority_gain / (majority_gain + minority_gain)


def _threshold_by(strength: Callable[[float, float], float]) -> Callable:
    """A threshold from how strongly a group's answers count, a function of gain and T."""

    def answer(a: float, b: float, T: float) -> tuple[float, float]:
        return strength(b, T) / (strength(a, T) + strength(b, T)), b / (a + b)

    return answer


def _threshold_cases() -> list[Case]:
    plain = [(0.1, 3.0, 0.5), (1.0, 2.0, 1.0), (0.5, 0.8, 0.3), (2.0, 0.7, 1.5)]
    corners = [(0.1, 3.0, 1e-3), (0.1, 3.0, 1e3), (1.0, 1.0, 1.0)]
    return make_cases(("majority_gain", "minority_gain", "temperature"), plain, corners)


_THRESHOLD = Exercise(
    name="majority_threshold",
    notebook="16",
    returns=("share for the fit", "share for the mean"),
    hints=(
        "By mean utility A is ahead if s·a > (1 − s)·b. Solve for s.",
        "The fit puts A ahead if more than half of all answers are for A. Which share of the "
        "majority's answers is for A, and which of the minority's?",
        "It helps to write a share of answers as its distance from one half: σ(x) − 1/2 = "
        "tanh(x/2)/2.",
    ),
    solution=majority_threshold,
    cases=_threshold_cases,
    mistakes=(
        Mistake(
            "no noise",
            "You count heads, as if no answer were ever wrong. When may a person who prefers A "
            "answer B?",
            lambda a, b, T: (0.5, b / (a + b)),
        ),
        Mistake(
            "no difference",
            "Both of your thresholds are that of the mean utility. Does an answer tell how much "
            "a person prefers A?",
            lambda a, b, T: (b / (a + b), b / (a + b)),
        ),
        Mistake(
            "answers for their own",
            "You weigh each group by how often it answers for its favourite. A group that answers "
            "at random would then still count. How far are its answers from one half?",
            _threshold_by(lambda gain, T: 1 / (1 + math.exp(-gain / T))),
        ),
        Mistake(
            "half forgotten",
            "Your noise is too small by a factor of 2. What is σ(x) − 1/2 as a tanh?",
            _threshold_by(lambda gain, T: math.tanh(gain / T)),
        ),
        Mistake(
            "temperature multiplies",
            "Your people err less the higher T is. In σ(gain/T), what does a high T do?",
            _threshold_by(lambda gain, T: math.tanh(gain * T / 2)),
        ),
        Mistake(
            "groups swapped",
            "You return the share that the minority would need. If the minority cares more, does "
            "the majority need a larger or a smaller share?",
            lambda a, b, T: majority_threshold(b, a, T),
        ),
        Mistake(
            "odds",
            "You return s/(1 − s). Which s belongs to these odds?",
            lambda a, b, T: (math.tanh(b / (2 * T)) / math.tanh(a / (2 * T)), b / a),
        ),
    ),
)

EXERCISES = (_DECIDE, _GAIN, _THRESHOLD)
