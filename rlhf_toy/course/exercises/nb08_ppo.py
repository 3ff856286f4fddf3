"""The exercises of notebook 08: token rewards, advantages, the clipped loss, KL estimators."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def repair_ppo(
    reward: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Return the reward-to-go of each token, R_t = r(x, y) − β Σ_{k≥t} log π/π_ref of token k.

    Args:
        reward: [B] reward of each whole response, in logits.
        logps: [B, T] log π of each token, in nats.
        ref_logps: [B, T] log π_ref of each token, in nats.
        mask: [B, T] True on real tokens.
        beta: strength of the KL penalty.

    Returns:
        [B, T] in logits, 0 on masked tokens.
    """
    paid = beta * (logps - ref_logps).masked_fill(~mask, 0.0)
    still_to_pay = paid.flip(1).cumsum(1).flip(1)  # includes this token's own
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
    """Cases for reward, logps, ref_logps, mask, beta."""
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
    """The right formula; `at` moves the reward, and `kl_mask` replaces the mask of the KL term."""
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
    notebook="08",
    hints=(
        "The result has two parts: −β times the log-ratio on every real token, and the reward on "
        "just one of them.",
        "In each row, the last real token is at index mask.sum(1) - 1. It gets its KL term too.",
        "To check your result: over the real tokens, each row must sum to reward − β Σ (logps − "
        "ref_logps).",
    ),
    solution=losses.token_rewards,
    cases=_kl_reward_cases,
    mistakes=(
        Mistake(
            "sign of the KL",
            "Your result rewards the policy for leaving the reference. Leaving it should cost "
            "something.",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, -beta
            ),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What does one nat of KL cost?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, 1.0
            ),
        ),
        Mistake(
            "reward in the last column",
            "You put the reward in the last column, but a short response ends before it. Where is "
            "its last real token?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, beta, at=-torch.ones(len(mask), dtype=torch.long)
            ),
        ),
        Mistake(
            "reward on every token",
            "You give the whole reward to every token, so a long response is paid several times.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward[:, None] - beta * (logps - ref_logps)) * mask
            ),
        ),
        Mistake(
            "no KL on the last token",
            "Your last token gets the reward but not its own KL term. So the rewards of a row do "
            "not sum to r − β · log-ratio, and the token problem no longer matches the bandit "
            "problem.",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, beta, kl_mask=_without_last(mask)
            ),
        ),
        Mistake(
            "mask forgotten",
            "You charge for tokens after the end of the response. They are padding and should not "
            "count.",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                reward, logps, ref_logps, mask, beta, kl_mask=torch.ones_like(mask)
            ),
        ),
        Mistake(
            "reward forgotten",
            "Your KL term is right. Where is the reward?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                torch.zeros_like(reward), logps, ref_logps, mask, beta
            ),
        ),
        Mistake(
            "beta on the reward",
            "β multiplies the reward too. Which of the two terms does it belong to?",
            lambda reward, logps, ref_logps, mask, beta: _token_rewards(
                beta * reward, logps, ref_logps, mask, beta
            ),
        ),
    ),
)


