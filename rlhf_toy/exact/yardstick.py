"""Measuring policies against the exact optimum."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import gymnasium as gym
import torch
from torch import Tensor

from rlhf_toy import checks
from rlhf_toy.envs import Automaton, unwrap
from rlhf_toy.envs.text_world import MOST_RESPONSES
from rlhf_toy.exact import automaton as automata
from rlhf_toy.exact import dynamic_programming as dp
from rlhf_toy.exact.bandit import expected_reward, gibbs_policy, kl_divergence, log_partition
from rlhf_toy.exact.enumeration import response_logps, response_rewards, state_logps
from rlhf_toy.models import Policy, TablePolicy, check_fits
from rlhf_toy.sampling import sample

__all__ = ["AutomatonYardstick", "Measure", "StochasticYardstick", "Yardstick", "make_yardstick"]

RESPONSES_AT_ONCE = 2_048  # of a measurement by samples, to bound the memory


@dataclass(frozen=True)
class Measure:
    """How good a policy is; means over the prompts."""

    reward: float  # E[r(x, y)], the true reward
    kl: float  # KL(π ‖ π_ref) of whole responses, in nats
    objective: float  # J(π) = reward − β kl
    gap: float  # (J* − J(π)) / (J* − J(π_ref)): 0 at the optimum, 1 at the reference
    standard_error: float = 0.0  # of the gap; 0 where nothing is sampled


class Yardstick:
    """Measures policies against the exact optimum of one world, reference and β, by enumeration.

    Args:
        env: a deterministic world of this package.
        reference: π_ref.
        beta: KL weight.

    Attributes:
        ref_logps: [X, Y] log π_ref(y|x).
        rewards: [X, Y] true rewards.
        optimum: J* = E_x[β log Z(x)].
        reference_objective: J(π_ref), which is the reference's reward.

    Raises:
        TypeError, ValueError: as for `response_logps` and `log_partition`, or every response of the
            reference has the same reward, so there is nothing to gain.
    """

    def __init__(self, env: gym.Env, reference: Policy, beta: float) -> None:
        self.world, self.beta = unwrap(env), beta
        self.ref_logps = response_logps(reference, env).cpu()
        self.rewards = response_rewards(env)
        self.optimum = float(beta * log_partition(self.ref_logps, self.rewards, beta).mean())
        self.reference_objective = float(expected_reward(self.ref_logps, self.rewards).mean())
        self._check_there_is_a_gap()

    def _check_there_is_a_gap(self) -> None:
        if not self.optimum - self.reference_objective > 1e-12:
            reason = "every response it gives has the same reward"
            raise ValueError(f"there is no gap to measure: the reference is optimal ({reason})")

    def _reward_and_kl(self, policy: Policy | Tensor) -> tuple[float, float]:
        """Mean true reward (logits) and KL to the reference (nats)."""
        if isinstance(policy, Tensor):
            checks.check_same_shape(log_probabilities=policy, reference=self.ref_logps)
            checks.check_distribution("the policy's table", policy)
            logps = policy.cpu()
        else:
            logps = response_logps(policy, self.world).cpu()
        reward = float(expected_reward(logps, self.rewards).mean())
        return reward, float(kl_divergence(logps, self.ref_logps).mean())

    def measure(self, policy: Policy | Tensor) -> Measure:
        """Return the exact `Measure` of a policy: a model, or its log-probabilities as a table.

        Raises:
            TypeError, ValueError: a model of another world, or a table of another shape or whose
                rows are not log-probabilities.
        """
        reward, kl = self._reward_and_kl(policy)
        J = reward - self.beta * kl
        gap = (self.optimum - J) / (self.optimum - self.reference_objective)
        return Measure(reward=reward, kl=kl, objective=J, gap=gap)

    def best_at(self, beta: float) -> tuple[float, float]:
        """Return true reward (logits) and KL (nats) of the optimum for another β.

        Raises:
            TypeError, ValueError: a β that is no number, or not finite and above 0.
        """
        return self._reward_and_kl(gibbs_policy(self.ref_logps, self.rewards, beta))

    def metrics(self, policy: Policy | Tensor) -> dict[str, float]:
        """Return `measure` under the names that a trainer's history has."""
        measure, names = self.measure(policy), ("reward", "kl", "objective", "gap")
        return {f"exact/{name}": getattr(measure, name) for name in names}


