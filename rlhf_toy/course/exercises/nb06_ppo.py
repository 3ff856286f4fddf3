"""The exercises of notebook 06: token rewards, advantages, the clip, the KL (L10 – L14)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def repair_ppo(
    reward: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Reward-to-go R_t = r(x, y) − β Σ_{k≥t} (log π − log π_ref)(token k) (L13).

    Args:
        reward: [B] rewards of the whole responses.
        logps: [B, T] log π of each token.
        ref_logps: [B, T] log π_ref of each token.
        mask: [B, T] real tokens.
        beta: KL weight.

    Returns:
        [B, T], 0 on masked tokens.
    """
    paid = beta * (logps - ref_logps).masked_fill(~mask, 0.0)
    still_to_pay = paid.flip(1).cumsum(1).flip(1)  # this token's own included
    return (reward[:, None] - still_to_pay).masked_fill(~mask, 0.0)


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


_ONE_TOKEN = (float64(2.0), float64([-1.0]), float64([-1.5]), _mask(1, T=1), 0.5)
_THREE_TOKENS = (
    float64(2.0),
    float64([-1.0, -2.0, -0.5]),
    float64([-1.5, -1.8, -0.7]),
    _mask(3, T=3),
    0.5,
)


def _kl_reward_cases() -> list[Case]:
    """reward, logps, ref_logps, mask, beta."""
    plain = [
        _THREE_TOKENS,
        (
            float64(1.0, -1.0),
            -random_numbers(2, 3, seed=1, scale=1.0).abs(),
            -random_numbers(2, 3, seed=2, scale=1.0).abs(),
            _mask(2, 3, T=3),
            2.0,
        ),
        (
            random_numbers(4, seed=3, scale=1.0).float(),
            -random_numbers(4, 5, seed=4, scale=1.0).abs().float(),
            -random_numbers(4, 5, seed=5, scale=1.0).abs().float(),
            _mask(1, 3, 5, 4, T=5),
            0.3,
        ),
    ]
    corners = [
        _ONE_TOKEN,
        (
            float64(1000.0, 0.0),
            float64([-50.0, 0.0], [0.0, -3.0]),
            float64([0.0, -50.0], [0.0, -3.0]),
            _mask(2, 1, T=2),
            1e-3,
        ),
    ]
    return make_cases(("reward", "logps", "ref_logps", "mask", "beta"), plain, corners)


def _token_rewards(reward, logps, ref_logps, mask, beta, at=None, kl_mask=None):
    """The right formula, with a place of the reward and a mask of the KL term of its own."""
    rewards = -beta * (logps - ref_logps) * (mask if kl_mask is None else kl_mask)
    if at is None:
        at = mask.sum(1) - 1
    rewards = rewards.clone()
    rewards[torch.arange(len(rewards)), at] += reward.to(rewards.dtype)
    return rewards


def _without_last(mask: Tensor) -> Tensor:
    return mask & (torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True) - 1)


_TOKEN_REWARDS = Exercise(
    name="token_rewards",
    notebook="06",
    hints=(
        "Two parts: −β times the log-ratio on every real token, and the reward on one of them.",
        "The last real token of a row is at mask.sum(1) − 1. It carries its KL term as well.",
        "They should sum over a row to reward − β Σ (logps − ref_logps) over the real tokens.",
    ),
    solution=losses.token_rewards,
    cases=_kl_reward_cases,
    mistakes=(
        Mistake(
            "sign of the KL",
            "Leaving the reference is paid here. It should cost something.",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, -beta
            ),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. How dear is a nat?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, 1.0
            ),
        ),
        Mistake(
            "reward in the last column",
            "The reward stands in the last column, but a short response ends before that. Which is "
            "its last real token?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, beta, at=-torch.ones(len(mask), dtype=torch.long)
            ),
        ),
        Mistake(
            "reward on every token",
            "Each token gets the whole reward, so that a long response is paid several times.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward[:, None] - beta * (logps - ref_logps)) * mask
            ),
        ),
        Mistake(
            "no KL on the last token",
            "The last token carries the reward, but not its own KL term. Then the tokens' rewards "
            "do not sum to r − β log-ratio, and the token problem is no longer the bandit problem.",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, beta, kl_mask=_without_last(mask)
            ),
        ),
        Mistake(
            "mask forgotten",
            "Tokens after the end are charged for. What stands there means nothing.",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, beta, kl_mask=torch.ones_like(mask)
            ),
        ),
        Mistake(
            "reward forgotten",
            "The KL term is there. Where is the reward?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                torch.zeros_like(reward), logps, ref_logps, mask, beta
            ),
        ),
        Mistake(
            "beta on the reward",
            "β multiplies the reward as well. Which of the two terms does it belong to?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                beta * reward, logps, ref_logps, mask, beta
            ),
        ),
    ),
)


