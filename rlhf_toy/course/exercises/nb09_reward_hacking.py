"""The exercises of notebook 09: when the truth turns, attack a reward model, defend it."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_logps, random_numbers


def reward_slope(logps: Tensor, true: Tensor, proxy: Tensor) -> Tensor:
    """Return the covariance of two rewards under a policy: [..., Y] three times → [...]."""
    p = logps.exp()
    mean = (p * proxy).sum(-1, keepdim=True)
    return (p * true * (proxy - mean)).sum(-1)


def attack(proxy: Tensor, true: Tensor, ref_logps: Tensor, floor: float) -> Tensor:
    """Return the most overrated response of each prompt with π_ref ≥ floor: [X, Y] → [X]."""
    overrated = (proxy - true).masked_fill(ref_logps.exp() < floor, -torch.inf)
    return overrated.argmax(1)


def worst_of_ensemble(scores: Tensor, ref_logps: Tensor) -> Tensor:
    """Return the lowest score after each model got mean 0 under π_ref: [K, X, Y] → [X, Y]."""
    return _centred(scores, ref_logps.exp()).amin(0)


def _centred(scores: Tensor, weights: Tensor) -> Tensor:
    return scores - (weights * scores).sum(-1, keepdim=True)


def _tables(*shape: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two tables of rewards and one of log-probabilities."""
    rewards = random_numbers(2, *shape, seed=seed)
    return rewards[0], rewards[1], random_logps(*shape, seed=seed + 1)


# fmt: off
_SLOPE_MISTAKES = (
    Mistake("means not subtracted",
            "You return E[r r̂]. Add 100 to both rewards: should the slope change?",
            lambda logps, true, proxy: (logps.exp() * true * proxy).sum(-1)),
    Mistake("uniform",
            "You weight all responses equally. How often does the policy give each of them?",
            lambda logps, true, proxy: reward_slope(
                (0 * true).log_softmax(-1), true, proxy)),
    Mistake("slope of the proxy",
            "This is the variance of the proxy, the slope of the proxy itself. Whose do you want?",
            lambda logps, true, proxy: reward_slope(logps, proxy, proxy)),
    Mistake("mean for sum",
            "You average terms that contain the probabilities already. What do those add up to?",
            lambda logps, true, proxy: reward_slope(logps, true, proxy) / true.shape[-1]),
    Mistake("correlation",
            "You divide by the standard deviations. If the proxy doubles, should the slope stay?",
            lambda logps, true, proxy: reward_slope(logps, true, proxy) / (
                reward_slope(logps, true, true) * reward_slope(logps, proxy, proxy)).sqrt()),
    Mistake("summed over prompts",
            "You sum over the prompts too. What shape should the result have?",
            lambda logps, true, proxy: reward_slope(logps, true, proxy).sum()),
    Mistake("sign",
            "Your slope has the wrong sign. If proxy and truth are equal, does following it help?",
            lambda logps, true, proxy: -reward_slope(logps, true, proxy)),
)
_ATTACK_MISTAKES = (
    Mistake("highest proxy",
            "You take the highest proxy. Is that review overrated, or may it truly be good?",
            lambda proxy, true, ref, floor: attack(proxy, 0 * true, ref, floor)),
    Mistake("most underrated",
            "You return the most underrated review. Which reward do you subtract from which?",
            lambda proxy, true, ref, floor: attack(true, proxy, ref, floor)),
    Mistake("absolute value",
            "You count errors of both signs. Which sign does a policy exploit?",
            lambda proxy, true, ref, floor: attack((proxy - true).abs(), 0 * true, ref, floor)),
    Mistake("floor ignored",
            "You also search reviews below the floor. Which value can never be the maximum?",
            lambda proxy, true, ref, floor: attack(proxy, true, ref, 0.0)),
    Mistake("zero for rare ones",
            "You set the error of rare reviews to 0. What if all others are underrated, below 0?",
            lambda proxy, true, ref, floor: ((proxy - true) * (ref.exp() >= floor)).argmax(1)),
    Mistake("one for all prompts",
            "You search the whole table at once. How many prompts are there to attack?",
            lambda proxy, true, ref, floor:
                (proxy - true).masked_fill(ref.exp() < floor, -torch.inf).argmax()),
    Mistake("the error, not its place",
            "You return how much is overrated, not which review. What does argmax return?",
            lambda proxy, true, ref, floor:
                (proxy - true).masked_fill(ref.exp() < floor, -torch.inf).amax(1)),
)
_WORST_MISTAKES = (
    Mistake("not centred",
            "You compare raw scores. Add 100 to one model: can it still give the lowest?",
            lambda scores, ref: scores.amin(0)),
    Mistake("plain mean",
            "You subtract the mean over all responses alike. How often does π_ref give each?",
            lambda scores, ref: (scores - scores.mean(-1, keepdim=True)).amin(0)),
    Mistake("one constant for all prompts",
            "You subtract one mean for all prompts. Which constants does a model leave open?",
            lambda scores, ref: (
                scores - (ref.exp() * scores).sum(-1).mean(1)[:, None, None]).amin(0)),
    Mistake("centred too late",
            "You take the minimum first. Did the models have the same zero when you compared them?",
            lambda scores, ref: _centred(scores.amin(0), ref.exp())),
    Mistake("mean of the models",
            "You average the models. If one overrates a review, does the mean still?",
            lambda scores, ref: _centred(scores, ref.exp()).mean(0)),
    Mistake("best of the models",
            "You take the highest score. Which of the models would an attacker choose?",
            lambda scores, ref: _centred(scores, ref.exp()).amax(0)),
    Mistake("logarithms as weights",
            "Your weights are log-probabilities. What do weights of a mean add up to?",
            lambda scores, ref: _centred(scores, ref).amin(0)),
)
# fmt: on


