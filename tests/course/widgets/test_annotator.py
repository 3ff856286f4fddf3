"""You are the annotator: the cell, driven without a browser."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from IPython.utils.capture import capture_output

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.widgets import annotator as module
from rlhf_toy.course.widgets import annotator_files, annotator_pairs
from rlhf_toy.course.widgets.annotator import HumanAnnotator
from rlhf_toy.course.widgets.annotator_files import Pair
from rlhf_toy.course.widgets.annotator_pairs import pair_differences
from rlhf_toy.course.widgets.taste import Examination, response_features
from rlhf_toy.envs import PromptBandit, WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.reward_model import RewardModelSettings, train_reward_model
from rlhf_toy.training import make_generator

PAIRS = [
    ("film", "very great", "dull"),
    ("nap", "good and loud", "not bad"),
    ("concert", "loud", "good but dull"),
]
WORLD = WordMDP()
EXAMINATION = Examination(WORLD, BradleyTerryAnnotator())


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """The examination and the static figure are made once, unless a test is about them."""
    if "whole" not in request.fixturenames:
        monkeypatch.setattr(module, "Examination", lambda world, annotator: EXAMINATION)
        monkeypatch.setattr(module, "_example", lambda *_: b"PNG")


@pytest.fixture
def whole():
    """Tests that ask for this get the cell with nothing left out."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.jsonl"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def snapshot(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.jsonl", b"not JSON\n"),
        ("mine.jsonl", b"\xff\xfe\n"),
        ("mine.jsonl", b'{"prompt": "weather", "chosen": "good", "rejected": "bad"}\n'),
        ("mine.jsonl", b'{"prompt": "nap", "chosen": "sunny", "rejected": "bad"}\n'),
        ("mine.jsonl", b'{"prompt": "nap", "chosen": "good"}\n'),
        ("mine.ties.jsonl", b'{"prompt": "nap", "first": "good", "second": "bad"}\n'),
        ("mine.ties.jsonl", b'{"prompt": "nap", "first": 1, "second": "bad", "after": 0}\n'),
        ("mine.ties.jsonl", b'{"prompt": "nap", "first": "a", "second": "bad", "after": 0}\n'),
        ("mine.ties.jsonl", b"[]\n"),
        ("mine.ties.jsonl", b"\xff\n"),
    ],
)
def test_files_that_cannot_be_used_are_named_and_left_alone(path, name, content):
    (path.parent / name).write_bytes(content)
    cell = HumanAnnotator(WORLD, path=path)
    assert "Not possible" in cell.news.value and f"{name}:1" in cell.news.value
    assert all(b.disabled for b in (cell.left, cell.right, cell.tie, cell.skip, cell.undo))
    assert cell.next_pair.disabled
    for button in (cell.left, cell.tie, cell.skip, cell.undo):
        button.click()
    assert cell.answers == [] and snapshot(path.parent) == {name: content}


def test_a_folder_in_the_file_s_place_or_none_for_it_is_said(tmp_path):
    cell = HumanAnnotator(WORLD, path=tmp_path)
    assert "Is a directory" in cell.news.value and cell.left.disabled
    cell = HumanAnnotator(WORLD, path=tmp_path / "no" / "mine.jsonl")
    assert "there is no folder" in cell.news.value and cell.left.disabled


def test_twenty_answers_survive_a_restart_and_can_be_undone(path):
    cell = HumanAnnotator(WORLD, path=path)
    assert "mine.jsonl" in cell.news.value and cell.undo.disabled
    for k in range(20):
        before = cell.pair, cell.chart.value, cell.line.value
        [cell.left, cell.right, cell.left, cell.tie][k % 4].click()
        assert f"{k + 1} answer" in cell.news.value and "Saved" in cell.news.value
        assert cell.pair.key != before[0].key
        assert cell.chart.value != before[1] and cell.line.value != before[2]
        assert len(lines(path)) + len(lines(path.with_name("mine.ties.jsonl"))) == k + 1
    again = HumanAnnotator(WORLD, path=path)
    assert "20 answers are in it" in again.news.value and not again.undo.disabled
    np.testing.assert_allclose(again.taste.weights, cell.taste.weights, atol=1e-6)
    assert again.pair == cell.pair  # continues with the pair that was shown
    last = cell.answers[-1].pair
    again.undo.click()
    assert again.pair.key == last.key and len(again.answers) == 19
    assert "Taken back" in again.news.value and len(lines(path)) == 15
    for _ in range(19):
        again.undo.click()
    assert again.undo.disabled and again.answers == [] and snapshot(path.parent) == {}
    assert not again.taste.weights.any()


