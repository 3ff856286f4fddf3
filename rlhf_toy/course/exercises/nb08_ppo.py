"""The exercises of notebook 08: token rewards, advantages, the clipped loss, and a repair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def repair_ppo(
    reward: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Return R_t = r(x, y) − β Σ_{k≥t} log π/π_ref of token k. [B], [B, T] × 3 → [B, T]

    In logits, and 0 on masked tokens; `logps` and `ref_logps` are of tokens, in nats.
    """
    paid = beta * (logps - ref_logps).masked_fill(~mask, 0.0)
    still_to_pay = paid.flip(1).cumsum(1).flip(1)  # includes this token's own
    return (reward[:, None] - still_to_pay).masked_fill(~mask, 0.0)


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _some_logps(*shape: int, seed: int) -> Tensor:
    return -random_numbers(*shape, seed=seed, scale=1.0).abs()


def _kl_reward_cases() -> list[Case]:
    """Cases for reward, logps, ref_logps, mask, beta; what padding holds is not 0."""

    def case(reward: Tensor, *lengths: int, T: int, beta: float, seed: int) -> tuple:
        logps, ref_logps = (_some_logps(len(lengths), T, seed=s) for s in (seed, seed + 1))
        return reward, logps, ref_logps, _mask(*lengths, T=T), beta

    plain = [
        case(float64(2.0), 3, T=3, beta=0.5, seed=0),
        case(float64(1.0, -1.0), 2, 3, T=3, beta=2.0, seed=2),
        case(random_numbers(4, seed=3, scale=1.0), 1, 3, 5, 4, T=5, beta=0.3, seed=4),
    ]
    corners = [
        case(float64(2.0), 1, T=1, beta=0.5, seed=6),
        case(float64(1000.0, 0.0), 2, 1, T=2, beta=1e-3, seed=8),
    ]
    return make_cases(("reward", "logps", "ref_logps", "mask", "beta"), plain, corners)


def _token_rewards(reward, logps, ref_logps, mask, beta, at=None, charged=None):
    """The right formula; `at` moves the reward, and `charged` replaces the mask of the KL term."""
    rewards = -beta * (logps - ref_logps) * (mask if charged is None else charged)
    rewards[torch.arange(len(mask)), mask.sum(1) - 1 if at is None else at] += reward
    return rewards


def _to_go(reward, logps, ref_logps, mask, beta, own=True):
    paid = beta * (logps - ref_logps) * mask
    to_pay = paid.flip(1).cumsum(1).flip(1)
    return (reward[:, None] - (to_pay if own else to_pay - paid)) * mask


def _wrong_prices(answer: Callable) -> tuple[Mistake, ...]:
    """A right answer at a wrong price of KL."""
    return (
        Mistake("sign",
            "Your result pays the policy for leaving the reference. Should leaving pay or cost?",
            lambda *case: answer(*case[:4], -case[4])),
        Mistake("beta forgotten", "Your result does not depend on β. What does one nat of KL cost?",
            lambda *case: answer(*case[:4], 1.0)),
    )  # fmt: skip


_TOKEN_REWARDS = Exercise(
    name="token_rewards",
    notebook="08",
    hints=(
        "The result has two parts: −β times the log-ratio on every real token, and the reward on "
        "just one of them. On which one?",
        "In each row, the last real token is at index mask.sum(1) - 1. Does it pay KL too?",
        "Over the real tokens, each row must sum to reward − β Σ (logps − ref_logps).",
    ),
    solution=losses.token_rewards,
    cases=_kl_reward_cases,
    mistakes=(
        *_wrong_prices(_token_rewards),
        Mistake("reward in the last column",
            "You put the reward in the last column. Where is a short response's last real token?",
            lambda *case: _token_rewards(*case, at=torch.full_like(case[0], -1).long())),
        Mistake("reward on every token",
            "You give the whole reward to every token. How often is a response paid?",
            lambda r, logps, ref, mask, beta: (r[:, None] - beta * (logps - ref)) * mask),
        Mistake("no KL on the last token",
            "Your last token pays no KL. What do a row's rewards sum to, and what should they?",
            lambda *case: _token_rewards(*case, charged=case[3].flip(1).cumsum(1).flip(1) > 1)),
        Mistake("mask forgotten",
            "You charge for tokens after the end of the response. Did the policy choose them?",
            lambda *case: _token_rewards(*case, charged=torch.ones_like(case[3]))),
        Mistake("beta on the reward",
            "β multiplies the reward too. Which of the two terms does it belong to?",
            lambda r, logps, ref, mask, beta: _token_rewards(beta * r, logps, ref, mask, beta)),
    ),
)  # fmt: skip