def _gae_cases() -> list[Case]:
    """Cases for rewards, values, mask, gamma, lam."""
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
    """GAE with any trace factor; `bootstrap` uses the critic's values after the end."""
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
    notebook="08",
    hints=(
        "Loop backwards over the tokens. Keep two numbers for each row: the value and the "
        "advantage of the next token. Both are 0 after the last real token.",
        "delta = rewards[:, t] + gamma * next_value - values[:, t]. The advantage is delta plus "
        "gamma * lam times the advantage of the next token.",
        "Before the loop, set rewards and values to 0 where the mask is False.",
    ),
    solution=losses.gae,
    cases=_gae_cases,
    returns=("advantages", "returns"),
    mistakes=(
        Mistake(
            "lambda forgotten",
            "Your result does not depend on λ. This is reward-to-go minus value, the special case "
            "λ = 1.",
            _to_go,
        ),
        Mistake(
            "one step only",
            "Your result does not depend on λ. This is the one-step error δ, the special case λ = "
            "0. The errors of the later steps are missing.",
            _one_step,
        ),
        Mistake(
            "gamma forgotten in the trace",
            "You weight the next advantage by λ alone. But it is also one step further in the "
            "future. What accounts for that?",
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
            "You add up the errors from the first token on. But an action can only get credit for "
            "what comes after it.",
            _forwards,
        ),
        Mistake(
            "value after the end",
            "Your value after the last real token is not 0, so the critic's numbers for padding "
            "leak into the advantages.",
            lambda rewards, values, mask, gamma, lam: _gae(
                rewards, values, mask, gamma, lam, bootstrap=True
            ),
        ),
        Mistake(
            "value not subtracted",
            "The advantage says how much better things went than expected. Where do you subtract "
            "the value of the state itself?",
            lambda rewards, values, mask, gamma, lam: (
                _gae(rewards, values, mask, gamma, lam)[1],
                _gae(rewards, values, mask, gamma, lam)[1],
            ),
        ),
        Mistake(
            "returns",
            "Your advantages are right, but your returns are not. The returns are the critic's "
            "targets: advantages + values.",
            lambda rewards, values, mask, gamma, lam: _returns_only(
                _gae(rewards, values, mask, gamma, lam),
                (rewards * mask).flip(1).cumsum(1).flip(1) * mask,
            ),
        ),
        Mistake(
            "returned in the other order",
            "Return the advantages first and the returns second.",
            lambda rewards, values, mask, gamma, lam: _gae(rewards, values, mask, gamma, lam)[::-1],
        ),
    ),
)


def _clip_cases() -> list[Case]:
    """Cases for logps, old_logps, advantages, mask, cliprange."""
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
    notebook="08",
    hints=(
        "The ratio is exp(logps - old_logps). Compute the ratio times A, and the clipped ratio "
        "times A.",
        "For each token, take the smaller of the two: the pessimistic choice. It is not always "
        "the clipped one.",
        "Take the mean over the real tokens, with a minus sign, because an optimiser minimises.",
    ),
    solution=losses.ppo_clip_loss,
    cases=_clip_cases,
    differentiable=("logps",),
    mistakes=(
        Mistake(
            "sign",
            "You return the objective, which should be maximised. But an optimiser minimises its "
            "loss.",
            lambda logps, old_logps, advantages, mask, cliprange: (
                -_mean(_clip(logps, old_logps, advantages, mask, cliprange), mask)
            ),
        ),
        Mistake(
            "larger of the two",
            "You take the larger of the two terms. Which of them keeps the update careful for a "
            "positive advantage, and which for a negative one?",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(logps, old_logps, advantages, mask, cliprange, torch.maximum), mask
            ),
        ),
        Mistake(
            "clipped only",
            "You always use the clipped ratio, whatever the advantage is. So a good action that "
            "became much less likely gets no gradient to bring it back.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(logps, old_logps, advantages, mask, cliprange, lambda one, other: other), mask
            ),
        ),
        Mistake(
            "not clipped",
            "You do not clip anything, so the ratio can grow without limit.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(logps, old_logps, advantages, mask, cliprange, lambda one, other: one), mask
            ),
        ),
        Mistake(
            "mask forgotten",
            "Padding counts in your mean. Sum over the real tokens only, and divide by their "
            "number.",
            lambda logps, old_logps, advantages, mask, cliprange: _clip(
                logps, old_logps, advantages, torch.ones_like(mask), cliprange
            ).mean(),
        ),
        Mistake(
            "divided by all tokens",
            "You leave the padding out of the sum, but you still count it in the number you "
            "divide by.",
            lambda logps, old_logps, advantages, mask, cliprange: _clip(
                logps, old_logps, advantages, mask, cliprange
            ).mean(),
        ),
        Mistake(
            "sum instead of mean",
            "You return a sum over the tokens. With a mean, the step size does not depend on how "
            "many tokens are in the batch.",
            lambda logps, old_logps, advantages, mask, cliprange: _clip(
                logps, old_logps, advantages, mask, cliprange
            ).sum(),
        ),
        Mistake(
            "difference instead of ratio",
            "A difference of log-probabilities is not yet a ratio of probabilities.",
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
            "Your ratio is upside down. It should say how much more likely the token has become.",
            lambda logps, old_logps, advantages, mask, cliprange: _mean(
                _clip(old_logps, logps, advantages, mask, cliprange), mask
            ),
        ),
    ),
)


