"""Where a method ends with endless data or exact gradients: the fixed point of its own loss.

A policy is a table of the responses' log-probabilities [X, Y], one softmax for each prompt. Write
the loss of your method as a function of this table; `all_pairs`, `expected_advantages` and
`response_token_logps` give what the losses of this package need. Only the gradient of the loss is
used, so a method that samples from its own policy is a function too: detach the sampling
probabilities, as its code does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from rlhf_toy import checks
from rlhf_toy.exact.bandit import gibbs_policy, kl_divergence, objective
from rlhf_toy.losses import PairLogps, preference_probability

__all__ = ["FixedPoint", "all_pairs", "fixed_point", "response_token_logps"]

AT_REST = 1e-10  # speed of the flow at which it has arrived
GONE = -100.0  # log-probability below which a response that still falls counts as gone
RARE = 1e-9  # weight of a rare response in the speed
LOWEST = -600.0  # log-probability that the loss gets at least, against overflow
LONGEST = 1e9  # time that the flow is followed
STEP = 1e-7  # in a logit, of the finite differences
MOST_CALLS = 30_000  # of the loss


@dataclass(frozen=True)
class FixedPoint:
    """Where a method ends; means over the prompts."""

    logps: Tensor  # [X, Y] log π(y|x); −inf for a response whose probability goes to 0
    gibbs_kl: float  # KL(π ‖ π*) to the optimum of J, in nats
    gap: float  # (J* − J(π)) / (J* − J(π_ref)); meaningless where all rewards are equal
    residual: float  # how fast the flow still moves there, see `fixed_point`

    @property
    def boundary(self) -> bool:
        """Whether a probability goes to 0, so that the loss has no minimum at finite logits."""
        return bool((self.logps == -torch.inf).any())


def fixed_point(
    loss: Callable[[Tensor], Tensor],
    ref_logps: Tensor,
    rewards: Tensor,
    beta: float,
    start_logps: Tensor | None = None,
) -> FixedPoint:
    """Return where descent on a loss ends, and how far that is from the optimum of J.

    Follows minus the natural gradient n(y|x) = ∂L/∂π(y|x) − Σ_y′ π ∂L/∂π(y′|x), which does not
    depend on how the policy is parametrised: whole responses or one softmax for each token. It
    stops where √(Σ π n²) < 1e-10. Each logit moves by −n/(1 + |n|), so never faster than 1; that
    changes the path, but not the points of rest. A response whose probability is below e^−100 and
    still falls is taken to go to 0; the others must then be at rest without it.

    Args:
        loss: log-probabilities [X, Y] → scalar; a mean over prompts.
        ref_logps: [X, Y] log π_ref(y|x), none of them −inf.
        rewards: [X, Y] true rewards in logits, for the comparison with π*.
        beta: strength of the KL penalty in J.
        start_logps: [X, Y] where to start; None: at the reference. With several fixed points the
            start decides which one is found.

    Returns:
        the fixed point, whose `residual` is √(Σ π n²) over the responses that keep a probability.

    Raises:
        TypeError: an argument of the wrong kind, or a loss that does not return a scalar tensor.
        ValueError: shapes that do not fit, `ref_logps` or `start_logps` that are no finite
            log-probabilities, rewards that are not finite, or β not finite and above 0.
        RuntimeError: the flow does not come to rest, or a gradient is NaN or infinite.
    """
    checks.check_type("loss", loss, Callable, "a function of log-probabilities [X, Y]")
    start_logps = ref_logps if start_logps is None else start_logps
    names = {"ref_logps": ref_logps, "rewards": rewards, "start_logps": start_logps}
    checks.check_shapes(**{name: (table, "XY") for name, table in names.items()})
    checks.check_distribution("ref_logps", ref_logps)
    checks.check_distribution("start_logps", start_logps)
    checks.check_finite(**names)
    best = gibbs_policy(ref_logps, rewards, beta)
    calls = count()

    def gradient(logits: np.ndarray) -> tuple[Tensor, Tensor]:
        return _natural_gradient(loss, torch.from_numpy(logits.copy()).view_as(ref_logps))

    def velocity(time: float, logits: np.ndarray) -> np.ndarray:
        if next(calls) == MOST_CALLS:
            raise RuntimeError(f"no fixed point found: still moving after {MOST_CALLS:,} calls")
        n, _ = gradient(logits)
        return (-n / (1 + n.abs())).numpy().ravel()

    def jacobian(time: float, logits: np.ndarray) -> np.ndarray:
        steps = STEP * np.eye(len(logits))  # scipy's own steps grow without end where v is flat
        here = velocity(time, logits)
        return np.stack([velocity(time, logits + step) - here for step in steps], axis=1) / STEP

    def distance_from_rest(time: float, logits: np.ndarray) -> float:
        return _speed(*gradient(logits))[0] - AT_REST

    distance_from_rest.terminal = True
    end = start_logps.numpy().ravel()
    options = {"method": "BDF", "rtol": 1e-4, "atol": 1e-4, "jac": jacobian}
    if distance_from_rest(0.0, end) > 0:  # the event is a change of sign, and there is none at rest
        flow = solve_ivp(velocity, (0.0, LONGEST), end, events=distance_from_rest, **options)
        end = flow.y[:, -1]
    n, logps = gradient(end)
    residual, gone = _speed(n, logps)
    if not residual < 2 * AT_REST:
        raise RuntimeError(f"no fixed point found: the flow stopped at a speed of {residual:.1e}")
    logps = logps.masked_fill(gone, -torch.inf).log_softmax(-1)
    J = objective(torch.stack([logps, best, ref_logps]), ref_logps, rewards, beta).mean(-1)
    gap = float((J[1] - J[0]) / (J[1] - J[2]))
    return FixedPoint(logps, float(kl_divergence(logps, best).mean()), gap, residual)


def _natural_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return n [X, Y] at a policy, and the log-probabilities at which it was taken."""
    logps = logits.log_softmax(-1).clamp(min=LOWEST).requires_grad_()
    value = loss(logps)
    if not (isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad):
        wanted = "a scalar tensor that depends on the log-probabilities"
        raise TypeError(f"the loss must return {wanted}, got {checks.shown(value)}")
    (gradient,) = torch.autograd.grad(value, logps)
    logps = logps.detach()
    n = len(logps) * (gradient / logps.exp() - gradient.sum(-1, keepdim=True))
    if not n.isfinite().all():
        raise RuntimeError("no fixed point found: a gradient of the loss is NaN or infinite")
    return n, logps