def _gae_cases() -> list[Case]:
    """rewards, values, mask, gamma, lam."""
    plain = [
        (float64([0.0, 1.0]), float64([0.5, 0.2]), _mask(2, T=2), 1.0, 0.95),
        (float64([0.1, -0.2, 1.0]), float64([0.5, 0.4, -0.3]), _mask(3, T=3), 0.9, 0.5),
        (
            random_numbers(2, 3, seed=1, scale=1.0),
            random_numbers(2, 3, seed=2, scale=1.0),
            _mask(2, 3, T=3),
            1.0,
            0.9,
        ),
        (
            random_numbers(3, 4, seed=3, scale=1.0).float(),
            random_numbers(3, 4, seed=4, scale=1.0).float(),
            _mask(1, 4, 2, T=4),
            0.95,
            0.8,
        ),
    ]
    corners = [
        (float64([1.0]), float64([0.3]), _mask(1, T=1), 1.0, 0.95),
        (
            random_numbers(2, 4, seed=5, scale=1.0),
            random_numbers(2, 4, seed=6, scale=1.0),
            _mask(3, 4, T=4),
            1.0,
            1.0,
        ),
        (
            random_numbers(2, 4, seed=7, scale=1.0),
            random_numbers(2, 4, seed=8, scale=1.0),
            _mask(3, 4, T=4),
            1.0,
            0.0,
        ),
        (
            1e4 * random_numbers(1, 3, seed=9, scale=1.0),
            1e4 * random_numbers(1, 3, seed=10, scale=1.0),
            _mask(2, T=3),
            0.5,
            0.5,
        ),
    ]
    return make_cases(("rewards", "values", "mask", "gamma", "lam"), plain, corners)


def _gae(rewards, values, mask, gamma, lam, trace=None, bootstrap=False):
    """GAE with a trace factor of its own; `bootstrap` believes the values after the end."""
    trace = gamma * lam if trace is None else trace
    inside = torch.ones_like(mask) if bootstrap else mask
    rewards, values = rewards * mask, values * inside
    advantages, following, value = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value - values[:, t]
        if not bootstrap:
            delta = delta * mask[:, t]
        following = delta + trace * following
        advantages[:, t], value = following, values[:, t]
    return advantages * mask, (advantages + values) * mask


def _one_step(rewards, values, mask, gamma, lam):
    return _gae(rewards, values, mask, gamma, 0.0)


def _to_go(rewards, values, mask, gamma, lam):
    return _gae(rewards, values, mask, gamma, 1.0)


def _forwards(rewards, values, mask, gamma, lam):
    right = _gae(rewards, values, mask, gamma, 0.0)[0]
    advantages, before = torch.zeros_like(values), 0.0
    for t in range(values.shape[1]):
        before = right[:, t] + gamma * lam * before
        advantages[:, t] = before
    return advantages * mask, (advantages + values) * mask


def _returns_only(parts: tuple[Tensor, Tensor], returns: Tensor) -> tuple[Tensor, Tensor]:
    return parts[0], returns


