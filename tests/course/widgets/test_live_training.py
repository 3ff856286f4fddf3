"""Training, live: the cell and its buttons."""

import gc
import html
import re
import subprocess
import sys
import threading
from functools import cache

import gymnasium as gym
import pytest
import torch

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.checkpoints import digest
from rlhf_toy.course.widgets.live_run import LiveRun
from rlhf_toy.course.widgets.live_training import LiveTraining
from rlhf_toy.dpo import DPOSettings, train_dpo
from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.ppo import PPOSettings, train_ppo
from rlhf_toy.preferences import collect_preferences
from rlhf_toy.training import make_generator

WORLD = WordMDP(max_length=2)
REFERENCE = PolicyModel(
    GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16), make_generator(3)
)
PAIRS = collect_preferences(REFERENCE, WORLD, BradleyTerryAnnotator(), 300, make_generator(4))
PPO = PPOSettings(iterations=12, batch_size=32, num_mini_batches=4, measure_every=4)
DPO = DPOSettings(steps=12, batch_size=32, measure_every=4)
PATIENCE = 60  # seconds after which a thread that has not ended fails its test


def ppo(settings=PPO, **options):
    return LiveTraining.ppo(
        WORLD, REFERENCE, WORLD.response_rewards, settings, device="cpu", **options
    )


def dpo(settings=DPO, **options):
    return LiveTraining.dpo(PAIRS, REFERENCE, settings, device="cpu", **options)


CELLS = {"PPO": ppo, "DPO": dpo}


@cache
def straight(name):
    """Policy and history of the trainer's own run, which is never halted."""
    quiet = {"device": "cpu", "watch": lambda *_: None}
    if name == "PPO":
        return train_ppo(WORLD, REFERENCE, WORLD.response_rewards, PPO, **quiet)
    return train_dpo(PAIRS, REFERENCE, DPO, start=REFERENCE, **quiet)


def line(cell):
    return html.unescape(re.sub("<[^>]*>", "", cell.line.value))


def can_be_pressed(cell):
    return {button.description for button in cell.buttons.children if not button.disabled}


@pytest.fixture(autouse=True)
def nothing_is_printed_and_no_thread_is_left(capfd):
    yield
    if LiveRun.active is not None:
        LiveRun.active.ask_for("stopped")
        LiveRun.active.wait(PATIENCE)
    assert not [t for t in threading.enumerate() if t.name == "live-training"]
    assert capfd.readouterr() == ("", "")


class Held:
    """A reward that waits at a gate: the test decides when a step ends."""

    def __init__(self):
        self.gate, self.arrived = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, prompts, responses):
        self.arrived.set()
        assert self.gate.wait(PATIENCE)
        return WORLD.response_rewards(prompts, responses)

    def close(self):
        self.gate.clear()
        self.arrived.clear()


@pytest.fixture
def held():
    """A cell whose first step cannot end before its gate is opened."""
    reward = Held()
    cell = LiveTraining.ppo(WORLD, REFERENCE, reward, PPO, device="cpu")
    reward.close()
    yield cell, reward
    reward.gate.set()


@pytest.mark.parametrize("name", CELLS)
def test_a_run_from_start_to_done_is_the_trainers_run(name):
    cell = CELLS[name]()
    before = cell.chart.value
    assert cell.state == "ready"
    cell.start.click()
    assert cell.wait(PATIENCE) == "done"
    policy, history = straight(name)
    assert digest(cell.policy) == digest(policy)
    assert cell.history.rows == history.rows
    assert cell.chart.value != before
    assert cell.progress.value == 12 and cell.progress.description == "step 12 of 12"
    assert line(cell).startswith(f"Done. {name}, β = 0.5, learning rate")


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("button", ["pause", "stop"])
def test_a_halted_run_resumes_bit_for_bit(name, button):
    cell = CELLS[name]()
    cell.start.click()
    halts = 0
    while cell.state == "running":
        getattr(cell, button).click()
        state = cell.wait(PATIENCE)
        if state != "done":
            halts += 1
            assert state == {"pause": "paused", "stop": "stopped"}[button]
            assert cell.progress.value >= halts
            assert "Resume" in can_be_pressed(cell)
            cell.resume.click()
    policy, history = straight(name)
    assert halts >= 3  # sometimes a thread is faster than two clicks
    assert digest(cell.policy) == digest(policy)
    assert cell.history.rows == history.rows


