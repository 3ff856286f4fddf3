"""The tour: its table, its files, and what it refuses. On a smaller world, to be quick."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch

import rlhf_toy.course.worlds
from rlhf_toy.__main__ import main
from rlhf_toy.course.commands import tour
from rlhf_toy.course.worlds import WORLDS
from rlhf_toy.exact import AutomatonYardstick

NAMES = [
    "reference", "ppo_true", "ppo_learned", "rloo", "grpo", "dpo", "online_dpo", "best_of_n",
    "gibbs",
]  # fmt: skip


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """The JSON and the figure of one quick tour, and what it printed."""
    folder = tmp_path_factory.mktemp("tour")
    world = rlhf_toy.course.worlds.WordMDP
    arguments = ["--quick", "--preferences", "3000", "--device", "cpu", "--seed", "3"]
    files = ["--json", str(folder / "tour.json"), "--figure", str(folder / "tour.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf_toy.course.worlds, "WordMDP", partial(world, max_length=2))
        before = torch.get_rng_state()
        assert main(["tour", *arguments, *files]) == 0
        assert torch.equal(torch.get_rng_state(), before), "the global random state was touched"
    return json.loads((folder / "tour.json").read_text()), (folder / "tour.png").read_bytes()


def test_the_json_has_what_it_promises(toured):
    result, _ = toured
    assert (result["world"], result["beta"], result["seed"]) == ("reviews", 0.5, 3)
    assert [row["name"] for row in result["policies"]] == NAMES
    for row in result["policies"]:
        assert {"reward", "learned_reward", "kl", "objective", "gap", "seconds"} <= set(row)
        assert row["objective"] == pytest.approx(row["reward"] - 0.5 * row["kl"], abs=1e-9)
        assert row["gap"] == pytest.approx(
            (result["optimum"] - row["objective"]) / (result["optimum"] - result["reference"])
        )
        assert len(row["samples"]) == 2
    assert 0.5 < result["reward_model"]["held_out_accuracy"] < 1
    assert 0.5 < result["reward_model"]["ceiling"] < 1


def test_the_policies_stand_in_the_order_that_the_theory_asks_for(toured):
    rows = {row["name"]: row for row in toured[0]["policies"]}
    assert rows["reference"]["gap"] == 1.0
    assert rows["reference"]["kl"] == 0.0
    assert rows["gibbs"]["gap"] == pytest.approx(0.0, abs=1e-9)
    for name in NAMES[1:-1]:
        assert 0 < rows[name]["gap"] < 1
    assert rows["ppo_true"]["gap"] < 0.1
    # The learned reward is shifted to agree with the true one under the reference.
    assert rows["reference"]["learned_reward"] == pytest.approx(rows["reference"]["reward"])


def test_another_world_runs_through_the_tour(tmp_path, monkeypatch, capsys):
    short = partial(rlhf_toy.course.worlds.WordMDP, max_length=1)
    monkeypatch.setattr(rlhf_toy.course.worlds, "WordMDP", short)
    # Two of the four trainings are left out to save time.
    monkeypatch.setattr(
        "rlhf_toy.ppo.train_ppo", lambda world, reference, *_, **__: (reference, None)
    )
    options = ["--quick", "--preferences", "500", "--device", "cpu", "--world", "dishes"]
    assert main(["tour", *options, "--json", str(tmp_path / "tour.json")]) == 0
    rows = {
        row["name"]: row for row in json.loads((tmp_path / "tour.json").read_text())["policies"]
    }
    assert list(rows["gibbs"]["samples"]) == ["curry", "salad"]
    assert 0 < rows["dpo"]["gap"] < rows["reference"]["gap"] == 1
    assert "world dishes" in capsys.readouterr().out


def untrained(world, reference, *_, start=None, **__):
    """Returns at once, in place of a trainer, where it would start."""
    return start or reference, None


def test_the_long_world_is_toured_by_samples(short_spec, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(WORLDS, "long", replace(short_spec, max_length=8))
    # Less training and fewer samples, to save time.
    fewer = lambda world, _, beta: AutomatonYardstick(world, beta, samples=500)  # noqa: E731
    monkeypatch.setattr("rlhf_toy.exact.make_yardstick", fewer)
    monkeypatch.setattr(tour, "LONG_TRAINING", {"batch_size": 64, "num_mini_batches": 4})
    monkeypatch.setattr(tour, "SAMPLES_PER_PROMPT", 100)
    monkeypatch.setattr("rlhf_toy.dpo.train_dpo", lambda pairs, reference, *_, **__: (reference, 0))
    monkeypatch.setattr("rlhf_toy.dpo.train_online_dpo", untrained)
    monkeypatch.setattr("rlhf_toy.policy_gradient.train_policy_gradient", untrained)
    files = ["--json", str(tmp_path / "tour.json"), "--figure", str(tmp_path / "tour.png")]
    options = ["--quick", "--preferences", "500", "--device", "cpu", "--world", "long"]
    assert main(["tour", *options, *files]) == 0
    result = json.loads((tmp_path / "tour.json").read_text())
    rows = {row["name"]: row for row in result["policies"]}
    assert list(rows) == [NAMES[0], "sft", *NAMES[1:]]
    assert result["beta"] == 0.1
    assert rows["reference"]["gap"] == pytest.approx(1.0)
    assert rows["reference"]["kl"] == pytest.approx(0.0, abs=1e-12)
    assert rows["gibbs"]["gap"] == pytest.approx(0.0, abs=1e-9)
    assert rows["ppo_true"]["gap"] < rows["sft"]["gap"]
    assert rows["dpo"]["gap"] == pytest.approx(1.0, abs=5 * rows["dpo"]["standard_error"] + 1e-6)
    for row in rows.values():
        assert row["objective"] == pytest.approx(row["reward"] - 0.1 * row["kl"], abs=1e-9)
    learned = {name: row["learned_reward"] for name, row in rows.items()}
    assert learned["reference"] == pytest.approx(rows["reference"]["reward"], abs=0.5)
    assert learned["best_of_n"] > learned["reference"]
    assert "world long" in capsys.readouterr().out
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_is_a_picture(toured):
    assert toured[1].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--beta", "0"],
        ["--beta", "nan"],
        ["--beta", "inf"],
        ["--seed", "-1"],
        ["--preferences", "3"],
        ["--preferences", "9" * 30],
        ["--device", "nowhere"],
        ["--world", "nowhere"],
        ["--figure", "{folder}/figure.exe"],
        ["--figure", "{folder}/missing/figure.png"],
        ["--json", "{folder}"],
        ["--json", "/dev/null"],
        ["--json", "/dev/stdout"],
        ["--figure", "/dev/stdout.png/a.png"],
        ["--json", "{folder}/../{name}/a.png", "--figure", "{folder}/a.png"],
    ],
)
def test_an_option_that_cannot_be_used_is_refused_before_anything_is_done(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf_toy.sft.train_reference", lambda *a, **k: pytest.fail("it trained"))
    files = [] if "--json" in arguments else ["--json", str(tmp_path / "tour.json")]
    code = main(
        ["tour", *(a.format(folder=tmp_path, name=tmp_path.name) for a in arguments), *files]
    )
    assert code == 2
    assert "rlhf_toy: error: --" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nodes_and_links_are_refused_or_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlhf_toy.sft.train_reference", lambda *a, **k: pytest.fail("it trained"))
    fifo, one, two = tmp_path / "fifo", tmp_path / "one.json", tmp_path / "two.png"
    os.mkfifo(fifo)
    assert main(["tour", "--json", str(fifo)]) == 2
    assert "--json: cannot write to" in capsys.readouterr().err
    two.write_text("old")
    one.symlink_to(two)
    assert main(["tour", "--json", str(one), "--figure", str(two)]) == 2
    assert f"must be two files, both are {two}" in capsys.readouterr().err
    assert fifo.is_fifo() and one.is_symlink() and two.read_text() == "old"