class StochasticYardstick(Yardstick):
    """The `Yardstick` of a world with stochastic transitions, by backward induction over states.

    The KL is that of the actions: Σ_t log π(a_t|s_t)/π_ref(a_t|s_t) in expectation.

    Args:
        env: a world of this package.
        reference: π_ref.
        beta: KL weight.

    Raises:
        TypeError, ValueError: as for `state_logps` and `soft_value_iteration`.
    """

    def __init__(self, env: gym.Env, reference: Policy, beta: float) -> None:
        self.world, self.beta = unwrap(env), beta
        self._tables = dp.tabular_mdp(self.world)
        self.ref_logps = state_logps(reference, self.world).cpu()  # [S, A]
        # One start for each prompt: its empty response.
        self._starts = torch.arange(self.world.n_prompts) * int(self.world.level_starts[-1])
        horizon = self.world.max_length
        _, values, _ = dp.soft_value_iteration(*self._tables, self.ref_logps, beta, horizon)
        self.optimum = float(values[0, self._starts].mean())
        self.reference_objective = self._reward_and_kl(reference)[0]
        self._check_there_is_a_gap()

    def _reward_and_kl(self, policy: Policy | Tensor) -> tuple[float, float]:
        if isinstance(policy, Tensor):
            sizes = zip("HSA", (self.world.max_length, *self.ref_logps.shape), strict=True)
            kind = "HSA" if policy.dim() == 3 else "SA"
            checks.check_shapes(dict(sizes), log_probabilities=(policy, kind))
            checks.check_distribution("the policy's table", policy)
            logps = policy.cpu()
        else:
            logps = state_logps(policy, self.world).cpu()
        logps = logps.expand(self.world.max_length, *self.ref_logps.shape)
        successors, probabilities, rewards = self._tables
        arguments = (self.ref_logps, logps, self.beta)
        values = dp.soft_policy_evaluation(successors, probabilities, rewards, *arguments)
        penalty = dp.soft_policy_evaluation(successors, probabilities, 0 * rewards, *arguments)
        objective, kl = (float(v[0, self._starts].mean()) for v in (values, -penalty / self.beta))
        return objective + self.beta * kl, kl

    def best_at(self, beta: float) -> tuple[float, float]:
        """Return reward and KL of the optimum for another β, as `Yardstick.best_at`."""
        arguments = *self._tables, self.ref_logps, beta, self.world.max_length
        return self._reward_and_kl(dp.soft_value_iteration(*arguments)[2])