_SLOPE = Exercise(
    name="reward_slope",
    notebook="09",
    hints=(
        "A covariance is E[a b] − E[a] E[b]. Under which distribution are the means?",
        "logps.exp() are the weights. Sum over the last dimension only.",
    ),
    solution=reward_slope,
    cases=lambda: make_cases(
        ("logps", "true", "proxy"),
        [
            (float64(0.8, 0.2).log(), float64(1.0, 0.0), float64(2.0, 0.0)),
            *(_tables(*shape, seed=9)[::-1] for shape in ((3,), (1, 4), (2, 3), (2, 2, 3))),
        ],
        [(float64(1.0, 0.0).log(), float64(1.0, 2.0), float64(3.0, 5.0))],
    ),
    mistakes=_SLOPE_MISTAKES,
)

_ATTACK = Exercise(
    name="attack",
    notebook="09",
    hints=(
        "A response is overrated by proxy − true. Find the index of the largest in each row.",
        "Use masked_fill to set what the reference gives too rarely to −inf, then argmax(1).",
    ),
    solution=attack,
    cases=lambda: make_cases(
        ("proxy", "true", "ref_logps", "floor"),
        [
            (float64([1.0, 3.0]), float64([0.0, 2.5]), float64([0.5, 0.5]).log(), 0.1),
            (float64([-3.0, -2.0, 0.0]), float64([0.0, 0.5, -5.0]), _rare(), 0.1),
            *((*_tables(x, 5, seed=s), 0.15) for x, s in ((2, 3), (3, 5), (2, 7), (3, 11))),
        ],
        [(*_tables(2, 4, seed=13), 0.0)],
    ),
    mistakes=_ATTACK_MISTAKES,
)


def _rare() -> Tensor:
    return float64([0.5, 0.45, 0.05]).log()


_WORST = Exercise(
    name="worst_of_ensemble",
    notebook="09",
    hints=(
        "A model's scores have a free constant for each prompt. Remove it before you compare.",
        "ref_logps.exp() are the weights of the mean: (weights * scores).sum(-1, keepdim=True).",
    ),
    solution=worst_of_ensemble,
    cases=lambda: make_cases(
        ("scores", "ref_logps"),
        [
            (k + random_numbers(k, x, y, seed=k + x), random_logps(x, y, seed=y))
            for k, x, y in ((2, 1, 2), (2, 1, 3), (3, 2, 2), (3, 2, 4), (4, 3, 3))
        ],
        [(random_numbers(1, 2, 3, seed=1), random_logps(2, 3, seed=2))],
    ),
    mistakes=_WORST_MISTAKES,
)

EXERCISES = (_SLOPE, _ATTACK, _WORST)
