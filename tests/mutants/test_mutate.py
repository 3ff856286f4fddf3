"""The mutants are the intended faults, in the intended places, and drawn reproducibly."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mutate import draw, find_mutants, one_line


def changes(text: str) -> set[str]:
    """The changed lines of all mutants of a piece of code."""
    return {mutant.after for mutant in find_mutants("file.py", text.encode())}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = a < b", {"x = a <= b", "x = a >= b"}),
        ("x = 0 <= a", {"x = 0 < a", "x = 0 > a", "x = 1 <= a"}),
        ("x = a is None", {"x = a is not None"}),
        ("x = (a - b) * c", {"x = (a + b) * c", "x = (a - b) / c"}),
        ("x = a**2", {"x = a*2", "x = a**3", "x = a**1"}),
        ("x = -a", {"x = (a)"}),
        ("x = a and b", {"x = a or b", "x = ((a))", "x = ((b))"}),
        ("x = 64, 2.5", {"x = 128, 2.5", "x = 64, 3.5"}),
        ("x = 1, True", {"x = 2, True", "x = 0, True", "x = 1, False"}),
        ("x = a[b:c]", {"x = a[:c]", "x = a[b:]"}),
        ("x = f(a, b=c)", {"x = f(a)"}),
        ("x = f(a, b)", {"x = f(b, a)"}),
        ("x = a.sum(d)", {"x = a.mean(d)"}),
        ("x = torch.minimum(a, b)", {"x = torch.maximum(a, b)"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = a.exp()", {"x = a.log()", "x = (a)"}),
        ("x = copy.deepcopy(a)", {"x = (a)"}),
        ("x = settings.beta", {"x = type(settings)().beta"}),
        ("optimizer.step()", {"pass"}),
        ("a = a.g", {"pass"}),
        ("a += b", {"pass", "a -= b"}),
        ("class A:\n    beta: float = 0.5", {"beta: float = 1.5"}),
        ("def f(a=True): ...", {"def f(a=False): ..."}),
        ("def f(): return a, b", {"def f(): return b, a"}),
        ("raise ValueError(f'{a - 1} and {b}', 2)", {"pass"}),
        ("if a:\n    b.c()", {"if (not (a)):", "if False:", "pass"}),
        ("x = [a for a in b if c]", {"x = [a for a in b if True]"}),
    ],
)
def test_each_kind_of_fault(code, expected):
    assert changes(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        '"""A docstring."""',
        "x = 'text' f'{a + 1}'",
        "__all__ = ['a', 'b']",
        "import a",
        "x: dict[str, int | None]",
        "def f(a: int | None) -> float | None: ...",
        "Loss = Callable[[int | None], 3]",
        "@lru_cache(maxsize=4)\ndef f(): ...",
        "with tqdm(total=n + 1, disable=True) as bar:\n    bar.update(2)",
        "', '.join(a[1] for a in b)",
        "def __repr__(self): return f(a, b) + 1",
    ],
)
def test_texts_annotations_and_progress_bars_are_left_alone(code):
    assert changes(code) == set()


def test_a_mutant_is_a_replacement_of_text_that_keeps_its_lines():
    source = "# β first\nx = [\n    'β', a + b,  # why\n    c,\n]\n".encode()
    (mutant,) = find_mutants("file.py", source)
    assert mutant.apply(source).decode() == source.decode().replace("a + b", "a - b")
    assert (mutant.before, mutant.after) == ("'β', a + b,", "'β', a - b,")
    assert mutant.lines == (2, 5), "the whole statement: a tracer may report any of its lines"


def test_only_the_head_of_a_block_counts_as_its_lines():
    (head, body, _) = find_mutants("file.py", b"for a in (\n    b[0]\n):\n    c = d - e\n    f()\n")
    assert (head.lines, body.lines) == ((1, 3), (4, 4))


def test_one_line_drops_comments():
    assert one_line("a = 1  # one\n    # two\n  b = '#'\n") == "a = 1 b = '#'"


SOURCE = b"".join(b"x%d = f(a - %d, b=c)\n" % (i, i) for i in range(30))


def sample(source: bytes, seed: int = 0) -> list[str]:
    drawn = draw(find_mutants("file.py", source), {"file.py": source}, 20, seed)
    return [mutant.after for mutant in drawn]


def test_the_sample_is_fixed_by_its_seed_and_survives_moved_lines():
    assert sample(SOURCE) == sample(SOURCE) == sample(b"import a\n\n" + SOURCE)
    assert len(set(sample(SOURCE))) == 20
    assert set(sample(SOURCE)) != set(sample(SOURCE, seed=1))


def test_lines_that_are_alike_are_drawn_apart():
    twice = b"x = a - b\n" * 2
    drawn = draw(find_mutants("file.py", twice), {"file.py": twice}, 20, 0)
    assert sorted(mutant.lines for mutant in drawn) == [(1, 1), (2, 2)]


def test_what_does_not_compile_is_not_drawn():
    source = b"def f(a=b[1:]): return a\nx = not a is b\n"
    mutants = find_mutants("file.py", source)
    for mutant in draw(mutants, {"file.py": source}, 20, 0):
        compile(mutant.apply(source), "file.py", "exec")
