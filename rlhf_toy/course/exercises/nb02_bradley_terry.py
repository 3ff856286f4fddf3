"""The exercises of notebook 02: gradient, free constants and Newton step of Bradley–Terry."""

from __future__ import annotations

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers
from rlhf_toy.training import make_generator

_NAMES = ("rewards", "winners", "losers")


def bradley_terry_gradient(rewards: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """Gradient of −mean log σ(r_winner − r_loser). [Y], [N], [N] → [Y]"""
    surprise = torch.sigmoid(rewards[losers] - rewards[winners])  # 1 − P(winner ≻ loser)
    gradient = torch.zeros_like(rewards)
    gradient.index_add_(0, winners, -surprise).index_add_(0, losers, surprise)
    return gradient / len(winners)


def centre_rewards(rewards: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """Shift each group of connected items to mean 0. [Y], [N], [N] → [Y]"""
    Y, ones = len(rewards), torch.ones(len(winners))
    graph = coo_array((ones.numpy(), (winners.numpy(), losers.numpy())), shape=(Y, Y))
    group = torch.from_numpy(connected_components(graph, directed=False)[1]).long()  # [Y]
    means = torch.bincount(group, rewards) / torch.bincount(group)
    return rewards - means[group]


def newton_step(rewards: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """Return r − H⁺ ∇L for L = −mean log σ(r_winner − r_loser). [Y], [N], [N] → [Y]"""
    gradient, hessian = _derivatives(rewards, winners, losers)
    # A relative tolerance that float32 meets too: rounding errors are not curvature.
    return rewards - torch.linalg.pinv(hessian, rtol=1e-5, hermitian=True) @ gradient


def _derivatives(rewards: Tensor, winners: Tensor, losers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient [Y] and the Hessian [Y, Y] of −mean log σ(r_winner − r_loser)."""
    edges = _edges(rewards, winners, losers)
    p = torch.sigmoid(edges @ rewards)
    return edges.T @ (p - 1) / len(p), edges.T @ ((p * (1 - p))[:, None] * edges) / len(p)


def _edges(rewards: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """Return e_winner − e_loser of each comparison: [N, Y]."""
    unit = torch.eye(len(rewards), dtype=rewards.dtype)
    return unit[winners] - unit[losers]


def _ring(Y: int, more: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random rewards and comparisons that connect them: a ring, and some pairs more."""
    generator = make_generator(seed)
    one = torch.randint(Y, (more,), generator=generator)
    other = (one + torch.randint(1, Y, (more,), generator=generator)) % Y
    winners = torch.cat([torch.arange(Y), one])
    losers = torch.cat([torch.arange(1, Y + 1) % Y, other])
    return random_numbers(Y, seed=seed, scale=1.0), winners, losers


def _ids(*items: int) -> Tensor:
    return torch.tensor(items, dtype=torch.long)


def _fit_cases() -> list[Case]:
    plain = [
        (float64(0.5, 0.0, -0.3), _ids(0, 0, 1, 2), _ids(1, 1, 2, 0)),
        (float64(0.0, 0.0, 0.0), _ids(0, 1, 2, 0, 0), _ids(1, 2, 0, 2, 1)),
        _ring(4, 3, seed=1),
        _ring(5, 8, seed=2),
    ]
    corners = [
        (float64(0.4, -0.6), _ids(0), _ids(1)),  # a single comparison
        (float64(0.5, 0.1, -1.0, 2.0), _ids(0, 1, 0, 2, 3), _ids(1, 0, 1, 3, 2)),  # two groups
        (float64(1.0, -1.0, 7.0), _ids(0, 1, 0), _ids(1, 0, 1)),  # item 2 was never compared
    ]
    return make_cases(_NAMES, plain, corners)


def _centre_cases() -> list[Case]:
    plain = [
        (float64(1.0, 3.0, 5.0), _ids(0, 1, 0), _ids(1, 2, 1)),
        (float64(1.0, 2.0, -4.0, 9.0, 5.0), _ids(0, 2, 3, 3), _ids(1, 3, 4, 2)),
        (float64(3.0, 1.0, 2.0, 8.0), _ids(0, 1, 0), _ids(1, 2, 1)),  # item 3 was never compared
        (random_numbers(7, seed=1), _ids(0, 4, 4, 1, 5), _ids(2, 2, 6, 5, 3)),
    ]
    corners = [
        (float64(2.0, 2.0), _ids(0), _ids(1)),
        (float64(1e6, 1e6 + 1, 0.0, 4.0), _ids(1, 3), _ids(0, 2)),
        (random_numbers(6, seed=3), _ids(5, 3, 1), _ids(4, 2, 0)),
    ]
    return make_cases(_NAMES, plain, corners)


def _gradient_of(surprise, mean=True):
    """Return a wrong gradient: another force for each comparison, or a sum for the mean."""

    def gradient(r, w, losers):
        force = surprise(torch.sigmoid(r[w] - r[losers]))
        return _edges(r, w, losers).T @ (-force / len(w) if mean else -force)

    return gradient


def _overwrites(r, w, losers):
    surprise, gradient = torch.sigmoid(r[losers] - r[w]), torch.zeros_like(r)
    gradient[w] -= surprise
    gradient[losers] += surprise
    return gradient / len(w)


_GRADIENT = Exercise(
    name="bradley_terry_gradient",
    notebook="02",
    hints=(
        "Differentiate −log σ(m) in the margin m = r_winner − r_loser first. What does a larger "
        "winner's reward do to m, and what a larger loser's?",
        "index_add_ adds several numbers to the same entry; plain indexing keeps only the last.",
    ),
    solution=bradley_terry_gradient,
    cases=_fit_cases,
    mistakes=(
        Mistake(
            "sign",
            "Following your gradient downhill lowers the winners. Which sign does the loss have?",
            _gradient_of(lambda p: p - 1),
        ),
        Mistake(
            "probability for surprise",
            "Your force is large when the winner was expected to win. How much should a result "
            "teach that you expected anyway?",
            _gradient_of(lambda p: p),
        ),
        Mistake(
            "counts only",
            "You count wins and losses and ignore the rewards. When would the gradient be 0?",
            _gradient_of(torch.ones_like),
        ),
        Mistake(
            "curvature",
            "You use p (1 − p), which is the second derivative. What is the first?",
            _gradient_of(lambda p: p * (1 - p)),
        ),
        Mistake(
            "sum for mean",
            "This is the gradient of the sum. The loss is a mean: over what?",
            _gradient_of(lambda p: 1 - p, mean=False),
        ),
        Mistake(
            "winners only",
            "Only winners get a gradient. What does a comparison say about its loser?",
            lambda r, w, losers: torch.zeros_like(r).index_add_(
                0, w, torch.sigmoid(r[losers] - r[w]) / -len(w)
            ),
        ),
        Mistake(
            "overwritten",
            "If an item occurs in several comparisons, your result keeps only one of them. Does "
            "`gradient[winners] -= …` add twice when an index occurs twice?",
            _overwrites,
        ),
    ),
)


def _minus_mean_of_groups(group_of):
    """Return a wrong answer: r minus the mean over a wrong choice of group, a bool [Y, Y]."""

    def centre(r, winners, losers):
        met = torch.eye(len(r), dtype=torch.bool)
        met[winners, losers] = True
        group = group_of(met).to(r)
        return r - (group @ r) / group.sum(1)

    return centre


def _reachable(met: Tensor) -> Tensor:
    return torch.linalg.matrix_power(met.double(), len(met)) > 0


def _shifted(shift):
    """Return a wrong answer: each group of connected items minus shift(rewards of the group)."""

    def centre(r, winners, losers):
        met = torch.eye(len(r), dtype=torch.bool)
        met[winners, losers] = met[losers, winners] = True
        return torch.stack([r[i] - shift(r[row]) for i, row in enumerate(_reachable(met))])

    return centre


def _unmoved_if_alone(r, winners, losers):
    met = torch.zeros(len(r), dtype=torch.bool)
    met[torch.cat([winners, losers])] = True
    return torch.where(met, centre_rewards(r, winners, losers), r)


_CENTRE = Exercise(
    name="centre_rewards",
    notebook="02",
    hints=(
        "Two items belong together if a chain of comparisons leads from one to the other. Who won "
        "does not matter. Which items can you reach from item 0?",
        "Give each item its own label, and let every comparison copy the smaller label to the "
        "other item until nothing changes. How often must you repeat that?",
    ),
    solution=centre_rewards,
    cases=_centre_cases,
    mistakes=(
        Mistake(
            "one mean for all",
            "You subtract one mean from all items. What do the data say about the distance of two "
            "items that no chain of comparisons connects?",
            lambda r, winners, losers: r - r.mean(),
        ),
        Mistake(
            "first item at zero",
            "You set the first item of each group to 0. Which quantity should be 0 here?",
            _shifted(lambda group: group[0]),
        ),
        Mistake(
            "softmax",
            "The exponentials of your rewards sum to 1 in each group. Which sum should be 0?",
            _shifted(lambda group: group.logsumexp(0)),
        ),
        Mistake(
            "never compared",
            "An item that was never compared keeps its reward. How many members has its group?",
            _unmoved_if_alone,
        ),
        Mistake(
            "direct opponents",
            "You average over direct opponents only. If 0 met 1 and 1 met 2, what do you know "
            "about 0 and 2?",
            _minus_mean_of_groups(lambda met: met | met.T),
        ),
        Mistake(
            "downwards only",
            "You follow comparisons from the winner to the loser only. Does it matter for the "
            "likelihood's free constant who won?",
            _minus_mean_of_groups(_reachable),
        ),
        Mistake(
            "both ways",
            "You join items only if each can be reached from the other by wins. That decides "
            "whether a finite maximum exists. Which items does a shift have to move together?",
            _minus_mean_of_groups(lambda met: _reachable(met) & _reachable(met).T),
        ),
    ),
)


def _newton(matrix, step=1.0):
    """Return a wrong Newton step: with another matrix, made from the edges and probabilities."""

    def newton(r, winners, losers):
        edges = _edges(r, winners, losers)
        p = torch.sigmoid(edges @ r)
        gradient = edges.T @ (p - 1) / len(p)
        return r - step * torch.linalg.pinv(matrix(edges, p), hermitian=True) @ gradient

    return newton


def _hessian(edges: Tensor, p: Tensor) -> Tensor:
    return edges.T @ ((p * (1 - p))[:, None] * edges) / len(p)


def _first_fixed(r, winners, losers):
    gradient, hessian = _derivatives(r, winners, losers)
    step = torch.linalg.pinv(hessian[1:, 1:], hermitian=True) @ gradient[1:]
    return torch.cat([r[:1], r[1:] - step])


_NEWTON = Exercise(
    name="newton_step",
    notebook="02",
    hints=(
        "The Hessian of one comparison is p (1 − p) in the two diagonal entries of its items, and "
        "−p (1 − p) in the two entries between them. Add them up, and divide as in the loss.",
        "H has no inverse: its rows sum to 0. What does torch.linalg.pinv(H, hermitian=True) do "
        "with a direction whose eigenvalue is 0?",
    ),
    solution=newton_step,
    cases=_fit_cases,
    mistakes=(
        Mistake(
            "gradient step",
            "You take a plain gradient step. Where does the curvature come in?",
            lambda r, w, losers: r - _derivatives(r, w, losers)[0],
        ),
        Mistake(
            "sign",
            "Your step goes uphill. Do you want to add H⁺ ∇L or subtract it?",
            _newton(_hessian, step=-1.0),
        ),
        Mistake(
            "step only",
            "You return the change of the rewards. What should the function return?",
            lambda r, w, losers: newton_step(r, w, losers) - r,
        ),
        Mistake(
            "diagonal only",
            "You divide by the diagonal of the Hessian. What do its other entries say about two "
            "items that met?",
            _newton(lambda edges, p: _hessian(edges, p).diag().diag()),
        ),
        Mistake(
            "sum and mean",
            "Your step is too short by a factor N: your Hessian belongs to the sum of the losses. "
            "And your gradient?",
            _newton(lambda edges, p: len(p) * _hessian(edges, p)),
        ),
        Mistake(
            "sign between items",
            "The entries of your Hessian between two items are positive. What is the second "
            "derivative of −log σ(r_i − r_j) in r_i and r_j?",
            _newton(lambda edges, p: _hessian(edges.abs(), p)),
        ),
        Mistake(
            "p for p (1 − p)",
            "You weigh each comparison by p. What is the derivative of σ?",
            _newton(lambda edges, p: edges.T @ (p[:, None] * edges) / len(p)),
        ),
        Mistake(
            "first item fixed",
            "Your rewards are right up to a constant: you hold the first item fixed. What should "
            "a step do to the mean, about which the data say nothing?",
            _first_fixed,
        ),
    ),
)

EXERCISES = (_GRADIENT, _CENTRE, _NEWTON)
