"""The pages to look things up in agree with the notebooks and the package."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[\d\d\]\(notebooks/(\w+)\.ipynb(?:#([\w-]+))?\)")


def anchor(heading: str) -> str:
    """The address that the site gives a heading."""
    words = re.sub(r"[*`$]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def sections() -> dict[tuple[str, str], str]:
    """The prose of each section by its notebook and its address; "" is what comes before."""
    found = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        first, *rest = re.split(r"^#{2,3} ", text, flags=re.MULTILINE)
        found[path.stem, ""] = first
        for section in rest:
            heading, _, body = section.partition("\n")
            found[path.stem, anchor(heading)] = body
    return {key: " ".join(body.split()) for key, body in found.items()}


SECTIONS = sections()
ROWS = re.findall(
    r"^\| (\$.+\$) \| .+ \| (.+) \|$", (DOCS / "notation.md").read_text("utf-8"), re.M
)
TERMS = re.findall(r"^(\S.*)\n  (.+)$", (DOCS / "glossary.md").read_text("utf-8"), re.M)


@pytest.mark.parametrize(("symbols", "links"), ROWS, ids=[symbols for symbols, _ in ROWS])
def test_a_symbol_is_in_the_section_that_its_row_leads_to(symbols, links):
    targets = LINK.findall(links)
    assert targets
    for symbol in re.findall(r"\$(.+?)\$", symbols.replace(r"\vert ", "|")):
        mathematics = "".join(re.findall(r"\$\$.+?\$\$|\$.+?\$", SECTIONS[targets[0]]))
        assert symbol in mathematics, targets[0]
    assert all(target in SECTIONS for target in targets)


@pytest.mark.parametrize(("term", "text"), TERMS, ids=[term for term, _ in TERMS])
def test_a_term_is_in_the_section_that_its_entry_leads_to(term, text):
    targets = LINK.findall(text)
    assert targets and all(target in SECTIONS for target in targets)
    assert term.lower() in SECTIONS[targets[0]].lower()


def test_the_tables_were_read():
    assert len(ROWS) > 35 and len(TERMS) > 80
    terms = [term.lower() for term, _ in TERMS]
    assert len(set(terms)) == len(terms)


def test_the_reference_has_every_module_of_the_core_once():
    package = ROOT / "rlhf_toy"
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if "course" not in path.relative_to(package).parts
    }
    pages = [path.read_text("utf-8") for path in sorted((DOCS / "api").glob("*.md"))]
    listed = re.findall(r"^\.\. automodule:: (\S+)$", "\n".join(pages), re.M)
    assert sorted(listed) == sorted(modules - {"rlhf_toy", "rlhf_toy.__main__"})
