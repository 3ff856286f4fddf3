"""The small GPT with its policy, reward and value heads, and sampling with a KV cache.

The architecture is GPT-2's (pre-norm blocks, learned positions, tanh GELU, tied output weights),
at a size that trains on a laptop in seconds. A sequence is one prompt token and then the response:

    position   0        1     2    …  T
    token      prompt   y_1   y_2  …  y_T
    state      s_0      s_1   s_2  …  s_T

so that the output at position t is about the state s_t = (x, y_1 … y_t): the policy head gives the
logits of y_{t+1}, the value head V(s_t), and the reward head, read at the last real token, r(x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_toy.envs.text_world import TextWorld, response_mask
from rlhf_toy.losses import token_logps

Cache = list[tuple[Tensor, Tensor]]  # keys and values of each block, [B, heads, positions, d]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the GPT. `vocab_size` and `n_positions` come from a world, see `for_world`."""

    vocab_size: int
    n_positions: int
    n_actions: int
    end_token: int | None
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64

    @classmethod
    def for_world(cls, world: TextWorld, **sizes: int) -> GPTConfig:
        """The configuration whose vocabulary and length fit a world; `sizes` as in the class."""
        return cls(
            vocab_size=world.vocab_size,
            n_positions=world.max_length + 1,
            n_actions=world.n_actions,
            end_token=world.end_token,
            **sizes,
        )


class Attention(nn.Module):
    """Causal self-attention over all heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple]:
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        # With a cache there is one new position, and it may look at all that went before.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), (k, v)


class Block(nn.Module):
    """One transformer block: attention, then a two-layer network, each on a residual path."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple]:
        attended, present = self.attn(self.ln_1(x), past)
        x = x + attended
        hidden = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.c_proj(hidden), present


class GPT(nn.Module):
    """The body: tokens [B, T] → what the network makes of each position [B, T, n_embd]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        start = 0 if past is None else past[0][0].shape[2]
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        cache = []
        for i, block in enumerate(self.h):
            x, present = block(x, None if past is None else past[i])
            cache.append(present)
        return self.ln_f(x), cache


class _Model(nn.Module):
    """A body with a head. Weights are drawn from `generator`.

    Their standard deviation is 1/√n_embd, less on the way into the residual path. GPT-2's 0.02 is
    made for far wider nets: at this size it starts all prompts almost alike, and a policy that
    cannot tell them apart unlearns for all what is bad for most.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # no draw from the global random state
            self.body = GPT(config)
        self.to_empty(device="cpu")
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif ".ln_" in name:
                nn.init.ones_(weight)
            else:
                std = config.n_embd**-0.5
                if name.endswith("c_proj.weight"):
                    std /= (2 * config.n_layer) ** 0.5
                nn.init.normal_(weight, std=std, generator=generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.body.wte.weight.device

    def sequence(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Prompt indices [B] and responses [B, T] as the tokens [B, T + 1] that the body reads."""
        return torch.cat([prompts[:, None] + self.config.n_actions + 1, responses], dim=1)


class PolicyModel(_Model):
    """π_θ(y|x), the language model: logits over words and end token (L3, L4).

    The output weights are the word embeddings (tied, as in GPT-2), of which only the rows of the
    actions are used: prompts and the pad token are never written.
    """

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Logits of every token of the responses, each given what stands before it.

        Args:
            prompts: [B] prompt indices.
            responses: [B, T] token ids, padded after their end.

        Returns:
            [B, T, A] logits; entry t is for y_{t+1} in the state s_t.
        """
        hidden, _ = self.body(self.sequence(prompts, responses[:, :-1]))
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the body returned [B, T, n_embd] → logits [B, T, A]."""
        return hidden @ self.body.wte.weight[: self.config.n_actions].T

    def token_logps(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """log π(y_{t+1} | s_t) of each token of the responses, [B], [B, T] → [B, T], in nats.

        Entries after a response's end are 0, so that a row's sum is log π(y|x) (L4).
        """
        mask = response_mask(responses, self.config.end_token)
        return token_logps(self(prompts, responses), responses, mask)


class _ScalarModel(_Model):
    """A body with a head of one number per position, zero at the start."""

    def __init__(self, config: GPTConfig, generator: torch.Generator) -> None:
        super().__init__(config, generator)
        self.head = nn.utils.skip_init(nn.Linear, config.n_embd, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class RewardModel(_ScalarModel):
    """r_φ(x, y): one scalar for a prompt and a whole response (L6)."""

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Rewards in logits, read at each response's last real token: [B], [B, T] → [B]."""
        hidden, _ = self.body(self.sequence(prompts, responses))
        last = response_mask(responses, self.config.end_token).sum(1)  # position 0 is the prompt
        return self.head(hidden[torch.arange(len(last), device=last.device), last])[:, 0]


class ValueModel(_ScalarModel):
    """V_W(s_t), the critic (L13)."""

    def start_from(self, model: _Model) -> None:
        """Copies the body's weights from another model, as is usual for a critic."""
        self.body.load_state_dict(model.body.state_dict())

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Values of the states in which each token was written: [B], [B, T] → [B, T].

        Entry t is V(s_t), before y_{t+1}; entries after the end mean nothing.
        """
        hidden, _ = self.body(self.sequence(prompts, responses[:, :-1]))
        return self.head(hidden)[..., 0]


def check_fits(model: PolicyModel | RewardModel, world: TextWorld) -> None:
    """Raises a ValueError unless the model was made for a world with these words and prompts."""
    fitting = GPTConfig.for_world(world)
    for name in ("vocab_size", "n_actions", "n_positions", "end_token"):
        here, there = getattr(model.config, name), getattr(fitting, name)
        if here != there:
            raise ValueError(f"the model has {name} {here}, but this world needs {there}")


class Rollout(NamedTuple):
    """Sampled responses, each [B, T]."""

    actions: Tensor  # what the policy chose, padded
    responses: Tensor  # what the world appended, padded: the same, unless the pen slips
    logps: Tensor  # log π(action | state) in nats, 0 after the end
    mask: Tensor  # True up to and including the end


def sample(
    policy: PolicyModel, world: TextWorld, prompts: Tensor, generator: torch.Generator
) -> Rollout:
    """Samples a response to each prompt, y ~ π_θ(·|x), at temperature 1, with a KV cache.

    Args:
        policy: the language model.
        world: where the words are appended.
        prompts: [B] prompt indices, on the policy's device.
        generator: the source of chance, on the same device.

    Returns:
        A `Rollout`, without gradient.

    Raises:
        ValueError: the policy was made for another world.
    """
    check_fits(policy, world)
    with torch.inference_mode():
        tokens, past = world.prompt_tokens(prompts)[:, None], None
        over = torch.zeros_like(prompts, dtype=torch.bool)
        columns = []
        for _ in range(world.max_length):
            hidden, past = policy.body(tokens, past)
            logps = policy.logits(hidden)[:, 0].log_softmax(-1)  # [B, A]
            action = torch.multinomial(logps.exp(), 1, generator=generator)
            logp = logps.gather(1, action)[:, 0].masked_fill(over, 0.0)
            uniforms = torch.rand(len(prompts), generator=generator, device=prompts.device)
            token = world.transition(action[:, 0], uniforms)
            written = [
                column.masked_fill(over, world.pad_token) for column in (action[:, 0], token)
            ]
            columns.append((*written, logp, ~over))
            if world.end_token is not None:
                over = over | (token == world.end_token)
            tokens = written[1][:, None]
        rollout = [torch.stack(column, dim=1) for column in zip(*columns, strict=True)]
    return Rollout(*(tensor.clone() for tensor in rollout))  # usable where gradients are taken
