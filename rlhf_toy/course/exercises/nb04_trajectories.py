"""The exercises of notebook 04: the return of a path, and one step of value iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers
from rlhf_toy.training import make_generator


def path_return(rewards: Tensor, squares: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the rewards of the squares that each path steps on.

    Args:
        rewards: [S] reward of stepping on each square.
        squares: [B, T] the square after each step; any square where the path is already over.
        mask: bool [B, T], True for real steps.

    Returns:
        [B]
    """
    return torch.where(mask, rewards[squares], 0.0).sum(-1)


def value_backup(values: Tensor, rewards: Tensor, successors: Tensor, is_end: Tensor) -> Tensor:
    """Return the best value of each square with one step more to go.

    V(s) = max_a [r(s′) + V(s′)], where s′ is the square that action a leads to; 0 at the ends.

    Args:
        values: [S] the values with one step fewer to go.
        rewards: [S] reward of stepping on each square.
        successors: [S, A] the square that each action leads to.
        is_end: bool [S], True where a path is over.

    Returns:
        [S]
    """
    best = (rewards + values)[successors].max(-1).values
    return torch.where(is_end, 0.0, best)


def _squares(*shape: int, n_squares: int, seed: int) -> Tensor:
    return torch.randint(n_squares, shape, generator=make_generator(seed))


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _path_cases() -> list[Case]:
    """Return cases of (rewards, squares, mask), with squares to step on again and square 0."""
    lake = float64(-0.3, -0.4, -2.0, 4.0)
    plain = [
        (float64(1.0, -0.5, 4.0), torch.tensor([[1, 2, 1]]), _mask(2, T=3)),
        (lake, torch.tensor([[1, 0, 1, 3, 3], [0, 0, 2, 0, 0]]), _mask(4, 3, T=5)),
        (random_numbers(6, seed=1), _squares(3, 5, n_squares=6, seed=2), _mask(5, 2, 4, T=5)),
        (
            random_numbers(9, seed=3).float(),
            _squares(4, 7, n_squares=9, seed=4),
            _mask(7, 3, 1, 6, T=7),
        ),
    ]
    corners = [
        (lake, torch.tensor([[1, 1, 1], [3, 0, 0]]), _mask(0, 1, T=3)),  # a path without a step
        (float64(1e4, -1e4), torch.tensor([[0, 1, 0, 1]]), _mask(3, T=4)),
    ]
    return make_cases(("rewards", "squares", "mask"), plain, corners)


def _paid(rewards: Tensor, squares: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, rewards[squares], 0.0)


def _steps(mask: Tensor) -> Tensor:
    """Return the number of each step, counted from 1, shape [B, T]."""
    return mask.long().cumsum(-1)


def _each_square_once(rewards: Tensor, squares: Tensor, mask: Tensor) -> Tensor:
    visits = (torch.nn.functional.one_hot(squares, len(rewards)) * mask[..., None]).sum(1)
    return ((visits > 0) * rewards).sum(-1)


_RETURN = Exercise(
    name="path_return",
    notebook="04",
    hints=(
        "rewards[squares] looks up the reward of every square at once. What shape does it have?",
        "Some entries belong to no step, because the path was already over. What should they add?",
        "Set those entries to 0, then add up over the steps of each path.",
    ),
    solution=path_return,
    cases=_path_cases,
    mistakes=(
        Mistake(
            "mean over the steps",
            "You divide by the number of steps. Two walks fall into a hole, one after 2 steps and "
            "one after 20. Which of them cost more, and which one looks worse with your mean?",
            lambda rewards, squares, mask: _paid(rewards, squares, mask).sum(-1) / mask.sum(-1),
        ),
        Mistake(
            "mean over all positions",
            "You divide by T. Should the return of a path depend on how much padding it has?",
            lambda rewards, squares, mask: _paid(rewards, squares, mask).mean(-1),
        ),
        Mistake(
            "mask forgotten",
            "You also count squares after the end of a path. Which argument says what is real?",
            lambda rewards, squares, mask: rewards[squares].sum(-1),
        ),
        Mistake(
            "square 0 taken for padding",
            "You leave out every visit of square 0. A path may come back to the start. Which "
            "argument says what is padding?",
            lambda rewards, squares, mask: _paid(rewards, squares, squares != 0).sum(-1),
        ),
        Mistake(
            "last square only",
            "You count only the square where the path ends. What did the steps before it cost?",
            lambda rewards, squares, mask: _paid(
                rewards, squares, mask & (_steps(mask) == mask.sum(-1, keepdim=True))
            ).sum(-1),
        ),
        Mistake(
            "last square left out",
            "You leave out the last step. On a path that reaches the goal, which step earns it?",
            lambda rewards, squares, mask: _paid(
                rewards, squares, mask & (_steps(mask) < mask.sum(-1, keepdim=True))
            ).sum(-1),
        ),
        Mistake(
            "first square left out",
            "You leave out the first step. The squares start after the first step, so does the "
            "start square need to be removed?",
            lambda rewards, squares, mask: _paid(rewards, squares, mask)[:, 1:].sum(-1),
        ),
        Mistake(
            "each square once",
            "You count each square once, however often the path steps on it. What should standing "
            "on one square for ten steps cost?",
            _each_square_once,
        ),
        Mistake(
            "summed over the batch",
            "You add up all paths of the batch. The annotator compares two of them, so each path "
            "needs its own number. Over which dimension do the steps run?",
            lambda rewards, squares, mask: _paid(rewards, squares, mask).sum(),
        ),
        Mistake(
            "sum over the wrong dimension",
            "You add up over the paths and keep the steps. Which dimension holds the steps of one "
            "path?",
            lambda rewards, squares, mask: _paid(rewards, squares, mask).sum(0),
        ),
    ),
    differentiable=("rewards",),
)