def _speed(n: Tensor, logps: Tensor) -> tuple[float, Tensor]:
    """Return √(Σ π n²) over the responses that are not gone, and which are gone [X, Y].

    A response is gone if its probability is below `GONE` and still falls; the mean that n has left
    out is then taken over the others. Rare responses count with at least `RARE`, not π.
    """
    gone = (logps < GONE) & (n > 0)
    p = logps.exp().masked_fill(gone, 0.0)
    n = n - (p * n).sum(-1, keepdim=True) / p.sum(-1, keepdim=True)
    weights = p.clamp(min=RARE).masked_fill(gone, 0.0)
    return float((n * weights.sqrt()).masked_fill(gone, 0.0).norm()), gone


def all_pairs(
    logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    lengths: Tensor | None = None,
    sampler_logps: Tensor | None = None,
    noise: float = 0.0,
) -> tuple[PairLogps, Tensor]:
    """Return every pair (chosen, rejected) of a Bradley–Terry annotator, with its probability.

    Both responses are drawn independently from the sampler. A preference loss with these weights is
    its expectation: `dpo_loss(*pairs.logps, beta, weights)`.

    Args:
        logps: [X, Y] log π(y|x).
        ref_logps: [X, Y] log π_ref(y|x).
        rewards: [X, Y] true rewards, in logits.
        lengths: [Y] tokens of each response; None: all 1.
        sampler_logps: [X, Y] μ, who wrote the responses; None: the reference. The policy's own
            `logps` make the method an online one; no gradient flows through them.
        noise: probability that an answer is flipped, in [0, 1/2].

    Returns:
        X · Y² pairs, for each prompt those of two different responses first, and their weights,
        which sum to 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not fit, or noise out of range.
    """
    sampler_logps = ref_logps if sampler_logps is None else sampler_logps
    names = {"logps": logps, "ref_logps": ref_logps, "rewards": rewards, "sampler": sampler_logps}
    sizes = checks.check_shapes(**{name: (table, "XY") for name, table in names.items()})
    lengths = torch.ones_like(rewards[0]) if lengths is None else lengths
    checks.check_shapes(sizes, lengths=(lengths, "Y"))
    checks.check_number("noise", noise, low=0, high=0.5)
    X, Y = sizes["X"], sizes["Y"]

    first, second = torch.where(~torch.eye(Y, dtype=torch.bool))

    def both(table: Tensor) -> tuple[Tensor, Tensor]:
        """The table's entry of the first and of the second response of each pair."""
        # Pairs of a response with itself come last, from one copy: in most losses the gradients of
        # the two cancel, and here they do so without rounding.
        table = table.expand(X, Y)
        same = table.clone()
        return tuple(torch.cat([table[:, i], same], 1).flatten() for i in (first, second))

    prefers = preference_probability(*both(rewards))
    drawn = sum(both(sampler_logps.detach())).exp() / X
    weights = 2 * drawn * ((1 - noise) * prefers + noise * (1 - prefers))
    return PairLogps(*both(logps), *both(ref_logps), *both(lengths)), weights


def response_token_logps(logps: Tensor, responses: Tensor) -> Tensor:
    """Return log π(token | prompt, tokens before it) of the policy with given responses' chances.

    The chain rule, backwards: the probability of a token is the mass of all responses that go on
    with it, divided by the mass of all that begin like this one.

    Args:
        logps: [X, Y] log π(y|x).
        responses: [Y, T] token ids, all different rows; the same id after the end of a response.

    Returns:
        [X, Y, T] in nats; 0 after the end. Sums over T to `logps` where these sum to 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not fit.
    """
    checks.check_shapes(logps=(logps, "XY"), responses=(responses, "YT"))
    begin_alike = (responses[:, None] == responses).cumprod(-1).bool()  # [Y, Y, T]
    total = logps.logsumexp(-1)[:, None, None].expand(*logps.shape, 1)
    masses = logps[:, None, :, None].masked_fill(~begin_alike, -torch.inf).logsumexp(2)
    return torch.cat([total, masses], dim=2).diff(dim=2)