def _gae_cases() -> list[Case]:
    """Cases for rewards, values, mask, gamma, lam."""

    def case(*lengths: int, T: int, gamma: float, lam: float, scale: float = 1.0) -> tuple:
        numbers = (random_numbers(len(lengths), T, seed=s, scale=1.0) for s in (T, T + 9))
        return *(scale * x for x in numbers), _mask(*lengths, T=T), gamma, lam

    plain = [
        case(2, T=2, gamma=1.0, lam=0.95),
        case(3, T=3, gamma=0.9, lam=0.5),
        case(2, 3, T=3, gamma=1.0, lam=0.9),
        case(1, 4, 2, T=4, gamma=0.95, lam=0.8),
    ]
    corners = [
        case(1, T=1, gamma=1.0, lam=0.95),
        case(3, 4, T=4, gamma=1.0, lam=1.0),
        case(3, 4, T=4, gamma=1.0, lam=0.0),
        case(2, T=3, gamma=0.5, lam=0.5, scale=1e4),
    ]
    return make_cases(("rewards", "values", "mask", "gamma", "lam"), plain, corners)


def _gae(rewards, values, mask, gamma, lam, trace=None, bootstrap=False):
    """GAE with any factor from step to step; `bootstrap` uses the critic's values after the end."""
    used = values if bootstrap else values * mask
    following = torch.nn.functional.pad(used[:, 1:], (0, 1))
    deltas = rewards * mask + gamma * following - used
    advantages, total = torch.zeros_like(deltas), 0.0
    for t in reversed(range(deltas.shape[1])):
        total = deltas[:, t] + (gamma * lam if trace is None else trace) * total
        advantages[:, t] = total
    return advantages * mask, (advantages + values) * mask


def _forwards(rewards, values, mask, gamma, lam):
    deltas = _gae(rewards, values, mask, gamma, 0.0)[0].flip(1)
    past = _gae(deltas, 0 * deltas, mask.flip(1), gamma, lam)[0].flip(1)
    return past, (past + values) * mask


_GAE = Exercise(
    name="gae",
    notebook="08",
    hints=(
        "Loop backwards over the tokens. Keep two numbers for each row: the value and the "
        "advantage of the next token. What are they after the last real token?",
        "delta = rewards[:, t] + gamma * next_value - values[:, t]. The advantage is delta plus "
        "gamma * lam times the advantage of the next token.",
    ),
    solution=losses.gae,
    cases=_gae_cases,
    returns=("advantages", "returns"),
    mistakes=(
        Mistake("lambda forgotten",
            "Your result is reward-to-go minus value for every λ. For which λ is that right?",
            lambda *case: _gae(*case[:4], 1.0)),
        Mistake("one step only",
            "Your result does not depend on λ: it is the one-step error δ. Where do the errors "
            "of the later steps come in?",
            lambda *case: _gae(*case[:4], 0.0)),
        Mistake("gamma forgotten in the trace",
            "You weight the next advantage by λ alone. It is also one step further in the "
            "future: what accounts for that?",
            lambda *case: _gae(*case, trace=case[-1])),
        Mistake("forwards",
            "You add up the errors from the first token on. What can an action not change?",
            _forwards),
        Mistake("value after the end",
            "After the end you use the critic's value of padding. What is still to come there?",
            lambda *case: _gae(*case, bootstrap=True)),
        Mistake("returns",
            "Your advantages are right, but your returns are plain rewards-to-go. They are the "
            "critic's targets: what is added to the values?",
            lambda *case: (_gae(*case)[0], _gae(case[0], 0 * case[1], case[2], 1.0, 1.0)[0])),
    ),
)  # fmt: skip


