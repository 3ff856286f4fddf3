"""You are the annotator: the fit, the files, and the cell, driven without a browser."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from scipy.special import expit
from scipy.stats import norm

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.widgets import annotator as module
from rlhf_toy.course.widgets.annotator import LEFT, RIGHT, TIE, AnswerFiles, HumanAnnotator, Pair
from rlhf_toy.course.widgets.taste import (
    FEATURES,
    Examination,
    draw_taste,
    fit_taste,
    response_features,
    taste_words,
)
from rlhf_toy.envs import PromptBandit, WordMDP, word_mdp
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.preferences import PreferenceDataset
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
    """Whoever asks for this gets the cell with nothing left out."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.jsonl"


def features(text):
    counts = response_features(WORLD, WORLD.encode(text)[None])[0]
    return {name: int(n) for name, n in zip(FEATURES, counts, strict=True) if n}


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def snapshot(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# The fit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("good", {"praise": 1, "each word": 1}),
        ("not good", {"not + praise": 1, "each word": 2}),
        ("very bad", {"complaint": 1, "very + complaint": 1, "each word": 2}),
        ("not very dull", {"not + complaint": 1, "each word": 3}),
        ("very great but not loud", {"praise": 1, "very + praise": 1, "loud": -1, "each word": 5}),
        ("long and long", {"long": 2, "said twice": 1, "each word": 3}),
        ("good great", {"praise": 2, "each word": 2, "bad grammar": 1}),
        ("and good not", {"praise": 1, "each word": 3, "bad grammar": 3}),
        ("not and good", {"praise": 1, "each word": 3, "bad grammar": 1}),
    ],
)
def test_features_count_what_their_names_say(text, expected):
    assert features(text) == expected


@pytest.mark.parametrize(
    ("cost", "feature"), [("GRAMMAR_COST", "bad grammar"), ("REPETITION_COST", "said twice")]
)
def test_slips_are_counted_as_the_world_counts_them(monkeypatch, cost, feature):
    rows = torch.randint(len(WORLD.all_responses), (2000,), generator=make_generator(0))
    responses = WORLD.all_responses[rows]
    prompts = torch.zeros(2000, dtype=torch.long)
    before = WORLD.response_rewards(prompts, responses)
    monkeypatch.setattr(word_mdp, cost, getattr(word_mdp, cost) + 1)
    counts = before - WORLD.response_rewards(prompts, responses)
    column = response_features(WORLD, responses)[:, FEATURES.index(feature)]
    np.testing.assert_allclose(column, counts, atol=1e-9)


def test_without_answers_the_prior_speaks():
    taste = fit_taste(np.zeros((0, 3)), [], prior_sd=2.0)
    assert not taste.weights.any() and not taste.is_asked.any()
    np.testing.assert_allclose(taste.half_widths, 1.96 * 2.0)
    np.testing.assert_allclose(taste.predict(np.zeros((1, 3))), 0.5)


def test_the_fit_is_the_posterior_of_one_weight():
    """Against a grid: the mode, and a Laplace interval close to the exact one."""
    answers = np.array([1.0] * 30 + [0.0] * 12)
    taste = fit_taste(np.ones((42, 1)), answers)
    grid = np.linspace(-3, 3, 60_001)
    density = np.exp(30 * np.log(expit(grid)) + 12 * np.log(expit(-grid))) * norm.pdf(grid)
    assert taste.weights[0] == pytest.approx(grid[density.argmax()], abs=1e-4)
    mean = (grid * density).sum() / density.sum()
    sd = np.sqrt(((grid - mean) ** 2 * density).sum() / density.sum())
    assert taste.half_widths[0] == pytest.approx(1.96 * sd, rel=0.03)


def test_a_tie_is_half_a_win_each_way():
    d = np.array([[1.0, 0.0], [0.5, -1.0]])
    tied = fit_taste(d, [TIE, LEFT])
    swapped = fit_taste(-d, [TIE, RIGHT])  # the sides changed
    np.testing.assert_allclose(tied.weights, swapped.weights, atol=1e-8)
    both_ways = fit_taste(d[[0, 0]], [1, 0]).weights  # two answers of opposite sense
    np.testing.assert_allclose(both_ways, 0, atol=1e-8)


