"""The preference dataset: what it holds, how it is collected, and that no file half exists."""

import json
from dataclasses import FrozenInstanceError

import gymnasium as gym
import pytest
import torch

from rlhf_toy import preferences as module
from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.envs import TextWorld, WordMDP
from rlhf_toy.exact import response_logps, response_rewards
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.training import make_generator

GOOD_LINE = '{"prompt": "film", "chosen": "good", "rejected": "bad"}\n'


def collect(policy, world, n=200, seed=0, temperature=1.0):
    annotator = BradleyTerryAnnotator(temperature)
    return collect_preferences(policy, world, annotator, n, make_generator(seed))


def as_tuples(pairs):
    columns = (pairs.prompts.tolist(), pairs.chosen.tolist(), pairs.rejected.tolist())
    return [(x, tuple(c), tuple(r)) for x, c, r in zip(*columns, strict=True)]


@pytest.fixture
def pairs(policy, world):
    return collect(policy, world)


def test_an_annotator_that_never_errs_chooses_the_higher_reward(policy, world):
    pairs = collect(policy, world, n=2_000, temperature=1e-9)
    chosen, rejected = (
        world.response_rewards(pairs.prompts, y) for y in (pairs.chosen, pairs.rejected)
    )
    assert (chosen > rejected - 1e-6).all()
    assert (chosen > rejected).any()


def test_pairs_follow_the_policy_and_the_annotator(bandit):
    policy = PolicyModel(GPTConfig.for_world(bandit, n_embd=16, n_head=2), make_generator(0))
    n = 80_000
    pairs = collect(policy, bandit, n=n)
    p = response_logps(policy, bandit).exp()
    r = response_rewards(bandit)
    wins = torch.sigmoid(r[:, :, None] - r[:, None])
    expected = 2 * p[:, :, None] * p[:, None] * wins / bandit.n_prompts  # chosen, rejected
    keys = (pairs.prompts * 8 + pairs.chosen[:, 0]) * 8 + pairs.rejected[:, 0]
    counts = torch.bincount(keys, minlength=4 * 64).view(4, 8, 8)
    assert float(expected.sum()) == pytest.approx(1)
    sigma = (n * expected * (1 - expected)).sqrt()
    assert ((counts - n * expected).abs() < 5 * sigma + 3).all()


def test_many_pairs_are_sampled_in_parts(policy, world, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 30)
    assert len(collect(policy, world, n=100)) == 100