def _backup_cases() -> list[Case]:
    """Return cases of (values, rewards, successors, is_end); ends lead to themselves."""
    line = torch.tensor([[0, 1], [0, 2], [2, 2]])  # left and right on three squares
    ends = torch.tensor([False, False, True])
    cases = []
    for S, A, seed in ((5, 2, 1), (8, 4, 2), (12, 3, 3)):
        is_end = torch.arange(S) >= S - 2
        successors = _squares(S, A, n_squares=S, seed=seed)
        successors[is_end] = torch.arange(S)[is_end, None]
        values = random_numbers(S, seed=seed + 10).masked_fill(is_end, 0.0)
        cases.append((values, random_numbers(S, seed=seed + 20), successors, is_end))
    cases[1] = (cases[1][0].float(), cases[1][1].float(), *cases[1][2:])
    plain = [
        (float64(0.0, 1.0, 0.0), float64(-0.5, -1.0, 4.0), line, ends),
        (float64(2.0, 3.0, 0.0), float64(-0.5, 0.5, -3.0), line, ends),
        *cases,
    ]
    corners = [
        (float64(0.0, 0.0, 0.0), float64(-1.0, -2.0, -3.0), line, ends),  # nothing but costs
        (float64(5.0, 5.0, 0.0), float64(1.0, 1.0, 6.0), line, ends),  # ties
        (float64(1e4, -1e4, 0.0), float64(-1e4, 1e4, 1.0), line, ends),
    ]
    return make_cases(("values", "rewards", "successors", "is_end"), plain, corners)


def _at_ends_0(best: Tensor, is_end: Tensor) -> Tensor:
    return torch.where(is_end, 0.0, best)


_BACKUP = Exercise(
    name="value_backup",
    notebook="04",
    hints=(
        "Stepping onto square s′ earns rewards[s′] now and values[s′] later. Add the two first.",
        "Indexing with successors gives one number for each square and action, [S, A]. Which "
        "action does the planner take?",
        "A path that is over earns nothing more. What is the value of an end?",
    ),
    solution=value_backup,
    cases=_backup_cases,
    mistakes=(
        Mistake(
            "ends keep earning",
            "Your ends have a value. Gymnasium's ends lead to themselves, so your planner collects "
            "the goal's reward at every further step. What can a path that is over still earn?",
            lambda values, rewards, successors, is_end: (
                (rewards + values)[successors].max(-1).values
            ),
        ),
        Mistake(
            "no reward on stepping onto an end",
            "You ignore the reward of stepping onto an end, so your planner cannot see the goal. "
            "Is it the end that has no value, or the step onto it?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                ((rewards + values) * ~is_end)[successors].max(-1).values, is_end
            ),
        ),
        Mistake(
            "reward of the square it leaves",
            "You add the reward of the square that is left. On which square is the reward earned?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                rewards + values[successors].max(-1).values, is_end
            ),
        ),
        Mistake(
            "next reward only",
            "You look one step ahead and no further. What does the rest of the path earn?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                rewards[successors].max(-1).values, is_end
            ),
        ),
        Mistake(
            "no reward",
            "You pass values on without adding any reward. Starting from zeros, what would a "
            "hundred backups give?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                values[successors].max(-1).values, is_end
            ),
        ),
        Mistake(
            "two separate maxima",
            "You take the best reward and the best value separately. Can one action lead to two "
            "squares?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                rewards[successors].max(-1).values + values[successors].max(-1).values, is_end
            ),
        ),
        Mistake(
            "mean over the actions",
            "You average over the actions, as if the step were random. Which action does a planner "
            "take?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                (rewards + values)[successors].mean(-1), is_end
            ),
        ),
        Mistake(
            "worst action",
            "Your planner picks the worst action. Is it looking for the smallest or the largest "
            "return?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                (rewards + values)[successors].min(-1).values, is_end
            ),
        ),
        Mistake(
            "action instead of value",
            "You return the index of the best action. What is that action worth?",
            lambda values, rewards, successors, is_end: _at_ends_0(
                (rewards + values)[successors].argmax(-1), is_end
            ),
        ),
    ),
)

EXERCISES = (_RETURN, _BACKUP)
