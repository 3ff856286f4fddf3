"""Worlds and policies that are small enough for every test to enumerate."""

import itertools
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_toy.envs import LongReview, LongSpec, PromptBandit, TextWorld, WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel, TablePolicy
from rlhf_toy.sampling import Rollout
from rlhf_toy.training import make_generator

# Without the extra `bridge`, as on Colab, its tests are left out.
collect_ignore = [] if find_spec("trl") else ["bridge", "test_bridge.py"]


@pytest.fixture(scope="session")
def world():
    """The word world with at most three words: 1,111 responses to each prompt."""
    return WordMDP(max_length=3)


@pytest.fixture(scope="session")
def bandit():
    return PromptBandit()


@pytest.fixture(scope="session")
def policy(world):
    """A random policy for `world`."""
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16)
    return PolicyModel(config, make_generator(0))


@pytest.fixture(scope="session")
def short_spec():
    """The long world with ten words about two aspects."""
    return LongSpec(
        prompts=("breakfast", "party"),
        aspects={"tea": {"good": 0.5, "hot": 1.0}, "cake": {"good": 1.2, "hot": -0.8}},
        determiners=("the",),
        verbs=("is",),
        intensifiers={"very": 1.5},
        negations={"not": -0.6},
        conjunctions={"and": 1, "but": -1},
        importance={"party": {"cake": 2.0, "tea": 0.5}},
        corpus_weights={"good": 2},
        floor=0.01,
        max_length=16,
    )


@pytest.fixture(scope="session")
def short_world(short_spec):
    """The same with at most five words: 111,111 responses to each of two prompts."""
    return LongReview(short_spec, max_length=5)


class TinyWorld(TextWorld):
    """Two prompts, a few words, at most a few of them in a response, and random rewards."""

    def __init__(self, n_words, max_length):
        super().__init__(("p", "q"), tuple("abc"[:n_words]), max_length, has_end_token=True)
        shape = 2, len(self.all_responses)
        self.table = 2 * torch.randn(shape, generator=make_generator(1), dtype=torch.float64)

    @property
    def fingerprint(self):
        return "tiny"

    def response_rewards(self, prompts, responses):
        return self.table.to(prompts.device)[prompts, self.response_index(responses)]

    def sample_corpus(self, n, generator):
        rows = torch.randint(len(self.all_responses), (n,), generator=generator)
        return self.sample_prompts(n, generator), self.all_responses[rows]


class TableCritic(nn.Module):
    """A critic that is a table over prompts and states."""

    def __init__(self, policy, values):
        super().__init__()
        self.policy, self.values = [policy], nn.Parameter(values)

    def forward(self, prompts, responses):
        return self.values[prompts[:, None], tree_states(self.policy[0], prompts, responses)]


def tree_states(policy, prompts, responses):
    """The state [B, T] of a `TablePolicy` in which each token is written."""
    states = [policy.start[prompts]]
    for t in range(responses.shape[1] - 1):
        words = responses[:, t].clamp(max=policy.successors.shape[1] - 1)  # pads lead anywhere
        states.append(policy.successors[states[-1], words])
    return torch.stack(states, dim=1)