_GAE = Exercise(
    name="gae",
    notebook="06",
    hints=(
        "Go backwards over the tokens, with two things in hand: the value and the advantage of "
        "the token that follows. Both are 0 after the last real token.",
        "delta = rewards[:, t] + gamma * next_value − values[:, t]; then add what follows, "
        "weighed by gamma · lam.",
        "Fill rewards and values with 0 where the mask is False, before the loop.",
    ),
    solution=losses.gae,
    cases=_gae_cases,
    returns=("advantages", "returns"),
    mistakes=(
        Mistake(
            "lambda forgotten",
            "This is reward-to-go minus value, whatever λ is: the special case λ = 1.",
            _to_go,
        ),
        Mistake(
            "one step only",
            "This is the one-step error δ, whatever λ is: the special case λ = 0. What follows "
            "is missing.",
            _one_step,
        ),
        Mistake(
            "gamma forgotten in the trace",
            "What follows is weighed by λ alone. How far away is it, in discounts?",
            lambda rewards, values, mask, gamma, lam: _gae(
                rewards, values, mask, gamma, lam, trace=lam
            ),
        ),
        Mistake(
            "gamma forgotten",
            "Your result does not depend on γ.",
            lambda rewards, values, mask, gamma, lam: _gae(rewards, values, mask, 1.0, lam),
        ),
        Mistake(
            "forwards",
            "The errors are added up from the front. An action can only be praised for what came "
            "after it.",
            _forwards,
        ),
        Mistake(
            "value after the end",
            "The value after the last real token is not 0 here: what the critic says about "
            "padding leaks into the advantages.",
            lambda rewards, values, mask, gamma, lam: _gae(
                rewards, values, mask, gamma, lam, bootstrap=True
            ),
        ),
        Mistake(
            "value not subtracted",
            "The advantage says how much better than expected it went. Where is the value of the "
            "state itself subtracted?",
            lambda rewards, values, mask, gamma, lam: (
                _gae(rewards, values, mask, gamma, lam)[1],
                _gae(rewards, values, mask, gamma, lam)[1],
            ),
        ),
        Mistake(
            "returns",
            "The advantages are right, but the returns, the critic's targets, are not: they are "
            "advantages + values.",
            lambda rewards, values, mask, gamma, lam: _returns_only(
                _gae(rewards, values, mask, gamma, lam),
                (rewards * mask).flip(1).cumsum(1).flip(1) * mask,
            ),
        ),
        Mistake(
            "returned in the other order",
            "Advantages first, returns second.",
            lambda rewards, values, mask, gamma, lam: _gae(rewards, values, mask, gamma, lam)[::-1],
        ),
    ),
)


def _clip_cases() -> list[Case]:
    """logps, old_logps, advantages, mask, cliprange."""
    ratios = float64([1.5, 1.5, 0.5, 0.5, 1.0, 1.1])
    signs = float64([1.0, -1.0, 1.0, -1.0, 2.0, -0.5])
    old = float64([-1.0, -2.0, -1.0, -0.5, -1.0, -2.0])
    plain = [
        (float64([-1.0]), float64([-1.1]), float64([2.0]), _mask(1, T=1), 0.2),
        (float64([-1.0]), float64([-2.0]), float64([1.0]), _mask(1, T=1), 0.2),
        (float64([-1.0]), float64([-2.0]), float64([-1.0]), _mask(1, T=1), 0.2),
        (old + ratios.log(), old, signs, _mask(6, T=6), 0.2),
        (
            -random_numbers(2, 4, seed=1, scale=1.0).abs(),
            -random_numbers(2, 4, seed=2, scale=1.0).abs(),
            random_numbers(2, 4, seed=3, scale=1.0),
            _mask(2, 4, T=4),
            0.1,
        ),
        (
            -random_numbers(3, 3, seed=4, scale=1.0).abs().float(),
            -random_numbers(3, 3, seed=5, scale=1.0).abs().float(),
            random_numbers(3, 3, seed=6, scale=1.0).float(),
            _mask(1, 3, 2, T=3),
            0.3,
        ),
    ]
    corners = [
        (float64([-1.0, -1.0]), float64([-1.0, -1.0]), float64([1.0, 0.0]), _mask(2, T=2), 0.2),
        (float64([-0.1, -9.0]), float64([-12.0, -0.2]), float64([1.0, 1.0]), _mask(2, T=2), 0.2),
    ]
    return make_cases(("logps", "old_logps", "advantages", "mask", "cliprange"), plain, corners)


def _clip(logps, old_logps, advantages, mask, cliprange, pick=torch.minimum):
    ratio = (logps - old_logps).exp()
    return -(
        pick(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages) * mask
    )


def _mean(terms: Tensor, mask: Tensor) -> Tensor:
    return terms.sum() / mask.sum()