def test_the_same_seed_gives_the_same_pairs(policy, world):
    one, same, other = (as_tuples(collect(policy, world, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_a_split_is_random_disjoint_and_complete(pairs):
    large, small = pairs.split(0.75, seed=0)
    assert (len(large), len(small)) == (150, 50)
    assert sorted(as_tuples(large) + as_tuples(small)) == sorted(as_tuples(pairs))
    assert as_tuples(large) != as_tuples(pairs)[:150]
    assert as_tuples(pairs.split(0.75, seed=0)[0]) == as_tuples(large)
    assert as_tuples(pairs.split(0.75, seed=1)[0]) != as_tuples(large)
    for fraction in (0.0, 1.0, 0.001, float("nan")):
        with pytest.raises(ValueError):
            pairs.split(fraction, seed=0)


def test_rows_are_picked_by_slice_mask_and_indices(pairs):
    rows = as_tuples(pairs)
    assert as_tuples(pairs[3:5]) == rows[3:5]
    assert as_tuples(pairs[torch.tensor([7, 2])]) == [rows[7], rows[2]]
    assert as_tuples(pairs[torch.arange(len(pairs)) == 9]) == [rows[9]]
    assert as_tuples(pairs[torch.tensor([-1])]) == [rows[-1]]
    with pytest.raises(TypeError, match="slice"):
        pairs[3]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (torch.tensor([200]), "rows must be ids from -200 to 199, got ids from 200 to 200"),
        (torch.tensor([0.0]), "rows must be a nonempty int64 tensor"),
        (torch.zeros(200, dtype=torch.bool), "nonempty"),
        (torch.ones(199, dtype=torch.bool), r"got prompts \[200\], rows \[199\]"),
        (slice(5, 5), "nonempty"),
    ],
)
def test_rows_that_pick_nothing_or_do_not_exist_are_refused(pairs, rows, reason):
    with pytest.raises(ValueError, match=reason):
        pairs[rows]


def test_joined_pairs_stand_one_after_the_other(pairs, policy, world):
    more = collect(policy, world, n=30, seed=1)
    assert as_tuples(pairs.join(more)) == as_tuples(pairs) + as_tuples(more)
    assert len(pairs) == 200  # as it was


def test_only_pairs_of_one_world_can_be_joined(pairs, bandit):
    with pytest.raises(TypeError, match="other must be a PreferenceDataset"):
        pairs.join([pairs])
    policy = PolicyModel(GPTConfig.for_world(bandit, n_embd=16, n_head=2), make_generator(0))
    with pytest.raises(ValueError, match="from another world"):
        pairs.join(collect(policy, bandit, n=5))
    longer = WordMDP(max_length=4)
    end = torch.full((1, 4), longer.end_token)
    with pytest.raises(ValueError, match=longer.fingerprint):
        pairs.join(PreferenceDataset(longer, torch.zeros(1, dtype=torch.long), end, end))
    again = PreferenceDataset(WordMDP(max_length=3), pairs.prompts, pairs.chosen, pairs.rejected)
    assert len(pairs.join(again)) == 400  # another object, the same world


def test_unique_responses_occur_once_and_give_every_pair_back(pairs):
    prompts, responses, index = pairs.unique_responses()
    rows = [(x, *y) for x, y in zip(prompts.tolist(), responses.tolist(), strict=True)]
    assert len(set(rows)) == len(rows) < 2 * len(pairs)
    chosen, rejected = index.view(2, -1)
    assert torch.equal(prompts[chosen], pairs.prompts)
    assert torch.equal(responses[chosen], pairs.chosen)
    assert torch.equal(responses[rejected], pairs.rejected)


def test_what_stands_after_the_end_makes_no_response_another(world):
    prompts = torch.zeros(1, dtype=torch.long)
    clean, dirty = torch.tensor([[0, 10, 11]]), torch.tensor([[0, 10, 3]])
    _, responses, index = PreferenceDataset(world, prompts, clean, dirty).unique_responses()
    assert responses.tolist() == clean.tolist()
    assert index.tolist() == [0, 0]


def test_a_dataset_cannot_be_changed(pairs):
    with pytest.raises(FrozenInstanceError):
        pairs.prompts = pairs.prompts[:1]


@pytest.mark.parametrize("name", ["world", "bandit"])
def test_what_is_saved_is_loaded(name, request, tmp_path):
    world = request.getfixturevalue(name)
    policy = PolicyModel(GPTConfig.for_world(world, n_embd=16, n_head=2), make_generator(0))
    pairs = collect(policy, world, n=500)
    path = tmp_path / "pairs.jsonl"
    pairs.save(path)
    loaded = PreferenceDataset.load(path, world)
    assert as_tuples(loaded) == as_tuples(pairs)
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert list(first) == ["prompt", "chosen", "rejected", "world"]
    assert first["world"] == world.fingerprint
    assert first["chosen"] == world.decode(pairs.chosen[0])
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_further_columns_are_left_out(world, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "nap", "margin": 2, "chosen": "", "rejected": "very very very"}\n')
    (row,) = PreferenceDataset.load(path, world).rows()
    assert row == {"prompt": "nap", "chosen": "", "rejected": "very very very"}


def test_another_worlds_file_is_refused(pairs, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs.save(path)
    longer = WordMDP(max_length=4)  # it could read every word of the file
    with pytest.raises(ValueError, match=f"{path}:1: the pairs are from another world") as error:
        PreferenceDataset.load(path, longer)
    assert pairs.world.fingerprint in str(error.value) and longer.fingerprint in str(error.value)


def test_one_line_from_another_world_is_found(world, tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = json.loads(GOOD_LINE)
    lines = (row, row | {"world": world.fingerprint}, row | {"world": "x" * 100_000})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=f"{path}:3: the pairs are from another world") as error:
        PreferenceDataset.load(path, world)
    assert len(str(error.value)) < 500


def test_a_policy_may_repeat_itself_but_a_hand_written_file_may_not(bandit, tmp_path):
    path = tmp_path / "pairs.jsonl"
    arm = torch.zeros(1, 1, dtype=torch.long)
    pairs = PreferenceDataset(bandit, arm[0], arm, arm)
    pairs.save(path)
    assert as_tuples(PreferenceDataset.load(path, bandit)) == as_tuples(pairs)
    row = json.loads(path.read_text(encoding="utf-8"))
    del row["world"]
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"{path}:1: chosen and rejected are both 'Seven minutes"):
        PreferenceDataset.load(path, bandit)


@pytest.mark.parametrize("path", [None, 3, b"pairs.jsonl"])
def test_what_is_no_path_is_refused(pairs, path):
    for call in (pairs.save, lambda path: PreferenceDataset.load(path, pairs.world)):
        with pytest.raises(TypeError, match=r"(?i)path"):
            call(path)


def test_a_folder_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        PreferenceDataset.load(tmp_path, world)


def test_wrapped_worlds_work_too(policy, world, tmp_path):
    env = gym.make("rlhf_toy/WordMDP-v0", max_length=3)
    pairs = collect(policy, env)
    assert as_tuples(pairs) == as_tuples(collect(policy, world))
    pairs.save(tmp_path / "pairs.jsonl")
    assert as_tuples(PreferenceDataset.load(tmp_path / "pairs.jsonl", env)) == as_tuples(pairs)
    with pytest.raises(TypeError, match="worlds, such as WordMDP"):
        collect(policy, gym.make("FrozenLake-v1"))


def test_pairs_move_only_to_devices_that_are_there(pairs):
    assert as_tuples(pairs.to("cpu")) == as_tuples(pairs)
    with pytest.raises(ValueError, match="'nowhere' cannot be used here"):
        pairs.to("nowhere")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"\n", "not JSON"),
        (b"[1]", "expected an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "film", "chosen": "good"}', "'rejected' is missing"),
        (b'{"prompt": "film", "chosen": 3, "rejected": "bad"}', "'chosen' must be text"),
        (b'{"prompt": "opera", "chosen": "good", "rejected": "bad"}', "unknown prompt 'opera'"),
        (b'{"prompt": "film", "chosen": "nice", "rejected": "bad"}', "unknown word 'nice'"),
        (b'{"prompt": "film", "chosen": "good and good and", "rejected": "bad"}', "4 words"),
        (b'{"prompt": "\xff", "chosen": "good", "rejected": "bad"}', "not JSON in UTF-8"),
        (b'{"prompt": "nap", "chosen": "bad", "rejected": "bad", "chosen": ""}', "occurs twice"),
        (
            b'{"prompt": "nap", "chosen": "very bad", "rejected": "very  bad"}',
            "are both 'very bad'",
        ),
        (b'{"prompt": "nap", "chosen": ["bad"], "rejected": "bad"}', "must be text, got ['bad']"),
        (b'{"prompt": "nap", "chosen": "bad", "rejected": "", "world": 3}', "another world"),
    ],
)
def test_a_bad_line_is_named_with_file_number_and_reason(world, tmp_path, line, reason):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD_LINE.encode() + line + b"\n" + GOOD_LINE.encode())
    with pytest.raises(ValueError) as error:
        PreferenceDataset.load(path, world)
    assert str(error.value).startswith(f"{path}:2: ")
    assert reason in str(error.value)


