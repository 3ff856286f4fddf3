"""What the annotators answered: the dataset, how it is collected, and its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_toy.annotators import Annotator, check_annotator
from rlhf_toy.checks import check_count, check_ids, check_number, check_shapes, check_type, shown
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.files import atomic_file
from rlhf_toy.models import Policy
from rlhf_toy.sampling import sample
from rlhf_toy.training import make_generator, pick_device

COLUMNS = ("prompt", "chosen", "rejected")
PAIRS_AT_ONCE = 50_000  # pairs sampled at once, to bound the memory


@dataclass(frozen=True)
class PreferenceDataset:
    """Pairs of responses to the same prompt, one preferred to the other.

    Args:
        world: the world whose prompts and words these are, with or without Gymnasium's wrappers.
        prompts: [N] prompt indices.
        chosen: [N, T] token ids of the preferred responses, padded after their end.
        rejected: [N, T] of the other ones.

    Raises:
        TypeError: not a world of this package, or a column that is not a tensor.
        ValueError: no pair, shapes that do not fit, ids that the world does not have, or a response
            with a pad token before its end.
    """

    world: TextWorld
    prompts: Tensor
    chosen: Tensor
    rejected: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "world", unwrap(self.world))
        columns = {"chosen": self.chosen, "rejected": self.rejected}
        shapes = {name: (ids, "NT") for name, ids in columns.items()}
        check_shapes({"T": self.world.max_length}, prompts=(self.prompts, "N"), **shapes)
        check_ids("prompts", self.prompts, self.world.n_prompts, 1)
        for name, ids in columns.items():
            check_ids(name, ids, self.world.pad_token + 1, 2)
            if (self.world.response_mask(ids) & (ids == self.world.pad_token)).any():
                raise ValueError(f"{name} has a pad token before its response has ended")

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts [N], chosen and rejected responses [N, T]."""
        return self.prompts, self.chosen, self.rejected

    @property
    def responses(self) -> Tensor:
        """All responses [2 N, T], padded after their end: all chosen ones, then all rejected."""
        return self.world.pad(torch.cat([self.chosen, self.rejected]))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | Tensor) -> PreferenceDataset:
        """Return some of the pairs, given a slice, a mask [N] or indices.

        Raises:
            TypeError: neither a slice nor a tensor.
            ValueError: no pair, indices that are out of range, or a mask of another shape.
        """
        check_type("rows", rows, slice | Tensor, "a slice, a mask or a tensor of indices")
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            check_shapes(prompts=(self.prompts, "N"), rows=(rows, "N"))
        elif isinstance(rows, Tensor):
            check_ids("rows", rows, len(self), 1, low=-len(self))
        return PreferenceDataset(self.world, *(column[rows] for column in self.columns))

    def to(self, device: str | torch.device) -> PreferenceDataset:
        """Return the same pairs on a device; a ValueError if this machine does not have it."""
        device = pick_device(device)
        return PreferenceDataset(self.world, *(column.to(device) for column in self.columns))

    def join(self, other: PreferenceDataset) -> PreferenceDataset:
        """Return these pairs followed by the other's, for example after a second round.

        Raises:
            TypeError: the other is not a dataset.
            ValueError: it comes from another world (another fingerprint).
        """
        check_type("other", other, PreferenceDataset, "a PreferenceDataset")
        _check_fingerprint(self.world, other.world.fingerprint)
        pairs = zip(self.columns, other.columns, strict=True)
        return PreferenceDataset(self.world, *map(torch.cat, pairs))

    def split(self, fraction: float, seed: int) -> tuple[PreferenceDataset, PreferenceDataset]:
        """Split at random into a part with this fraction of the pairs, and the rest.

        Raises:
            TypeError: a fraction or seed that is not a number.
            ValueError: the fraction is not between 0 and 1, or leaves a part empty.
        """
        check_number("fraction", fraction, above=0, below=1)
        size = round(fraction * len(self))
        if size in (0, len(self)):
            raise ValueError(f"{len(self)} pairs are too few to split off {fraction:g} of them")
        order = torch.randperm(len(self), generator=make_generator(seed)).to(self.prompts.device)
        return self[order[:size]], self[order[size:]]

    def unique_responses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return each different prompt and response once, so that a model reads none twice.

        Returns:
            prompts [U], responses [U, T], and the index [2 N] into these U of each response of the
            pairs, all chosen ones before all rejected ones.
        """
        responses = self.responses
        rows = torch.cat([self.prompts.repeat(2)[:, None], responses], dim=1)
        # One number for each row: sorting numbers is far faster than sorting rows. The first
        # column counts least; before a number could overflow, it becomes its rank.
        keys, largest = torch.zeros_like(rows[:, 0]), 1
        for column in rows.T.flip(0):
            if largest > 2**62 // self.world.vocab_size:
                keys, largest = keys.unique(return_inverse=True)[1], len(rows)
            keys, largest = keys * self.world.vocab_size + column, largest * self.world.vocab_size
        keys, index = keys.unique(return_inverse=True)
        numbers = torch.arange(len(rows), device=rows.device)
        first = torch.empty_like(keys).scatter_(0, index, numbers)
        return rows[first, 0], rows[first, 1:], index

    # Text.

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the pairs as texts, `{"prompt": …, "chosen": …, "rejected": …}`."""
        text = cache(lambda tokens: self.world.decode(torch.tensor(tokens)))
        columns = (column.tolist() for column in self.columns)
        for prompt, chosen, rejected in zip(*columns, strict=True):
            values = (self.world.prompts[prompt], text(tuple(chosen)), text(tuple(rejected)))
            yield dict(zip(COLUMNS, values, strict=True))

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON Lines with the text columns `prompt`, `chosen`, `rejected` and `world`.

        The first three are what the ecosystem's preference trainers read; `world` is the world's
        fingerprint. The file appears whole or not at all.

        Raises:
            TypeError, ValueError: a path that cannot be written to.
        """
        with atomic_file(path, text=True) as file:
            for row in self.rows():
                row["world"] = self.world.fingerprint
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike, world: TextWorld) -> PreferenceDataset:
        """Read what `save` wrote, or any JSON Lines with the text columns.

        The column `world` may be missing, as in files written by hand; then chosen and rejected
        must differ. (A policy that is sampled twice may repeat itself.) Other columns are ignored.

        Args:
            path: the file.
            world: the world whose prompts and words the file uses.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: not a path, or not a world of this package.
            ValueError: a folder, an empty file, or a line that cannot be used; the message has file
                name, line and reason.
        """
        check_type("path", path, str | os.PathLike, "a path")
        world = unwrap(world)
        rows, encode = [], cache(lambda text: world.encode(text).tolist())
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder, expected a file in JSON Lines")
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = _read_row(line)
                    _check_fingerprint(world, row.get("world", world.fingerprint))
                    chosen, rejected = encode(row["chosen"]), encode(row["rejected"])
                    if chosen == rejected and "world" not in row:
                        raise ValueError(f"chosen and rejected are both {shown(row['chosen'])}")
                    rows.append((world.prompt_index(row["prompt"]), chosen, rejected))
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {error!s:.500}") from None
        if not rows:
            raise ValueError(f"{path}:1: the file is empty, expected one pair in each line")
        return cls(world, *map(torch.tensor, zip(*rows, strict=True)))


def _check_fingerprint(world: TextWorld, fingerprint: str) -> None:
    """Raise a ValueError unless the fingerprint is the world's."""
    if fingerprint != world.fingerprint:
        got = f"fingerprint {shown(fingerprint)}, not {world.fingerprint!r}"
        advice = "use the world, and its settings, in which they were collected"
        raise ValueError(f"the pairs are from another world, with {got}: {advice}")


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; a ValueError if a key occurs twice."""
    if len(dict(items)) < len(items):
        raise ValueError(f"a key occurs twice in the object with {shown([k for k, _ in items])}")
    return dict(items)


def _read_row(line: bytes) -> dict[str, Any]:
    """Return one line of JSON Lines as a dict; a ValueError that says what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not JSON in UTF-8: {error}") from None
    except RecursionError:
        raise ValueError("not a row: brackets are nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {COLUMNS}, got {type(row).__name__}")
    for column in COLUMNS:
        if column not in row:
            raise ValueError(f"column {column!r} is missing; there are {shown(sorted(row))}")
        if not isinstance(row[column], str):
            raise ValueError(f"column {column!r} must be text, got {shown(row[column])}")
    return row


def collect_preferences(
    policy: Policy, world: TextWorld, annotator: Annotator, n: int, generator: torch.Generator
) -> PreferenceDataset:
    """Have an annotator compare n pairs of a policy's own responses (Christiano et al. 2017).

    Args:
        policy: what both responses to a prompt are drawn from, independently.
        world: the source of prompts and true rewards, with or without Gymnasium's wrappers.
        annotator: who answers.
        n: number of pairs.
        generator: the source of randomness, on the policy's device.

    Returns:
        the pairs, on the policy's device.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: n is below 1, or the policy was made for another world.
    """
    world = unwrap(world)
    check_annotator(annotator)
    check_count("n", n)
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