class AutomatonYardstick(Yardstick):
    """The `Yardstick` of a world with an automaton, from a policy's own samples.

    J* − J(π) = β KL(π ‖ π*), and log π* is known exactly wherever a sample goes. Two sums over the
    tokens of a sampled response have this KL as their mean: Σ_t log π(y_t|s_t)/π*(y_t|s_t), and
    Σ_t KL(π(·|s_t) ‖ π*(·|s_t)). The second varies less near π*, the first far from it, where long
    responses add up more KL. Their difference has mean 0 and serves as a control variate, so the
    estimate varies about as little as the better one, or less. The KL to π_ref is estimated in the
    same way, and the reward is J(π) + β KL(π ‖ π_ref). The standard error assumes that the samples
    are typical: it is too small where most of the KL is in responses so rare that a sample has
    only a few of them.

    The reference is the automaton's table. Every measurement draws with the same seed, and equally
    many responses to each prompt.

    Args:
        env: a world with an automaton, such as `LongReview`.
        beta: KL weight.
        samples: least number of responses of a measurement.
        seed: of the samples.

    Attributes:
        optimum: J* = E_x[β log Z(x)].
        reference_objective: J(π_ref), exact.

    Raises:
        TypeError: a world without an automaton, or numbers of the wrong kind.
        ValueError: a β that is not finite and above 0, fewer than two samples for each prompt, or
            every response of the reference has the same reward.
    """

    def __init__(self, env: gym.Env, beta: float, samples: int = 8_192, seed: int = 0) -> None:
        self.world, self.beta, self.seed = automata.automaton_world(env), beta, seed
        X = self.world.n_prompts
        checks.check_count("samples", samples, 2 * X)
        checks.check_count("seed", seed, 0, 2**63 - 1)
        self.samples_per_prompt = math.ceil(samples / X)
        automaton = self.world.automaton()
        optimum = automata.automaton_optimum(automaton, beta)
        self._optima = {torch.device("cpu"): optimum}
        self.optimum = optimum.objective
        rewards, _ = automata.automaton_evaluation(automaton, automaton.ref_logps)
        self.reference_objective = float(rewards.mean())
        self._check_there_is_a_gap()

    def optimum_on(self, device: torch.device) -> automata.AutomatonOptimum:
        """Return the optimum with its tables on a device, copied there once."""
        if device not in self._optima:
            automaton = self.world.automaton(device)
            values = self._optima[torch.device("cpu")].values.to(device)
            self._optima[device] = automata.AutomatonOptimum(automaton, self.beta, values)
        return self._optima[device]

    def measure(self, policy: Policy | Tensor) -> Measure:
        """Return the `Measure` of a model by samples, or of a table on the automaton exactly.

        A table holds log-probabilities [S, A], [X, S, A] or [T, X, S, A].

        Raises:
            TypeError, ValueError: a model of another world, or a table of another shape or whose
                rows are not log-probabilities.
        """
        if isinstance(policy, Tensor):
            found = automata.automaton_evaluation(self.world.automaton(), policy.cpu().double())
            reward, kl = (float(x.mean()) for x in found)
            return self._measure(kl, self.optimum - reward + self.beta * kl, 0.0)
        to_optimum, to_reference = self.sample_kls(policy)
        variances = to_optimum.var(1) / to_optimum.shape[1]  # of each prompt's mean
        error = float(self.beta * variances.sum().sqrt() / len(variances))
        kl, short_of = float(to_reference.mean()), self.beta * float(to_optimum.mean())
        return self._measure(kl, short_of, error)

    def best_at(self, beta: float) -> tuple[float, float]:
        """Return reward and KL of the optimum for another β, as `Yardstick.best_at`."""
        return tuple(float(x) for x in automata.automaton_frontier(self.world.automaton(), [beta]))

    def _measure(self, kl: float, short_of: float, error: float) -> Measure:
        J, most = self.optimum - short_of, self.optimum - self.reference_objective
        reward = J + self.beta * kl
        return Measure(reward, kl, objective=J, gap=short_of / most, standard_error=error / most)

    def sample_kls(self, policy: Policy) -> tuple[Tensor, Tensor]:
        """Return numbers whose means are KL(π ‖ π*) and KL(π ‖ π_ref): two tensors [X, n], in nats.

        One for each of n sampled responses to each prompt.

        Raises:
            TypeError, ValueError: a model of another world.
        """
        check_fits(policy, self.world)
        generator = torch.Generator(policy.device).manual_seed(self.seed)
        prompts = torch.arange(self.world.n_prompts, device=policy.device)
        prompts = prompts.repeat_interleave(self.samples_per_prompt)
        parts = prompts.split(RESPONSES_AT_ONCE)
        with torch.no_grad():  # not inference mode, in which no table may be copied to a device
            found = [self._kls(policy, some, generator) for some in parts]
        # [2 targets, 2 estimates, X, n]
        estimates = torch.cat(found, dim=-1).unflatten(-1, (self.world.n_prompts, -1)).cpu()
        return with_least_variance(*estimates[0]), with_least_variance(*estimates[1])

    def _kls(self, policy: Policy, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Both estimates of both KLs: [2 targets, 2 estimates, B]."""
        optimum = self.optimum_on(policy.device)
        rollout = sample(policy, self.world, prompts, generator)
        responses, mask = rollout.responses, rollout.mask
        logps = policy(prompts, responses).double().log_softmax(-1)  # [B, T, A]
        states = optimum.automaton.walk(prompts, responses)[:, :-1]
        steps = torch.arange(states.shape[1], device=states.device).expand(states.shape)
        prompts = prompts[:, None].expand(states.shape)
        tokens = responses.masked_fill(~mask, 0)[..., None]
        best = optimum.logps_at(steps, prompts, states)
        ref_logps = optimum.automaton.ref_logps_at(prompts, states)
        found = []
        for target in (best, ref_logps):
            log_ratios = (logps - target).gather(2, tokens)[..., 0]
            found += [log_ratios * mask, kl_divergence(logps, target) * mask]
        return torch.stack(found).sum(-1).unflatten(0, (2, 2))

    def metrics(self, policy: Policy | Tensor) -> dict[str, float]:
        """Return `measure` under the names that a trainer's history has."""
        return {f"exact/{name}": value for name, value in asdict(self.measure(policy)).items()}


def with_least_variance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mix of two estimates of one mean that varies least within the rows, [X, n].

    Each half of the samples takes the share that fits the other half, so the mix has no bias.
    """
    difference, mixed = first - second, first.clone()
    even, odd = slice(0, None, 2), slice(1, None, 2)
    for here, there in ((even, odd), (odd, even)):
        spread = difference[:, there] - difference[:, there].mean(1, keepdim=True)
        share = (spread * first[:, there]).sum() / (spread * spread).sum().clamp(min=1e-300)
        mixed[:, here] -= share.clamp(0, 1) * difference[:, here]
    return mixed


def make_yardstick(env: gym.Env, reference: Policy, beta: float) -> Yardstick:
    """Return the yardstick that fits the world.

    By enumeration where transitions are certain, by backward induction where they are not, and by
    samples where there are too many responses and the world has an automaton.

    Raises:
        TypeError, ValueError: as for the yardstick that fits, or a reference that is not the table
            of the automaton by which the world is measured.
    """
    world = unwrap(env)
    if world.n_responses > MOST_RESPONSES and hasattr(world, "automaton"):
        check_fits(reference, world)
        if not _is_table(reference, world.automaton()):
            wanted = "must be table_reference(world), from which its exact optimum is computed"
            advice = "or pass a yardstick: AutomatonYardstick(world, beta) measures against it"
            raise ValueError(f"the reference in a {type(world).__name__} {wanted}; {advice}")
        return AutomatonYardstick(world, beta)
    kind = Yardstick if world.is_deterministic else StochasticYardstick
    return kind(world, reference, beta)


def _is_table(policy: Policy, automaton: Automaton) -> bool:
    """Whether a policy is the automaton's reference, up to rounding in float32."""
    if not isinstance(policy, TablePolicy) or policy.table.shape != automaton.ref_logps.shape:
        return False
    logps = policy.table.detach().cpu().double().log_softmax(-1)
    same_states = torch.equal(policy.successors.cpu(), automaton.successors)
    return same_states and torch.allclose(logps, automaton.ref_logps, rtol=0, atol=1e-4)