def test_what_is_saved_is_what_was_preferred(path):
    cell = HumanAnnotator(WORLD, path=path)
    first = cell.pair
    cell.right.click()
    row = {"prompt": first.prompt, "chosen": first.right, "rejected": first.left}
    assert json.loads(lines(path)[0]) == row
    cell.undo.click()
    assert cell.pair == first  # with its sides as they were
    cell.left.click()
    row = {"prompt": first.prompt, "chosen": first.left, "rejected": first.right}
    assert json.loads(lines(path)[0]) == row


def test_a_skip_is_no_answer_and_undo_brings_it_back(path):
    cell = HumanAnnotator(WORLD, path=path)
    first = cell.pair
    cell.skip.click()
    assert cell.pair != first and cell.answers == [] and not path.exists()
    assert "Skipped" in cell.news.value and not cell.undo.disabled
    cell.left.click()
    cell.undo.click()  # the answer
    cell.undo.click()  # the skip
    assert cell.pair == first and cell.undo.disabled


def test_the_cards_show_the_pair_and_an_empty_review_too(path):
    cell = HumanAnnotator(WORLD, pairs=[("nap", "", "good")], path=path)
    assert "nap" in cell.question.value and "(empty review)" in cell.left_card.value
    assert "good" in cell.right_card.value


def test_a_list_of_pairs_is_asked_through(path):
    cell = HumanAnnotator(WORLD, pairs=PAIRS, path=path)
    asked = set()
    for _ in range(3):
        asked.add(cell.pair)
        cell.left.click()
    assert asked == {Pair(*row) for row in PAIRS}
    assert cell.pair is None and "Every pair" in cell.question.value
    assert cell.left.disabled and cell.skip.disabled and not cell.undo.disabled
    cell.left.click()  # a late press
    assert len(cell.answers) == 3
    cell.undo.click()
    assert not cell.left.disabled and cell.pair in asked


def test_the_next_pair_is_where_the_fit_is_least_sure(path):
    cell = HumanAnnotator(WORLD, path=path)
    for _ in range(6):
        cell.left.click()
    cell.next_pair.value = module.LEAST_SURE
    assert "where the fit is least sure" in cell.news.value
    cell.left.click()
    _, low, high = cell.taste.predict(pair_differences(WORLD, cell._pool.pairs))
    _, mine_low, mine_high = cell.taste.predict(pair_differences(WORLD, [cell.pair]))
    done = {answer.pair.key for answer in cell.answers}
    widths = [
        w for w, pair in zip(high - low, cell._pool.pairs, strict=True) if pair.key not in done
    ]
    assert mine_high - mine_low == pytest.approx(max(widths))


def test_a_used_up_pool_is_filled_again(path, monkeypatch):
    monkeypatch.setattr(annotator_pairs, "POOL_SIZE", 3)
    cell = HumanAnnotator(WORLD, path=path)
    for _ in range(9):
        cell.left.click()
    assert len({answer.pair.key for answer in cell.answers}) == 9 and cell.pair is not None


def test_a_policy_writes_the_reviews(path):
    policy = PolicyModel(
        GPTConfig.for_world(WORLD, n_embd=8, n_layer=1, n_head=1), make_generator(0)
    )
    state = torch.random.get_rng_state()
    cell = HumanAnnotator(WORLD, policy=policy, path=path)
    assert cell._pool.differences[:, -1].any()  # bad grammar: it writes word salad
    cell.left.click()
    assert len(cell.answers) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_asks_the_same(tmp_path):
    pools = [HumanAnnotator(WORLD, path=tmp_path / "a", seed=s)._pool.pairs for s in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]


def test_too_few_preferences_are_refused_and_enough_can_be_trained_on(path):
    cell = HumanAnnotator(gym.make("rlhf_toy/WordMDP-v0"), path=path)
    cell.tie.click()
    for k in range(20):
        assert not cell.is_enough
        with pytest.raises(ValueError, match=f"^{k} preferences so far.*at least 20"):
            _ = cell.preferences
        (cell.left if k % 2 else cell.right).click()
    assert cell.is_enough and len(cell.preferences) == 20
    assert list(cell.preferences.rows()) == [json.loads(line) for line in lines(path)]
    _, history = train_reward_model(cell.preferences, RewardModelSettings(steps=2), device="cpu")
    assert history.rows[-1]["step"] == 2