class Enumerated:
    """Every response to every prompt of a tiny world, and what numpy says about them.

    The policy is a table of logits θ [X, S, A] over the tree: state s is a string of fewer than T
    words. The N rows are all pairs of prompt and response. Everything named in capitals or
    returned by a method is numpy, written from the formulas, without the package.
    """

    def __init__(self, n_words=3, max_length=3):
        self.world, T = TinyWorld(n_words, max_length), max_length
        words, self.A = range(n_words), n_words + 1
        self.prefixes = [p for n in range(T) for p in itertools.product(words, repeat=n)]
        place = {prefix: s for s, prefix in enumerate(self.prefixes)}
        end = len(self.prefixes)  # one state for all that is over
        successors = np.full((end + 1, self.A), end)
        for prefix, s in place.items():
            for word in words:
                successors[s, word] = place.get((*prefix, word), end)
        self.successors = torch.from_numpy(successors)
        self.S = end + 1
        # Rows: (prompt, tokens with the end token where it was written).
        texts = [
            p if len(p) == T else (*p, n_words)
            for n in range(T + 1)
            for p in itertools.product(words, repeat=n)
        ]
        self.rows = [(x, y) for x in range(2) for y in texts]
        self.states = [[place[y[:t]] for t in range(len(y))] for _, y in self.rows]
        self.prompts = torch.tensor([x for x, _ in self.rows])
        padded = [list(y) + [self.world.pad_token] * (T - len(y)) for _, y in self.rows]
        self.responses = torch.tensor(padded)
        self.mask = self.world.response_mask(self.responses)
        self.lengths = np.array([len(y) for _, y in self.rows])
        self.rewards = self.world.response_rewards(self.prompts, self.responses).numpy()

    def theta(self, seed, scale=1.0):
        return scale * np.random.default_rng(seed).normal(size=(2, self.S, self.A))

    def table(self, theta):
        """The `TablePolicy` with these logits."""
        return TablePolicy(self.world, torch.from_numpy(theta), self.successors)

    def critic(self, policy, values):
        return TableCritic(policy, torch.from_numpy(values))

    def gpt(self, seed):
        config = GPTConfig.for_world(self.world, n_layer=1, n_head=2, n_embd=8)
        return PolicyModel(config, make_generator(seed)).double()

    def rollout(self, policy):
        """All rows as if the policy had sampled them."""
        with torch.no_grad():
            logps = policy.token_logps(self.prompts, self.responses)
        return Rollout(self.prompts, self.responses, self.responses, logps, self.mask)

    # Formulas in numpy.

    def token_logps(self, theta):
        """log π of each token: a list of N arrays."""
        logps = theta - np.log(np.exp(theta).sum(-1, keepdims=True))
        return [logps[x, self.states[n], list(y)] for n, (x, y) in enumerate(self.rows)]

    def logps(self, theta):
        """log π(y|x) [N]."""
        return np.array([tokens.sum() for tokens in self.token_logps(theta)])

    def chances(self, theta):
        """How likely each row is [N]: half for its prompt times π(y|x)."""
        return np.exp(self.logps(theta)) / 2

    def score(self, theta, coefficients):
        """Σ_n Σ_t c[n][t] ∇_θ log π_θ(y_t | s_t), the gradient of a softmax table."""
        gradient = np.zeros_like(theta)
        probabilities = np.exp(theta) / np.exp(theta).sum(-1, keepdims=True)
        for n, (x, y) in enumerate(self.rows):
            for t, (s, a) in enumerate(zip(self.states[n], y, strict=True)):
                gradient[x, s] -= coefficients[n][t] * probabilities[x, s]
                gradient[x, s, a] += coefficients[n][t]
        return gradient

    def objective(self, theta, ref, beta):
        """J(π) = E[r − β log π/π_ref]."""
        penalised = self.rewards - beta * (self.logps(theta) - self.logps(ref))
        return (self.chances(theta) * penalised).sum()

    def policy_gradient(self, theta, ref, beta):
        """∇J = E[(r − β log π/π_ref) ∇log π(y|x)]; the term E[β ∇log π] is 0."""
        penalised = self.rewards - beta * (self.logps(theta) - self.logps(ref))
        weights = self.chances(theta) * penalised
        return self.score(theta, [[w] * n for w, n in zip(weights, self.lengths, strict=True)])

    def values(self, theta, ref, beta):
        """V^π [X, S]: expected reward and KL still to come in each state."""
        log_pi, log_ref = (
            logits - np.log(np.exp(logits).sum(-1, keepdims=True)) for logits in (theta, ref)
        )
        V = np.zeros(theta.shape[:2])
        reward = {row: r for row, r in zip(self.rows, self.rewards, strict=True)}
        for s, prefix in reversed(list(enumerate(self.prefixes))):
            for x, a in itertools.product(range(2), range(self.A)):
                response = (*prefix, a)
                later = (
                    reward[x, response] if (x, response) in reward else V[x, self.successors[s, a]]
                )
                gain = later - beta * (log_pi[x, s, a] - log_ref[x, s, a])
                V[x, s] += np.exp(log_pi[x, s, a]) * gain
        return V


@pytest.fixture(scope="session")
def tiny():
    """Three words, at most three of them in a response: N = 80."""
    return Enumerated()


@pytest.fixture(scope="session")
def small():
    """Two words, at most two of them in a response: N = 14."""
    return Enumerated(2, 2)


@pytest.fixture(scope="session")
def one_token():
    """Two words, and every response is one token: N = 6."""
    return Enumerated(2, 1)


@pytest.fixture
def updates():
    """Records every update of an optimizer in a list of (learning rate, gradients by parameter)."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    seen = []

    def record(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        seen.append((optimizer.param_groups[0]["lr"], gradients))

    hook = register_optimizer_step_pre_hook(record)
    yield seen
    hook.remove()
