"""The package keeps its shape: layers, sizes, mirrored tests, typed and documented functions.

Each check is a function of a folder that returns its complaints, so that it can be tried on a
small bad tree as well as on the package itself.
"""

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "rlhf_toy"

# A module imports only from layers before its own; within its own layer only modules under the same
# name. A name covers the folder of that name, except for what is listed under a longer name. The
# package itself comes first: it imports none of its modules, and any of them may ask its version.
LAYERS = (
    (PACKAGE,),
    ("checks", "files"),
    ("checkpoints",),
    ("envs", "losses", "exact.bandit"),
    ("gpt",),
    ("models",),
    ("sampling",),
    ("training", "annotators"),
    ("preferences", "exact", "bradley_terry"),
    ("sft", "reward_model", "policy_gradient", "ppo", "dpo", "best_of_n"),
    ("plots", "bridge"),
    ("course", "__main__"),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
LAST = len(LAYERS) - 1  # here the names may import each other: __main__ runs the course's commands

# The claims count apart: each is data with one experiment and at most 80 lines, so their number may
# grow without the course's code growing with it.
MOST_LINES_OF_CODE = {"core": 4_300, "course": 10_700, "claims": 1_250}
MOST_LINES_OF_A_MODULE = 400  # of any kind
WITHOUT_A_TEST_FILE = {
    PACKAGE: "registers the worlds, which tests/envs make by name",
    "envs": "re-exports",
    "exact": "re-exports",
    "losses": "re-exports",
}


def modules(root: Path) -> dict[str, Path]:
    """The files of root/rlhf_toy by their names inside the package: "exact.bandit", "exact"."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__") or PACKAGE] = path
    return found


def core(root: Path) -> dict[str, Path]:
    return {name: path for name, path in modules(root).items() if name.split(".")[0] != "course"}


def longest_known(name: str, known: Iterable[str]) -> str | None:
    """The longest beginning of a dotted name that is known: "exact.bandit.objective" → "exact"."""
    parts = name.split(".")
    beginnings = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in known), None)


def imports(path: Path, root: Path, known: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Line and module of every import of the package, those inside functions included."""
    folder = ".".join(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), folder)
            targets = [f"{source}.{alias.name}" for alias in node.names]
        for target in targets:
            if target.split(".")[0] == PACKAGE:
                inside = target.removeprefix(f"{PACKAGE}.")
                yield node.lineno, longest_known(inside, known) or PACKAGE


def import_complaints(root: Path) -> list[str]:
    complaints = []
    known = modules(root)
    for name, path in known.items():
        mine = longest_known(name, LAYER_OF)
        if mine is None:
            complaints.append(f"{path.relative_to(root)} is in no layer: put it into LAYERS")
            continue
        for line, target in imports(path, root, known):
            theirs = longest_known(target, LAYER_OF)
            if theirs is None or LAYER_OF[theirs] < LAYER_OF[mine]:
                continue
            may_mix = theirs == mine or LAYER_OF[mine] == LAST
            if may_mix and LAYER_OF[theirs] == LAYER_OF[mine]:
                continue
            complaints.append(
                f"{path.relative_to(root)}:{line} imports {target} of layer {LAYER_OF[theirs]}, "
                f"but {mine} is in layer {LAYER_OF[mine]} and may import only its own modules and "
                "those of the layers before it"
            )
    return complaints


def lines_of_code(source: str) -> int:
    """Lines that are not blank, not only a comment, and not part of a docstring."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        has_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_one and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    empty = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def size_complaints(root: Path) -> list[str]:
    parts = {"core": core(root), "course": {}, "claims": {}}
    for name, path in modules(root).items():
        if name not in parts["core"]:
            parts["claims" if name.startswith("course.claims") else "course"][name] = path
    complaints = []
    for part, files in parts.items():
        counted = {n: lines_of_code(path.read_text("utf-8")) for n, path in files.items()}
        total, limit = sum(counted.values()), MOST_LINES_OF_CODE[part]
        if total > limit:
            largest = sorted(counted, key=counted.get, reverse=True)[:5]
            complaints.append(
                f"the {part} has {total} lines of code, at most {limit} are allowed; its largest "
                f"modules are {', '.join(f'{name} {counted[name]}' for name in largest)}"
            )
    for name, path in parts["core"].items():
        n = len(path.read_text("utf-8").splitlines())
        if n > MOST_LINES_OF_A_MODULE:
            complaints.append(f"{name} has {n} lines, at most {MOST_LINES_OF_A_MODULE} are allowed")
    return complaints


def mirror_complaints(root: Path) -> list[str]:
    complaints = []
    for name in core(root):
        *folders, stem = name.split(".")
        test = Path("tests", *folders, f"test_{stem.strip('_')}.py")
        if name not in WITHOUT_A_TEST_FILE and not (root / test).is_file():
            complaints.append(f"{name} has no test file {test}")
    return complaints


def functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """The public functions of a module, and the public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            is_method = bool(prefix)
            if not node.name.startswith("_") or (is_method and node.name == "__init__"):
                yield prefix + node.name, node


