"""Find an exercise's function in a notebook, and the statements that it needs.

Only top-level statements are looked at, one by one: the last one that defines the function, and
for each name that it uses the one that defines this name, and so on. Training runs, prints and
plots of the notebook are not needed, so they never run.
"""

from __future__ import annotations

import ast
import dis
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType

_MAGIC_THAT_RUNS_THE_CELL = re.compile(r"%%(time|timeit|capture|prun)\b.*\n")

IMPORT, FUNCTION, OTHER = "import", "function", "other"


@dataclass(frozen=True)
class Statement:
    """A top-level statement of a notebook.

    Attributes:
        file: a name for its cell, for tracebacks.
        source: of the whole cell.
        code: the statement, compiled.
        checks: the exercise, if it was `f = exercises.check("name", f)`; its code is `f = f`.
        kind: "import", "function" (`def`, or a lambda with a name) or "other".
        defines: names that it binds.
        changes: names whose objects it changes, as in `table["a"] = 1` or `words.append("a")`.
        uses: names that it needs while it runs.
        uses_later: names that its functions need when they are called.
    """

    file: str
    source: str
    code: CodeType
    checks: str
    kind: str
    defines: frozenset[str]
    changes: frozenset[str]
    uses: frozenset[str]
    uses_later: frozenset[str]


@dataclass
class Notebook:
    """The statements of a notebook.

    Attributes:
        statements: of all cells that are Python, in order.
        checked: what is passed to `exercises.check`, by the exercise's name.
        errors: of cells that are not Python, with the source of the cell.
    """

    statements: list[Statement] = field(default_factory=list)
    checked: dict[str, Statement] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def error_of(self, name: str) -> str:
        """Return the syntax error of the last cell that seems to define a function, or ""."""
        pattern = re.compile(rf"^[ \t]*def\s+{re.escape(name)}\b", re.MULTILINE)
        return next((e for source, e in reversed(self.errors) if pattern.search(source)), "")

    def needed(self, name: str) -> list[Statement]:
        """Return the statements that define a function and what it needs; [] if there is none.

        A call of `exercises.check` counts as a definition of other exercises, but not of this one.
        If no statement defines the name, what is passed to `check` for it does. Names mean what
        they meant when the function was checked: the notebook may use them again further down.
        """
        statements = list(self.statements)
        definitions = [
            (s.kind != IMPORT, i)  # a later import is the notebook's own, so it counts for less
            for i, s in enumerate(statements)
            if name in s.defines and s.checks != name
        ]
        if name not in self.checked:
            # Notebooks use these names for imports and variables as well.
            definitions = [(True, i) for _, i in definitions if statements[i].kind == FUNCTION]
        elif not definitions and name not in self.checked[name].uses:
            definitions = [(True, len(statements))]
            statements.append(self.checked[name])
        if not definitions:
            return []
        start = max(definitions)[1]
        checks = [i for i, s in enumerate(statements) if s.checks == name and i > start]
        end = min(checks, default=len(statements))
        stars = [i for i, s in enumerate(statements) if "*" in s.defines]
        chosen: set[int] = set()
        todo = [start]
        while todo:
            i = todo.pop()
            if i in chosen:
                continue
            chosen.add(i)
            for used in statements[i].uses | statements[i].uses_later:
                places = [
                    j for j, s in enumerate(statements) if used in s.defines and s.checks != name
                ]
                # While a statement runs, it sees what was defined before it.
                limit = i if used in statements[i].uses else end
                last = ([j for j in places if j < limit] or places)[-1:]
                todo += last or stars
                todo += [
                    j for j, s in enumerate(statements[:end]) if last < [j] and used in s.changes
                ]
        return [statements[i] for i in sorted(chosen)]


def read_notebook(content: bytes) -> Notebook:
    """Read a notebook's cells.

    Raises:
        ValueError: it is not a notebook; the message says why.
    """
    import nbformat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as missing cell ids
            cells = nbformat.reads(content.decode("utf-8-sig"), as_version=4).cells
        sources = [
            (i, str(cell.source)) for i, cell in enumerate(cells, 1) if cell.cell_type == "code"
        ]
    except Exception as error:  # nbformat raises almost any type where the content is wrong
        raise ValueError(f"it is not a notebook: {type(error).__name__}: {error!s:.200}") from None
    notebook = Notebook()
    imported: set[str] = set()
    for number, source in sources:
        try:
            _read_cell(notebook, f"cell {number}", source, imported)
        except Exception as error:  # IPython raises almost any type where magics are odd
            said = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else error
            notebook.errors.append((source, f"Cell {number} is not Python: {said!s:.200}"))
    return notebook


def _read_cell(notebook: Notebook, file: str, source: str, imported: set[str]) -> None:
    start = len(source) - len(source.lstrip())
    if magic := _MAGIC_THAT_RUNS_THE_CELL.match(source, start):
        source = f"{source[:start]}\n{source[magic.end() :]}"  # lines keep their numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as "\d" in a string
        try:
            tree = ast.parse(source)
        except SyntaxError:  # it may have magics, such as %pip
            from IPython.core.inputtransformer2 import TransformerManager

            source = TransformerManager().transform_cell(source)
            tree = ast.parse(source)
    checks = {call: call.args[0].value for call in _checks(tree)}
    for call, name in checks.items():
        target = ast.copy_location(ast.Name(name, ast.Store()), call)
        assignment = ast.copy_location(ast.Assign([target], call.args[1]), call)
        notebook.checked[name] = _statement(assignment, file, source, imported)
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
        checked = checks.get(node.value, "") if isinstance(node, ast.Assign) else ""
        if checked:
            node.value = node.value.args[1]
        notebook.statements.append(_statement(node, file, source, imported, checked))


def _checks(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls `exercises.check("name", …)`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and len(node.args) == 2
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == "check"
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            yield node


def _statement(
    node: ast.stmt, file: str, source: str, imported: set[str], checks: str = ""
) -> Statement:
    code = compile(ast.Module([node], []), file, "exec")
    here = list(dis.get_instructions(code))
    later = [i for inner in _inner(code) for i in dis.get_instructions(inner)]
    loads, stores = ("LOAD_NAME", "LOAD_GLOBAL"), ("STORE_NAME", "STORE_GLOBAL")
    is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    return Statement(
        file=file,
        source=source,
        code=code,
        checks=checks,
        kind=_kind(node),
        defines=frozenset(["*"] if is_star else (i.argval for i in here if i.opname in stores)),
        changes=frozenset(_changed(node, imported)),
        uses=frozenset(i.argval for i in here if i.opname in loads),
        uses_later=frozenset(i.argval for i in later if i.opname in loads),
    )


def _kind(node: ast.stmt) -> str:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return IMPORT
    has_body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return FUNCTION if has_body or isinstance(getattr(node, "value", 0), ast.Lambda) else OTHER


def _inner(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions that a piece of code defines, to any depth."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inner(constant)


def _changed(node: ast.stmt, imported: set[str]) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield from _root(part, set())
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            yield from _root(part.value.func, imported)


def _root(node: ast.AST, imported: set[str]) -> Iterator[str]:
    """Yield "table" for `table.rows[0].append`, unless a module of this name was imported."""
    if isinstance(node, ast.Subscript | ast.Attribute):
        while isinstance(node, ast.Subscript | ast.Attribute):
            node = node.value
        if isinstance(node, ast.Name) and node.id not in imported:
            yield node.id
