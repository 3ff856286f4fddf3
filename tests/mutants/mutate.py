"""Write mutants: copies of a source file with one small fault each.

A mutant is a replacement of a piece of text, found with Python's `ast`, so everything around it
keeps its layout and its line numbers. Strings, error messages, annotations, decorators and progress
bars are left alone: no test should pin them.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
# Functions and attributes that are easily mistaken for one another.
SWAPS = {
    **{a: b for a, b in (("min", "max"), ("minimum", "maximum"), ("any", "all"), ("log", "exp"))},
    **{"amin": "amax", "argmin": "argmax", "zeros": "ones", "zeros_like": "ones_like"},
    **{"softmax": "log_softmax", "float64": "float32", "double": "float", "floor": "ceil"},
}
SWAPS |= {b: a for a, b in SWAPS.items()}
SWAPS |= {"expm1": "exp", "logsigmoid": "sigmoid", "scatter_add": "scatter", "logsumexp": "sum"}
METHOD_SWAPS = {"sum": "mean", "mean": "sum"}  # the built-in `sum` has no such twin
# Calls whose first argument, or whose object, can stand in for the result.
DROPPED = {
    *("abs", "clamp", "clip", "detach", "clone", "float", "double", "bool", "int", "masked_fill"),
    *("exp", "log", "sigmoid", "sign", "round", "sqrt", "square", "flip", "copy", "deepcopy"),
    *("log_softmax", "softmax", "requires_grad_", "sorted", "reversed", "cumsum"),
}
SYMMETRIC = {"min", "max", "minimum", "maximum", "isinstance", "hasattr", "getattr", "allclose"}
# Progress bars, messages, and what only matters on a GPU.
NOISE = {
    *("tqdm", "update", "set_postfix", "warn", "print", "join"),
    *("device", "to", "cpu", "contiguous", "view"),
}
MESSAGES = ("__repr__", "__str__", "_likely_cause")  # functions that only make text


@dataclass(frozen=True)
class Mutant:
    """One fault: `source[start:end]`, in bytes, is replaced by `new`."""

    file: str  # relative to the repository
    start: int
    end: int
    new: str
    kind: str
    lines: tuple[int, int]  # first and last line of the statement, to look up in a coverage report
    before: str  # the changed lines, see `one_line`
    after: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


def one_line(text: str) -> str:
    """The text without its comments, each run of white space as one space."""
    return " ".join(re.sub(r"(^|\s)# .*", "", text, flags=re.MULTILINE).split())


def make_mutant(file: str, source: bytes, start: int, end: int, new: str, kind: str, lines=None):
    """Return the mutant with its `before` and `after`; without `lines`, those of the old text."""
    first = source.rfind(b"\n", 0, start) + 1
    last = source.find(b"\n", end)
    last = len(source) if last < 0 else last
    old_lines = source[first:last].decode()
    new_lines = (source[first:start] + new.encode() + source[end:last]).decode()
    number = source.count(b"\n", 0, start) + 1
    lines = lines or (number, number + source.count(b"\n", start, end))
    return Mutant(file, start, end, new, kind, lines, one_line(old_lines), one_line(new_lines))


def find_mutants(file: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a file, in the order of the text."""
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found), key=lambda m: (m.start, m.end, m.new))


def draw(mutants: list[Mutant], sources: dict[str, bytes], size: int, seed: int) -> list[Mutant]:
    """Return a fixed random sample of the mutants that compile.

    Each is drawn by a hash of its own text, so the sample changes only where the code changes.
    """
    seen: dict[tuple[str, str, str], int] = {}
    hashed = []
    for mutant in mutants:
        key = (mutant.file, mutant.before, mutant.after)
        seen[key] = seen.get(key, 0) + 1
        digest = hashlib.sha256(repr((seed, *key, seen[key])).encode()).hexdigest()
        hashed.append((digest, mutant))
    sample = []
    for _, mutant in sorted(hashed, key=lambda pair: pair[0]):
        if len(sample) < size and _compiles_to_other_code(mutant, sources[mutant.file]):
            sample.append(mutant)
    return sample