def _estimator_cases() -> list[Case]:
    """Cases for logps, ref_logps, estimator."""
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
    """Build an estimator from three functions of the log-ratio."""
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
    notebook="08",
    hints=(
        "All three are functions of log_ratio = logps - ref_logps. The samples are drawn from π.",
        "k3 is exp(-log_ratio) - 1 + log_ratio. Near 0, torch.expm1 is more precise than exp "
        "minus 1.",
    ),
    solution=losses.approx_kl,
    cases=_estimator_cases,
    mistakes=(
        Mistake(
            "sign of k1",
            "Your k1 has the wrong sign: over samples from π, its mean would be −KL(π ‖ π_ref).",
            _estimates(lambda r: -r, _k2, _k3),
        ),
        Mistake(
            "sign in k3's exponent",
            "Your k3 uses exp(+log_ratio), so its mean over samples from π is not KL(π ‖ π_ref). "
            "Which ratio has mean 1 under π?",
            _estimates(_k1, _k2, lambda r: torch.expm1(r) - r),
        ),
        Mistake(
            "everything the other way round",
            "You reversed the log-ratio in all three. The samples come from π, not from π_ref.",
            _estimates(lambda r: -r, _k2, lambda r: torch.expm1(r) - r),
        ),
        Mistake(
            "half forgotten",
            "Your k2 is twice as large as it should be.",
            _estimates(_k1, lambda r: r**2, _k3),
        ),
        Mistake(
            "minus one forgotten",
            "Your k3 should be 0 where the two policies agree.",
            _estimates(_k1, _k2, lambda r: torch.exp(-r) + r),
        ),
        Mistake(
            "log-ratio forgotten in k3",
            "Your k3 has mean 0 under π. Which term would make its mean the KL?",
            _estimates(_k1, _k2, lambda r: torch.expm1(-r)),
        ),
        Mistake(
            "averaged",
            "You return the mean. Return one estimate for each sample; the mean is taken later.",
            lambda logps, ref_logps, estimator: losses.approx_kl(
                logps, ref_logps, estimator
            ).mean(),
        ),
        Mistake(
            "absolute value",
            "You make k1 positive. For a single sample it can be negative. If it never were, its "
            "mean would be too large.",
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
    notebook="08",
    hints=(
        "The reward is close to the optimum's, but the KL is far above it. So some of the KL is "
        "never charged.",
        "Take the last token of a response. How much is it charged for its own log-ratio?",
        "In the reward-to-go R_t, the KL terms are summed over all tokens k ≥ t.",
    ),
    solution=repair_ppo,
    cases=_kl_reward_cases,
    mistakes=(
        Mistake(
            "still broken",
            "Your function still has the bug: a token is not charged for its own log-ratio.",
            lambda reward, logps, ref_logps, mask, beta: _reward_to_go(
                reward, logps, ref_logps, mask, beta, own=False
            ),
        ),
        Mistake(
            "whole KL at every token",
            "You charge every token for the whole response. But a token cannot change the KL of "
            "the tokens before it.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward - (beta * (logps - ref_logps) * mask).sum(1))[:, None] * mask
            ),
        ),
        Mistake(
            "sums over the past",
            "Your sum runs over the tokens up to t. Reward-to-go runs from t to the end.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward[:, None] - (beta * (logps - ref_logps) * mask).cumsum(1)) * mask
            ),
        ),
        Mistake(
            "sign",
            "Your result rewards the policy for leaving the reference. Leaving it should cost "
            "something.",
            lambda reward, logps, ref_logps, mask, beta: _reward_to_go(
                reward, logps, ref_logps, mask, -beta
            ),
        ),
        Mistake(
            "own term only",
            "You charge a token only for its own log-ratio. But the token also affects everything "
            "that follows.",
            lambda reward, logps, ref_logps, mask, beta: (
                (reward[:, None] - beta * (logps - ref_logps)) * mask
            ),
        ),
        Mistake(
            "mask forgotten",
            "You charge for padding and give it a return. Tokens after the end should not count.",
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