def test_what_can_be_pressed_follows_the_state(held):
    cell, reward = held
    assert can_be_pressed(cell) == {"Start"}
    assert not cell.beta.disabled and not cell.learning_rate.disabled
    cell.start.click()
    assert reward.arrived.wait(PATIENCE)
    assert cell.state == "running"
    assert can_be_pressed(cell) == {"Pause", "Stop"}
    assert cell.beta.disabled and cell.learning_rate.disabled
    cell.pause.click()
    assert can_be_pressed(cell) == set()
    assert line(cell).startswith("Pausing after this step")
    reward.gate.set()
    assert cell.wait(PATIENCE) == "paused"
    assert can_be_pressed(cell) == {"Resume", "Stop"}
    assert cell.beta.disabled
    cell.stop.click()
    assert cell.state == "stopped"
    assert can_be_pressed(cell) == {"Resume", "New run"}
    assert cell.beta.disabled
    cell.resume.click()
    assert cell.wait(PATIENCE) == "done"
    assert can_be_pressed(cell) == {"New run"}
    cell.new_run.click()
    assert cell.state == "ready"
    assert can_be_pressed(cell) == {"Start"}
    assert not cell.beta.disabled and not cell.learning_rate.disabled


def test_policy_and_history_so_far_can_be_used_while_paused(held):
    cell, reward = held
    assert digest(cell.policy) == digest(REFERENCE)
    assert cell.history.rows == []
    cell.start.click()
    cell.pause.click()
    reward.gate.set()
    assert cell.wait(PATIENCE) == "paused"
    assert [row["step"] for row in cell.history.rows] == [1]
    assert digest(cell.policy) != digest(REFERENCE)
    assert "Nothing has been measured yet" in line(cell)
    kept = cell.policy
    now = digest(kept)
    cell.resume.click()
    cell.wait(PATIENCE)
    assert digest(kept) == now, "it is a copy, which training leaves alone"


def test_the_notebook_continues_while_a_run_waits_for_its_step(held):
    cell, reward = held
    cell.start.click()
    assert reward.arrived.wait(PATIENCE)
    assert cell.wait(0.01) == "running"
    assert cell.run.thread.daemon


def test_the_sliders_make_the_settings_with_the_digits_that_they_show():
    cell = ppo()
    cell.beta.value, cell.learning_rate.value = 0.123456, 0.00456789
    cell.start.click()
    assert cell.wait(PATIENCE) == "done"
    assert (cell.settings.beta, cell.settings.learning_rate) == (0.123, 0.00457)
    assert cell.settings.iterations == PPO.iterations
    assert "β = 0.123, learning rate 0.00457" in line(cell)


def test_a_slider_that_moves_during_a_run_goes_back(held):
    cell, _ = held
    cell.beta.value = 0.123456
    cell.start.click()
    assert cell.beta.value == 0.123
    cell.beta.value = 2.0
    assert cell.beta.value == cell.settings.beta == 0.123


def test_settings_that_come_back_bring_their_run_back():
    cell = ppo()
    cell.start.click()
    cell.wait(PATIENCE)
    first, rows, middle = digest(cell.policy), cell.history.rows, cell.beta.value
    cell.new_run.click()
    assert cell.progress.value == 0 and cell.history.rows == []
    cell.beta.value = 2.0
    cell.start.click()
    cell.wait(PATIENCE)
    assert digest(cell.policy) != first
    cell.new_run.click()
    cell.beta.value = middle
    cell.start.click()
    assert cell.wait(PATIENCE) == "done"
    assert digest(cell.policy) == first and cell.history.rows == rows


def test_a_run_in_a_folder_outlives_its_cell(tmp_path):
    one = ppo(folder=tmp_path)
    one.start.click()
    one.pause.click()
    assert one.wait(PATIENCE) == "paused"
    other = ppo(folder=tmp_path)
    steps = []
    look = other.run._look
    other.run._look = lambda step, *rest: (steps.append(step), look(step, *rest))
    other.start.click()
    assert other.wait(PATIENCE) == "done"
    assert steps[0] == one.progress.value + 1
    assert other.history.rows == straight("PPO")[1].rows