def _compiles_to_other_code(mutant: Mutant, source: bytes) -> bool:
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def _name(node: ast.expr) -> str:
    """`f` of `f` and of `a.b.f`, else nothing."""
    return getattr(node, "attr", getattr(node, "id", ""))


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.lines = (1, 1)
        self.function = ""
        self.found: list[Mutant] = []

    # Text.

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def replace(self, node: ast.AST, new: str, kind: str) -> None:
        self.add(*self.span(node), new, kind)

    def add(self, start: int, end: int, new: str, kind: str) -> None:
        mutant = make_mutant(self.file, self.source, start, end, new, kind, self.lines)
        self.found.append(mutant)

    def replace_between(self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> None:
        """Replaces an operator, which has no position of its own, between its operands."""
        start = self.span(left)[1]
        at = self.source.find(old.encode(), start, self.span(right)[0])
        self.add(at, at + len(old), new, kind)

    # What to walk through.

    def visit(self, node: ast.AST) -> None:
        outer = self.lines
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
            self.lines = (node.lineno, last)
        super().visit(node)
        self.lines = outer

    def visit_all(self, *nodes: ast.AST | None) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in MESSAGES:
            return
        outer, self.function = self.function, node.name
        self.visit_all(*node.args.defaults, *node.args.kw_defaults, *node.body)
        self.function = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(*node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit_all(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    # Statements.

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Subscript) and _name(node.targets[0])[:1].isupper():
            return  # an alias of a type
        targets = {n for target in node.targets for n in ast.walk(target) if _is_stored(n)}
        names = {n.id for n in targets if isinstance(n, ast.Name)}
        read = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        fills = any(isinstance(n, ast.Attribute | ast.Subscript) for n in targets)
        if (fills and self.function != "__init__") or (names and names <= read):
            self.replace(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace(node, "pass", "statement removed")
        old, new = ARITHMETIC[type(node.op)]
        self.replace_between(node.target, node.value, old + "=", new + "=", "arithmetic")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and _name(node.value.func) not in NOISE:
            self.replace(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self.replace(node, "pass", "statement removed")
        elif isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
            first, second = map(self.text, node.value.elts)
            self.replace(node, f"return {second}, {first}", "results swapped")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.replace(node, "pass", "statement removed")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace(node, "break", "continue and break")

    def visit_Break(self, node: ast.Break) -> None:
        self.replace(node, "continue", "continue and break")

    def visit_If(self, node: ast.If) -> None:
        self.negate(node.test)
        self.replace(node.test, "False", "condition")
        self.visit(node.test)
        only_raises = len(node.body) == 1 and isinstance(node.body[0], ast.Raise)
        self.visit_all(*([] if only_raises else node.body), *node.orelse)

    # Expressions.

    def negate(self, test: ast.expr) -> None:
        """Only where neither a flipped comparison nor a dropped `not` says the same."""
        is_flipped = isinstance(test, ast.Compare) and len(test.ops) == 1
        if not is_flipped and not isinstance(test, ast.UnaryOp):
            self.replace(test, f"(not ({self.text(test)}))", "condition")

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.replace(test, "True", "condition")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            old, news = COMPARISONS[type(op)]
            for new in news:
                self.replace_between(left, right, old, new, "comparison")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.replace_between(left, right, old, new, "and and or")
        for dropped in node.values:
            rest = f" {old} ".join(f"({self.text(v)})" for v in node.values if v is not dropped)
            self.replace(node, f"({rest})", "condition")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC and not isinstance(node.left, ast.JoinedStr):
            old, new = ARITHMETIC[type(node.op)]
            self.replace_between(node.left, node.right, old, new, "arithmetic")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.replace(node, f"({self.text(node.operand)})", "sign or not dropped")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace(node, str(not value), "constant")
        elif isinstance(value, int | float):
            small = isinstance(value, float) or value < 3
            self.replace(node, repr(value + 1 if small else 2 * value), "constant")
            if isinstance(value, int) and 0 < value < 3:
                self.replace(node, repr(value - 1), "constant")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.replace(bound, "", "slice")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if _name(node.value) in ("settings", "s") and isinstance(node.ctx, ast.Load):
            default = f"type({self.text(node.value)})().{node.attr}"
            self.replace(node, default, "setting ignored")
        self.swap_name(node, SWAPS)
        self.generic_visit(node)

    def swap_name(self, node: ast.expr, swaps: dict[str, str]) -> None:
        name = _name(node)
        if name in swaps:
            end = self.span(node)[1]
            self.add(end - len(name), end, swaps[name], "name")

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name in NOISE:
            self.visit_all(*(n.value for n in [node.func] if isinstance(n, ast.Attribute)))
            return
        if isinstance(node.func, ast.Name):
            self.swap_name(node.func, SWAPS)
        else:
            self.swap_name(node.func, METHOD_SWAPS)
        if name in DROPPED:
            is_method = isinstance(node.func, ast.Attribute) and _name(node.func.value) not in (
                *("torch", "np", "copy", "math", "F"),
            )
            kept = node.func.value if is_method else node.args[0]
            self.replace(node, f"({self.text(kept)})", "call dropped")
        self.drop_keywords(node)
        self.swap_arguments(node, name)
        self.visit(node.func)
        arguments = node.args[:1] if name == "isinstance" else node.args
        self.visit_all(*arguments, *(keyword.value for keyword in node.keywords))

    def drop_keywords(self, node: ast.Call) -> None:
        arguments = [*node.args, *node.keywords]
        for keyword in node.keywords:
            if keyword.arg is not None:
                rest = ", ".join(self.text(a) for a in arguments if a is not keyword)
                self.replace(node, f"{self.text(node.func)}({rest})", "argument dropped")

    def swap_arguments(self, node: ast.Call, name: str) -> None:
        """Only two of one kind, such as two names: others would just fail at once."""
        first, second = (*node.args, None, None)[:2]
        if name in SYMMETRIC or type(first) is not type(second) or first is None:
            return
        if isinstance(first, ast.Constant | ast.Starred) or self.text(first) == self.text(second):
            return
        new = self.source[self.span(first)[1] : self.span(second)[0]].decode()
        start, end = self.span(first)[0], self.span(second)[1]
        self.add(start, end, self.text(second) + new + self.text(first), "arguments swapped")


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)
