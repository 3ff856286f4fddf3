"""Measures what the course promises: `python tests/benchmarks/measure.py NAME`, NAME as below.

Times are of this machine at this moment; run one at a time and nothing beside it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import ipywidgets
import torch

from rlhf_toy.annotators import BradleyTerryAnnotator, preference_ceiling
from rlhf_toy.course.widgets.annotator import HumanAnnotator
from rlhf_toy.course.widgets.clip_explorer import ClipExplorer
from rlhf_toy.course.widgets.dpo_gradient import DPOGradient
from rlhf_toy.course.widgets.gibbs_explorer import GibbsExplorer
from rlhf_toy.course.widgets.raters import RatersAndScales
from rlhf_toy.course.widgets.who_said_what import WhoSaidWhat
from rlhf_toy.course.widgets.word_by_word import WordByWord
from rlhf_toy.dpo import DPOSettings, train_dpo, train_online_dpo
from rlhf_toy.envs import STAYS, LongReview, WordMDP
from rlhf_toy.exact import (
    AutomatonYardstick,
    Yardstick,
    automaton_optimum,
    gibbs_policy,
    response_logps,
    response_scores,
    table_reference,
)
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.policy_gradient import train_policy_gradient
from rlhf_toy.ppo import PPOSettings, train_ppo
from rlhf_toy.preferences import collect_preferences
from rlhf_toy.reward_model import RewardModelSettings, pair_rewards, train_reward_model
from rlhf_toy.sampling import sample
from rlhf_toy.sft import SFTSettings, SFTState, sft_iteration, train_reference
from rlhf_toy.training import History, make_generator

WORLD = WordMDP()
SEEDS = range(5)


def startup() -> None:
    """Seconds to import the package in a fresh process."""
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import rlhf_toy"], check=True)
        print(f"import rlhf_toy: {time.perf_counter() - start:.2f} s")


def logps() -> None:
    """Seconds of `response_logps` over the whole word world."""
    reference, _ = train_reference(WORLD)
    for _ in range(5):
        start = time.perf_counter()
        count = response_logps(reference, WORLD).numel()
        seconds = time.perf_counter() - start
        per_250k = seconds * 250_000 / count
        print(f"{count:,} responses: {seconds:.2f} s, {per_250k:.2f} s per 250,000")


def steps() -> None:
    """Milliseconds of a step of 256 pairs, of a PPO iteration, and of sampling 1,024 responses."""
    reference, _ = train_reference(WORLD, SFTSettings(steps=100))
    pairs = collect_preferences(
        reference, WORLD, BradleyTerryAnnotator(), 20_000, make_generator(1, reference.device)
    )
    generator = make_generator(0, reference.device)
    prompts = WORLD.sample_prompts(1_024, generator)
    rewards, common = WORLD.response_rewards, {"batch_size": 256, "measure_every": 10_000}
    runs = {
        "DPO step": lambda n: train_dpo(pairs, reference, DPOSettings(steps=n, **common)),
        "reward-model step": lambda n: train_reward_model(
            pairs, RewardModelSettings(steps=n, **common)
        ),
        "PPO iteration": lambda n: train_ppo(
            WORLD, reference, rewards, PPOSettings(iterations=n, measure_every=10_000)
        ),
    }
    for name, run in runs.items():
        few, many = ([_seconds(partial(run, n)) for _ in range(3)] for n in (5, 45))
        each = (statistics.median(many) - statistics.median(few)) / 40
        print(f"{name}: {1e3 * each:.1f} ms", flush=True)
    draw = partial(sample, reference, WORLD, prompts, generator)
    print(f"sampling: {1e3 * statistics.median(_seconds(draw) for _ in range(15)):.1f} ms")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ppo() -> None:
    """Gap and seconds of PPO on the true reward, default settings, one reference per seed."""
    gaps = []
    for seed in SEEDS:
        reference, _ = train_reference(WORLD, seed=seed)
        start = time.perf_counter()
        _, history = train_ppo(WORLD, reference, WORLD.response_rewards, seed=seed)
        seconds = time.perf_counter() - start
        gaps.append(history.last("exact/gap"))
        print(f"seed {seed}: gap {gaps[-1]:.2%}, {seconds:.1f} s", flush=True)
    print(f"median gap {statistics.median(gaps):.2%}")


def reward_model() -> None:
    """Accuracy on 50,000 fresh pairs, expected over the annotator's noise, against its ceiling."""
    annotator = BradleyTerryAnnotator()
    for seed in SEEDS:
        reference, _ = train_reference(WORLD, seed=seed)
        generator = make_generator(seed)
        pairs = collect_preferences(reference, WORLD, annotator, 20_000, generator)
        start = time.perf_counter()
        model, history = train_reward_model(pairs, seed=seed)
        seconds = time.perf_counter() - start
        fresh = collect_preferences(reference, WORLD, annotator, 50_000, generator)
        true = [
            WORLD.response_rewards(fresh.prompts, responses)
            for responses in (fresh.chosen, fresh.rejected)
        ]
        with torch.inference_mode():
            chosen, rejected = pair_rewards(model, fresh)
        p = annotator.preference_probability(*true)
        said = torch.where(chosen == rejected, 0.5, torch.where(chosen > rejected, p, 1 - p))
        print(
            f"seed {seed}: accuracy {float(said.mean()):.4f}, "
            f"ceiling {float(preference_ceiling(annotator, *true)):.4f}, on held-out labels "
            f"{history.last('held_out/accuracy'):.4f}, {seconds:.1f} s",
            flush=True,
        )


