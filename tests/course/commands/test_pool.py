"""`pool`: from students' files, however collected, to a report and a dataset that trains."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.commands import command_line
from rlhf_toy.course.widgets.annotator_files import LEFT, RIGHT, TIE, AnswerFiles
from rlhf_toy.course.widgets.annotator_pairs import sample_pairs
from rlhf_toy.dpo import DPOSettings, train_dpo
from rlhf_toy.envs import WordMDP
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.sft import SFTSettings, train_reference
from rlhf_toy.training import make_generator

pytest.importorskip("krippendorff")

WORLD = WordMDP(max_length=3)
PAIRS = sample_pairs(WORLD, 60, make_generator(0))


def answer(path: Path, n: int = 15, seed: int = 0, ties: int = 2, world: WordMDP = WORLD) -> Path:
    """Writes the answers of a simulated student to the first n pairs; the first ones are ties."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files, rng = AnswerFiles(path, world), np.random.default_rng(seed)
    for k, pair in enumerate(PAIRS[:n]):
        prompt = torch.tensor([world.prompt_index(pair.prompt)] * 2)
        texts = torch.stack([world.encode(text) for text in (pair.left, pair.right)])
        left, right = world.response_rewards(prompt, texts).split(1)
        p = float(BradleyTerryAnnotator().preference_probability(left, right))
        files.add(pair, TIE if k < ties else LEFT if rng.random() < p else RIGHT)
    return path


@pytest.fixture
def submissions(tmp_path):
    """Three students: a folder with a blank and an umlaut in its name, a file, and a zip file."""
    folder = tmp_path / "submissions"
    answer(folder / "Jörg B. Müller_17" / "my_preferences.jsonl", seed=1)
    answer(folder / "anna.jsonl", seed=2, ties=0)
    path = answer(tmp_path / "other" / "my_preferences.jsonl", seed=3)
    with zipfile.ZipFile(folder / "zoe.zip", "w") as archive:
        for file in path.parent.iterdir():
            archive.write(file, f"homework/{file.name}")
        archive.writestr("__MACOSX/homework/._my_preferences.jsonl", b"\x00\x05")
        archive.writestr("../outside.txt", "not unpacked")
    return folder


def pool(*arguments) -> int:
    return command_line.main(["pool", *map(str, arguments)])


def test_the_answers_of_all_become_one_dataset_without_names(submissions, tmp_path, capsys):
    output = tmp_path / "class.jsonl"
    assert pool(submissions, "--output", output) == 0
    said = capsys.readouterr().out
    assert "3 students, 41 preferences and 4 ties" in said
    assert "the 15 pairs that several students answered" in said and "Krippendorff's α" in said
    assert "never asked" in said and "mean utility" in said
    text = output.read_text(encoding="utf-8")
    assert not any(name in text + said for name in ("anna", "Jörg", "zoe", "homework", 'student":'))
    lines = text.splitlines()
    assert lines == sorted(lines), "their order would show who gave them"
    data = PreferenceDataset.load(output, WORLD)
    assert len(data) == 41
    assert set(json.loads(lines[0])) == {"prompt", "chosen", "rejected", "world"}
    given = [
        row
        for path in (
            submissions / "anna.jsonl",
            submissions / "Jörg B. Müller_17",
            tmp_path / "other",
        )
        for row in PreferenceDataset.load(
            path if path.is_file() else path / "my_preferences.jsonl", WORLD
        ).rows()
    ]
    assert sorted(map(str, given)) == sorted(map(str, data.rows()))


def test_names_are_kept_if_they_are_asked_for(submissions, tmp_path, capsys):
    output = tmp_path / "class.jsonl"
    assert pool(submissions, "--names", "--output", output) == 0
    said = capsys.readouterr().out
    names = ["Jörg B. Müller_17", "anna", "zoe/homework"]
    for name in names:
        assert f"  {name}: 15 answers\n" in said
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [name for name in dict.fromkeys(row["student"] for row in rows)] == names
    assert len(PreferenceDataset.load(output, WORLD)) == 41


def test_a_second_run_writes_the_same_and_the_files_may_be_named_singly(submissions, tmp_path):
    output = tmp_path / "class.jsonl"
    paths = [submissions / "zoe.zip", submissions / "anna.jsonl", *submissions.glob("J*")]
    assert pool(submissions, "--output", output) == 0
    before = output.read_bytes()
    assert pool(*paths, submissions / "anna.jsonl", "--output", output) == 0  # one of them twice
    assert output.read_bytes() == before


