"""The yardstick: exact distributions, optima and values of worlds small enough to enumerate.

Shapes: X prompts, Y responses, S states, A actions, H steps. Everything is float64 and in nats;
rewards are in logits. Sums over responses run over the last dimension.
"""

from rlhf_toy.exact.automaton import *
from rlhf_toy.exact.bandit import *
from rlhf_toy.exact.dynamic_programming import *
from rlhf_toy.exact.enumeration import *
from rlhf_toy.exact.estimators import *
from rlhf_toy.exact.fixed_points import *
from rlhf_toy.exact.population import *
from rlhf_toy.exact.yardstick import *