def rloo() -> None:
    """Gap and seconds of RLOO beside PPO, default settings, as many responses for each."""
    for seed in SEEDS:
        reference, _ = train_reference(WORLD, seed=seed)
        for train in (train_ppo, train_policy_gradient):
            start = time.perf_counter()
            _, history = train(WORLD, reference, WORLD.response_rewards, seed=seed)
            seconds = time.perf_counter() - start
            gap = history.last("exact/gap")
            print(f"{train.__name__}, seed {seed}: gap {gap:.2%}, {seconds:.1f} s", flush=True)


MANY = DPOSettings(steps=1_200, batch_size=2_048, weight_decay=0.1)


def dpo() -> None:
    """DPO's gap, beside the exact optimum of a reward model on the same pairs."""
    for n, settings, seeds in ((20_000, DPOSettings(), SEEDS), (200_000, MANY, range(1))):
        for seed in seeds:
            reference, _ = train_reference(WORLD, seed=seed)
            generator = make_generator(seed)
            pairs = collect_preferences(reference, WORLD, BradleyTerryAnnotator(), n, generator)
            yardstick = Yardstick(WORLD, reference, settings.beta)
            start = time.perf_counter()
            policy, _ = train_dpo(pairs, reference, settings, seed=seed, yardstick=yardstick)
            seconds = time.perf_counter() - start
            model, _ = train_reward_model(pairs, seed=seed)
            scores = response_scores(model, WORLD).cpu()
            optimum = gibbs_policy(yardstick.ref_logps, scores, settings.beta)
            print(
                f"{n:,} pairs, seed {seed}: gap {yardstick.measure(policy).gap:.2%} in "
                f"{seconds:.0f} s, reward model {yardstick.measure(optimum).gap:.2%}",
                flush=True,
            )


def online_dpo() -> None:
    """Gap and seconds of online DPO, default settings: 100,000 pairs in five rounds."""
    for seed in SEEDS:
        reference, _ = train_reference(WORLD, seed=seed)
        start = time.perf_counter()
        policy, _ = train_online_dpo(WORLD, reference, BradleyTerryAnnotator(), seed=seed)
        seconds = time.perf_counter() - start
        gap = Yardstick(WORLD, reference, 0.5).measure(policy).gap
        print(f"seed {seed}: gap {gap:.2%}, {seconds:.0f} s", flush=True)


