"""`python -m rlhf_toy claims`: the board in the terminal, and its file."""

import json

import pytest

from rlhf_toy.__main__ import main
from rlhf_toy.course import claims
from rlhf_toy.course.claims import Claim, verdict


@pytest.fixture
def two(monkeypatch):
    """Two claims about nothing in place of the board."""

    def claim(name):
        texts = {x: f"the {x}" for x in ("paper", "claim", "read", "predicted", "rule")}
        return Claim(
            name=name,
            world="In this world nothing happens.",
            experiment=lambda a=1.0: {"a": a},
            judge=lambda measured: verdict(measured["a"] > 0, name == "first"),
            perturbation={"a": -1.0},
            perturbed="a is below 0",
            not_tested="all else",
            found="as predicted",
            **texts,
        )

    monkeypatch.setattr(claims, "NAMES", ("first", "second"))
    monkeypatch.setattr(claims, "claim", claim)


def test_the_board_has_every_claim_and_counts_the_verdicts(two, tmp_path, capsys):
    path = tmp_path / "claims.json"
    assert main(["claims", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("first\n  paper      the paper\n  claim      the claim\n")
    assert "  measured   a: 1\n  verdict    HOLDS (in this world; 0.0 s)\n" in out
    assert "  perturbed  not here with this change: a is below 0\n" in out
    assert "the rule" not in out
    assert "2 claims in these worlds: 1 × holds, 1 × holds in part" in out
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["verdict"]) for row in rows] == [
        ("first", "holds"),
        ("second", "holds in part"),
    ]
    assert set(rows[0]) == {
        "name", "paper", "claim", "read", "world", "predicted", "rule", "measured", "verdict",
        "perturbed", "verdict_if_perturbed", "found", "seconds", "not_tested",
    }  # fmt: skip


def test_the_card_of_one_claim_says_all(two, capsys):
    assert main(["claims", "second"]) == 0
    out = capsys.readouterr().out
    for text in ("the read", "the rule", "In this world nothing", "as predicted", "all else"):
        assert text in out
    assert "first" not in out and "claims in these worlds" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "no claim is called 'nothing'; there are first, second"),
        (["first", "--json", "x.json"], "--json writes the whole board"),
        (["--json", "."], "--json: cannot write to '.': it is a directory"),
        (["--json", "no/such/folder.json"], "there is no folder"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(
    two, options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["claims", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert captured.out == "" and not list(tmp_path.iterdir())
