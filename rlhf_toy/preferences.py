"""What the annotators answered: the dataset, collecting it, saving it (L8)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf_toy.annotators import Annotator
from rlhf_toy.envs import TextWorld
from rlhf_toy.files import atomic_file
from rlhf_toy.models import PolicyModel, sample
from rlhf_toy.training import make_generator

COLUMN_TENSORS = ("prompts", "chosen", "rejected")
COLUMNS = ("prompt", "chosen", "rejected")
PAIRS_AT_ONCE = 50_000  # pairs that are sampled at once: bounds the memory


@dataclass(frozen=True)
class PreferenceDataset:
    """Pairs of responses of which the first was preferred.

    Args:
        world: whose prompts and words these are.
        prompts: [N] prompt indices.
        chosen: [N, T] token ids of the preferred responses, padded after their end.
        rejected: [N, T] of the others.

    Raises:
        TypeError: a column that is no tensor.
        ValueError: no pair, shapes that do not fit, ids that the world does not have, or a response
            whose padding begins before its end.
    """

    world: TextWorld
    prompts: Tensor
    chosen: Tensor
    rejected: Tensor

    def __post_init__(self) -> None:
        for name in COLUMN_TENSORS:
            if not isinstance(getattr(self, name), Tensor):
                raise TypeError(f"{name} must be a tensor, got {getattr(self, name)!r}")
        n, length = self.prompts.numel(), self.world.max_length
        if self.prompts.dim() != 1 or n == 0:
            raise ValueError(f"prompts must be [N], N at least 1, got {list(self.prompts.shape)}")
        for name in ("chosen", "rejected"):
            shape = list(getattr(self, name).shape)
            if shape != [n, length]:
                raise ValueError(f"{name} must be {[n, length]}, got {shape}")
        for name, ids, limit in (
            ("prompts", self.prompts, self.world.n_prompts),
            ("chosen", self.chosen, self.world.pad_token + 1),
            ("rejected", self.rejected, self.world.pad_token + 1),
        ):
            if ids.dtype != torch.long or int(ids.min()) < 0 or int(ids.max()) >= limit:
                raise ValueError(f"{name} must be int64 ids from 0 to {limit - 1}")
        for name in ("chosen", "rejected"):
            ids = getattr(self, name)
            if (self.world.response_mask(ids) & (ids == self.world.pad_token)).any():
                raise ValueError(f"{name} has a pad token before its response has ended")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | Tensor) -> PreferenceDataset:
        """Some of the pairs, by a slice, a mask or indices."""
        if not isinstance(rows, slice | Tensor):
            raise TypeError(f"rows must be a slice or a tensor, got {rows!r}")
        return self._map(lambda column: column[rows])

    def to(self, device: str | torch.device) -> PreferenceDataset:
        """The same pairs on a device."""
        return self._map(lambda column: column.to(device))

    def join(self, other: PreferenceDataset) -> PreferenceDataset:
        """These pairs and after them the other's, as where a second round asks for more.

        Raises:
            TypeError: the other is no dataset.
            ValueError: its world has other prompts, words or another length.
        """
        if not isinstance(other, PreferenceDataset):
            raise TypeError(f"other must be a PreferenceDataset, got {other!r}")
        for name in ("prompts", "words", "max_length"):
            here, there = getattr(self.world, name), getattr(other.world, name)
            if here != there:
                raise ValueError(f"both worlds must have the same {name}, got {here} and {there}")
        columns = (
            torch.cat([getattr(pairs, name) for pairs in (self, other)]) for name in COLUMN_TENSORS
        )
        return PreferenceDataset(self.world, *columns)

    def _map(self, change: Callable[[Tensor], Tensor]) -> PreferenceDataset:
        columns = (change(getattr(self, name)) for name in COLUMN_TENSORS)
        return PreferenceDataset(self.world, *columns)

    def split(self, fraction: float, seed: int) -> tuple[PreferenceDataset, PreferenceDataset]:
        """Splits at random into a part with this fraction of the pairs, and the rest.

        Raises:
            ValueError: the fraction is not between 0 and 1, or leaves a part empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        size = round(fraction * len(self))
        if size in (0, len(self)):
            raise ValueError(f"{len(self)} pairs are too few to split off {fraction:g} of them")
        order = torch.randperm(len(self), generator=make_generator(seed))
        order = order.to(self.prompts.device)
        return self[order[:size]], self[order[size:]]

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[PreferenceDataset]:
        """All pairs once, shuffled, in batches of `batch_size` (the last may be smaller).

        Raises:
            ValueError: the batch size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for rows in order.to(self.prompts.device).split(batch_size):
            yield self[rows]

    def unique_responses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every prompt with a response that occurs, once, so that a model reads none twice.

        Returns:
            prompts [U], responses [U, T], and for the 2 N responses of the pairs, all chosen before
            all rejected, which of the U each is: [2 N].
        """
        responses = self.world.pad(torch.cat([self.chosen, self.rejected]))
        rows = torch.cat([self.prompts.repeat(2)[:, None], responses], dim=1)
        # One number for each row: sorting numbers is far faster than sorting rows.
        base = self.world.vocab_size ** torch.arange(rows.shape[1], device=rows.device)
        keys, index = (rows * base).sum(1).unique(return_inverse=True)
        first = torch.empty_like(keys).scatter_(
            0, index, torch.arange(len(rows), device=rows.device)
        )
        return rows[first, 0], rows[first, 1:], index

    # Text.

    def rows(self) -> Iterator[dict[str, str]]:
        """The pairs as texts, `{"prompt", "chosen", "rejected"}`."""
        texts: dict[tuple[int, ...], str] = {}

        def text(tokens: list[int]) -> str:
            key = tuple(tokens)
            if key not in texts:
                texts[key] = self.world.decode(torch.tensor(tokens))
            return texts[key]

        columns = (self.prompts.tolist(), self.chosen.tolist(), self.rejected.tolist())
        for prompt, chosen, rejected in zip(*columns, strict=True):
            values = (self.world.prompts[prompt], text(chosen), text(rejected))
            yield dict(zip(COLUMNS, values, strict=True))

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON Lines with the text columns `prompt`, `chosen` and `rejected`.

        The layout is what the ecosystem's preference trainers read. The file appears whole or not
        at all.

        Raises:
            ValueError: the folder does not exist.
        """
        with atomic_file(path, text=True) as file:
            for row in self.rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike, world: TextWorld) -> PreferenceDataset:
        """Reads what `save` wrote, or any JSON Lines with the three text columns.

        Further columns are left out.

        Args:
            path: the file.
            world: whose prompts and words it uses.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a line that cannot be used; the message has file name, line and reason.
        """
        path = Path(path)
        encoded: dict[str, list[int]] = {}
        prompts: list[int] = []
        responses: dict[str, list[list[int]]] = {"chosen": [], "rejected": []}
        number = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = _read_row(line)
                    prompts.append(world.prompt_index(row["prompt"]))
                    for column, tokens in responses.items():
                        text = row[column]
                        if text not in encoded:
                            encoded[text] = world.encode(text).tolist()
                        tokens.append(encoded[text])
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {error}") from None
        if number == 0:
            raise ValueError(f"{path}:1: the file is empty")
        return cls(world, torch.tensor(prompts), *map(torch.tensor, responses.values()))


def _read_row(line: bytes) -> dict[str, str]:
    """One line of JSON Lines; a ValueError that says what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not a row: brackets are nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {COLUMNS}, got {type(row).__name__}")
    for column in COLUMNS:
        if column not in row:
            raise ValueError(f"column {column!r} is missing; there are {sorted(row)}")
        if not isinstance(row[column], str):
            raise ValueError(f"column {column!r} must be text, got {row[column]!r}")
    return row


def collect_preferences(
    policy: PolicyModel,
    world: TextWorld,
    annotator: Annotator,
    n: int,
    generator: torch.Generator,
) -> PreferenceDataset:
    """Has an annotator compare n pairs of a policy's own responses (L8; Christiano et al. 2017).

    Args:
        policy: what both responses to a prompt are drawn from, independently.
        world: where prompts and true rewards come from.
        annotator: who answers.
        n: number of pairs.
        generator: the source of chance, on the policy's device.

    Returns:
        the pairs, on the policy's device.

    Raises:
        ValueError: n is no whole number of at least 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
    parts = []
    for start in range(0, n, PAIRS_AT_ONCE):
        prompts = world.sample_prompts(min(PAIRS_AT_ONCE, n - start), generator)
        first = sample(policy, world, prompts, generator).responses
        second = sample(policy, world, prompts, generator).responses
        rewards = [world.response_rewards(prompts, responses) for responses in (first, second)]
        wins = annotator.prefer(*rewards, generator)[:, None]
        parts.append((prompts, torch.where(wins, first, second), torch.where(wins, second, first)))
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return PreferenceDataset(world, *columns)
