"""The two files of answers: their order, their format, and what happens to damaged ones."""

import json

import pytest

from rlhf_toy.course.widgets.annotator_files import LEFT, RIGHT, TIE, AnswerFiles, Pair
from rlhf_toy.envs import WordMDP
from rlhf_toy.preferences import PreferenceDataset

WORLD = WordMDP()
PAIRS = [
    Pair("film", "very great", "dull"),
    Pair("nap", "good and loud", "not bad"),
    Pair("concert", "loud", "good but dull"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.jsonl"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_answers_keep_their_order_over_two_files(path):
    files = AnswerFiles(path, WORLD)
    verdicts = [TIE, LEFT, TIE, TIE, RIGHT, LEFT, TIE]
    pairs = [PAIRS[k % 3] for k in range(len(verdicts))]
    for pair, verdict in zip(pairs, verdicts, strict=True):
        files.add(pair, verdict)
    again = AnswerFiles(path, WORLD)
    assert [a.verdict == TIE for a in again.answers] == [v == TIE for v in verdicts]
    assert [a.pair.key for a in again.answers] == [pair.key for pair in pairs]
    for k in range(len(verdicts), 0, -1):
        assert again.undo().pair.key == pairs[k - 1].key
    assert list(path.parent.iterdir()) == []


def test_the_file_of_preferences_is_one_that_the_dataset_reads(path):
    files = AnswerFiles(path, WORLD)
    files.add(PAIRS[0], LEFT)
    files.add(PAIRS[1], TIE)
    files.add(PAIRS[2], RIGHT)
    expected = [
        {"prompt": "film", "chosen": "very great", "rejected": "dull"},
        {"prompt": "concert", "chosen": "good but dull", "rejected": "loud"},
    ]
    assert [json.loads(line) for line in lines(path)] == expected
    loaded = PreferenceDataset.load(path, WORLD)
    assert list(loaded.rows()) == expected
    assert list(files.dataset().rows()) == expected
    assert [json.loads(line) for line in lines(files.ties_path)] == [
        {"prompt": "nap", "first": "good and loud", "second": "not bad", "after": 1}
    ]


def test_lines_that_were_there_stay_as_they_are(path):
    row = '{"rejected": "dull",  "chosen": "good", "prompt": "nap", "who": "Änne"}'
    path.write_text(row, encoding="utf-8")  # no newline at its end either
    files = AnswerFiles(path, WORLD)
    files.add(PAIRS[0], LEFT)
    assert lines(path)[0] == row and len(lines(path)) == 2
    files.undo()
    assert lines(path) == [row]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", b"not JSON\n", "not JSON"),
        ("mine.jsonl", b'{"prompt": "nap", "chosen": "good"}\n', "'rejected'"),
        ("mine.ties.jsonl", b'{"prompt": "nap", "first": "good", "second": "bad"}\n', "'after'"),
        ("mine.ties.jsonl", b"[]\n", "expected a tie"),
        ("mine.ties.jsonl", b"\xff\n", "expected a tie"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_line(path, name, content, message):
    (path.parent / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}:1.*{message}"):
        AnswerFiles(path, WORLD)
    assert (path.parent / name).read_bytes() == content


def test_files_changed_elsewhere_are_read_again(path):
    one, other = AnswerFiles(path, WORLD), AnswerFiles(path, WORLD)
    assert not one.refresh()
    other.add(PAIRS[0], RIGHT)
    assert one.refresh() and not one.refresh()
    assert one.answers[0].pair.ranked(one.answers[0].verdict) == ("dull", "very great")


def test_a_pair_is_the_same_with_its_sides_swapped():
    pair = PAIRS[0]
    assert Pair(pair.prompt, pair.right, pair.left).key == pair.key
    assert Pair("nap", pair.left, pair.right).key != pair.key
    assert pair.ranked(LEFT) == ("very great", "dull") and pair.ranked(RIGHT) == (
        "dull",
        "very great",
    )


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        AnswerFiles(tmp_path / "no" / "mine.jsonl", WORLD)


def test_what_is_no_answer_is_refused(path):
    files = AnswerFiles(path, WORLD)
    with pytest.raises(ValueError, match="no answer to take back"):
        files.undo()
    with pytest.raises(ValueError, match="no preferences yet"):
        files.dataset()
    with pytest.raises(TypeError, match="pair must be a Pair"):
        files.add(("nap", "good", "bad"), LEFT)
    with pytest.raises(ValueError, match=r"verdict must be 1\.0, 0\.5 or 0\.0, got 0\.3"):
        files.add(PAIRS[0], 0.3)
    assert list(path.parent.iterdir()) == []
