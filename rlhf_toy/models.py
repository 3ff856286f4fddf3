"""The small GPT with its policy, reward and value heads, and policies made of other parts.

They share the body in `rlhf_toy.gpt`. A sequence is one prompt token and then the response:

    position   0        1     2    …  T
    token      prompt   y_1   y_2  …  y_T
    state      s_0      s_1   s_2  …  s_T

The output at position t is about the state s_t = (x, y_1 … y_t): the policy head gives the logits
of y_{t+1}, the value head V(s_t), and the reward head, at the last real token, r(x, y).
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from rlhf_toy import checks
from rlhf_toy.envs.text_world import TextWorld, response_mask, unwrap
from rlhf_toy.gpt import GPT, Cache, GPTConfig
from rlhf_toy.losses import token_logps


class _Module(nn.Module):
    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


class _Model(_Module):
    """A body with a head. Weights are drawn from `generator`.

    Their standard deviation is 1/√n_embd, less on the way into the residual path. GPT-2's 0.02 is
    made for far wider networks: at this size, all prompts would look almost alike at the start.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator) -> None:
        super().__init__()
        checks.check_type("config", config, GPTConfig, "a GPTConfig, see GPTConfig.for_world")
        checks.check_generator(generator)
        self.config = config
        self.vocabulary, self.end_token = config.vocabulary, config.end_token
        with torch.device("meta"):  # no draw from the global random state
            self.body = GPT(config)
        self.to_empty(device="cpu")
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif ".ln_" in name:
                nn.init.ones_(weight)
            else:
                depth = 2 * config.n_layer if name.endswith("c_proj.weight") else 1
                std = config.n_embd**-0.5 / depth**0.5
                nn.init.normal_(weight, std=std, generator=generator)

    def sequence(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the tokens [B, T + 1] that the body reads: the prompts', then the responses."""
        return torch.cat([prompts[:, None] + self.config.n_actions + 1, responses], dim=1)

    def states(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return what the body reads for s_0 … s_{T-1}: [B, T], with pads from the end token on."""
        tokens = self.sequence(prompts, responses[:, :-1])
        if self.end_token is not None:
            tokens = tokens.masked_fill(tokens == self.end_token, self.config.n_actions)
        return tokens


class _Policy(_Module):
    """What every policy over a world's words can do, given `forward` and `next_logits`."""

    vocabulary: str  # of the world it was made for, see `TextWorld.vocabulary`
    end_token: int | None

    def token_logps(
        self, prompts: Tensor, responses: Tensor, actions: Tensor | None = None
    ) -> Tensor:
        """Return log π(action | state) of each token, [B], [B, T] → [B, T], in nats.

        Entries after a response's end are 0, so a row's sum is log π(y|x).

        Args:
            prompts: [B] prompt indices.
            responses: [B, T] the tokens that were written, which decide the states.
            actions: [B, T] the tokens that were chosen, if the world may write other ones.
        """
        mask = response_mask(responses, self.end_token)
        chosen = responses if actions is None else actions
        return token_logps(self(prompts, responses), chosen, mask)


class PolicyModel(_Model, _Policy):
    """π_θ(y|x), the language model: logits over words and end token.

    The output weights are the word embeddings (tied, as in GPT-2), of which only the rows of the
    actions are used: prompts and the pad token are never written.
    """

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the logits of each token given those before it: [B], [B, T] → [B, T, A].

        Entry t is for y_{t+1} in the state s_t. Responses are padded after their end.
        """
        hidden, _ = self.body(self.states(prompts, responses))
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn what the body returned [B, T, n_embd] into logits [B, T, A]."""
        return hidden @ self.body.wte.weight[: self.config.n_actions].T

    def next_logits(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Read one more token [B] of each sequence, and return the next action's logits [B, A].

        The first tokens are the prompts' (`past` is None); later calls take the cache that the call
        before returned, and may write into it.
        """
        hidden, past = self.body(tokens[:, None], past)
        return self.logits(hidden)[:, 0], past


class TablePolicy(_Policy):
    """A policy that is a table over the states of a finite automaton, such as a Markov chain.

    Writing token a in state s leads to state `successors[s, a]`. It can be a reference policy.

    Args:
        world: whose prompts and words it uses.
        logits: [S, A], or [X, S, A] where the prompts differ; log π(a|s) up to a constant.
        successors: [S, A] int64 states.
        start: [X] int64, the state in which the response to each prompt begins; 0 by default.

    Raises:
        TypeError, ValueError: tables that do not fit each other or the world, states that do not
            exist, or logits that are not finite: the KL to a probability of 0 would be infinite.
    """

    def __init__(
        self, world: TextWorld, logits: Tensor, successors: Tensor, start: Tensor | None = None
    ) -> None:
        super().__init__()
        world = unwrap(world)
        checks.check_tensors(logits=logits)
        start = torch.zeros(world.n_prompts, dtype=torch.long) if start is None else start
        kind = "XSA" if logits.dim() == 3 else "SA"
        tables = {"logits": (logits, kind), "successors": (successors, "SA"), "start": (start, "X")}
        sizes = checks.check_shapes({"X": world.n_prompts, "A": world.n_actions}, **tables)
        checks.check_ids("successors", successors, sizes["S"])
        checks.check_ids("start", start, sizes["S"])
        if not logits.isfinite().all():
            raise ValueError("logits must be finite: give every action a probability above 0")
        self.vocabulary, self.end_token = world.vocabulary, world.end_token
        self.table = nn.Parameter(logits.detach().clone())
        self.register_buffer("successors", successors.clone())
        self.register_buffer("start", start.clone())

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the logits of every token, as `PolicyModel.forward`: [B], [B, T] → [B, T, A]."""
        states = [self.start[prompts]]
        for t in range(responses.shape[1] - 1):
            states.append(self._after(states[-1], responses[:, t]))
        return self._logits(prompts[:, None], torch.stack(states, dim=1))

    def next_logits(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Read one more token of each sequence, as `PolicyModel.next_logits`."""
        if past is None:
            prompts = tokens - self.successors.shape[1] - 1
            states = self.start[prompts]
        else:
            prompts, states = past[0].T
            states = self._after(states, tokens)
        return self._logits(prompts, states), [torch.stack([prompts, states], dim=1)]

    def _after(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states after some tokens; after the pad token, which is no action, any will do."""
        return self.successors[states, tokens.clamp(max=self.successors.shape[1] - 1)]

    def _logits(self, prompts: Tensor, states: Tensor) -> Tensor:
        return self.table[states] if self.table.dim() == 2 else self.table[prompts, states]


class _HeadedModel(_Model):
    """A body with a head of some numbers per position, zero at the start."""

    def __init__(self, config: GPTConfig, generator: torch.Generator, outputs: int = 1) -> None:
        super().__init__(config, generator)
        self.head = nn.utils.skip_init(nn.Linear, config.n_embd, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class ResidualPolicy(_Policy):
    """A reference whose logits never change, plus those of a network that says 0 at first.

    π_θ(a|s) ∝ π_ref(a|s) exp(f_θ(s, a)), so training learns how to differ from π_ref and nothing
    else, as a reward model does, and weight decay pulls towards π_ref.

    Args:
        reference: π_ref, a GPT or a table; a copy is kept.
        config: sizes of the network, which starts from fresh weights.
        generator: draws them.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, or a reference of another world.
    """

    def __init__(self, reference: Policy, config: GPTConfig, generator: torch.Generator) -> None:
        super().__init__()
        kinds = "a PolicyModel, TablePolicy or ResidualPolicy"
        checks.check_type("reference", reference, _Policy, kinds)
        checks.check_type("config", config, GPTConfig, "a GPTConfig, see GPTConfig.for_world")
        if reference.vocabulary != config.vocabulary:
            raise ValueError("the reference was made for another world than the config")
        self.net = _HeadedModel(config, generator, config.n_actions)
        self.reference = copy.deepcopy(reference).requires_grad_(False)
        self.config, self.body = config, self.net.body
        self.vocabulary, self.end_token = config.vocabulary, config.end_token

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Make the network trainable, or not; the reference never is."""
        self.net.requires_grad_(requires_grad)
        return self

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the logits of every token, as `PolicyModel.forward`: [B], [B, T] → [B, T, A]."""
        hidden, _ = self.body(self.net.states(prompts, responses))
        return self.reference(prompts, responses) + self.net.head(hidden)

    def next_logits(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Read one more token of each sequence, as `PolicyModel.next_logits`."""
        n = self.config.n_layer  # the cache has the network's blocks first, then the reference's
        parts = (None, None) if past is None else (past[:n], past[n:])
        hidden, cache = self.body(tokens[:, None], parts[0])
        ref_logits, ref_cache = self.reference.next_logits(tokens, parts[1])
        return ref_logits + self.net.head(hidden)[:, 0], cache + ref_cache


Policy = PolicyModel | TablePolicy | ResidualPolicy


class RewardModel(_HeadedModel):
    """r_φ(x, y): one scalar for a prompt and a whole response."""

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return rewards in logits, read at each response's last real token: [B], [B, T] → [B]."""
        hidden, _ = self.body(self.sequence(prompts, responses))
        last = response_mask(responses, self.end_token).sum(1)  # position 0 is the prompt
        return self.head(hidden[torch.arange(len(last), device=last.device), last])[:, 0]


class ValueModel(_HeadedModel):
    """V_W(s_t), the critic."""

    def start_from(self, model: _Model) -> None:
        """Copy the body's weights from another model, as is usual for a critic."""
        self.body.load_state_dict(model.body.state_dict())

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the values of the states in which each token was written: [B], [B, T] → [B, T].

        Entry t is V(s_t), before y_{t+1}; entries after the end mean nothing.
        """
        hidden, _ = self.body(self.states(prompts, responses))
        return self.head(hidden)[..., 0]


def check_fits(model: nn.Module, world: TextWorld) -> None:
    """Raise unless the model was made for a world with these prompts, words and length."""
    if not hasattr(model, "vocabulary"):
        raise TypeError(f"expected a model such as PolicyModel, got {checks.shown(model)}")
    if model.vocabulary != world.vocabulary:
        here = f"{world.n_prompts} prompts, {world.n_words} words, max_length {world.max_length}"
        reason = f"was made for another world, whose prompts and words are not those here ({here})"
        raise ValueError(f"the {type(model).__name__} {reason}")
