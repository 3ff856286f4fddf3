"""The exercises of notebook 10: the implicit reward, DPO's loss and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers

_PAIR = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def dpo_gradient_weight(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    """Return σ(r̂(rejected) − r̂(chosen)), the weight of each pair in the gradient of DPO's loss.

    The gradient of the loss is −β · mean of weight · (∇ log π(chosen) − ∇ log π(rejected)), where
    r̂ is the implicit reward (Rafailov et al. 2023).

    Args:
        policy_chosen_logps: [B] log π_θ(y|x) of the chosen responses, summed over tokens, in nats.
        policy_rejected_logps: [B] the same for the rejected responses.
        ref_chosen_logps: [B] log π_ref(y|x) of the chosen responses.
        ref_rejected_logps: [B] the same for the rejected responses.
        beta: strength of the KL penalty.

    Returns:
        [B] weights between 0 and 1; 1/2 where the policy equals the reference.
    """
    chosen = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected = beta * (policy_rejected_logps - ref_rejected_logps)
    return torch.sigmoid(rejected - chosen)


def repair_dpo(
    chosen_token_logps: Tensor,
    rejected_token_logps: Tensor,
    ref_chosen_token_logps: Tensor,
    ref_rejected_token_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    beta: float,
) -> Tensor:
    """Return DPO's loss from the log-probabilities of tokens, which are summed over each response.

    By the chain rule, log π(y|x) is the sum over the real tokens of y. The loss is that of
    Rafailov et al. 2023, equation 7.

    Args:
        chosen_token_logps: [B, T] log π_θ of each token of the chosen responses, in nats.
        rejected_token_logps: [B, T] the same for the rejected responses.
        ref_chosen_token_logps: [B, T] log π_ref of each token of the chosen responses.
        ref_rejected_token_logps: [B, T] the same for the rejected responses.
        chosen_mask: [B, T] True on the real tokens of the chosen responses.
        rejected_mask: [B, T] the same for the rejected responses.
        beta: strength of the KL penalty.

    Returns:
        scalar, in nats.
    """

    def logps(token_logps: Tensor, mask: Tensor) -> Tensor:
        return token_logps.masked_fill(~mask, 0.0).sum(1)

    return losses.dpo_loss(
        logps(chosen_token_logps, chosen_mask),
        logps(rejected_token_logps, rejected_mask),
        logps(ref_chosen_token_logps, chosen_mask),
        logps(ref_rejected_token_logps, rejected_mask),
        beta,
    )


def _some_logps(*shape: int, seed: int) -> Tensor:
    """Made-up log-probabilities of single responses or tokens: negative numbers."""
    return -random_numbers(*shape, seed=seed).abs() - 0.1


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _implicit_reward_cases() -> list[Case]:
    plain = [
        (float64(-1.0), float64(-1.5), 0.5),
        (float64(-1.0, -2.0), float64(-1.5, -1.8), 2.0),
        (_some_logps(4, seed=1), _some_logps(4, seed=2), 0.1),
        (_some_logps(5, seed=3).float(), _some_logps(5, seed=4).float(), 0.5),
        (_some_logps(2, 3, seed=5), _some_logps(2, 3, seed=6), 0.7),
    ]
    corners = [
        (float64(-1.0, -2.0), float64(-1.0, -2.0), 0.5),  # policy = reference
        (float64(-1.0, -2.0), float64(-4.0, -1.0), 1e-3),
        (float64(-1000.0, -2000.0), float64(-1001.0, -1990.0), 0.5),
    ]
    return make_cases(("policy_logps", "ref_logps", "beta"), plain, corners)


def _pair_cases() -> list[Case]:
    plain = [
        (float64(-1.0), float64(-2.0), float64(-1.5), float64(-1.8), 0.5),
        (float64(-1.0, -2.0), float64(-0.5, -2.5), float64(-1.2, -1.0), float64(-0.9, -2.0), 2.0),
        (*(_some_logps(4, seed=seed) for seed in (1, 2, 3, 4)), 0.3),
        (*(_some_logps(7, seed=seed).float() for seed in (5, 6, 7, 8)), 0.5),
    ]
    same = float64(-1.0, -2.0)
    corners = [
        (same, float64(-3.0, -0.5), same, float64(-3.0, -0.5), 0.5),  # policy = reference
        (same, same, same, same, 0.5),  # a response compared with itself
        (float64(-1.0, -4.0), float64(-3.0, -0.5), float64(-2.0, -2.0), float64(-2.0, -2.0), 1e-3),
        (float64(-1e4, 0.0), float64(0.0, -1e4), float64(-1.0, -1.0), float64(-1.0, -1.0), 1.0),
        (float64(-1.0, -9.0), float64(-3.0, -1.0), float64(-2e3, -2e3), float64(-2e3, -2e3), 1.0),
    ]
    return make_cases((*_PAIR, "beta"), plain, corners)


def _token_cases() -> list[Case]:
    """Two masks per case; the numbers in the padding must not count."""
    plain = [
        (
            float64([-1.0, -2.0]),
            float64([-0.5, -1.0]),
            float64([-1.5, -1.6]),
            float64([-0.7, -3.0]),
            _mask(2, T=2),
            _mask(1, T=2),
            0.5,
        ),
        (
            *(_some_logps(2, 3, seed=seed) for seed in (1, 2, 3, 4)),
            _mask(1, 3, T=3),
            _mask(2, 2, T=3),
            2.0,
        ),
        (
            *(_some_logps(4, 5, seed=seed).float() for seed in (5, 6, 7, 8)),
            _mask(5, 2, 3, 1, T=5),
            _mask(1, 4, 2, 5, T=5),
            0.3,
        ),
    ]
    tokens = float64([-1.0, -2.0, -0.5])
    corners = [
        (tokens, 2 * tokens, tokens, 2 * tokens, _mask(3, T=3), _mask(1, T=3), 0.5),
        (3 * tokens, tokens, tokens, tokens, _mask(3, T=3), _mask(2, T=3), 1e-3),
        (1e4 * tokens, tokens, tokens, tokens, _mask(3, T=3), _mask(2, T=3), 1.0),
    ]
    names = (
        "chosen_token_logps",
        "rejected_token_logps",
        "ref_chosen_token_logps",
        "ref_rejected_token_logps",
        "chosen_mask",
        "rejected_mask",
        "beta",
    )
    return make_cases(names, plain, corners)


_IMPLICIT_REWARD = Exercise(
    name="implicit_reward",
    notebook="10",
    hints=(
        "log(π/π_ref) is a difference of two log-probabilities, and you are given both.",
        "You do not need β log Z(x). In practice it cannot be computed, and it is the same for "
        "all responses to a prompt.",
    ),
    solution=losses.implicit_reward,
    cases=_implicit_reward_cases,
    differentiable=("policy_logps",),
    mistakes=(
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. A log-ratio is in nats. What turns it into a "
            "reward?",
            lambda logps, ref_logps, beta: logps - ref_logps,
        ),
        Mistake(
            "swapped",
            "If the policy gives a response more often than the reference does, its implicit "
            "reward should be above 0.",
            lambda logps, ref_logps, beta: beta * (ref_logps - logps),
        ),
        Mistake(
            "divided by beta",
            "In π* = π_ref exp(r/β)/Z the reward is divided by β. What happens to β when you "
            "solve for r?",
            lambda logps, ref_logps, beta: (logps - ref_logps) / beta,
        ),
        Mistake(
            "reference forgotten",
            "Your result says how likely the response is under the policy. But likely compared "
            "with what?",
            lambda logps, ref_logps, beta: beta * logps,
        ),
        Mistake(
            "quotient of the logarithms",
            "You divide one logarithm by the other. The logarithm of a quotient is something else.",
            lambda logps, ref_logps, beta: beta * logps / ref_logps,
        ),
        Mistake(
            "ratio of probabilities",
            "This is β times the ratio π/π_ref. The formula has the logarithm of that ratio.",
            lambda logps, ref_logps, beta: beta * (logps - ref_logps).exp(),
        ),
        Mistake(
            "difference of probabilities",
            "You subtract probabilities. The formula subtracts log-probabilities.",
            lambda logps, ref_logps, beta: beta * (logps.exp() - ref_logps.exp()),
        ),
        Mistake(
            "mean",
            "Every response has its own reward, so keep the shape of the input.",
            lambda logps, ref_logps, beta: (beta * (logps - ref_logps)).mean(),
        ),
        Mistake(
            "underflow",
            "The formula is right, but exp(−1000) is 0 in floating point. Stay in logarithms.",
            lambda logps, ref_logps, beta: beta * (logps.exp() / ref_logps.exp()).log(),
        ),
    ),
)


def _margin(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The implicit reward of the chosen response minus that of the rejected one."""
    return beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)