def test_an_empty_or_missing_file_is_refused(world, tmp_path):
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(FileNotFoundError):
        PreferenceDataset.load(path, world)
    path.touch()
    with pytest.raises(ValueError, match="empty"):
        PreferenceDataset.load(path, world)


def test_a_save_that_fails_leaves_the_old_file(pairs, tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text(GOOD_LINE)
    calls = iter([None] * 3)
    monkeypatch.setattr(module.json, "dumps", lambda *a, **k: next(calls) or "{}")
    with pytest.raises((StopIteration, RuntimeError)):
        pairs.save(path)
    assert path.read_text() == GOOD_LINE
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": torch.zeros(0, dtype=torch.long)},
        {"prompts": torch.full((200,), 6)},
        {"prompts": torch.zeros(200)},
        {"chosen": torch.zeros(200, 4, dtype=torch.long)},
        {"rejected": torch.zeros(199, 3, dtype=torch.long)},
        {"rejected": torch.full((200, 3), 12)},
        {"chosen": torch.full((200, 3), -1)},
        {"chosen": torch.tensor([[0, 11, 10]]).expand(200, 3)},  # a pad before the end
        {"prompts": torch.tensor(0)},
    ],
)
def test_columns_that_do_not_fit_are_refused(pairs, change):
    columns = {"prompts": pairs.prompts, "chosen": pairs.chosen, "rejected": pairs.rejected}
    with pytest.raises(ValueError):
        PreferenceDataset(pairs.world, **(columns | change))


