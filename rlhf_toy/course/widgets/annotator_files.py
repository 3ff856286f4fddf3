"""The answers of a person who compares reviews, and the two files that hold them.

`NAME.jsonl` has the preferences, in the format of `PreferenceDataset.save`. That format has no
ties, so they are in `NAME.ties.jsonl`, with the columns `prompt`, `first`, `second`, and `after`:
the number of preferences given before the tie, which keeps the order of all answers. A skipped pair
is not an answer and is not saved.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_toy.checks import check_type
from rlhf_toy.envs import WordMDP
from rlhf_toy.files import atomic_file
from rlhf_toy.preferences import PreferenceDataset

LEFT, TIE, RIGHT = 1.0, 0.5, 0.0  # verdicts: the share of the win that the left response gets


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt, as texts."""

    prompt: str
    left: str
    right: str

    @property
    def key(self) -> tuple[str, frozenset[str]]:
        """The same value for the pair and for the pair with its sides swapped."""
        return self.prompt, frozenset((self.left, self.right))

    def ranked(self, verdict: float) -> tuple[str, str]:
        """Return the chosen and the rejected response by the verdict `LEFT` or `RIGHT`."""
        return (self.left, self.right) if verdict == LEFT else (self.right, self.left)


@dataclass(frozen=True)
class Answer:
    """A verdict on a pair, `LEFT`, `RIGHT` or `TIE`, and its line in the file."""

    pair: Pair
    verdict: float
    line: bytes


class AnswerFiles:
    """Answers in the order in which they were given, always the same as in the two files.

    Each change writes one file, completely or not at all. Existing lines stay as they are. Call
    `refresh` before a change: it reads files that were changed elsewhere, so nothing is lost.

    Args:
        path: the file of the preferences; it need not exist yet.
        world: the world whose prompts and words the answers use.

    Attributes:
        answers: all answers, in order.

    Raises:
        OSError: files that cannot be read.
        ValueError: no such folder, or files that hold no answers in this world.
    """

    def __init__(self, path: str | os.PathLike, world: WordMDP) -> None:
        self.path = Path(path).absolute()
        self.ties_path = self.path.with_name(f"{self.path.stem}.ties{self.path.suffix}")
        self._world = world
        self._known: tuple[bytes, bytes] | None = None
        self.answers: list[Answer] = []
        if not self.path.parent.is_dir():
            raise ValueError(f"there is no folder {str(self.path.parent)!r}: make it first")
        self.refresh()

    def refresh(self) -> bool:
        """Read the files again if something else has changed them; return whether it has."""
        found = _read(self.path), _read(self.ties_path)
        if found == self._known:
            return False
        # A tie comes after `after` preferences, and preference k after k − 1 others.
        placed = [(k, answer) for k, answer in enumerate(self._preferences(found[0]), start=1)]
        placed += self._ties(found[1])
        self.answers = [a for _, a in sorted(placed, key=lambda p: (p[0], p[1].verdict == TIE))]
        self._known = found
        return True

    def add(self, pair: Pair, verdict: float) -> None:
        """Append an answer, on disk first.

        Raises:
            TypeError: no `Pair`.
            ValueError: a verdict other than `LEFT`, `TIE` and `RIGHT`.
        """
        check_type("pair", pair, Pair, "a Pair")
        if verdict not in (LEFT, TIE, RIGHT):
            raise ValueError(f"verdict must be {LEFT}, {TIE} or {RIGHT}, got {verdict!r}")
        if verdict == TIE:
            row = {"prompt": pair.prompt, "first": pair.left, "second": pair.right}
            row["after"] = len(self.preferred())
        else:
            chosen, rejected = pair.ranked(verdict)
            row = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
            row["world"] = self._world.fingerprint
        line = json.dumps(row, ensure_ascii=False).encode()
        self._write([*self.answers, Answer(pair, verdict, line)])

    def undo(self) -> Answer:
        """Remove the last answer, on disk first, and return it; a ValueError if there is none."""
        if not self.answers:
            raise ValueError("there is no answer to take back")
        last = self.answers[-1]
        self._write(self.answers[:-1])
        return last

    def preferred(self) -> list[Answer]:
        """Return the answers that are not ties."""
        return [answer for answer in self.answers if answer.verdict != TIE]

    def dataset(self) -> PreferenceDataset:
        """Return all preferences without the ties; a ValueError if there are none."""
        world, given = self._world, self.preferred()
        if not given:
            raise ValueError("there are no preferences yet: answer some pairs first")
        sides = zip(*(answer.pair.ranked(answer.verdict) for answer in given), strict=True)
        return PreferenceDataset(
            world,
            torch.tensor([world.prompt_index(answer.pair.prompt) for answer in given]),
            *(torch.stack([world.encode(text) for text in texts]) for texts in sides),
        )

    def _write(self, answers: list[Answer]) -> None:
        """Make the files hold these answers. Only one of the two changes."""
        wanted = [
            b"".join(a.line + b"\n" for a in answers if (a.verdict == TIE) == is_tie)
            for is_tie in (False, True)
        ]
        paths = (self.path, self.ties_path)
        for path, old, new in zip(paths, self._known, wanted, strict=True):
            if new == old:
                continue
            if new:
                with atomic_file(path) as file:
                    file.write(new)
            else:
                path.unlink()  # an empty file would be no dataset
        self.answers, self._known = answers, (wanted[0], wanted[1])

    def _preferences(self, data: bytes) -> list[Answer]:
        if not data:
            return []
        rows = PreferenceDataset.load(self.path, self._world).rows()
        return [
            Answer(Pair(row["prompt"], row["chosen"], row["rejected"]), LEFT, line)
            for row, line in zip(rows, _lines(data), strict=True)
        ]

    def _ties(self, data: bytes) -> list[tuple[int, Answer]]:
        """Each tie with the number of preferences that came before it."""
        ties = []
        for number, line in enumerate(_lines(data), start=1):
            try:
                row = json.loads(line)
                pair = Pair(row["prompt"], row["first"], row["second"])
                self._world.prompt_index(pair.prompt)
                self._world.encode(pair.left), self._world.encode(pair.right)
                ties.append((int(row["after"]), Answer(pair, TIE, line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{self.ties_path}:{number}: expected a tie with the columns 'prompt', "
                    f"'first', 'second' and 'after': {type(error).__name__}: {error}"
                ) from None
        return ties


def _read(path: Path) -> bytes:
    """The file's bytes; none if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _lines(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\n").split(b"\n") if data else []
