"""The board of claims: each verdict, what changes it, and the file that the course shows."""

import ast
from functools import cache
from pathlib import Path

import pytest

from rlhf_toy.course import claims
from rlhf_toy.course.claims import HOLDS, IN_PART, NAMES, NOT_HERE, Claim, Finding, verdict

FOLDER = Path(claims.__file__).parent
MOST_LINES = 80
SHARED = {"__init__", "board", "parts"}
VERDICTS = {  # as it stands, and perturbed
    "likelihood_displacement": (HOLDS, NOT_HERE),
    "hidden_context": (HOLDS, IN_PART),
    "catastrophic_goodhart": (HOLDS, IN_PART),
    "difficulty_bias": (HOLDS, NOT_HERE),
    "kl_estimators": (HOLDS, IN_PART),
    "preference_collapse": (HOLDS, IN_PART),
    "robust_dpo": (HOLDS, IN_PART),
    "best_of_n": (HOLDS, IN_PART),
    "ties": (IN_PART, HOLDS),
    "online_coverage": (IN_PART, HOLDS),
    "chi_po": (IN_PART, NOT_HERE),
    "offline_classifies": (HOLDS, NOT_HERE),
    "good_teacher": (IN_PART, NOT_HERE),
    "all_roads": (HOLDS, IN_PART),
    "deterministic_preferences": (HOLDS, NOT_HERE),
    "unseen_response": (HOLDS, IN_PART),
    "overoptimisation_laws": (NOT_HERE, IN_PART),
    "token_credit": (HOLDS, NOT_HERE),
    "cycles": (HOLDS, NOT_HERE),
}
# More than two seconds of processor time each: here the rule is only applied to the saved numbers.
# `python -m rlhf_toy claims NAME` runs them.
SLOW = {"chi_po", "offline_classifies", "all_roads"}
QUICK = [name for name in NAMES if name not in SLOW]


@cache
def row(name):
    return claims.claim(name).row()


@cache
def saved():
    return {row["name"]: row for row in claims.load()}


@pytest.mark.parametrize("name", QUICK)
def test_the_verdict_is_as_recorded_and_the_perturbation_changes_it(name):
    found = row(name)
    assert (found["verdict"], found["verdict_if_perturbed"]) == VERDICTS[name]


@pytest.mark.parametrize("name", QUICK)
def test_the_saved_board_is_what_a_fresh_run_gives(name):
    found, kept = dict(row(name)), dict(saved()[name])
    assert found.pop("seconds") < 60 and kept.pop("seconds") >= 0
    # Limits of optimisers are near 0 and differ between machines.
    measured, expected = found.pop("measured"), kept.pop("measured")
    assert measured == pytest.approx(expected, rel=0.002, abs=1e-6)
    assert found == kept


@pytest.mark.parametrize("name", sorted(SLOW))
def test_of_a_slow_claim_the_rule_gives_the_saved_verdict_for_the_saved_numbers(name):
    claim, kept = claims.claim(name), saved()[name]
    assert claim.judge(kept["measured"]) == kept["verdict"]
    assert (kept["verdict"], kept["verdict_if_perturbed"]) == VERDICTS[name]
    texts = ("paper", "claim", "read", "world", "predicted", "rule", "found", "not_tested")
    assert {key: kept[key] for key in texts} == {key: getattr(claim, key) for key in texts}


def test_every_verdict_is_recorded_and_changes():
    assert tuple(VERDICTS) == NAMES
    assert all(stands != perturbed for stands, perturbed in VERDICTS.values())
    assert {stands for stands, _ in VERDICTS.values()} == {HOLDS, IN_PART, NOT_HERE}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_it_is_about(name):
    claim = claims.claim(name)
    assert claim.name == name
    assert claim.paper.partition("arXiv:")[2].replace(".", "").isdigit()
    assert claim.world.startswith("In this world")
    assert claim.found != Claim.found
    assert all(verdict in claim.rule for verdict in ("olds:", "in part:", "not here:"))


def test_every_claim_is_one_short_file():
    files = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
    assert set(files) == {*NAMES, *SHARED}
    lengths = {name: len(files[name].splitlines()) for name in NAMES}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}
    for name in NAMES:  # and none reads another one
        imports = [
            n.module for n in ast.walk(ast.parse(files[name])) if isinstance(n, ast.ImportFrom)
        ]
        own = {module.rpartition(".")[2] for module in imports if ".claims." in module}
        assert own <= {"board", "parts"}


def card(**changes):
    """A claim about nothing, with changes."""
    texts = {x: "x" for x in ("name", "paper", "claim", "read", "world", "predicted", "rule")}
    functions = {"experiment": lambda a=1.0: {"a": a}, "judge": lambda m: verdict(m["a"] > 0)}
    rest = {"perturbation": {"a": -1.0}, "perturbed": "x", "not_tested": "x"}
    return Claim(**{**texts, **functions, **rest, **changes})


def test_a_check_runs_the_experiment_and_asks_the_rule():
    found = card().check()
    assert (found.measured, found.verdict) == ({"a": 1.0}, HOLDS)
    assert found.seconds >= 0
    assert card().check(a=-2).verdict == NOT_HERE
    row = card().row()
    assert (row["verdict"], row["verdict_if_perturbed"]) == (HOLDS, NOT_HERE)
    assert row["found"] == "not run yet"


def test_several_parts_make_one_verdict():
    assert verdict(True, True) == HOLDS
    assert verdict(True, False, True) == IN_PART
    assert verdict(False, False) == NOT_HERE


def test_measurements_are_rounded_and_tiny_ones_are_0():
    found = Finding({"a": 0.123456, "b": -3e-14, "c": 123456.0}, HOLDS, 0.0)
    assert found.rounded() == {"a": 0.1235, "b": 0.0, "c": 123500.0}
    assert str(found) == "a: 0.123; b: 0; c: 123000"


def test_a_claim_that_makes_no_sense_is_refused():
    with pytest.raises(TypeError, match="judge must be a function, got 'holds'"):
        card(judge="holds")
    with pytest.raises(TypeError, match="paper must be a text, got None"):
        card(paper=None)
    with pytest.raises(ValueError, match="rule of the claim is empty"):
        card(rule=" ")
    with pytest.raises(TypeError, match="perturbation must be arguments of the experiment"):
        card(perturbation=[1])
    with pytest.raises(ValueError, match=r"the verdict must be one of 'holds'.*got 'yes'"):
        card(judge=lambda measured: "yes").check()
    with pytest.raises(ValueError, match="no claim is called 'nothing'; there are likelihood"):
        claims.claim("nothing")


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"rows": [{"name": "x"}]}', "has other claims")],
)
def test_a_saved_board_that_cannot_be_used_is_refused(content, problem, tmp_path, monkeypatch):
    path = tmp_path / "claims.json"
    path.write_text(content)
    monkeypatch.setattr(claims, "data_file", lambda name, command: path)
    with pytest.raises(ValueError, match=f"{problem}.*python -m rlhf_toy claims --json"):
        claims.load()
