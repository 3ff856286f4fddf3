"""What `bench.py` times: our steps and samples beside those of TRL, transformers and choix.

In a contest both sides have the same model, data and number of updates. Preparations (tokenising,
building a trainer, compiling lists) never count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch.utils.flop_counter import FlopCounterMode

from rlhf_toy import dpo, policy_gradient, reward_model, training
from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.bradley_terry import fit_bradley_terry
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, RewardModel
from rlhf_toy.preferences import collect_preferences
from rlhf_toy.sampling import sample
from rlhf_toy.sft import SFTSettings, train_reference

WORLD, BETA, LEARNING_RATE = WordMDP(), 0.5, 1e-3
PAIRS = 256  # in a step of DPO or of a reward model
RESPONSES, UPDATES, GROUP = 1_024, 4, 4  # of an iteration of RLOO or GRPO; responses to a prompt
STEPS, WARM = 17, 4  # steps that are begun in a round, of which the first ones do not count
ITEMS, COMPARISONS = 1_000, 1_000_000  # of Bradley–Terry
SAME = 1e-6  # logits by which two Bradley–Terry fits may differ

Turn = Callable[[], float]  # does some work and returns its milliseconds


@dataclass(frozen=True)
class Contest:
    """What is timed, on our side and on theirs."""

    name: str
    counts: str  # what a time is of
    ours: Turn
    theirs: dict[str, Turn]
    operations: float | None = None  # of ours, in single precision; see `operations`


def operations(work: Callable[[], object]) -> float:
    """Count the floating-point operations of the matrix products in some work.

    Each multiply-add is two operations, counted as it happens, backward passes included. Norms,
    activations, softmax, attention over a cache (sums, not products of matrices) and optimisers are
    left out, so a share of the machine's rate that is based on it is never too high.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def between(stamps: list[float], warm: int, each: int = 1) -> float:
    """The median milliseconds of `each` steps, from the seconds at which steps began."""
    marks = stamps[warm::each]
    return 1e3 * statistics.median(b - a for a, b in pairwise(marks))