def long_world() -> None:
    """Seconds to build and solve the long world, and to measure a GPT there by 8,192 samples."""
    start = time.perf_counter()
    world = LongReview()
    print(f"build the automaton: {time.perf_counter() - start:.2f} s")
    for _ in range(3):
        print(f"solve it: {_seconds(partial(automaton_optimum, world.automaton(), 0.1)):.2f} s")
    yardstick = AutomatonYardstick(world, 0.1)
    policy = PolicyModel(GPTConfig.for_world(world), make_generator(0))
    print(f"measure: {_seconds(partial(yardstick.measure, policy)):.2f} s")


IN_LONG_WORLD = PPOSettings(
    beta=0.1, iterations=300, batch_size=512, num_mini_batches=8, measure_every=10_000
)


def long_ppo() -> None:
    """Gap of PPO on the true reward in the long world after minutes of training, by seed."""
    world = LongReview()
    reference = table_reference(world)
    yardstick = AutomatonYardstick(world, IN_LONG_WORLD.beta)
    for seed in SEEDS:
        begun = time.perf_counter()
        start, _ = train_reference(world, SFTSettings(steps=400), seed=seed)
        found = yardstick.measure(start)
        print(
            f"seed {seed}: SFT {time.perf_counter() - begun:.0f} s, KL to the table {found.kl:.3f}"
        )
        spent, resumed = 0.0, time.perf_counter()

        def watch(step: int, policy: PolicyModel, history: History) -> None:
            nonlocal spent, resumed
            spent += time.perf_counter() - resumed
            if step and step % 50 == 0:
                found = yardstick.measure(policy)
                gap = f"{found.gap:.2%} ± {1.96 * found.standard_error:.2%}"
                length = response_lengths(policy, world)
                print(f"  step {step}, {spent:.0f} s: gap {gap}, {length:.1f} words", flush=True)
            resumed = time.perf_counter()

        arguments = (world, reference, world.response_rewards, IN_LONG_WORLD, seed)
        train_ppo(*arguments, start=start, yardstick=yardstick, watch=watch)


def response_lengths(policy: PolicyModel, world: LongReview) -> float:
    """Mean number of tokens, the end included, of 1,024 sampled responses."""
    prompts = world.sample_prompts(1_024, make_generator(0, policy.device))
    mask = sample(policy, world, prompts, make_generator(1, policy.device)).mask
    return float(mask.sum(1).float().mean())