def _clip_cases() -> list[Case]:
    """Cases for logps, old_logps, advantages, mask, cliprange: near the band and far from it."""
    ratios = float64([1.5, 1.5, 0.5, 0.5, 1.0, 1.1])
    signs = float64([1.0, -1.0, 1.0, -1.0, 2.0, -0.5])
    old = float64([-1.0, -2.0, -1.0, -0.5, -1.0, -2.0])
    one, logps = _mask(1, T=1), [_some_logps(3, 4, seed=s) for s in (1, 2)]
    plain = [
        (float64([-1.0]), float64([-1.1]), float64([2.0]), one, 0.2),
        (float64([-1.0]), float64([-2.0]), float64([1.0]), one, 0.2),
        (float64([-1.0]), float64([-2.0]), float64([-1.0]), one, 0.2),
        (old + ratios.log(), old, signs, _mask(6, T=6), 0.2),
        (*logps, random_numbers(3, 4, seed=3, scale=1.0), _mask(2, 4, 1, T=4), 0.1),
    ]
    far = float64([-0.1, -9.0]), float64([-12.0, -0.2]), float64([1.0, 1.0]), _mask(2, T=2), 0.2
    return make_cases(("logps", "old_logps", "advantages", "mask", "cliprange"), plain, [far])


def _clip(logps, old_logps, advantages, mask, cliprange, pick=torch.minimum, ratio=None):
    """The loss of each token, 0 on padding, with any choice between the two terms and any ratio."""
    ratio = (logps - old_logps).exp() if ratio is None else ratio
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -pick(ratio * advantages, clipped * advantages) * mask


_PPO_CLIP = Exercise(
    name="ppo_clip_loss",
    notebook="08",
    hints=(
        "The ratio is exp(logps - old_logps). Compute the ratio times A, and the clipped ratio "
        "times A. Which of the two is the pessimistic choice?",
        "For each token, take the smaller of the two. It is not always the clipped one.",
        "Take the mean over the real tokens, with a minus sign: an optimiser minimises.",
    ),
    solution=losses.ppo_clip_loss,
    cases=_clip_cases,
    differentiable=("logps",),
    mistakes=(
        Mistake("sign",
            "You return the objective, which should grow. Which way does an optimiser go?",
            lambda *case: -_clip(*case).sum() / case[3].sum()),
        Mistake("larger of the two",
            "You take the larger of the two terms. Which of them is the careful choice?",
            lambda *case: _clip(*case, torch.maximum).sum() / case[3].sum()),
        Mistake("clipped only",
            "You always use the clipped ratio. What brings back a good action that became rare?",
            lambda *case: _clip(*case, lambda _, clipped: clipped).sum() / case[3].sum()),
        Mistake("not clipped",
            "You never clip, so the ratio can grow without limit. What should stop it?",
            lambda *case: _clip(*case, lambda free, _: free).sum() / case[3].sum()),
        Mistake("mask forgotten",
            "Padding counts in your mean. Which tokens did the policy choose?",
            lambda p, old, A, mask, eps: _clip(p, old, A, torch.ones_like(mask), eps).mean()),
        Mistake("difference instead of ratio",
            "You use the difference of log-probabilities. How does it become a ratio?",
            lambda *case: _clip(*case, ratio=case[0] - case[1]).sum() / case[3].sum()),
        Mistake("ratio upside down",
            "Your ratio is π_old/π. Which ratio grows when a token becomes more likely?",
            lambda p, old, A, mask, eps: _clip(old, p, A, mask, eps).sum() / mask.sum()),
    ),
)  # fmt: skip

_REPAIR = Exercise(
    name="repair_ppo",
    notebook="08",
    hints=(
        "The KL is far above the optimum's. Which part of it does the code never charge?",
        "Take a response of one token. How much does it pay for its own log-ratio?",
        "In the reward-to-go R_t, the KL terms are summed over all tokens k ≥ t.",
    ),
    solution=repair_ppo,
    cases=_kl_reward_cases,
    mistakes=(
        *_wrong_prices(_to_go),
        Mistake("still broken",
            "A token is still not charged for its own log-ratio. Which line leaves it out?",
            lambda *case: _to_go(*case, own=False)),
        Mistake("whole KL at every token",
            "You charge every token for the whole response. Can a token change earlier ones?",
            lambda r, p, ref, mask, beta: (r - (beta * (p - ref) * mask).sum(1))[:, None] * mask),
        Mistake("sums over the past",
            "Your sum runs over the tokens up to t. Which tokens can token t still change?",
            lambda r, p, q, mask, beta: (r[:, None] - (beta * (p - q) * mask).cumsum(1)) * mask),
        Mistake("own term only",
            "You charge a token for its own log-ratio only. Which later ones depend on it?",
            lambda r, p, ref, mask, beta: (r[:, None] - beta * (p - ref)) * mask),
    ),
)  # fmt: skip

EXERCISES = (_TOKEN_REWARDS, _GAE, _PPO_CLIP, _REPAIR)
