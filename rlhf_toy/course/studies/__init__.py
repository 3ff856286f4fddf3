"""Studies: results that need more seeds than a notebook can run.

Each study is one file with three functions: `tasks()`, the settings of all runs; `run(task)`, one
run on one thread, which depends only on the task; `figure(results)`, which draws the results.
`python -m rlhf_toy study NAME` runs all tasks and writes figures/data/NAME.json; `load` reads it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = (
    "ppo_parts", "overoptimisation", "dpo_or_ppo", "dpo_gap", "fixed_points", "estimators",
    "long_world",
)  # fmt: skip
DATA = Path("figures") / "data"  # in the repository


def study(name: str) -> ModuleType:
    """Return the module of a study.

    Raises:
        ValueError: there is no study of this name.
    """
    if name not in NAMES:
        raise ValueError(f"no study is called {name!r}; there are {', '.join(NAMES)}")
    return import_module(f"rlhf_toy.course.studies.{name}")


def load(name: str) -> list[dict[str, Any]]:
    """Return the saved results of a study: for each run {**task, **result}.

    Raises:
        ValueError: there is no study of this name, or its file is damaged, incomplete, or was
            measured with another version of the study, see `fingerprint`.
        FileNotFoundError: the study has not been run yet.
    """
    module = study(name)
    path = data_file(name, f"study {name}")
    rows = read(path, module)
    if len(rows) != len(module.tasks()):
        raise ValueError(
            f"{path} has the results of {len(rows)} of {len(module.tasks())} runs: "
            f"run `python -m rlhf_toy study {name}` again"
        )
    return rows


def data_file(name: str, command: str) -> Path:
    """Return the path of figures/data/NAME.json in the repository, or where pip installed it.

    Args:
        name: of the file.
        command: of `python -m rlhf_toy`, that writes it.

    Raises:
        FileNotFoundError: there is no such file; the message names the command.
    """
    beside = Path(__file__).parents[3] / DATA / f"{name}.json"
    installed = [
        Path(file.locate())
        for file in metadata.files("rlhf_toy") or ()
        if file.name == beside.name and "share" in file.parts
    ]
    for path in (beside, *installed):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{beside} does not exist: run `python -m rlhf_toy {command}` first")


def read(path: Path, module: ModuleType, any_version: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a study's file that have a result; the file may be unfinished.

    Args:
        path: the file.
        module: the study.
        any_version: whether to accept the results of another version of the study.

    Raises:
        ValueError: the file is damaged, or comes from another version of the study.
    """
    advice = "Delete the file and run the study again"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        task_keys = module.tasks()[0].keys()
        rows = [row for row in saved["results"] if row.keys() > task_keys]
        version = saved.get("fingerprint")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged ({problem:.200}). {advice}.") from None
    if version != fingerprint(module) and not any_version:
        raise ValueError(
            f"{path} comes from another version of the study: its fingerprint is {version!r:.40}, "
            f"that of the current code {fingerprint(module)!r}. {advice}, or restore that version."
        )
    return rows


def fingerprint(module: ModuleType) -> str:
    """Return a hex string that identifies what decides a study's results.

    It covers the world, the reference, and all constants and functions in the study's file that
    `tasks` and `run` need: constants by value, so settings with all their defaults (see
    `parts.described` for new fields); functions by their code without comments and docstrings. It
    does not cover the code of the trainers; `study NAME --recheck` finds out whether that still
    gives the same results.
    """
    from rlhf_toy.course.studies import parts

    source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    functions = {node.name: node for node in source.body if isinstance(node, ast.FunctionDef)}
    found: dict[str, str] = {}
    names = ["tasks", "run"]
    while names:
        name = names.pop()
        value = getattr(module, name, None)
        if name in found or value is None:
            continue
        if name in functions:
            found[name] = json.dumps(_code(functions[name]))
            names += [node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
        elif not callable(value) and not isinstance(value, ModuleType):
            found[name] = parts.described(value)
    text = json.dumps([parts.fingerprint(), sorted(found.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(node: Any) -> Any:
    """Return a syntax tree as lists, without docstrings and empty fields.

    Unlike `ast.dump`, it is the same in all versions of Python.
    """
    if isinstance(node, list):
        return [_code(child) for child in node if not _is_docstring(child)]
    if isinstance(node, ast.AST):
        fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
        return [type(node).__name__, {name: _code(value) for name, value in fields.items()}]
    return repr(node)


def _is_docstring(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