def test_a_pad_token_is_no_arm(bandit):
    arm = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="pad"):
        PreferenceDataset(bandit, arm[0], arm, arm + bandit.pad_token)


def test_a_column_that_is_no_tensor_is_refused(pairs):
    with pytest.raises(TypeError, match="chosen must be a tensor"):
        PreferenceDataset(pairs.world, pairs.prompts, pairs.chosen.tolist(), pairs.rejected)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_bad_number_of_pairs_is_refused(policy, world, n):
    with pytest.raises(ValueError if type(n) is int else TypeError, match="n must be an integer"):
        collect(policy, world, n=n)


def test_pairs_need_an_annotator_and_a_generator(policy, world):
    with pytest.raises(TypeError, match="annotator must be one such as"):
        collect_preferences(policy, world, BradleyTerryAnnotator, 5, make_generator(0))
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        collect_preferences(policy, world, BradleyTerryAnnotator(), 5, None)


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "film", "chosen": "x" * 200_000, "rejected": "bad"},
        {"prompt": "x" * 200_000, "chosen": "good", "rejected": "bad"},
        {"prompt": "film", "chosen": [0] * 200_000, "rejected": "bad"},
        {f"key {i}": 0 for i in range(50_000)},
        {"prompt": "film", "chosen": "bad " * 50_000, "rejected": "bad"},
    ],
    ids=["word", "prompt", "list", "keys", "words"],
)
def test_messages_stay_short(world, tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(ValueError) as error:
        PreferenceDataset.load(path, world)
    assert len(str(error.value)) < 1_000


def test_long_responses_are_told_apart():
    class Long(TextWorld):
        fingerprint = "long"

        def __init__(self):
            words = [f"w{i}" for i in range(48)]
            super().__init__(("p", "q"), words, max_length=32, has_end_token=True)

    world, generator = Long(), make_generator(0)
    chosen, rejected = torch.randint(48, (2, 400, 32), generator=generator)
    chosen[200:] = chosen[:200]  # every chosen response occurs twice, with one other word in half
    chosen[300:, 0] = (chosen[300:, 0] + 1) % 48
    pairs = PreferenceDataset(world, torch.arange(400) % 2, chosen, rejected)
    prompts, responses, index = pairs.unique_responses()
    both = torch.cat([chosen, rejected])
    rows = torch.cat([pairs.prompts.repeat(2)[:, None], both], dim=1)
    assert len(responses) == len(rows.unique(dim=0)) == 700
    assert torch.equal(responses[index], both)
    assert torch.equal(prompts[index], rows[:, 0])