def hacks() -> None:
    """What a reward model that saw the reference's long reviews thinks of other texts."""
    world = LongReview()
    reference, generator = table_reference(world), make_generator(0)
    pairs = collect_preferences(reference, world, BradleyTerryAnnotator(), 20_000, generator)
    model, _ = train_reward_model(pairs, RewardModelSettings(steps=300, batch_size=256))
    prompts = world.sample_prompts(2_000, generator)
    optimum = automaton_optimum(world.automaton(), IN_LONG_WORLD.beta)
    fluent = sample(reference, world, prompts, generator).responses
    texts = {"the reference's": fluent, "the optimum's": optimum.sample(prompts, generator)}
    for n in (4, 16):
        texts[f"{n} times 'great'"] = world.encode("great " * n).expand_as(fluent)
        repeated = " and ".join(["the room is great"] * (n // 4))
        texts[f"one praise, {n // 4} time(s)"] = world.encode(repeated).expand_as(fluent)
    for name, responses in texts.items():
        with torch.inference_mode():
            learned = float(model(prompts, responses).mean())
        true = float(world.response_rewards(prompts, responses).mean())
        print(f"{name:<26} learned {learned:+.2f}, true {true:+.2f}", flush=True)


def coverage() -> None:
    """How often a sampled measure's 95 % interval has the enumerated gap in it, of 1,000 seeds."""
    few_words = {"determiners": ("the",), "verbs": ("is",), "intensifiers": {"very": 1.5}}
    few_words |= {"negations": {"not": -0.6}, "conjunctions": {"and": 1, "but": -1}}
    tastes = {"room": {"good": 0.6, "loud": -0.9}, "food": {"good": 0.6, "cold": -0.6}}
    few = replace(STAYS, aspects=tastes, corpus_weights={}, prompts=("hotel",), importance={})
    world, beta = LongReview(replace(few, floor=0.01, **few_words), max_length=5), 0.3
    reference = table_reference(world)
    exact = Yardstick(world, reference, beta)
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16)
    random, imitator = (PolicyModel(config, make_generator(0)) for _ in range(2))
    prompts, responses = world.sample_corpus(20_000, make_generator(1))
    data, sft = (prompts, responses, world.response_mask(responses)), SFTSettings(steps=600)
    state = SFTState(imitator, sft, make_generator(0))
    while state.step < sft.steps:
        sft_iteration(state, *data, sft)
    settings = PPOSettings(beta=beta, iterations=60, batch_size=512)
    arguments = (world, reference, world.response_rewards, settings)
    trained, _ = train_ppo(*arguments, start=imitator, yardstick=exact)
    yardstick = AutomatonYardstick(world, beta, samples=4_096)
    for name, policy in (("random", random), ("SFT", imitator), ("PPO", trained)):
        gap, hits, errors = exact.measure(policy).gap, 0, []
        for seed in range(1_000):
            yardstick.seed = seed
            measure = yardstick.measure(policy)
            hits += abs(measure.gap - gap) < 1.96 * measure.standard_error
            errors.append(measure.gap - gap)
        bias, error = statistics.mean(errors), statistics.stdev(errors) / 1_000**0.5
        print(f"{name} GPT, gap {gap:.2%}: {hits / 10:.1f} %, bias {bias:.1e} ± {error:.1e}")


def redraws() -> None:
    """Seconds in which each interactive cell answers: to sliders, words, typed text and buttons."""
    model = PolicyModel(GPTConfig.for_world(WORLD), make_generator(0))
    word_by_word, who = WordByWord(WORLD, model), WhoSaidWhat(WORLD, model, model, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        annotator = HumanAnnotator(WORLD, path=f"{folder}/answers.jsonl")
        buttons = [*word_by_word.buttons.values()][: WORLD.max_length]
        texts = ("great", "not very dull", "very loud and long", "good but not great", "")
        actions: dict[str, list[Callable[[], object]]] = {
            type(cell).__name__: list(_slider_moves(cell.box))
            for cell in (RatersAndScales(), GibbsExplorer(), ClipExplorer(), DPOGradient())
        }
        actions["WordByWord"] = [b.click for b in (*buttons, word_by_word.reset)] * 5
        actions["WhoSaidWhat"] = [partial(setattr, who.text, "value", text) for text in texts] * 5
        actions["HumanAnnotator"] = [annotator.left.click, annotator.right.click] * 15
        for name, moves in actions.items():
            seconds = []
            for move in moves:
                start = time.perf_counter()
                move()
                seconds.append(time.perf_counter() - start)
            print(
                f"{name}: median {statistics.median(seconds):.2f} s, 90 % within "
                f"{statistics.quantiles(seconds, n=10)[-1]:.2f} s, longest {max(seconds):.2f} s "
                f"of {len(seconds)}",
                flush=True,
            )


def _slider_moves(widget: ipywidgets.Widget) -> Iterator[Callable[[], None]]:
    """Each slider in the widget moved to eight places between its ends, one after the other."""
    for child in getattr(widget, "children", ()):
        yield from _slider_moves(child)
    if isinstance(widget, ipywidgets.SelectionSlider):
        yield from (partial(setattr, widget, "index", i) for i in range(len(widget.options)))
    elif isinstance(widget, ipywidgets.FloatSlider | ipywidgets.IntSlider):
        for i in range(8):
            place = widget.min + (widget.max - widget.min) * i / 7
            yield partial(setattr, widget, "value", type(widget.value)(place))
    elif isinstance(widget, ipywidgets.FloatLogSlider):
        yield from (
            partial(
                setattr,
                widget,
                "value",
                widget.base ** (widget.min + i / 7 * (widget.max - widget.min)),
            )
            for i in range(8)
        )


if __name__ == "__main__":
    measurements = {
        f.__name__: f
        for f in (
            startup,
            logps,
            steps,
            ppo,
            reward_model,
            rloo,
            dpo,
            online_dpo,
            long_world,
            long_ppo,
            hacks,
            coverage,
            redraws,
        )
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=measurements)
    measurements[parser.parse_args().name]()