_PPO_CLIP = Exercise(
    name="ppo_clip_loss",
    notebook="06",
    hints=(
        "The ratio is exp(logps − old_logps). Build ratio · A and the clipped ratio · A.",
        "Take the smaller of the two for each token: the pessimist's choice. It is not the same "
        "as clipping alone when A is negative.",
        "A mean over the real tokens, and a minus: optimisers minimise.",
    ),
    solution=losses.ppo_clip_loss,
    cases=_clip_cases,
    differentiable=("logps",),
    mistakes=(
        Mistake(
            "sign",
            "This is the objective, to be maximised. An optimiser minimises its loss.",
            lambda logps, old_logps, advantages, mask, cliprange: (
                -_mean(_clip(logps, old_logps, advantages, mask, cliprange), mask)
            ),
        ),
        Mistake(
            "larger of the two",
            "The larger of the two terms is taken. Which one keeps the update careful, for a "
            "positive advantage and for a negative one?",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(logps, old_logps, advantages, mask, cliprange, torch.maximum), mask
            ),
        ),
        Mistake(
            "clipped only",
            "The ratio is clipped on both sides whatever the advantage is. Then an action that "
            "became less likely although it was good gets no gradient that brings it back.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(logps, old_logps, advantages, mask, cliprange, lambda one, other: other), mask
            ),
        ),
        Mistake(
            "not clipped",
            "There is no clip in this: the ratio may grow without limit.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(logps, old_logps, advantages, mask, cliprange, lambda one, other: one), mask
            ),
        ),
        Mistake(
            "mask forgotten",
            "Padding counts in the mean: divide by the number of real tokens, and sum only those.",
            lambda logps, old_logps, advantages, mask, cliprange: _clip(
                logps, old_logps, advantages, torch.ones_like(mask), cliprange
            ).mean(),
        ),
        Mistake(
            "divided by all tokens",
            "The padding is left out of the sum, but not of what it is divided by.",
            lambda logps, old_logps, advantages, mask, cliprange: _clip(
                logps, old_logps, advantages, mask, cliprange
            ).mean(),
        ),
        Mistake(
            "sum for mean",
            "This is a sum over the tokens. With the mean, the step does not depend on the batch.",
            lambda logps, old_logps, advantages, mask, cliprange: _clip(
                logps, old_logps, advantages, mask, cliprange
            ).sum(),
        ),
        Mistake(
            "difference for ratio",
            "The difference of log-probabilities is not the ratio yet.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                -torch.minimum(
                    (logps - old_logps) * advantages,
                    (logps - old_logps).clamp(1 - cliprange, 1 + cliprange) * advantages,
                )
                * mask,
                mask,
            ),
        ),
        Mistake(
            "ratio upside down",
            "The ratio is turned round: it should say how much likelier the token has become.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(old_logps, logps, advantages, mask, cliprange), mask
            ),
        ),
    ),
)


def _estimator_cases() -> list[Case]:
    """logps, ref_logps, estimator."""
    pairs = [
        (float64(-1.0), float64(-1.5)),
        (float64(-1.0, -3.0), float64(-2.0, -0.5)),
        (
            -random_numbers(2, 3, seed=1, scale=1.0).abs().float(),
            -random_numbers(2, 3, seed=2, scale=1.0).abs().float(),
        ),
    ]
    extreme = [(float64(-1.0), float64(-1.0)), (float64(-1.0, -9.0), float64(-30.0, -1e-4))]
    return make_cases(
        ("logps", "ref_logps", "estimator"),
        [(*pair, name) for pair in pairs for name in ("k1", "k2", "k3")],
        [(*pair, name) for pair in extreme for name in ("k1", "k2", "k3")],
    )


def _estimates(k1, k2, k3):
    """An estimator from three functions of the log-ratio."""
    return lambda logps, ref_logps, estimator: {"k1": k1, "k2": k2, "k3": k3}[estimator](
        logps - ref_logps
    )


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return log_ratio**2 / 2


def _k3(log_ratio: Tensor) -> Tensor:
    return torch.expm1(-log_ratio) + log_ratio


