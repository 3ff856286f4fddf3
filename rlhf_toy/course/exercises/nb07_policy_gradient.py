"""The exercises of notebook 07: the policy-gradient loss, and RLOO's and GRPO's advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _loss_cases() -> list[Case]:
    """Cases for logps, advantages, mask. Masked log-probabilities are −9, so using them shows."""

    def case(advantages: Tensor, *lengths: int, T: int, seed: int) -> tuple[Tensor, ...]:
        mask = _mask(*lengths, T=T)
        logps = -random_numbers(len(lengths), T, seed=seed, scale=1.0).abs()
        return logps.masked_fill(~mask, -9.0), advantages[:, None], mask

    plain = [
        case(float64(2.0, -1.0), 2, 1, T=2, seed=1),
        case(float64(0.5, -1.5, 1.0), 3, 1, 2, T=3, seed=2),
        case(random_numbers(5, seed=3), 4, 1, 2, 3, 4, T=4, seed=4),
    ]
    corners = [
        case(float64(1.5), 1, T=1, seed=5),
        case(float64(0.0, 0.0), 2, 2, T=2, seed=6),
        case(float64(1e4, -1e4), 1, 3, T=3, seed=7),
    ]
    return make_cases(("logps", "advantages", "mask"), plain, corners)


def _sequence_loss(logps: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The right loss, with advantages as they come."""
    return -(advantages * logps * mask).sum(1).mean()


_POLICY_GRADIENT_LOSS = Exercise(
    name="policy_gradient_loss",
    notebook="07",
    hints=(
        "The log-probability of a response is the sum over its real tokens. What do you multiply "
        "it by?",
        "Sum over the tokens of each response, then take the mean over the B responses. Which way "
        "does an optimiser go?",
        "The advantages are numbers that say how good a sample was: detach them.",
    ),
    solution=losses.policy_gradient_loss,
    cases=_loss_cases,
    differentiable=("logps", "advantages"),
    mistakes=(
        Mistake(
            "sign",
            "Your loss falls when good responses become less likely. An optimiser minimises: what "
            "should it minimise here?",
            lambda logps, advantages, mask: -_sequence_loss(logps, advantages.detach(), mask),
        ),
        Mistake(
            "mean over tokens",
            "You divide by the number of tokens in the batch, so your gradient also depends on how "
            "long the responses are. Of what is the gradient an average: tokens or responses?",
            lambda logps, advantages, mask: (
                -(advantages.detach() * logps * mask).sum() / mask.sum()
            ),
        ),
        Mistake(
            "mean over all places",
            "You average over all B·T places, so your loss shrinks when the batch is padded to "
            "more tokens. Over which dimension do you sum, and over which do you average?",
            lambda logps, advantages, mask: -(advantages.detach() * logps * mask).mean(),
        ),
        Mistake(
            "every advantage with every response",
            "You multiply [B, 1] by [B], which gives [B, B]: each advantage meets every response. "
            "How can both have the same shape?",
            lambda logps, advantages, mask: -(advantages.detach() * (logps * mask).sum(1)).mean(),
        ),
        Mistake(
            "mean over each response",
            "You average over the tokens of each response, so a token of a long response counts "
            "less. How does log π(y|x) follow from the tokens' log-probabilities?",
            lambda logps, advantages, mask: (
                -((advantages.detach() * logps * mask).sum(1) / mask.sum(1)).mean()
            ),
        ),
        Mistake(
            "sum over responses",
            "You sum over the responses, so a batch twice as large takes a step twice as large. An "
            "expectation is estimated by what?",
            lambda logps, advantages, mask: -(advantages.detach() * logps * mask).sum(),
        ),
        Mistake(
            "mask forgotten",
            "Your loss includes tokens after the end of a response. Did the policy choose them?",
            lambda logps, advantages, mask: _sequence_loss(
                logps, advantages.detach(), torch.ones_like(mask)
            ),
        ),
        Mistake(
            "probabilities",
            "You weight the probabilities by the advantages, not their logarithms. Samples already "
            "come in proportion to π: what does the trick leave inside the expectation?",
            lambda logps, advantages, mask: (
                -(advantages[:, 0].detach() * (logps * mask).sum(1).exp()).mean()
            ),
        ),
        Mistake(
            "advantages not detached",
            "The value is right, but a gradient flows into the advantages, which contain log π "
            "when the KL is part of the reward. Are they a measurement or something to optimise?",
            _sequence_loss,
        ),
    ),
)


def _group_cases() -> list[tuple[Tensor]]:
    return [
        (float64([1.0, 3.0]),),
        (float64([1.0, 2.0, 6.0]),),
        (float64([2.0, -1.0], [0.5, 4.0], [1.0, -2.0]),),
        (random_numbers(3, 4, seed=1),),
        (random_numbers(2, 5, seed=2),),
    ]


def _group_corners() -> list[tuple[Tensor]]:
    return [
        (float64([2.0, 2.0, 2.0]),),
        (float64([0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]),),
        (1e4 + random_numbers(2, 3, seed=3),),
    ]


