"""The body of the small GPT: its sizes, attention and blocks, and what it need not read twice.

The architecture is GPT-2's (pre-norm blocks, learned positions, tanh GELU), at a size that trains
on a laptop in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_toy import checks
from rlhf_toy.envs.text_world import TextWorld, unwrap

SHARE_UP_TO = 8  # positions of a sequence up to which equal beginnings are read once


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the GPT. `vocab_size` and `n_positions` come from a world, see `for_world`."""

    vocab_size: int
    n_positions: int
    n_actions: int
    end_token: int | None
    vocabulary: str  # of the world, see `TextWorld.vocabulary`
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64

    def __post_init__(self) -> None:
        checks.check_settings(self)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")

    @classmethod
    def for_world(cls, world: TextWorld, **sizes: int) -> GPTConfig:
        """Return the configuration that fits a world; `sizes` as in the class."""
        world = unwrap(world)
        ids = world.vocab_size, world.max_length + 1, world.n_actions, world.end_token
        return cls(*ids, world.vocabulary, **sizes)


class KVCache:
    """Keys and values [B, positions, heads, d] that a layer keeps of the positions it has read.

    The first `append` makes room for all positions to come, `room` in all; later ones copy nothing.
    """

    mask = None  # a new position looks at all that went before

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        self.keys, self.values, self.room, self.length = keys, values, room, keys.shape[1]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice | Tensor) -> KVCache:
        """Return the cache of some rows; what is appended to it leaves this one as it is."""
        return KVCache(self.keys[rows, : self.length], self.values[rows, : self.length], self.room)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add further positions, and return the keys and values of all."""
        start, self.length = self.length, self.length + keys.shape[1]
        if self.length > self.keys.shape[1]:
            more = (0, 0, 0, 0, 0, self.room - start)  # of the third dimension from the end
            self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
        self.keys[:, start : self.length] = keys
        self.values[:, start : self.length] = values
        return self.keys[:, : self.length], self.values[:, : self.length]


# What each layer keeps of the tokens read so far: a GPT's keys and values, a table's states [B, 2].
Cache = list[KVCache | Tensor]


class Prefixes:
    """The N different beginnings of some sequences, each of which a GPT has to read only once.

    What it makes of a position depends on the tokens up to there and on nothing else, and short
    sequences begin alike. Attention sees each beginning as one new position whose cache is the
    shorter ones. Pads count as one.

    Args:
        tokens: [B, T] token ids.
        pad_token: what follows the end of a sequence.

    Attributes:
        index: [B, T] the beginning that ends at each position.
        tokens, positions: [N, 1] its last token, and where it is.
    """

    def __init__(self, tokens: Tensor, pad_token: int) -> None:
        n, keys, columns, base = 0, torch.zeros_like(tokens[:, 0]), [], tokens.max() + 1
        for column in tokens.T:
            keys = (keys * base + column).masked_fill(column == pad_token, -1)
            found, keys = keys.unique(return_inverse=True)
            columns.append(keys + n)
            n += len(found)
        self.index = torch.stack(columns, dim=1)
        places = torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)
        place = torch.empty(n, dtype=torch.long, device=tokens.device)
        place.scatter_(0, self.index.flatten(), places.flatten())  # any of the equal ones
        rows, self.positions = place // tokens.shape[1], (place % tokens.shape[1])[:, None]
        self.tokens = tokens[rows].gather(1, self.positions)
        self.before = self.index[rows]  # [N, T] the beginnings of each beginning, and later ones
        self.mask = places[0] <= self.positions  # [N, T] without the later ones

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each beginning may look at: twice [N, 1, heads, d] → [N, T, heads, d]."""
        return tuple(
            F.embedding(self.before, part.flatten(1)).unflatten(2, part.shape[2:])
            for part in (keys, values)
        )


Past = KVCache | Prefixes | None  # what new positions may look at; None: the earlier of themselves


class Attention(nn.Module):
    """Causal self-attention over all heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_positions = config.n_head, config.n_positions
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, KVCache | Prefixes]:
        """Attend: x [B, T, C] → [B, T, C], and the cache; T = 1 with that of the past."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)
        if past is None:
            heads = (part.transpose(1, 2) for part in (q, k, v))  # each [B, heads, T, d]
            y = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
        else:  # for one new position, sums are faster than the function for many
            keys, values = past.append(k, v)  # each [B, t, heads, d]
            scores = (q * keys).sum(-1) / q.shape[-1] ** 0.5
            if past.mask is not None:
                scores = scores.masked_fill(~past.mask[..., None], -torch.inf)
            y = (scores.softmax(1)[..., None] * values).sum(1)
        present = KVCache(k, v, self.n_positions) if past is None else past
        return self.c_proj(y.reshape(B, T, C)), present


class Block(nn.Module):
    """One transformer block: attention, then a two-layer network, each on a residual path."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, KVCache | Prefixes]:
        """Apply the block: x [B, T, C] → [B, T, C], and the cache as in `Attention`."""
        attended, present = self.attn(self.ln_1(x), past)
        x = x + attended
        hidden = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.c_proj(hidden), present


class GPT(nn.Module):
    """The body: tokens [B, T] → what the network makes of each position [B, T, n_embd]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.pad_token = config.n_actions
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Read token ids [B, T], T = 1 with a cache: return [B, T, n_embd] and the next cache.

        Short sequences of more than one token come without a cache, and with zeros at the pads.
        """
        if past is None and len(tokens) and 1 < tokens.shape[1] <= SHARE_UP_TO:
            seen = Prefixes(tokens, self.pad_token)
            x = self.wte(seen.tokens) + self.wpe(seen.positions)
            for block in self.h:
                x, _ = block(x, seen)
            hidden = F.embedding(seen.index, self.ln_f(x)[:, 0])
            return hidden.masked_fill((tokens == self.pad_token)[..., None], 0.0), []
        start = 0 if past is None else past[0].length
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        cache = []
        for i, block in enumerate(self.h):
            x, present = block(x, None if past is None else past[i])
            cache.append(present)
        return self.ln_f(x), cache
