"""The yardstick: exact distributions, optima and values of worlds small enough to enumerate.

Shapes: X prompts, Y responses, S states, A actions, H steps. Everything is float64 and in nats;
rewards are in logits. Sums over responses run over the last dimension.
"""

from rlhf_toy.exact.bandit import (
    expected_reward,
    gibbs_policy,
    kl_divergence,
    lagrange_multiplier,
    log_partition,
    objective,
)
from rlhf_toy.exact.dynamic_programming import (
    soft_policy_evaluation,
    soft_value_iteration,
    tabular_mdp,
)
from rlhf_toy.exact.enumeration import (
    n_states,
    response_logps,
    response_rewards,
    response_scores,
    state_logps,
)
from rlhf_toy.exact.population import (
    Episodes,
    enumerate_episodes,
    implicit_rewards,
    outcome_rewards,
    population_dpo,
    population_loss,
    population_rewards,
)
from rlhf_toy.exact.yardstick import (
    Measure,
    Yardstick,
)

__all__ = [
    "Episodes",
    "Measure",
    "Yardstick",
    "enumerate_episodes",
    "expected_reward",
    "gibbs_policy",
    "implicit_rewards",
    "kl_divergence",
    "lagrange_multiplier",
    "log_partition",
    "n_states",
    "objective",
    "outcome_rewards",
    "population_dpo",
    "population_loss",
    "population_rewards",
    "response_logps",
    "response_rewards",
    "response_scores",
    "soft_policy_evaluation",
    "soft_value_iteration",
    "state_logps",
    "tabular_mdp",
]