def _deviation(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(1, keepdim=True)


def _others_mean(rewards: Tensor) -> Tensor:
    return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


_RLOO = Exercise(
    name="rloo_advantages",
    notebook="07",
    hints=(
        "Each row is a group: G responses to one prompt. What is each response compared with?",
        "The sum of the others is the row's sum without the response's own reward.",
        "There are G − 1 others. Keep the shape with sum(1, keepdim=True).",
    ),
    solution=losses.rloo_advantages,
    cases=lambda: make_cases(("rewards",), _group_cases(), _group_corners()),
    mistakes=(
        Mistake(
            "own reward in the baseline",
            "Your baseline is the mean of the whole group, so it contains the reward of the "
            "response itself. Who should be left out?",
            _deviation,
        ),
        Mistake(
            "divided by G",
            "You leave out the response's own reward from the sum, but still divide by G. How many "
            "others are there?",
            lambda rewards: rewards - (rewards.sum(1, keepdim=True) - rewards) / rewards.shape[1],
        ),
        Mistake(
            "over the prompts",
            "You compare with responses to the other prompts. Which dimension holds the responses "
            "to one prompt?",
            lambda rewards: rewards - (rewards.sum(0) - rewards) / max(rewards.shape[0] - 1, 1),
        ),
        Mistake(
            "over the batch",
            "You compare with all other responses of the batch, easy and hard prompts alike. What "
            "would a group baseline know that this one does not?",
            lambda rewards: rewards - (rewards.sum() - rewards) / (rewards.numel() - 1),
        ),
        Mistake(
            "sign",
            "In your result, a response that is better than the others has a negative advantage. "
            "Which of the two do you subtract?",
            lambda rewards: _others_mean(rewards) - rewards,
        ),
        Mistake(
            "only the baseline",
            "You return the baseline, the mean of the others. What is the advantage over it?",
            _others_mean,
        ),
        Mistake(
            "divided by the standard deviation",
            "You divide by a standard deviation, as GRPO does. What does that do to the expected "
            "gradient?",
            lambda rewards: _deviation(rewards) / (rewards.std(1, keepdim=True) + 1e-4),
        ),
    ),
)


def _grpo(rewards: Tensor, scale: bool, correction: int = 1, epsilon: float = 1e-4) -> Tensor:
    """GRPO's advantages with another standard deviation."""
    std = rewards.std(1, keepdim=True, correction=correction)
    return _deviation(rewards) / (std + epsilon) if scale else _deviation(rewards)


_GRPO = Exercise(
    name="grpo_advantages",
    notebook="07",
    hints=(
        "Subtract the mean of each row. With scale=False this is all.",
        "rewards.std(1, keepdim=True) has Bessel's correction (it divides by G − 1), as in TRL.",
        "What happens when all rewards in a group are equal? The 1e-4 is there for that.",
    ),
    solution=losses.grpo_advantages,
    cases=lambda: make_cases(
        ("rewards", "scale"),
        [(*case, scale) for case in _group_cases() for scale in (True, False)],
        [(*case, scale) for case in _group_corners() for scale in (True, False)],
    ),
    mistakes=(
        Mistake(
            "always scaled",
            "Your function ignores `scale` and always divides. What should scale=False return?",
            lambda rewards, scale: _grpo(rewards, True),
        ),
        Mistake(
            "never scaled",
            "You subtract the mean but never divide. What should happen when `scale` is True?",
            lambda rewards, scale: _grpo(rewards, False),
        ),
        Mistake(
            "scale reversed",
            "Your function divides when `scale` is False. Is the test the right way round?",
            lambda rewards, scale: _grpo(rewards, not scale),
        ),
        Mistake(
            "population standard deviation",
            "Your standard deviation divides by G, so it is the population's. Which one does TRL "
            "use for a group of G samples?",
            lambda rewards, scale: _grpo(rewards, scale, correction=0),
        ),
        Mistake(
            "variance",
            "You divide by the variance, so doubling all rewards halves your advantages. Which "
            "measure of spread has the unit of the rewards?",
            lambda rewards, scale: (
                _deviation(rewards) / (rewards.var(1, keepdim=True) + 1e-4)
                if scale
                else _deviation(rewards)
            ),
        ),
        Mistake(
            "standard deviation of the batch",
            "You divide by the standard deviation of the whole batch. What would each prompt "
            "divide by in GRPO?",
            lambda rewards, scale: (
                _deviation(rewards) / (rewards.std() + 1e-4) if scale else _deviation(rewards)
            ),
        ),
        Mistake(
            "mean of the others",
            "Your baseline leaves the response out, as in RLOO. What does GRPO subtract?",
            lambda rewards, scale: (
                (rewards - _others_mean(rewards)) / (rewards.std(1, keepdim=True) + 1e-4)
                if scale
                else rewards - _others_mean(rewards)
            ),
        ),
        Mistake(
            "division by zero",
            "In a group whose rewards are all equal, you divide 0 by 0. What keeps the "
            "denominator above 0?",
            lambda rewards, scale: _grpo(rewards, scale, epsilon=0.0),
        ),
    ),
)

EXERCISES = (_POLICY_GRADIENT_LOSS, _RLOO, _GRPO)