def test_runs_with_other_inputs_have_other_files(tmp_path):
    changed = PolicyModel(REFERENCE.config, make_generator(5))
    cells = [
        ppo(folder=tmp_path),
        ppo(folder=tmp_path, seed=1),
        dpo(folder=tmp_path),
        LiveTraining.dpo(PAIRS[:200], REFERENCE, DPO, folder=tmp_path),
        LiveTraining.ppo(WORLD, changed, WORLD.response_rewards, PPO, folder=tmp_path),
        LiveTraining.ppo(
            WORLD, REFERENCE, lambda x, y: -WORLD.response_rewards(x, y), PPO, folder=tmp_path
        ),
    ]
    for cell in cells:
        cell.start.click()
        assert cell.wait(PATIENCE) == "done"
    assert len(list(tmp_path.iterdir())) == len(cells)


def test_another_cell_pauses_the_one_that_trains(held):
    cell, reward = held
    cell.start.click()
    assert reward.arrived.wait(PATIENCE)
    again = ppo()  # the cell is run again
    reward.gate.set()
    assert cell.wait(PATIENCE) == "paused"
    assert again.state == "ready"
    reward.close()
    cell.resume.click()
    assert reward.arrived.wait(PATIENCE)
    again.start.click()
    reward.gate.set()
    assert cell.wait(PATIENCE) == "paused"
    assert again.wait(PATIENCE) == "done"


def test_pressing_twice_does_no_harm(held):
    cell, reward = held
    cell.start.click()
    cell.start.click()
    cell.resume.click()
    cell.new_run.click()
    assert [t.name for t in threading.enumerate()].count("live-training") == 1
    cell.pause.click()
    cell.pause.click()
    reward.gate.set()
    assert cell.wait(PATIENCE) == "paused"
    cell.pause.click()
    cell.start.click()
    cell.new_run.click()
    assert cell.state == "paused"
    cell.stop.click()
    cell.new_run.click()
    runs = dict(cell._runs)
    cell.new_run.click()
    cell.resume.click()
    assert cell.state == "ready" and cell._runs == runs


@pytest.mark.parametrize("error", [RuntimeError("no memory <left>"), KeyboardInterrupt("enough")])
def test_a_failure_is_said_in_words_and_the_run_is_kept(error, monkeypatch):
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        if len(calls) == 5:  # the first two calls only look at the reward
            raise error
        return WORLD.response_rewards(prompts, responses)

    cell = LiveTraining.ppo(WORLD, REFERENCE, reward, PPO, device="cpu")
    cell.start.click()
    assert cell.wait(PATIENCE) == "failed"
    assert line(cell).startswith(f"Not possible: the run ended with {type(error).__name__}")
    assert str(error) in line(cell)
    assert can_be_pressed(cell) == {"Resume", "New run"}
    assert [row["step"] for row in cell.history.rows] == [1, 2]
    cell.resume.click()
    assert cell.wait(PATIENCE) == "done"
    assert cell.history.rows == straight("PPO")[1].rows


def test_a_failure_before_the_first_step_is_said_as_well():
    world = WordMDP(max_length=1)
    world.response_rewards = lambda prompts, responses: torch.zeros(len(prompts)).double()
    reference = PolicyModel(
        GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16), make_generator(3)
    )
    cell = LiveTraining.ppo(world, reference, world.response_rewards, PPO, device="cpu")
    cell.start.click()
    assert cell.wait(PATIENCE) == "failed"
    assert "no gap to measure" in line(cell)


def test_the_words_give_the_measurement():
    cell = ppo()
    cell.start.click()
    cell.wait(PATIENCE)
    row = cell.history.rows[-1]
    expected = (
        f"At step 12 the gap is {row['exact/gap']:.1%}: exact KL {row['exact/kl']:.2f} nats, "
        f"true reward {row['exact/reward']:.2f} logits."
    )
    assert expected in line(cell)


def test_the_static_figure_shows_the_earlier_run():
    history = straight("PPO")[1]
    assert ppo(earlier=history).figure != ppo().figure
    assert ppo(earlier=history).figure.startswith(b"\x89PNG")