_DPO_LOSS = Exercise(
    name="dpo_loss",
    notebook="10",
    hints=(
        "It is the Bradley–Terry loss of notebook 02, with implicit rewards in place of rewards.",
        "Use your implicit_reward, and torch.nn.functional.logsigmoid, which does not overflow.",
    ),
    solution=losses.dpo_loss,
    cases=_pair_cases,
    differentiable=("policy_chosen_logps", "policy_rejected_logps"),
    mistakes=(
        Mistake(
            "sign",
            "You return the log-likelihood, which should be maximised. But an optimiser minimises "
            "its loss.",
            lambda *a: F.logsigmoid(_margin(*a)).mean(),
        ),
        Mistake(
            "swapped pair",
            "Your loss falls when the rejected response becomes more likely.",
            lambda *a: -F.logsigmoid(-_margin(*a)).mean(),
        ),
        Mistake(
            "beta forgotten",
            "Your loss does not depend on β. Without it, what limits how far the policy moves "
            "from the reference?",
            lambda *a: -F.logsigmoid(_margin(*a[:4], 1.0)).mean(),
        ),
        Mistake(
            "beta outside",
            "You multiply the whole loss by β, which only rescales its gradient. Where is β in "
            "the formula?",
            lambda *a: -a[4] * F.logsigmoid(_margin(*a[:4], 1.0)).mean(),
        ),
        Mistake(
            "divided by beta",
            "You divide the log-ratios by β. In the implicit reward they are multiplied by it.",
            lambda *a: -F.logsigmoid(_margin(*a[:4], 1 / a[4])).mean(),
        ),
        Mistake(
            "reference forgotten",
            "Your loss does not use the reference. If the policy equals the reference, the loss "
            "should be log 2 for every pair.",
            lambda c, r, ref_c, ref_r, beta: -F.logsigmoid(beta * (c - r)).mean(),
        ),
        Mistake(
            "reference swapped",
            "You compare each response with the reference's log-probability of the other one. "
            "Which two belong together?",
            lambda c, r, ref_c, ref_r, beta: (
                -F.logsigmoid(_margin(c, r, ref_r, ref_c, beta)).mean()
            ),
        ),
        Mistake(
            "sum instead of mean",
            "You return a sum over the pairs. With a mean, the step size does not depend on the "
            "batch size.",
            lambda *a: -F.logsigmoid(_margin(*a)).sum(),
        ),
        Mistake(
            "one loss per pair",
            "Return a single number: the mean over the pairs.",
            lambda *a: -F.logsigmoid(_margin(*a)),
        ),
        Mistake(
            "log forgotten",
            "This is minus the mean probability. The likelihood of many comparisons is a product, "
            "so its logarithm is a sum of logarithms.",
            lambda *a: -torch.sigmoid(_margin(*a)).mean(),
        ),
        Mistake(
            "sigmoid forgotten",
            "Your loss falls without limit as the margin grows. Where is the probability that the "
            "chosen response wins?",
            lambda *a: -_margin(*a).mean(),
        ),
        Mistake(
            "difference of probabilities",
            "You subtract probabilities. The implicit reward subtracts log-probabilities.",
            lambda c, r, ref_c, ref_r, beta: (
                -F.logsigmoid(_margin(c.exp(), r.exp(), ref_c.exp(), ref_r.exp(), beta)).mean()
            ),
        ),
        Mistake(
            "two separate sigmoids",
            "You judge each response on its own, so β log Z(x) would not cancel. When does it "
            "cancel?",
            lambda c, r, ref_c, ref_r, beta: (
                -(F.logsigmoid(beta * (c - ref_c)) + F.logsigmoid(beta * (ref_r - r))).mean()
            ),
        ),
        Mistake(
            "rejected detached",
            "The value is right, but no gradient reaches the rejected responses, so nothing "
            "pushes them down.",
            lambda c, r, *rest: -F.logsigmoid(_margin(c, r.detach(), *rest)).mean(),
        ),
        Mistake(
            "overflow",
            "The formula is right, but for a large negative margin σ is 0 in floating point, and "
            "its logarithm is −∞. There is a function that computes log σ in one step.",
            lambda *a: -torch.sigmoid(_margin(*a)).log().mean(),
        ),
    ),
)

