"""A policy without training: draw n responses from the reference and keep the best.

Its distribution is known exactly, so every estimate here comes with its exact value.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlhf_toy import checks, training
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import Yardstick, expected_reward
from rlhf_toy.models import Policy, check_fits
from rlhf_toy.sampling import sample
from rlhf_toy.training import History, Metrics, Reward

ATTENDED_AT_ONCE = 2**23  # pairs of positions in all responses drawn at once: the memory


def pick_best_of_n(responses: Tensor, scores: Tensor) -> Tensor:
    """Return the highest-scoring response of each group of n; the first one if several tie.

    Args:
        responses: [B, n, T] token ids.
        scores: [B, n].

    Returns:
        [B, T].

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: shapes that do not fit, or scores that are not finite.
    """
    checks.check_shapes(responses=(responses, "BnT"), scores=(scores, "Bn"))
    checks.check_finite(scores=scores)
    rows = torch.arange(len(responses), device=responses.device)
    return responses[rows, scores.argmax(1)]


def best_of_n_logps(ref_logps: Tensor, scores: Tensor, n: int) -> Tensor:
    """Return the exact distribution of best-of-n: p(y) = F(y)^n − F(y⁻)^n.

    F is the cumulative distribution of the score under π_ref. Responses that tie share the
    probability of their score as under π_ref.

    Args:
        ref_logps: [X, Y] log π_ref(y|x), each row a distribution.
        scores: [X, Y] by which the best is picked; only their order matters.
        n: number of draws.

    Returns:
        [X, Y] log-probabilities; −inf where π_ref has no mass.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that differ, a reference that does not sum to 1, scores that are not
            finite, or an n below 1.
    """
    checks.check_count("n", n)
    checks.check_shapes(ref_logps=(ref_logps, "XY"), scores=(scores, "XY"))
    checks.check_distribution("ref_logps", ref_logps)
    checks.check_finite(scores=scores)
    rows = []
    for logps, score in zip(ref_logps.double(), scores, strict=True):
        _, level = score.unique(return_inverse=True)  # ranks, equal where scores tie
        mass = logps.new_zeros(int(level.max()) + 1).scatter_add(0, level, logps.exp())
        below = (mass.cumsum(0) - mass).clamp(0, 1)
        # With q = 1 − F⁻/F the probability is F^n (1 − (1 − q)^n), and π_ref's is mass = F q. Their
        # ratio is computed with log1p and expm1, which stay accurate where q is tiny.
        upto = (below + mass).clamp(max=1)
        q = mass / upto
        lift = torch.where(q > 0, -torch.expm1(n * torch.log1p(-q)) / q, float(n))
        log_lift = torch.xlogy(n - 1, upto) + lift.log()  # 0 · log 0 is 0
        rows.append(logps + log_lift[level])
    return torch.stack(rows)


def best_of_n_kl_bound(n: int) -> float:
    """Return log n − (n − 1)/n, an upper bound on KL(best-of-n ‖ π_ref) in nats.

    Source: Beirami et al. 2024. Raises a TypeError or ValueError if n is not an integer of at
    least 1.
    """
    checks.check_count("n", n)
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class BestOfNSettings:
    """Settings of best-of-n."""

    beta: float = 0.5  # KL weight by which n is chosen
    ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    samples: int = 512  # groups of n responses drawn for the estimate

    def __post_init__(self) -> None:
        checks.check_settings(self)
        checks.check_type("ns", self.ns, tuple, "a tuple of integers")
        if not self.ns:
            raise ValueError("ns must name at least one n")
        for n in self.ns:
            checks.check_count("every n", n)


def sample_best_of_n(
    reference: Policy,
    world: TextWorld,
    reward: Reward,
    prompts: Tensor,
    n: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw n responses to each prompt and keep the best, in a world of any size.

    Args:
        reference: π_ref, which draws: a GPT or a table.
        world: where responses are written.
        reward: prompts [N], responses [N, T] → the scores [N] by which the best is picked.
        prompts: [B] prompt indices, on the reference's device.
        n: number of draws.
        generator: the source of randomness, on the same device.

    Returns:
        responses [B, T] and their scores [B].

    Raises:
        TypeError, ValueError: as for `sample`, an n below 1, or bad scores.
    """
    world = unwrap(world)
    checks.check_type("reward", reward, Callable, "a RewardModel or a function")
    checks.check_count("n", n)
    checks.check_ids("prompts", prompts, world.n_prompts, dim=1)
    found = []
    with torch.no_grad():
        for some in prompts.split(max(1, ATTENDED_AT_ONCE // (n * world.max_length**2))):
            repeated = some.repeat_interleave(n)
            draws = sample(reference, world, repeated, generator).responses
            scores = checks.check_scores(reward(repeated, draws), repeated).view(-1, n)
            best = pick_best_of_n(draws.view(len(some), n, -1), scores)
            found.append((best, scores.max(1).values))
    responses, scores = map(torch.cat, zip(*found, strict=True))
    return responses, scores


def best_of_n_iteration(
    state: training.State,
    world: TextWorld,
    reference: Policy,
    reward: Reward,
    settings: BestOfNSettings,
) -> Metrics:
    """Try the next n: draw groups of responses, and keep the best; see `run_best_of_n`."""
    n = settings.ns[state.step]
    prompts = world.sample_prompts(settings.samples, state.generator)
    best, scores = sample_best_of_n(reference, world, reward, prompts, n, state.generator)
    state.step += 1
    return {
        "n": n,
        "objective/scores": scores.mean(),
        "objective/reward": world.response_rewards(prompts, best).mean(),
        "kl_bound": best_of_n_kl_bound(n),
    }


def run_best_of_n(
    world: TextWorld,
    reference: Policy,
    scores: Tensor | Reward,
    settings: BestOfNSettings = BestOfNSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[Tensor | int, History]:
    """Try best-of-n for several n and keep the n that the scores themselves like best.

    n is chosen by E[score] − β KL(best-of-n ‖ π_ref), without looking at the true reward. Where
    scores are a function, both are estimated: E[score] on the draws, the KL by its upper bound.

    Args:
        world: a deterministic world.
        reference: π_ref, which draws: a GPT or a table.
        scores: [X, Y] by which the best is picked: `exact.response_scores` of a reward model, or
            the true `exact.response_rewards`. In a world with too many responses for a table: a
            function of prompts [B] and responses [B, T], such as a reward model itself.
        settings: see `BestOfNSettings`.
        seed: of the draws.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to resume from.

    Returns:
        log-probabilities [X, Y] of the policy that was chosen, or where scores are a function its
        n; and a history by step, one for each n: `n`; `kl_bound` (see `best_of_n_kl_bound`);
        estimated on the draws, `objective/scores` and `objective/reward` (true). Of a table exactly
        as well: `exact/scores`, `exact/reward`, `exact/kl`, `exact/objective`, `exact/gap`.

    Raises:
        TypeError, ValueError: bad settings, seed, device, world, scores, or a checkpoint of another
            run.
    """
    world = unwrap(world)
    checks.check_type("settings", settings, BestOfNSettings, "BestOfNSettings")
    device = training.pick_device(device)
    generator = training.make_generator(seed, device)
    check_fits(reference, world)
    reference = copy.deepcopy(reference).to(device)
    state = training.State(generator)
    inputs = {"world": world.fingerprint, "reference": reference}
    if isinstance(scores, Tensor):
        yardstick = Yardstick(world, reference, settings.beta)
        inputs["scores"] = scores = scores.cpu()
        table, law = scores.to(device), partial(best_of_n_logps, yardstick.ref_logps, scores)
        law(1)  # raises where the scores do not fit

        def reward(prompts: Tensor, responses: Tensor) -> Tensor:
            return table[prompts, world.response_index(responses)]

        def measure() -> Metrics:
            logps = law(settings.ns[state.step - 1])
            found = {"exact/scores": expected_reward(logps, scores).mean()}
            return found | yardstick.metrics(logps)

        liked, kl = "exact/scores", "exact/kl"
    else:
        checks.check_type("scores", scores, Callable, "a tensor [X, Y] or a function of responses")
        reward, measure = training.frozen_reward(scores, world, device), dict
        if checkpoint is not None:
            inputs["scores"] = training.reward_digest(reward, world, device)
        liked, kl = "objective/scores", "kl_bound"
    history = training.run_steps(
        state,
        lambda: best_of_n_iteration(state, world, reference, reward, settings),
        len(settings.ns),
        Checkpoint(checkpoint, "best of n", settings, seed, **inputs),
        measure,
        shown_metrics={"exact/scores": "score", "objective/scores": "estimated", "exact/kl": "kl"},
    )
    pairs = zip(history.series(liked)[1], history.series(kl)[1], strict=True)
    objectives = [score - settings.beta * spent for score, spent in pairs]
    n = settings.ns[objectives.index(max(objectives))]
    return law(n) if isinstance(scores, Tensor) else n, history