def test_the_responses_change_with_the_policy():
    cell = ppo(PPOSettings(iterations=40, batch_size=64, learning_rate=1e-2, measure_every=20))
    before = cell.says.value
    cell.start.click()
    assert cell.wait(PATIENCE) == "done"
    assert cell.says.value != before
    cell.new_run.click()
    assert cell.says.value == before


def test_training_and_measuring_leave_the_global_random_state_and_the_inputs_alone():
    states, before = torch.get_rng_state(), digest(REFERENCE)
    cell = ppo()
    cell.start.click()
    cell.wait(PATIENCE)
    assert torch.equal(torch.get_rng_state(), states)
    assert digest(REFERENCE) == before


def test_runs_of_a_cell_without_a_folder_go_with_it():
    cell = ppo()
    folder = cell.run.folder
    assert folder.is_dir()
    for widget in [cell.box, *cell.box.children, *cell.buttons.children, *cell.sliders.children]:
        widget.close()
    del cell, widget
    gc.collect()
    assert not folder.exists()


def test_two_displays_show_one_state(capfd):
    cell = ppo()
    cell._ipython_display_()
    cell._ipython_display_()
    assert capfd.readouterr().out.count("LiveTraining") == 2
    cell.start.click()
    assert cell.wait(PATIENCE) == "done"


def test_a_wrapped_world_will_do():
    world = gym.make("rlhf_toy/WordMDP-v0", max_length=2)
    cell = LiveTraining.ppo(world, REFERENCE, WORLD.response_rewards, PPO, device="cpu")
    assert cell.state == "ready" and cell.says.value == ppo().says.value


SLIPPERY = SlipperyWordMDP(slip=0.1, max_length=2)


@pytest.mark.parametrize(
    "make, error, text",
    [
        (
            lambda: LiveTraining.ppo("world", REFERENCE, WORLD.response_rewards),
            TypeError,
            "worlds",
        ),
        (lambda: LiveTraining.ppo(WORLD, None, WORLD.response_rewards), TypeError, "PolicyModel"),
        (lambda: LiveTraining.ppo(WORLD, REFERENCE, 1.0), TypeError, "RewardModel"),
        (
            lambda: LiveTraining.ppo(WORLD, REFERENCE, lambda x, y: y),
            ValueError,
            "one number for each",
        ),
        (lambda: LiveTraining.ppo(WORLD, REFERENCE, lambda x, y: None), ValueError, "got None"),
        (lambda: ppo(DPO), TypeError, "PPOSettings"),
        (lambda: dpo(PPO), TypeError, "DPOSettings"),
        (lambda: ppo(seed=-1), ValueError, "seed"),
        (lambda: ppo(folder="/nowhere/at/all"), ValueError, "no folder"),
        (lambda: ppo(earlier=[1.0]), TypeError, "history"),
        (
            lambda: LiveTraining.ppo(WORLD, REFERENCE, WORLD.response_rewards, device="nowhere"),
            ValueError,
            "device",
        ),
        (
            lambda: LiveTraining.ppo(SLIPPERY, REFERENCE, SLIPPERY.response_rewards),
            ValueError,
            "deterministic",
        ),
        (
            lambda: LiveTraining.ppo(WordMDP(), REFERENCE, WordMDP().response_rewards),
            ValueError,
            "world",
        ),
        (lambda: LiveTraining.dpo("pairs", REFERENCE), TypeError, "PreferenceDataset"),
        (lambda: LiveTraining.dpo(PAIRS[:2], REFERENCE), ValueError, "too few"),
    ],
)
def test_bad_input_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


PROGRAM_THAT_ENDS = """
import sys, time
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.ppo import PPOSettings
from rlhf_toy.training import make_generator
from rlhf_toy.course.widgets.live_training import LiveTraining
world = WordMDP(max_length=2)
config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16)
reference = PolicyModel(config, make_generator(3))
settings = PPOSettings(iterations=100_000, batch_size=32)
cell = LiveTraining.ppo(world, reference, world.response_rewards, settings, folder=sys.argv[1])
cell.start.click()
while not cell.history.rows:
    time.sleep(0.01)
"""


def test_a_kernel_that_shuts_down_saves_the_run_and_does_not_crash(tmp_path):
    command = [sys.executable, "-c", PROGRAM_THAT_ENDS, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert len(list(tmp_path.glob("PPO-*.pt"))) == 1