_WEIGHT = Exercise(
    name="dpo_gradient_weight",
    notebook="10",
    hints=(
        "Differentiate −log σ(m) with respect to m. What is left of the sigmoid?",
        "The more clearly the policy already agrees with the annotator, the closer the weight is "
        "to 0.",
    ),
    solution=dpo_gradient_weight,
    cases=_pair_cases,
    mistakes=(
        Mistake(
            "wrong way round",
            "Your weight is large where the policy already agrees with the annotator. Where is "
            "there more to learn?",
            lambda *a: torch.sigmoid(_margin(*a)),
        ),
        Mistake(
            "beta forgotten inside",
            "Your weight does not depend on β, but the implicit rewards do.",
            lambda *a: torch.sigmoid(-_margin(*a[:4], 1.0)),
        ),
        Mistake(
            "times beta",
            "The factor β is already in front of the weight in the formula. Return the weight "
            "alone: at the reference it is 1/2.",
            lambda *a: a[4] * torch.sigmoid(-_margin(*a)),
        ),
        Mistake(
            "reference forgotten",
            "Your weight does not use the reference. If the policy equals the reference, every "
            "pair should have weight 1/2.",
            lambda c, r, ref_c, ref_r, beta: torch.sigmoid(beta * (r - c)),
        ),
        Mistake(
            "negative",
            "A weight is not negative. The minus sign is already in front of the weight in the "
            "formula.",
            lambda *a: -torch.sigmoid(-_margin(*a)),
        ),
        Mistake(
            "slope of the sigmoid",
            "This is the derivative of σ. But the loss contains log σ.",
            lambda *a: torch.sigmoid(_margin(*a)) * torch.sigmoid(-_margin(*a)),
        ),
        Mistake(
            "the loss",
            "This is the loss of each pair. What is its derivative with respect to the margin?",
            lambda *a: -F.logsigmoid(_margin(*a)),
        ),
        Mistake(
            "sigmoid forgotten",
            "This is a difference of implicit rewards, which can be any number. A weight is "
            "between 0 and 1.",
            lambda *a: -_margin(*a),
        ),
        Mistake(
            "mean",
            "Every pair has its own weight, so return the shape [B].",
            lambda *a: torch.sigmoid(-_margin(*a)).mean(),
        ),
        Mistake(
            "softmax over the batch",
            "You take a softmax over the batch, so the pairs compete with each other. Each pair "
            "has its own sigmoid.",
            lambda *a: torch.softmax(-_margin(*a), 0),
        ),
        Mistake(
            "overflow",
            "The formula is right, but exp(10000) is infinite in floating point, and ∞/∞ is NaN. "
            "Can you write it with a difference instead?",
            lambda c, r, ref_c, ref_r, beta: (
                (beta * (r - ref_r)).exp()
                / ((beta * (r - ref_r)).exp() + (beta * (c - ref_c)).exp())
            ),
        ),
    ),
)