def test_separable_answers_have_a_finite_fit():
    taste = fit_taste(np.full((500, 2), 5.0), np.ones(500))
    assert np.isfinite(taste.weights).all() and (taste.half_widths > 0).all()


@pytest.mark.parametrize(
    ("differences", "verdicts", "prior_sd", "message"),
    [
        (np.zeros(3), np.zeros(3), 1.0, "expected"),
        (np.zeros((3, 2)), np.zeros(2), 1.0, "expected"),
        (np.zeros((1, 2)), [2.0], 1.0, "verdicts"),
        (np.zeros((1, 2)), [float("nan")], 1.0, "verdicts"),
        (np.zeros((1, 2)), [1.0], 0.0, "prior_sd"),
    ],
)
def test_bad_input_to_the_fit_is_named(differences, verdicts, prior_sd, message):
    with pytest.raises(ValueError, match=message):
        fit_taste(differences, verdicts, prior_sd)


def test_the_share_predicted_is_that_of_sampled_answers():
    rng, generator = np.random.default_rng(0), make_generator(0)
    taste = fit_taste(rng.normal(size=(40, len(FEATURES))), rng.integers(0, 2, 40))
    pairs = module.sample_pairs(WORLD, 20_000, generator)
    # Pairs of different reviews, drawn independently: leave out those drawn twice.
    prompts, left = WORLD.sample_corpus(20_000, generator)
    reviews, chances = WORLD.fluent_reviews
    right = reviews[torch.multinomial(chances[prompts], 1, generator=generator)[:, 0]]
    kept = (left != right).any(1)
    prompts, left, right = prompts[kept], left[kept], right[kept]
    rewards = [WORLD.response_rewards(prompts, side) for side in (left, right)]
    p = BradleyTerryAnnotator().preference_probability(*rewards).numpy()
    margin = (response_features(WORLD, left) - response_features(WORLD, right)) @ taste.weights
    right_share = np.where(margin > 1e-9, p, np.where(margin < -1e-9, 1 - p, 0.5))
    assert EXAMINATION.share(taste) == pytest.approx(right_share.mean(), abs=0.006)
    assert EXAMINATION.ceiling == pytest.approx(np.maximum(p, 1 - p).mean(), abs=0.006)
    assert len(pairs) == 20_000 and all(pair.left != pair.right for pair in pairs)


def test_no_taste_is_a_coin_toss_and_its_opposite_is_wrong_where_it_is_right():
    nothing = fit_taste(np.zeros((0, len(FEATURES))), [])
    assert EXAMINATION.share(nothing) == pytest.approx(0.5)
    own = EXAMINATION.annotator_taste
    opposite = type(own)(-own.weights, own.covariance, own.is_asked)
    assert EXAMINATION.share(own) + EXAMINATION.share(opposite) == pytest.approx(1)
    assert 0.6 < EXAMINATION.share(own) < EXAMINATION.ceiling < 0.8


def test_least_sure_is_where_the_interval_is_widest():
    d = np.array([[1.0, 0.0]] * 50)
    taste = fit_taste(d, [1, 0] * 25)  # the first weight is known to be about 0
    assert module.least_sure(taste, np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) == 1


def test_the_chart_draws_fit_annotator_and_limits():
    figure = Figure()
    d = np.zeros((32, len(FEATURES)))
    d[:30, 0] = 1  # praise always wins
    d[30:, 6] = 1  # "long" once
    taste = fit_taste(d, [1] * 30 + [1, 0.5])
    draw_taste(figure, taste, {0: 0.5, 30: 0.6}, EXAMINATION, show_annotator=True)
    weights, shares = figure.axes
    names = {text.get_text() for text in weights.get_legend().get_texts()}
    assert names == {"clear of 0", "not clear", "never asked", "the annotator"}
    assert weights.get_yticklabels()[0].get_text() == "praise (good, great)"
    assert "your fit" in {text.get_text() for text in shares.get_legend().get_texts()}
    text = taste_words(taste, 0.6, EXAMINATION)
    assert "Clear of 0, in logits: praise +" in text and "predicts 60.0%" in text
    assert "Never asked: not + praise" in text and "Not clear: long +" in text