def test_rewards_are_those_of_the_fit(path):
    cell = HumanAnnotator(WORLD, pairs=PAIRS, path=path)
    while cell.pair:
        cell.left.click()
    responses = torch.stack([WORLD.encode(row[1]) for row in PAIRS])
    expected = response_features(WORLD, responses) @ cell.taste.weights
    assert cell.rewards(responses).dtype == torch.float64
    np.testing.assert_allclose(cell.rewards(responses), expected)


@pytest.mark.parametrize("button", ["left", "tie", "undo"])
def test_a_file_that_cannot_be_written_loses_nothing(path, monkeypatch, button):
    cell = HumanAnnotator(WORLD, path=path)
    cell.left.click()
    before, pair = snapshot(path.parent), cell.pair

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(annotator_files, "atomic_file", full)
        patch.setattr(annotator_files.Path, "unlink", full)
        getattr(cell, button).click()
    assert "Not possible" in cell.news.value and "No space left" in cell.news.value
    assert cell.pair == pair and len(cell.answers) == 1 and snapshot(path.parent) == before
    getattr(cell, button).click()  # there is room again
    assert len(cell.answers) == (0 if button == "undo" else 2)


def test_answers_given_elsewhere_are_kept(path):
    one, other = HumanAnnotator(WORLD, path=path), HumanAnnotator(WORLD, path=path, seed=1)
    one.left.click()
    other.tie.click()
    assert len(other.answers) == 2
    one.right.click()
    assert len(one.answers) == 3 and len(HumanAnnotator(WORLD, path=path).answers) == 3
    other.undo.click()  # would take the answer of the other cell away
    assert len(other.answers) == 3 and "read again" in other.news.value
    other.undo.click()
    assert len(other.answers) == 2 and len(lines(path)) == 1


def test_a_file_that_was_spoiled_meanwhile_is_left_alone(path):
    cell = HumanAnnotator(WORLD, path=path)
    cell.left.click()
    path.write_text("spoiled")
    for button in (cell.left, cell.undo):
        button.click()
        assert "Not possible" in cell.news.value and "not JSON" in cell.news.value
        assert path.read_text() == "spoiled" and len(cell.answers) == 1


def test_a_large_file_is_read_with_a_few_fits(path):
    row = '{"prompt": "nap", "chosen": "good", "rejected": "dull"}\n'
    path.write_text(row * 2000)
    cell = HumanAnnotator(WORLD, path=path)
    assert len(cell.answers) == 2000 and len(cell._shares) <= module.CURVE_POINTS + 1
    cell.left.click()
    assert len(lines(path)) == 2001


def test_the_annotator_s_taste_is_shown_on_request(path):
    cell = HumanAnnotator(WORLD, path=path)
    before = cell.chart.value
    cell.show_annotator.value = True
    assert cell.chart.value != before
    cell.show_annotator.value = False
    assert cell.chart.value == before


def test_the_whole_cell_prints_nothing_and_has_a_static_figure(whole, path):
    with capture_output() as captured, warnings.catch_warnings():
        warnings.simplefilter("error")
        cell = HumanAnnotator(WORLD, path=path, annotator=BradleyTerryAnnotator(0.5))
        cell.left.click()
    assert captured.stdout == captured.stderr == ""
    assert cell.figure.startswith(b"\x89PNG") and bytes(cell.chart.value).startswith(b"\x89PNG")
    assert cell._examination.ceiling > EXAMINATION.ceiling  # it contradicts itself less


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"world": PromptBandit()}, TypeError, "word world"),
        ({"world": "film"}, TypeError, "worlds"),
        ({"policy": "π"}, TypeError, "PolicyModel"),
        ({"policy": "π", "pairs": PAIRS}, ValueError, "not both"),
        ({"pairs": [("nap", "good")]}, TypeError, r"pairs\[0\]"),
        ({"annotator": 3}, TypeError, "annotator"),
        ({"path": 3}, TypeError, "path must be a file name, got 3"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments_are_named(path, arguments, error, message):
    with pytest.raises(error, match=message):
        HumanAnnotator(**({"world": WORLD, "path": path} | arguments))


def test_a_policy_of_another_world_is_refused(path):
    small = WordMDP(max_length=3)
    policy = PolicyModel(
        GPTConfig.for_world(small, n_embd=8, n_layer=1, n_head=1), make_generator(0)
    )
    with pytest.raises(ValueError):
        HumanAnnotator(WORLD, policy=policy, path=path)