def documentation_complaints(root: Path) -> list[str]:
    complaints = []
    for name, path in core(root).items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        for node in [tree, *classes]:
            if not ast.get_docstring(node):
                complaints.append(f"{name}: {getattr(node, 'name', 'the module')}: no docstring")
        for function, node in functions(tree.body):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
            is_method = "." in function and not any(
                getattr(decorator, "id", "") == "staticmethod" for decorator in node.decorator_list
            )
            for argument in arguments[is_method:]:
                if argument.annotation is None:
                    complaints.append(f"{name}: {function}: no type of {argument.arg}")
            if node.returns is None:
                complaints.append(f"{name}: {function}: no type of the return value")
            if not ast.get_docstring(node) and node.name != "__init__":
                complaints.append(f"{name}: {function}: no docstring")
    return complaints


@pytest.mark.parametrize(
    "complaints_of",
    [import_complaints, size_complaints, mirror_complaints, documentation_complaints],
    ids=["imports", "size", "mirror", "documentation"],
)
def test_the_package_keeps_its_shape(complaints_of):
    complaints = complaints_of(ROOT)
    assert not complaints, "\n".join(complaints)


def test_every_module_without_a_test_file_is_still_there():
    assert set(WITHOUT_A_TEST_FILE) <= set(modules(ROOT))


# The checks themselves, on small packages that break one rule each.


def package(root: Path, files: dict[str, str]) -> Path:
    """Writes files below root/rlhf_toy, with the modules that the examples import."""
    others = ["__init__.py", "checks.py", "files.py", "models.py", "ppo.py", "sft.py"]
    others += ["exact/__init__.py", "exact/bandit.py", "exact/enumeration.py", "envs/worlds.py"]
    for name, source in {**dict.fromkeys(others, ""), **files}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("models.py", "import rlhf_toy.ppo", "ppo"),
        ("models.py", "import rlhf_toy.ppo as p", "ppo"),
        ("models.py", "from rlhf_toy import ppo", "ppo"),
        ("models.py", "from rlhf_toy.ppo import train_ppo", "ppo"),
        ("models.py", "def f():\n    from rlhf_toy.ppo import train_ppo", "ppo"),
        ("models.py", "if TYPE_CHECKING:\n    from rlhf_toy.ppo import train_ppo", "ppo"),
        ("models.py", "from . import ppo", "ppo"),
        ("models.py", "from .ppo import train_ppo", "ppo"),
        ("models.py", "from rlhf_toy.exact import gibbs_policy", "exact"),
        ("envs/worlds.py", "from ..models import sample", "models"),
        ("exact/bandit.py", "from rlhf_toy.exact.enumeration import n_states", "exact.enumeration"),
        ("ppo.py", "from rlhf_toy.course import exercises", "course"),
        ("sft.py", "from rlhf_toy.ppo import train_ppo", "ppo"),  # one layer, two algorithms
        ("files.py", "from rlhf_toy.checks import shown", "checks"),
    ],
)
def test_an_import_against_the_layers_is_named(tmp_path, name, source, target):
    root = package(tmp_path, {"course/__init__.py": "", "course/exercises.py": "", name: source})
    (complaint,) = import_complaints(root)
    line = len(source.splitlines())
    assert complaint.startswith(f"rlhf_toy/{name}:{line} imports {target}")
    assert "may import only its own modules" in complaint


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ppo.py", "import torch\nfrom rlhf_toy.models import sample\nimport rlhf_toy.checks"),
        ("ppo.py", "from rlhf_toy import __version__"),
        ("models.py", "from rlhf_toy.exact.bandit import objective"),
        ("exact/enumeration.py", "from rlhf_toy.exact.bandit import objective"),
        ("exact/__init__.py", "from rlhf_toy.exact.enumeration import n_states"),
        ("envs/__init__.py", "from rlhf_toy.envs.worlds import WordMDP"),
        ("course/widgets.py", "from rlhf_toy.course.grade import grade\nimport rlhf_toy.ppo"),
        ("__main__.py", "from rlhf_toy.course import grade"),
    ],
)
def test_an_import_along_the_layers_is_allowed(tmp_path, name, source):
    assert import_complaints(package(tmp_path, {"course/grade.py": "", name: source})) == []