# The files


def test_answers_keep_their_order_over_two_files(path):
    files = AnswerFiles(path, WORLD)
    verdicts = [TIE, LEFT, TIE, TIE, RIGHT, LEFT, TIE]
    pairs = [Pair(*PAIRS[k % 3]) for k in range(len(verdicts))]
    for pair, verdict in zip(pairs, verdicts, strict=True):
        files.add(pair, verdict)
    again = AnswerFiles(path, WORLD)
    assert [a.verdict == TIE for a in again.answers] == [v == TIE for v in verdicts]
    assert [a.pair.key for a in again.answers] == [pair.key for pair in pairs]
    for k in range(len(verdicts), 0, -1):
        assert again.undo().pair.key == pairs[k - 1].key
    assert snapshot(path.parent) == {}


def test_the_file_of_preferences_is_one_that_the_dataset_writes(path, tmp_path):
    files = AnswerFiles(path, WORLD)
    files.add(Pair(*PAIRS[0]), LEFT)
    files.add(Pair(*PAIRS[1]), TIE)
    files.add(Pair(*PAIRS[2]), RIGHT)
    loaded = PreferenceDataset.load(path, WORLD)
    assert list(loaded.rows()) == [
        {"prompt": "film", "chosen": "very great", "rejected": "dull"},
        {"prompt": "concert", "chosen": "good but dull", "rejected": "loud"},
    ]
    loaded.save(tmp_path / "synthetic.jsonl")
    assert path.read_bytes() == (tmp_path / "synthetic.jsonl").read_bytes()
    assert [json.loads(line) for line in lines(files.ties_path)] == [
        {"prompt": "nap", "first": "good and loud", "second": "not bad", "after": 1}
    ]


def test_lines_that_were_there_stay_as_they_are(path):
    row = '{"rejected": "dull",  "chosen": "good", "prompt": "nap", "who": "Änne"}'
    path.write_text(row, encoding="utf-8")  # no newline at its end either
    files = AnswerFiles(path, WORLD)
    files.add(Pair(*PAIRS[0]), LEFT)
    assert lines(path)[0] == row and len(lines(path)) == 2
    files.undo()
    assert lines(path) == [row]


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


# The cell


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
    assert again.pair == cell.pair  # goes on with the pair that was being shown
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
    assert "nap" in cell.question.value and "(says nothing)" in cell.left_card.value
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
    _, low, high = cell.taste.predict(module.pair_differences(WORLD, cell._pool))
    _, mine_low, mine_high = cell.taste.predict(module.pair_differences(WORLD, [cell.pair]))
    done = {answer.pair.key for answer in cell.answers}
    widths = [w for w, pair in zip(high - low, cell._pool, strict=True) if pair.key not in done]
    assert mine_high - mine_low == pytest.approx(max(widths))


def test_a_used_up_pool_is_filled_again(path, monkeypatch):
    monkeypatch.setattr(module, "POOL_SIZE", 3)
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
    assert "bad grammar" in FEATURES and cell._pool_differences[:, -1].any()  # it talks salad
    cell.left.click()
    assert len(cell.answers) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_asks_the_same(tmp_path):
    pools = [HumanAnnotator(WORLD, path=tmp_path / "a", seed=s)._pool for s in (0, 0, 1)]
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
        patch.setattr(module, "atomic_file", full)
        patch.setattr(module.Path, "unlink", full)
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
        ({"pairs": []}, ValueError, "empty"),
        ({"pairs": [("nap", "good")]}, TypeError, r"pairs\[0\]"),
        ({"pairs": [PAIRS[0], ("weather", "good", "bad")]}, ValueError, r"pairs\[1\].*weather"),
        ({"pairs": [("nap", "sunny", "bad")]}, ValueError, "sunny"),
        ({"pairs": [("nap", "good", " good ")]}, ValueError, "twice"),
        ({"annotator": 3}, TypeError, "annotator"),
        ({"path": 3}, TypeError, "PathLike"),
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