_APPROX_KL = Exercise(
    name="approx_kl",
    notebook="06",
    hints=(
        "All three are functions of log_ratio = logps − ref_logps, for samples drawn from π.",
        "k3 is exp(−log_ratio) − 1 + log_ratio; torch.expm1 is precise near 0.",
    ),
    solution=losses.approx_kl,
    cases=_estimator_cases,
    mistakes=(
        Mistake(
            "sign of k1",
            "k1 has the other sign: its mean over samples of π would be −KL(π ‖ π_ref).",
            _estimates(lambda r: -r, _k2, _k3),
        ),
        Mistake(
            "sign in k3's exponent",
            "k3 has exp(+log_ratio). Its mean over samples of π would not be a KL between these "
            "two. What is the ratio whose mean is 1 under π?",
            _estimates(_k1, _k2, lambda r: torch.expm1(r) - r),
        ),
        Mistake(
            "everything the other way round",
            "The log-ratio is turned round in all three. The samples come from π, not from π_ref.",
            _estimates(lambda r: -r, _k2, lambda r: torch.expm1(r) - r),
        ),
        Mistake(
            "half forgotten",
            "k2 is twice what it should be.",
            _estimates(_k1, lambda r: r**2, _k3),
        ),
        Mistake(
            "minus one forgotten",
            "k3 should be 0 where both policies agree.",
            _estimates(_k1, _k2, lambda r: torch.exp(-r) + r),
        ),
        Mistake(
            "log-ratio forgotten in k3",
            "k3's first part has mean 0 under π. Which term brings the KL?",
            _estimates(_k1, _k2, lambda r: torch.expm1(-r)),
        ),
        Mistake(
            "averaged",
            "One estimate for each sample is asked for; their mean is taken later.",
            lambda logps, ref_logps, estimator: losses.approx_kl(
                logps, ref_logps, estimator
            ).mean(),
        ),
        Mistake(
            "absolute value",
            "k1 is made positive here. It may be negative for a sample, and must be, or its mean "
            "is too large.",
            _estimates(torch.abs, _k2, _k3),
        ),
    ),
)


def _reward_to_go(reward, logps, ref_logps, mask, beta, own=True):
    paid = beta * (logps - ref_logps) * mask
    to_pay = paid.flip(1).cumsum(1).flip(1)
    return (reward[:, None] - (to_pay if own else to_pay - paid)) * mask


_REPAIR = Exercise(
    name="repair_ppo",
    notebook="06",
    hints=(
        "The reward is about the optimum's, but the KL is far above its. Who pays too little?",
        "Write down what the last token of a response is charged for its own log-ratio.",
        "In L13 the sum runs over k ≥ t.",
    ),
    solution=repair_ppo,
    cases=_kl_reward_cases,
    mistakes=(
        Mistake(
            "still broken",
            "This still has the bug: what a token itself costs is not charged to it.",
            lambda reward, logps, ref_logps, mask, beta: _reward_to_go(
                reward, logps, ref_logps, mask, beta, own=False
            ),
        ),
        Mistake(
            "whole KL at every token",
            "Every token is charged for the whole response. What was paid before a token was "
            "written is not its doing.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward - (beta * (logps - ref_logps) * mask).sum(1))[:, None] * mask
            ),
        ),
        Mistake(
            "sums over the past",
            "Your sum runs over the tokens up to t. To-go means from t to the end.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward[:, None] - (beta * (logps - ref_logps) * mask).cumsum(1)) * mask
            ),
        ),
        Mistake(
            "sign",
            "Leaving the reference is paid here.",
            lambda reward, logps, ref_logps, mask, beta: _reward_to_go(
                reward, logps, ref_logps, mask, -beta
            ),
        ),
        Mistake(
            "own term only",
            "Only a token's own log-ratio is charged. It also commits you to what follows.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward[:, None] - beta * (logps - ref_logps)) * mask
            ),
        ),
        Mistake(
            "mask forgotten",
            "Padding is charged for, or gets a return. Nothing that stands after the end counts.",
            lambda reward, logps, ref_logps, mask, beta: (
                reward[:, None] - (beta * (logps - ref_logps)).flip(1).cumsum(1).flip(1)
            ),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β.",
            lambda reward, logps, ref_logps, mask, beta: _reward_to_go(
                reward, logps, ref_logps, mask, 1.0
            ),
        ),
    ),
)

EXERCISES = (_TOKEN_REWARDS, _GAE, _PPO_CLIP, _APPROX_KL, _REPAIR)