def milliseconds(work: Callable[[], object]) -> float:
    """The milliseconds of some work."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def our_steps(state: training.State, iterate: Callable[[], Any], steps: int, warm: int) -> float:
    """Train as our trainers do, and return the milliseconds from one step's begin to the next.

    So all that the loop does counts: the check that everything is finite, the history, the bar.
    """
    stamps = []

    def stamped() -> training.Metrics:
        stamps.append(time.perf_counter())
        return iterate()

    training.run_steps(state, stamped, steps, Checkpoint(None, "bench", None, 0))
    return between(stamps, warm)


def their_steps(build: Callable[..., Any], each: int = 1) -> float:
    """Train with a trainer of TRL's, and return the milliseconds from one step's begin to the next.

    Args:
        build: returns the trainer, given its `callbacks`.
        each: steps that are timed together, where only some of them sample.
    """
    from transformers import TrainerCallback

    stamps = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    build(callbacks=[Clock()]).train()
    return between(stamps, WARM, each)


class Contests:
    """All contests. The reference, the pairs and what else both sides share is made once."""

    def __init__(self, folder: Path) -> None:
        from rlhf_toy.bridge import to_dataset, to_hugging_face

        self.folder = folder
        self.reference, _ = train_reference(WORLD, SFTSettings(steps=100), device="cpu")
        annotator, generator = BradleyTerryAnnotator(), training.make_generator(1)
        self.pairs = collect_preferences(self.reference, WORLD, annotator, 5_000, generator)
        with torch.no_grad():
            self.ref_logps = dpo.pair_logps(self.reference, self.pairs)
        self.twin = partial(to_hugging_face, self.reference, WORLD)  # a model and its tokenizer
        for part in self.twin():
            part.save_pretrained(folder / "model")
        self.rows = {
            "train_dataset": to_dataset(self.pairs),
            "processing_class": self.twin()[1],
        }

    def all(self) -> list[Contest]:
        """Return the contests, in the order of the table."""
        step = f"a step of {PAIRS} pairs, from its begin to that of the next"
        iteration = f"{RESPONSES:,} responses sampled, scored and learned from in {UPDATES} updates"
        return [
            Contest(
                "DPO",
                step,
                self.our_dpo,
                {
                    "TRL, reference precomputed": partial(self.their_dpo, True),
                    "TRL, as it comes": partial(self.their_dpo, False),
                },
                self.step_operations(self.begin_dpo),
            ),
            Contest(
                "reward model",
                step,
                self.our_reward_model,
                {"TRL": self.their_reward_model},
                self.step_operations(self.begin_reward_model),
            ),
            *(
                Contest(
                    name,
                    iteration,
                    partial(self.our_online, method),
                    {"TRL": partial(self.their_online, name)},
                    self.step_operations(partial(self.begin_online, method)),
                )
                for name, method in METHODS.items()
            ),
            Contest(
                "sampling",
                f"{RESPONSES:,} responses",
                partial(milliseconds, self.our_sampling()),
                {"transformers' generate": partial(milliseconds, self.their_sampling())},
                operations(self.our_sampling()),
            ),
            bradley_terry(),
        ]

    def step_operations(self, begin: Callable[[], tuple[Any, Callable[[], object]]]) -> float:
        """The operations of one of our steps, after as many as are not timed."""
        _, iterate = begin()
        for _ in range(WARM):
            iterate()
        return operations(iterate)

    def common(self, steps: int, **more: Any) -> dict[str, Any]:
        """The settings that all of TRL's trainers share."""
        return {
            "output_dir": str(self.folder / "trl"),
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "per_device_train_batch_size": PAIRS,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1_000,
            "save_strategy": "no",
            "disable_tqdm": True,
            **more,
        }

    # DPO, on the reference's own weights.

    def begin_dpo(self) -> tuple[training.State, Callable[[], training.Metrics]]:
        settings = dpo.DPOSettings(BETA, steps=STEPS, batch_size=PAIRS, learning_rate=LEARNING_RATE)
        policy = training.trainable_copy(self.reference, WORLD)
        state = dpo.DPOState(policy, settings, training.make_generator(0))
        rest = (self.pairs, self.ref_logps, settings)
        return state, partial(dpo.dpo_iteration, state, *rest)

    def our_dpo(self) -> float:
        return our_steps(*self.begin_dpo(), STEPS, WARM)

    def their_dpo(self, precompute: bool) -> float:
        from trl import DPOConfig, DPOTrainer

        settings = DPOConfig(beta=BETA, precompute_ref_log_probs=precompute, **self.common(STEPS))
        model, frozen = self.twin()[0], self.twin()[0]
        return their_steps(partial(DPOTrainer, model, frozen, settings, **self.rows))

    # A reward model, from fresh weights.

    def begin_reward_model(self) -> tuple[training.State, Callable[[], training.Metrics]]:
        settings = reward_model.RewardModelSettings(STEPS, PAIRS, LEARNING_RATE)
        model = RewardModel(GPTConfig.for_world(WORLD), training.make_generator(0))
        state = reward_model.RewardModelState(model, settings, training.make_generator(0))
        return state, partial(reward_model.reward_model_iteration, state, self.pairs, settings)

    def our_reward_model(self) -> float:
        return our_steps(*self.begin_reward_model(), STEPS, WARM)

    def their_reward_model(self) -> float:
        from transformers import GPT2ForSequenceClassification
        from trl import RewardConfig, RewardTrainer

        config = self.twin()[0].config
        config.num_labels = 1
        scorer, settings = GPT2ForSequenceClassification(config), RewardConfig(**self.common(STEPS))
        return their_steps(partial(RewardTrainer, scorer, settings, **self.rows))

    # RLOO and GRPO, on the true reward.

    def begin_online(
        self, method: dict[str, str]
    ) -> tuple[training.State, Callable[[], training.Metrics]]:
        settings = policy_gradient.PolicyGradientSettings(
            beta=BETA,
            iterations=STEPS,
            batch_size=RESPONSES,
            num_generations=GROUP,
            num_mini_batches=UPDATES,
            learning_rate=LEARNING_RATE,
            **method,
        )
        policy = training.trainable_copy(self.reference, WORLD)
        state = policy_gradient.PolicyGradientState(policy, settings, training.make_generator(0))
        rest = (WORLD, self.reference, WORLD.response_rewards, settings)
        return state, partial(policy_gradient.policy_gradient_iteration, state, *rest)

    def our_online(self, method: dict[str, str]) -> float:
        # As many updates as TRL's trainer does, in iterations of `UPDATES`.
        return our_steps(*self.begin_online(method), STEPS // UPDATES + 1, WARM // UPDATES)

    def their_online(self, name: str) -> float:
        import trl
        from datasets import Dataset

        from rlhf_toy.bridge import to_prompts, to_reward_function

        more = {"loss_type": "grpo"} if name == "GRPO" else {}
        settings = getattr(trl, f"{name}Config")(
            beta=BETA,
            num_generations=GROUP,
            steps_per_generation=UPDATES,
            max_completion_length=WORLD.max_length,
            **self.common(STEPS, per_device_train_batch_size=RESPONSES // UPDATES),
            **more,
        )
        reward = to_reward_function(WORLD.response_rewards, WORLD)
        data = Dataset.from_dict({"prompt": to_prompts(WORLD) * 1_000})
        trainer, model = getattr(trl, f"{name}Trainer"), str(self.folder / "model")
        return their_steps(partial(trainer, model, reward, settings, train_dataset=data), UPDATES)

    # Sampling.

    def our_sampling(self) -> Callable[[], object]:
        generator = training.make_generator(0)
        prompts = WORLD.sample_prompts(RESPONSES, generator)
        return partial(sample, self.reference, WORLD, prompts, generator)

    def their_sampling(self) -> Callable[[], object]:
        model, prompts = self.twin()[0], WORLD.sample_prompts(RESPONSES, training.make_generator(0))
        tokens = WORLD.prompt_tokens(prompts)[:, None]
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": WORLD.max_length}
        return partial(model.generate, **inputs, **settings)


METHODS = {  # our settings of what TRL's trainers do
    "RLOO": {},
    "GRPO": {
        "advantage": "grpo",
        "kl": "k3_loss",
        "kl_level": "token",
        "aggregate": "response_mean",
    },
}


def bradley_terry() -> Contest:
    """Plain maximum likelihood; each side gets the comparisons in the form that it takes."""
    import choix

    generator = np.random.default_rng(0)
    truth = generator.normal(size=ITEMS)
    first = generator.integers(ITEMS, size=COMPARISONS)
    second = (first + generator.integers(1, ITEMS, size=COMPARISONS)) % ITEMS
    wins = generator.random(COMPARISONS) < expit(truth[first] - truth[second])
    winners, losers = np.where(wins, first, second), np.where(wins, second, first)
    rows = np.column_stack([winners, losers]).tolist()
    counts = np.bincount(winners * ITEMS + losers, minlength=ITEMS**2).reshape(ITEMS, ITEMS)
    fits = {
        "choix, ilsr_pairwise": partial(choix.ilsr_pairwise, ITEMS, rows),
        "choix, ilsr_pairwise_dense": partial(choix.ilsr_pairwise_dense, counts.astype(float)),
    }
    rewards, _ = fit_bradley_terry(winners, losers, ITEMS)
    found = [fit() for fit in fits.values()]
    difference = max(np.abs(theirs - theirs.mean() - rewards).max() for theirs in found)
    if difference > SAME:
        raise SystemExit(f"the rewards differ by {difference:.1g} logits, so speeds say nothing")
    return Contest(
        "Bradley–Terry",
        f"{ITEMS:,} items, {COMPARISONS:,} comparisons, no penalty, rewards equal to "
        f"{difference:.0e} logits; ours with standard errors; dense: counted beforehand",
        partial(milliseconds, partial(fit_bradley_terry, winners, losers, ITEMS)),
        {name: partial(milliseconds, fit) for name, fit in fits.items()},
    )