def test_a_student_who_answered_a_pair_again_means_the_last_answer(submissions, tmp_path):
    path = submissions / "anna.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path.write_text("\n".join([*lines, json.dumps(row)]) + "\n", encoding="utf-8")
    assert pool(path, submissions, "--names", "--output", tmp_path / "class.jsonl") == 0
    rows = map(json.loads, (tmp_path / "class.jsonl").read_text(encoding="utf-8").splitlines())
    mine = [r for r in rows if r["student"].endswith("anna")]
    assert len(mine) == 15 and mine[0]["chosen"] == row["chosen"]


def test_a_student_with_ties_only_counts(submissions, tmp_path, capsys):
    answer(submissions / "tim" / "my_preferences.jsonl", n=2)
    assert not (submissions / "tim" / "my_preferences.jsonl").exists()
    assert pool(submissions, "--output", tmp_path / "class.jsonl") == 0
    assert "4 students, 41 preferences and 6 ties" in capsys.readouterr().out


def test_dpo_trains_on_the_dataset_as_in_notebook_10(tmp_path):
    """Twenty students with the simulated annotator's taste answer sixty pairs of their own.

    Notebook 10's reference and settings, for as long as so few pairs help. The same answers turned
    round lead away from the optimum, so it is the answers that count.
    """
    folder = tmp_path / "class"
    folder.mkdir()
    for k in range(20):
        generator = make_generator(k)
        pairs = sample_pairs(WORLD, 60, generator)
        prompts = torch.tensor([WORLD.prompt_index(pair.prompt) for pair in pairs])
        sides = zip(*((pair.left, pair.right) for pair in pairs), strict=True)
        left, right = (torch.stack([WORLD.encode(text) for text in texts]) for texts in sides)
        rewards = [WORLD.response_rewards(prompts, side) for side in (left, right)]
        won = BradleyTerryAnnotator().prefer(*rewards, generator)[:, None]
        columns = torch.where(won, left, right), torch.where(won, right, left)
        PreferenceDataset(WORLD, prompts, *columns).save(folder / f"{k}.jsonl")
    assert pool(folder, "--output", tmp_path / "class.jsonl") == 0
    pairs = PreferenceDataset.load(tmp_path / "class.jsonl", WORLD)
    assert 1100 < len(pairs) <= 1200  # some students were asked about a pair twice
    reference, _ = train_reference(WORLD, SFTSettings(steps=200), seed=0, device="cpu")
    settings = DPOSettings(
        beta=0.5, steps=30, batch_size=256, learning_rate=5e-4, warmup_steps=40, weight_decay=0.01,
        ema_decay=0.0,
    )  # fmt: skip
    turned = PreferenceDataset(WORLD, pairs.prompts, pairs.rejected, pairs.chosen)
    right, wrong = (
        train_dpo(data, reference, settings, device="cpu", start=reference)[1].last("exact/gap")
        for data in (pairs, turned)
    )
    assert right < 0.8 < 1.2 < wrong


