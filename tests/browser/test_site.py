"""The site, looked at page by page through Chromium, from the disk and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rlhf_toy.course.commands.publish import github_place

ROOT = Path(__file__).parents[2]
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 800}
PAGES = sorted(
    path.relative_to(folder).with_suffix("").as_posix()
    for folder, pattern in ((ROOT / "docs", "**/*.md"), (ROOT, "notebooks/*.ipynb"))
    for path in folder.glob(pattern)
)
PAGES += ["syllabus", "instructors", "search", "genindex", "_modules/rlhf_toy/dpo"]
# Pages about data files, which are made once the files are there.
PAGES = [
    p for p in PAGES if p not in ("bench", "claims") or (ROOT / f"figures/data/{p}.json").exists()
]

# What is wrong with the page as it is now: a list of sentences.
LOOK = r"""() => {
  const wrong = [], article = document.querySelector('article') ?? document.body;
  const short = element => element.outerHTML.slice(0, 120);
  for (const math of article.querySelectorAll('.math'))
    if (!math.querySelector('mjx-container')) wrong.push(`a formula is not set: ${short(math)}`);
  for (const error of article.querySelectorAll('mjx-merror'))
    wrong.push(`MathJax does not understand ${error.title}: ${error.textContent}`);
  const walk = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement, text = walk.currentNode.textContent;
    if (parent.closest('pre, code, script, style, mjx-container, .sig')) continue;
    if (/\$\$|\\[(\[]|\\(frac|text|log|pi|beta|mathbb)\b|^:{3,}|\{[a-z]+\}`/.test(text))
      wrong.push(`source is left in the text: ${text.trim().slice(0, 120)}`);
  }
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) wrong.push(`an image is missing: ${image.src}`);
    if (article.contains(image) && image.alt.length < 30) wrong.push(`no text: ${short(image)}`);
  }
  const over = document.documentElement.scrollWidth - window.innerWidth;
  const widest = [...article.querySelectorAll('*')]
    .filter(element => element.getBoundingClientRect().right > window.innerWidth + 1).pop();
  if (over > 1) wrong.push(`${over} pixels too wide, perhaps by ${widest && short(widest)}`);

  // Contrast of text with what is behind it, as WCAG 2 defines it.
  const parse = colour => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length && colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const seen = new Set();
  for (const element of article.querySelectorAll('*')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility({visibilityProperty: true})) continue;
    if (element.closest('mjx-container, .headerlink, .search-button__kbd-shortcut')) continue;
    const colour = getComputedStyle(element).color, ground = behind(element);
    const key = colour + ground;
    if (seen.has(key)) continue;
    seen.add(key);
    const [dark, light] = [luminance(parse(colour)), luminance(ground)].sort((a, b) => a - b);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5)
      wrong.push(`contrast ${contrast.toFixed(1)}: ${element.textContent.trim().slice(0, 60)}`);
  }
  return wrong;
}"""
THEME = """theme => {
  document.documentElement.dataset.theme = theme;
  document.documentElement.dataset.mode = theme;
  for (const change of document.getAnimations()) change.finish();  // colours fade otherwise
}"""


class Links(HTMLParser):
    """The addresses that a page leads to, and those in it.

    Attributes:
        targets: what `href` and `src` say.
        anchors: the ids of the page's elements.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        self.targets.update(filter(None, (values.get("href"), values.get("src"))))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The folder of the site, made with an empty cache, and what Sphinx complained of."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--output", str(folder / "site"), "--cache", str(folder / "cache"), "--saved"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_toy", "course", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site", done.stderr


@pytest.fixture
def page(browser) -> Iterator:
    """A page whose complaints are kept in `page.complaints`."""
    context = browser.new_context(viewport=LAPTOP, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.complaints = []
    page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(f"no {request.url}"))
    page.on(
        "request",
        lambda r: r.url.startswith("http") and page.complaints.append(f"needs a network: {r.url}"),
    )
    yield page
    context.close()


def test_sphinx_has_nothing_to_complain_about(built):
    _, complaints = built
    assert complaints == ""


def test_every_link_leads_somewhere(built):
    site, _ = built
    paths = [path for path in site.rglob("*.html") if site / "_static" not in path.parents]
    pages = {path: Links(path) for path in paths}
    dead = []
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[file].anchors if file in pages else set()
            if not file.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                dead.append(f"{path.relative_to(site)}: {target}")
    assert not dead, "\n".join(dead)


def test_a_button_leads_to_colab_if_the_course_has_an_address(built):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = github_place(project["urls"]["Repository"])
    text = (built[0] / "notebooks" / "00_start_here.html").read_text(encoding="utf-8")
    name = f"{place}/blob/main/notebooks/00_start_here.ipynb"
    assert (f"https://colab.research.google.com/github/{name}" in text) == bool(place)
    assert ("colab.research.google.com" in text) == bool(place)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_looks_right(name, built, page):
    page.goto((built[0] / f"{name}.html").as_uri())
    page.evaluate("() => window.MathJax?.startup?.promise")
    for viewport in (LAPTOP, PHONE):
        page.set_viewport_size(viewport)
        for theme in ("light", "dark"):
            page.evaluate(THEME, theme)
            wrong = page.evaluate(LOOK)
            page.complaints += [f"{theme}, {viewport['width']} wide: {what}" for what in wrong]
    assert not page.complaints, "\n".join(dict.fromkeys(page.complaints))


def test_answers_open_and_checks_are_folded(built, page):
    page.goto((built[0] / "notebooks" / "07_policy_gradient.html").as_uri())
    answers = page.locator("details", has=page.get_by_text("answer", exact=True))
    assert answers.count() == 3
    text = answers.first.get_by_text("variance grows")
    assert not text.is_visible()
    answers.first.locator("summary").click()
    assert text.is_visible()
    assertion = page.get_by_text("assert torch.allclose(exact, by_trick").first
    assert not assertion.is_visible()
    page.locator("details.hide", has=assertion).locator("summary").click()
    assert assertion.is_visible()


def test_a_word_is_found_without_a_server(built, page):
    page.goto((built[0] / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("displacement")
    page.keyboard.press("Enter")
    results = page.locator("#search-results li a")
    results.filter(has_text="11 · Beyond DPO").first.wait_for()  # they come one by one