def test_a_module_in_no_layer_is_named(tmp_path):
    (complaint,) = import_complaints(package(tmp_path, {"helpers.py": ""}))
    assert complaint.startswith("rlhf_toy/helpers.py is in no layer")


def test_lines_of_code_are_those_that_do_something():
    source = '''"""A module
of an example."""

# a comment
x = """text
that is no docstring"""


class A:
    "one line"

    def f(self):  # a comment after code
        """Several
        lines."""
        return (
            # a comment between
            1
        )
'''
    assert lines_of_code(source) == 7


@pytest.mark.parametrize(
    ("folder", "part"), [("", "core"), ("course/", "course"), ("course/claims/", "claims")]
)
def test_one_line_too_many_is_refused(tmp_path, folder, part):
    whole, rest = divmod(MOST_LINES_OF_CODE[part], MOST_LINES_OF_A_MODULE)
    line = "x = 1\n"
    files = {f"{folder}m{i}.py": line * MOST_LINES_OF_A_MODULE for i in range(whole)}
    files[f"{folder}rest.py"] = line * rest + "# a comment\n"
    root = package(tmp_path, files)
    assert size_complaints(root) == []
    (tmp_path / PACKAGE / folder / "rest.py").write_text(line * (rest + 1))
    (complaint,) = size_complaints(root)
    limit = MOST_LINES_OF_CODE[part]
    assert f"the {part} has {limit + 1} lines of code, at most {limit}" in complaint


def test_a_long_module_is_refused_in_the_core_only(tmp_path):
    long = "# a comment\n" * (MOST_LINES_OF_A_MODULE + 1)
    root = package(tmp_path, {"models.py": long, "course/raters.py": long})
    assert size_complaints(root) == ["models has 401 lines, at most 400 are allowed"]


def test_a_module_without_a_test_file_is_named(tmp_path):
    root = package(tmp_path, {"__main__.py": "", "course/grade.py": ""})
    for name in ("checks", "files", "main", "models", "sft", "exact/bandit", "envs/worlds"):
        test = root / "tests" / name
        test.parent.mkdir(parents=True, exist_ok=True)
        test.with_name(f"test_{test.name}.py").write_text("")
    assert mirror_complaints(root) == [
        "exact.enumeration has no test file tests/exact/test_enumeration.py",
        "ppo has no test file tests/test_ppo.py",
    ]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(x) -> int:\n    'A.'", "f: no type of x"),
        ("def f(*, x) -> int:\n    'A.'", "f: no type of x"),
        ("def f(*xs) -> int:\n    'A.'", "f: no type of xs"),
        ("def f(x: int):\n    'A.'", "f: no type of the return value"),
        ("def f(x: int) -> int:\n    return x", "f: no docstring"),
        ("class A:\n    x = 1", "A: no docstring"),
        ("class A:\n    'A.'\n    def f(self, x) -> int:\n        'A.'", "A.f: no type of x"),
        ("class A:\n    'A.'\n    def f(self) -> int: ...", "A.f: no docstring"),
        ("class A:\n    'A.'\n    def __init__(self, x) -> None: ...", "A.__init__: no type of x"),
        (
            "class A:\n    'A.'\n    @staticmethod\n    def f(x) -> int:\n        'A.'",
            "A.f: no type of x",
        ),
    ],
)
def test_a_function_without_types_or_docstring_is_named(tmp_path, source, complaint):
    path = tmp_path / PACKAGE / "models.py"
    path.parent.mkdir()
    path.write_text(f"'A module.'\n{source}\n")
    assert documentation_complaints(tmp_path) == [f"models: {complaint}"]


def test_private_functions_need_no_documentation_but_a_module_does(tmp_path):
    path = tmp_path / PACKAGE / "models.py"
    path.parent.mkdir()
    path.write_text("def _f(x): ...\n\n\nclass _A:\n    def f(self, x): ...\n")
    assert documentation_complaints(tmp_path) == ["models: the module: no docstring"]