def refused(arguments, capsys) -> str:
    assert pool(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("rlhf_toy: error: ")
    assert said.err.count("\n") == 1 and len(said.err) < 700
    return said.err


def damage(path: Path) -> None:
    """Changes a byte in the middle of the first file of a zip file."""
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: [path.unlink() for path in folder.rglob("*.jsonl")], "too few answers"),
        (
            lambda folder: (folder / "anna.jsonl").write_text('{"prompt": "film"}\n'),
            "anna.jsonl:1:",
        ),
        (lambda folder: (folder / "b.jsonl").write_bytes(b"\xff\n"), "b.jsonl:1: not JSON"),
        (lambda folder: (folder / "b.ties.jsonl").write_text("[]\n"), "b.ties.jsonl:1: expected a"),
        (lambda folder: (folder / "b.jsonl").write_bytes(b"[" * 99_999), "b.jsonl:1: not a row"),
        (lambda folder: (folder / "b.zip").write_bytes(b"PK no"), "b.zip cannot be unpacked"),
        (lambda folder: damage(folder / "zoe.zip"), "zoe.zip cannot be unpacked"),
        (lambda folder: (folder / "empty.jsonl").touch(), None),
        (
            lambda folder: answer(folder / "b.jsonl", world=WordMDP()),
            "b.jsonl:1: the pairs are from another world",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(submissions, tmp_path, capsys, spoil, words):
    spoil(submissions)
    output = tmp_path / "class.jsonl"
    if words is None:  # an empty file is a student without answers
        assert pool(submissions, "--output", output) == 0
        return
    assert words in refused([submissions, "--output", output], capsys)
    assert not output.exists()


def test_a_broken_line_in_a_zip_file_is_named(submissions, tmp_path, capsys):
    with zipfile.ZipFile(submissions / "bad.zip", "w") as archive:
        archive.writestr("my_preferences.jsonl", '{"prompt": "film"\n')
    said = refused([submissions, "--output", tmp_path / "class.jsonl"], capsys)
    assert f"{submissions / 'bad.zip'}/my_preferences.jsonl:1: not JSON" in said


def test_a_zip_bomb_is_not_unpacked(submissions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlhf_toy.course.commands.pool.LARGEST", 5_000)
    with zipfile.ZipFile(submissions / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            archive.writestr(f"{name}.jsonl", b" " * 3_000)
    said = refused([submissions, "--output", tmp_path / "class.jsonl"], capsys)
    assert "bad.zip cannot be unpacked: its answers have 6,000 bytes" in said


def test_a_world_that_the_course_does_not_know_is_refused(tmp_path, capsys):
    row = {"prompt": "film", "chosen": "good", "rejected": "bad"}
    for name, world in (("a", {"world": "0123456789ab"}), ("b", {})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.jsonl").write_text(json.dumps(row | world) + "\n")
    arguments = ["--output", tmp_path / "class.jsonl"]
    assert "'0123456789ab', which is not in" in refused([tmp_path / "a", *arguments], capsys)
    assert "none has the key 'world'" in refused([tmp_path / "b", *arguments], capsys)


def test_a_name_that_is_not_unicode_is_written_as_far_as_possible(submissions, tmp_path, capsys):
    answer(submissions / "J\udcf6rg" / "my_preferences.jsonl")
    output = tmp_path / "class.jsonl"
    assert pool(submissions, "--names", "--output", output) == 0
    assert "  J�rg: 15 answers" in capsys.readouterr().out
    assert '"student": "J�rg"' in output.read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["empty", "nowhere", "a.txt", "n" * 300])
def test_without_files_there_is_nothing_to_pool(missing, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    said = refused([tmp_path / missing, "--output", tmp_path / "class.jsonl"], capsys)
    assert "no .jsonl file in" in said or "is not a folder, a .jsonl file or a .zip file" in said


def test_too_few_answers_are_refused(tmp_path, capsys):
    output = ["--output", tmp_path / "class.jsonl"]
    answer(tmp_path / "class" / "a.jsonl", n=60)
    assert "students 1 (at least 2 are needed), preferences 58" in refused(
        [tmp_path / "class", *output], capsys
    )
    answer(tmp_path / "few" / "a.jsonl", n=12)
    answer(tmp_path / "few" / "b.jsonl", n=11)
    assert "students 2 (at least 2 are needed), preferences 19" in refused(
        [tmp_path / "few", *output], capsys
    )
    answer(tmp_path / "few" / "c.jsonl", n=3)
    assert pool(tmp_path / "few", *output) == 0


def test_an_output_that_would_be_lost_or_taken_for_a_student_is_refused(
    submissions, tmp_path, capsys
):
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    (tmp_path / "link.jsonl").symlink_to(submissions / "anna.jsonl")
    before = {path: path.read_bytes() for path in submissions.rglob("*") if path.is_file()}
    for output, words in (
        (kept, "has other content"),
        (submissions / "class.jsonl", "would be taken for, a student's file"),
        (submissions / "anna.jsonl", "would be taken for, a student's file"),
        (tmp_path / "link.jsonl", "would be taken for, a student's file"),
        (tmp_path, "it is a directory"),
        (tmp_path / "nowhere" / "class.jsonl", "there is no folder"),
    ):
        assert words in refused([submissions, "--output", output], capsys)
    anna = submissions / "anna.jsonl"
    assert "is, or would be" in refused([anna, submissions / "zoe.zip", "--output", anna], capsys)
    assert kept.read_text() == "mine"
    assert before == {path: path.read_bytes() for path in submissions.rglob("*") if path.is_file()}


def test_a_missing_library_is_named(submissions, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "krippendorff", None)
    said = refused([submissions, "--output", tmp_path / "class.jsonl"], capsys)
    assert 'pip install "rlhf_toy[pool]"' in said
