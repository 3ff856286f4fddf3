"""What a student has done so far, in a file beside the notebooks that survives the kernel.

The file is written only when there is something to keep: a notebook that is run untouched writes
nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from rlhf_toy.files import atomic_file

FILE = Path("my_progress.json")  # in the working folder of the kernel, which is the notebook's
EXERCISES, PREDICTIONS = SECTIONS = "exercises", "predictions"


def recall(section: str) -> dict[str, str]:
    """Return what is kept in a section, `EXERCISES` or `PREDICTIONS`.

    A file that cannot be used is renamed, with a sentence about it, and the record starts afresh.
    """
    return _read()[section]


def keep(section: str, name: str, text: str) -> None:
    """Keep a text under a name, beside what other notebooks have kept.

    If that fails, for example on a full disk, a sentence says so; nothing is raised.
    """
    record = _read()
    if record[section].get(name) == text:
        return
    record[section][name] = text
    try:
        with atomic_file(FILE, text=True) as file:
            json.dump(record, file, ensure_ascii=False, indent=1)
    except (OSError, ValueError) as error:
        print(f"Not kept for the next session: {error}")


def _read() -> dict[str, dict[str, str]]:
    """Return the file's sections, each from names to texts."""
    try:
        record = json.loads(FILE.read_bytes())
        texts = [text for section in SECTIONS for text in record[section].values()]
        if all(isinstance(text, str) for text in texts):
            return record
        problem = "a value is not a text"
    except FileNotFoundError:
        return {section: {} for section in SECTIONS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error!s:.80}"
    names = (FILE.with_suffix(f".broken{n}.json") for n in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    try:
        os.replace(FILE, aside)
        print(f"{FILE} cannot be used ({problem}): it is now {aside.name}, and a new one is begun.")
    except OSError as error:
        print(f"{FILE} cannot be used ({problem}), nor set aside: {error.strerror}.")
    return {section: {} for section in SECTIONS}
