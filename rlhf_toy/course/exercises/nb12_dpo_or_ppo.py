"""The exercises of notebook 12: a bootstrap interval over seeds, and the win rate."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_logps, random_numbers
from rlhf_toy.training import make_generator


def bootstrap_interval(
    values: Tensor, resamples: Tensor, confidence: float
) -> tuple[Tensor, Tensor]:
    """Return the percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: [N] one measurement for each seed.
        resamples: [R, N] indices into `values`, drawn with replacement; each row is a data set that
            could have been measured instead.
        confidence: for example 0.95.

    Returns:
        low and high, two scalars in the unit of `values`: the (1 − confidence)/2 and
        (1 + confidence)/2 quantiles of the R means, linearly interpolated.
    """
    means = values[resamples].mean(1)
    low = torch.quantile(means, (1 - confidence) / 2)
    high = torch.quantile(means, (1 + confidence) / 2)
    return low, high


def win_rate(first_logps: Tensor, second_logps: Tensor, rewards: Tensor) -> Tensor:
    """Return P(r(y) > r(y′)) + P(r(y) = r(y′))/2 for independent y ~ first policy, y′ ~ second.

    Sorting the responses by reward avoids the [Y, Y] table of all pairs. A response wins with the
    total probability of the responses below it, plus half of the probability of those equal to it.

    Args:
        first_logps: [..., Y] the first policy's log-probabilities of all responses, in nats.
        second_logps: [..., Y] the second policy's.
        rewards: [..., Y] true rewards, in logits.

    Returns:
        [...] probabilities, one for each prompt.
    """
    ranked, order = rewards.sort(-1)
    upto = second_logps.exp().gather(-1, order).cumsum(-1)
    upto = torch.cat([torch.zeros_like(upto[..., :1]), upto], dim=-1)  # of the 0, 1, …, Y lowest
    rewards = rewards.contiguous()
    below = upto.gather(-1, torch.searchsorted(ranked, rewards))
    not_above = upto.gather(-1, torch.searchsorted(ranked, rewards, right=True))
    return (first_logps.exp() * (below + not_above) / 2).sum(-1)


def _draws(rows: int, n: int, seed: int) -> Tensor:
    return torch.randint(n, (rows, n), generator=make_generator(seed))


def _interval_cases() -> list[Case]:
    some = torch.tensor([[0, 0, 1], [2, 1, 0], [2, 2, 1], [0, 1, 1]])
    plain = [
        (float64(1.0, 2.0, 6.0), some, 0.5),
        (float64(0.4, -0.2, 0.1, 1.5), _draws(12, 4, seed=1), 0.8),
        (random_numbers(5, seed=2), _draws(25, 5, seed=3), 0.9),
        (random_numbers(10, seed=4).float(), _draws(200, 10, seed=5), 0.95),
    ]
    corners = [
        (float64(3.0), torch.zeros(4, 1, dtype=torch.long), 0.95),  # one seed: no spread
        (float64(2.0, 2.0), torch.tensor([[0, 1], [1, 1], [0, 0]]), 0.9),
        (float64(1.0, 5.0), torch.tensor([[0, 1]]), 0.95),  # one resample
        (float64(1e6, -1e6, 2e6), _draws(30, 3, seed=6), 0.99),
        (random_numbers(4, seed=7), _draws(20, 4, seed=8), 1.0),
    ]
    return make_cases(("values", "resamples", "confidence"), plain, corners)


def _quantiles(numbers: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    numbers = numbers.flatten()
    return (
        torch.quantile(numbers, (1 - confidence) / 2),
        torch.quantile(numbers, (1 + confidence) / 2),
    )


def _around(centre: Tensor, half: Tensor | float) -> tuple[Tensor, Tensor]:
    return centre - half, centre + half


def _z(confidence: float) -> Tensor:
    return torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64))


def _standard_error_interval(values: Tensor, resamples: Tensor, confidence: float):
    return _around(values.mean(), _z(confidence) * values.std() / len(values) ** 0.5)


def _normal_interval(values: Tensor, resamples: Tensor, confidence: float):
    means = values[resamples].mean(1)
    return _around(means.mean(), _z(confidence) * means.std())


def _reflected(values: Tensor, resamples: Tensor, confidence: float):
    low, high = bootstrap_interval(values, resamples, confidence)
    return 2 * values.mean() - high, 2 * values.mean() - low


_BOOTSTRAP = Exercise(
    name="bootstrap_interval",
    notebook="12",
    hints=(
        "values[resamples] has shape [R, N]: R data sets that you could have measured instead.",
        "Take one mean for each data set. The interval says where these means lie.",
        "A 95 % interval leaves out 2.5 % of the means at each end. Use torch.quantile.",
    ),
    solution=bootstrap_interval,
    cases=_interval_cases,
    returns=("low", "high"),
    mistakes=(
        Mistake(
            "quantiles of the values",
            "These are quantiles of the values: they say how much single seeds scatter. How much "
            "would their mean scatter?",
            lambda values, resamples, confidence: _quantiles(values, confidence),
        ),
        Mistake(
            "pooled",
            "You pool all resampled values. Each row is a data set of its own, with its own mean.",
            lambda values, resamples, confidence: _quantiles(values[resamples], confidence),
        ),
        Mistake(
            "wrong dimension",
            "You average over the resamples. Which dimension of [R, N] is one data set?",
            lambda values, resamples, confidence: _quantiles(values[resamples].mean(0), confidence),
        ),
        Mistake(
            "one-sided",
            "You leave out 1 − confidence at each end, so in total twice as much as you should.",
            lambda values, resamples, confidence: (
                torch.quantile(values[resamples].mean(1), 1 - confidence),
                torch.quantile(values[resamples].mean(1), confidence),
            ),
        ),
        Mistake(
            "one standard deviation",
            "The mean ± one standard deviation is the same interval for every confidence. The "
            "percentile bootstrap uses quantiles.",
            lambda values, resamples, confidence: _around(
                values[resamples].mean(1).mean(), values[resamples].mean(1).std()
            ),
        ),
        Mistake(
            "normal approximation",
            "Your interval assumes that the means are normally distributed. The percentile "
            "bootstrap does not assume this: it looks at the means themselves.",
            _normal_interval,
        ),
        Mistake(
            "resamples ignored",
            "This is the textbook interval from the standard error. What are the resamples for?",
            _standard_error_interval,
        ),
        Mistake(
            "medians",
            "You take the median of each resample. The interval should be for the mean.",
            lambda values, resamples, confidence: _quantiles(
                values[resamples].median(1).values, confidence
            ),
        ),
        Mistake(
            "sums",
            "You sum each resample, but you do not divide by its size.",
            lambda values, resamples, confidence: _quantiles(values[resamples].sum(1), confidence),
        ),
        Mistake(
            "smallest and largest",
            "The more resamples you draw, the further apart the smallest and the largest mean "
            "are. Where does the confidence come in?",
            lambda values, resamples, confidence: (
                values[resamples].mean(1).min(),
                values[resamples].mean(1).max(),
            ),
        ),
        Mistake(
            "swapped",
            "Return the lower end first.",
            lambda values, resamples, confidence: bootstrap_interval(values, resamples, confidence)[
                ::-1
            ],
        ),
        Mistake(
            "reflected",
            "This is the basic bootstrap, which reflects the quantiles around the mean. The "
            "percentile bootstrap uses the quantiles as they are.",
            _reflected,
        ),
    ),
)


def _log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _win_cases() -> list[Case]:
    three = (_log(0.5, 0.3, 0.2), _log(0.2, 0.2, 0.6), float64(2.0, 1.0, 1.0))
    plain = [
        three,
        (random_logps(4, seed=1), random_logps(4, seed=2), float64(0.5, -1.0, 0.5, 2.0)),
        (*(random_logps(1, 3, seed=seed) for seed in (3, 4)), float64([0.0, 1.5, 1.5])),
        (
            *(random_logps(2, 4, seed=seed) for seed in (5, 6)),
            float64([1.0, 1.0, 0.0, 3.0], [-0.5, 2.0, 2.0, -0.5]),
        ),
        (
            *(random_logps(2, 2, 5, seed=seed).float() for seed in (7, 8)),
            random_numbers(2, 2, 5, seed=9, scale=0.3).float(),  # close together, so some tie
        ),
        (*(random_logps(3, 30, seed=seed) for seed in (10, 11)), random_numbers(3, 30, seed=12)),
    ]
    corners = [
        (_log(1.0), _log(1.0), float64(3.0)),
        (_log(0.9, 0.1), _log(0.3, 0.7), float64(2.0, 2.0)),  # all tie
        (_log(1.0, 0.0), _log(0.0, 1.0), float64(1.0, -1.0)),  # always wins
        (_log(0.0, 1.0), _log(0.5, 0.5), float64(1000.0, -1000.0)),
    ]
    return make_cases(("first_logps", "second_logps", "rewards"), plain, corners)


def _pairwise(first: Tensor, second: Tensor, outcome: Tensor) -> Tensor:
    """Σ first(y) second(y′) outcome(y, y′): [..., Y] × 2, [..., Y, Y] → [...]."""
    return (first[..., :, None] * second[..., None, :] * outcome).sum((-2, -1))


def _differences(rewards: Tensor) -> Tensor:
    return rewards[..., :, None] - rewards[..., None, :]


def _hard(rewards: Tensor, tie: float = 0.5) -> Tensor:
    """1 where the first response is better, `tie` where both are equal, 0 elsewhere."""
    difference = _differences(rewards)
    return (difference > 0).to(rewards) + tie * (difference == 0).to(rewards)


def _mean_reward(logps: Tensor, rewards: Tensor) -> Tensor:
    return (logps.exp() * rewards).sum(-1)


def _share_of_decided(first: Tensor, second: Tensor, rewards: Tensor) -> Tensor:
    wins = _pairwise(first.exp(), second.exp(), _hard(rewards, 0.0))
    losses = _pairwise(second.exp(), first.exp(), _hard(rewards, 0.0))
    return wins / (wins + losses)


def _different_only(first: Tensor, second: Tensor, rewards: Tensor) -> Tensor:
    other = 1 - torch.eye(rewards.shape[-1], dtype=rewards.dtype)
    return _pairwise(first.exp(), second.exp(), _hard(rewards) * other)


def _against_the_mean(first: Tensor, second: Tensor, rewards: Tensor) -> Tensor:
    rival = _mean_reward(second, rewards)[..., None]
    return (first.exp() * (rewards > rival)).sum(-1)


_WIN_RATE = Exercise(
    name="win_rate",
    notebook="12",
    hints=(
        "Draw one response from each policy. So the sum runs over all pairs (y, y′).",
        "The draws are independent, so the pair (y, y′) has probability π₁(y) π₂(y′).",
        "A win counts 1, a tie 1/2, a loss 0. Compare rewards[..., :, None] with rewards[..., "
        "None, :].",
    ),
    solution=win_rate,
    cases=_win_cases,
    mistakes=(
        Mistake(
            "ties count as losses",
            "You count two responses with the same reward as a loss. Then two equal policies do "
            "not get one half each.",
            lambda first, second, r: _pairwise(first.exp(), second.exp(), _hard(r, 0.0)),
        ),
        Mistake(
            "ties count as wins",
            "You count two responses with the same reward as a win. Then two equal policies do "
            "not get one half each.",
            lambda first, second, r: _pairwise(first.exp(), second.exp(), _hard(r, 1.0)),
        ),
        Mistake(
            "ties left out",
            "You divide by the probability that there is a winner, which leaves out the ties. "
            "Here a tie counts as half a win.",
            _share_of_decided,
        ),
        Mistake(
            "same response left out",
            "You leave out the pairs where both policies give the same response. Independent "
            "draws can agree, and that is a tie like any other.",
            _different_only,
        ),
        Mistake(
            "swapped",
            "This is how often the second policy wins.",
            lambda first, second, r: win_rate(second, first, r),
        ),
        Mistake(
            "Bradley–Terry",
            "You compute how often a noisy annotator would prefer the first response. Here the "
            "response with the higher reward always wins.",
            lambda first, second, r: _pairwise(
                first.exp(), second.exp(), torch.sigmoid(_differences(r))
            ),
        ),
        Mistake(
            "difference of expected rewards",
            "This is how much better the first policy is on average, in logits. A policy can win "
            "rarely and still be better on average. How often does it win?",
            lambda first, second, r: _mean_reward(first, r) - _mean_reward(second, r),
        ),
        Mistake(
            "sigmoid of expected rewards",
            "You compare the mean rewards, and then turn the result into a probability. Compare "
            "single responses first, and average at the end.",
            lambda first, second, r: torch.sigmoid(
                _mean_reward(first, r) - _mean_reward(second, r)
            ),
        ),
        Mistake(
            "against the average response",
            "You replace the second policy by its mean reward. But it draws a response too, "
            "sometimes a better one and sometimes a worse one.",
            _against_the_mean,
        ),
        Mistake(
            "not weighted",
            "You count every pair of responses equally, so every policy wins half of the time. "
            "How likely is each pair?",
            lambda first, second, r: _hard(r).mean((-2, -1)),
        ),
        Mistake(
            "log-probabilities as weights",
            "Your weights are log-probabilities. What turns them into probabilities?",
            lambda first, second, r: _pairwise(first, second, _hard(r)),
        ),
        Mistake(
            "summed over prompts",
            "Every prompt has its own win rate. Sum over the responses only.",
            lambda first, second, r: win_rate(first, second, r).sum(),
        ),
        Mistake(
            "averaged over prompts",
            "Every prompt has its own win rate, but you return the mean over all of them.",
            lambda first, second, r: win_rate(first, second, r).mean(),
        ),
    ),
)

EXERCISES = (_BOOTSTRAP, _WIN_RATE)
