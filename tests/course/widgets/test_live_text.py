"""The words of a live training: the run, its measurement, and responses side by side."""

import torch

from rlhf_toy.course.widgets.live_text import (
    describe,
    measured_words,
    responses_of,
    responses_table,
)
from rlhf_toy.dpo import DPOSettings
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import History, make_generator

WORLD = WordMDP(max_length=2)
REFERENCE = PolicyModel(
    GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16), make_generator(3)
)


def test_a_run_is_named_with_three_digits():
    settings = DPOSettings(beta=0.12345, learning_rate=0.00067891)
    assert describe("DPO", settings) == "DPO, β = 0.123, learning rate 0.000679"


def test_nothing_measured_is_said():
    assert measured_words(History()) == "Nothing has been measured yet."


def test_the_words_say_which_policy_early_stopping_keeps():
    history = History()
    for step, loss in ((5, 0.6), (10, 0.5), (15, 0.7)):
        exact = {"exact/gap": loss, "exact/kl": 1.0, "exact/reward": 2.0}
        history.record(step, {"held_out/loss": loss, **exact})
    assert "At step 15 the gap is 70.0%" in measured_words(history)
    kept = measured_words(history, best_held_out=True)
    assert kept.startswith("At step 10, where the held-out loss was lowest (this policy is kept),")
    assert "50.0%" in kept


def test_responses_are_sampled_with_the_same_seed_each_time():
    state = torch.get_rng_state()
    rows = responses_of(REFERENCE, WORLD)
    assert rows == responses_of(REFERENCE, WORLD)
    assert torch.equal(torch.get_rng_state(), state)
    assert [row[0] for row in rows] == list(WORLD.prompts[:3])
    for prompt, text, reward in rows:
        words = "" if text == "(empty)" else text
        x = torch.tensor([WORLD.prompt_index(prompt)])
        assert reward == float(WORLD.response_rewards(x, WORLD.encode(words)[None]))


def test_the_table_of_responses_is_escaped():
    table = responses_table([("<film>", "good", 1.0)], [("<film>", "a & b", -0.5)])
    assert "&lt;film&gt;" in table and "a &amp; b (-0.50)" in table and "good (+1.00)" in table