def _summed(token_logps: Tensor, mask: Tensor) -> Tensor:
    return (token_logps * mask).sum(1)


def _averaged(token_logps: Tensor, mask: Tensor) -> Tensor:
    return _summed(token_logps, mask) / mask.sum(1)


def _from_tokens(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    beta: float,
    response: Callable[[Tensor, Tensor], Tensor] = _summed,
    ref_response: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """DPO's loss, with any function that reduces a response's tokens to one number."""
    ref_response = ref_response or response
    return losses.dpo_loss(
        response(chosen, chosen_mask),
        response(rejected, rejected_mask),
        ref_response(ref_chosen, chosen_mask),
        ref_response(ref_rejected, rejected_mask),
        beta,
    )


_REPAIR = Exercise(
    name="repair_dpo",
    notebook="10",
    hints=(
        "At the optimum the slope is 1/β for every length. In the broken run it is far above "
        "that: the log-ratios had to grow further before the loss stopped falling. What in the "
        "loss makes them smaller?",
        "Remember the chain rule of notebook 03. How do you get a response's log-probability from "
        "those of its tokens?",
        "Write down the implicit reward of a response of three tokens under the broken loss.",
    ),
    solution=repair_dpo,
    cases=_token_cases,
    differentiable=("chosen_token_logps", "rejected_token_logps"),
    mistakes=(
        Mistake(
            "still broken",
            "Your function still has the bug: log π(y|x) is not the mean over the response's "
            "tokens.",
            lambda *a: _from_tokens(*a, response=_averaged),
        ),
        Mistake(
            "mean over padding",
            "You still take a mean, now over the padded length. What does the chain rule say?",
            lambda *a: _from_tokens(*a, response=lambda t, m: (t * m).mean(1)),
        ),
        Mistake(
            "only the policy repaired",
            "You treat the policy and the reference differently, so the loss at the reference is "
            "not log 2.",
            lambda *a: _from_tokens(*a, ref_response=_averaged),
        ),
        Mistake(
            "mask forgotten",
            "You count padding. Tokens after the end do not belong to the response.",
            lambda *a: _from_tokens(*a, response=lambda t, m: t.sum(1)),
        ),
        Mistake(
            "one mask for both",
            "You cut the rejected response where the chosen one ends. Each has its own mask.",
            lambda *a: _from_tokens(*a[:5], a[4], a[6]),
        ),
        Mistake(
            "last token only",
            "You count only the last real token. But the policy chose every token of the response.",
            lambda *a: _from_tokens(
                *a, response=lambda t, m: t.gather(1, m.sum(1, keepdim=True) - 1)[:, 0]
            ),
        ),
        Mistake(
            "summed over the batch",
            "You add up all pairs before the sigmoid. Each pair is a comparison of its own.",
            lambda *a: _from_tokens(*a, response=lambda t, m: (t * m).sum()[None]),
        ),
        Mistake(
            "beta forgotten",
            "Your loss does not depend on β.",
            lambda *a: _from_tokens(*a[:6], 1.0),
        ),
        Mistake(
            "reference forgotten",
            "Your loss does not use the reference.",
            lambda c, r, ref_c, ref_r, *rest: _from_tokens(c, r, 0 * c, 0 * r, *rest),
        ),
        Mistake(
            "swapped pair",
            "Your loss falls when the rejected response becomes more likely.",
            lambda c, r, ref_c, ref_r, c_mask, r_mask, beta: _from_tokens(
                r, c, ref_r, ref_c, r_mask, c_mask, beta
            ),
        ),
        Mistake(
            "sum instead of mean",
            "You sum over the pairs. Sum over the tokens of a response, but take the mean over "
            "the pairs.",
            lambda *a: _from_tokens(*a) * len(a[0]),
        ),
    ),
)

EXERCISES = (_IMPLICIT_REWARD, _DPO_LOSS, _WEIGHT, _REPAIR)
