"""What the trainers share: seeds, minibatches, history, and the loop of steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from rlhf_toy.checkpoints import Checkpoint, digest
from rlhf_toy.checks import check_count, check_scores, check_type, shown
from rlhf_toy.envs import TextWorld
from rlhf_toy.models import PolicyModel, ResidualPolicy, check_fits

CHECKPOINT_EVERY = 25  # steps between two savings
PROBES = 2_048  # responses on which two reward functions are told apart
FAR_GAP = 2.0  # a final gap above it is worth a warning: twice as far from J* as the reference

Metrics = Mapping[str, Tensor | float]
Trainable = PolicyModel | ResidualPolicy
Reward = Callable[[Tensor, Tensor], Tensor]  # prompts [B], responses [B, T] → rewards [B]


class DivergenceError(ValueError):
    """Training stopped: a metric or a weight is no longer finite."""


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for; with None, CUDA where there is one and the CPU elsewhere.

    Raises:
        ValueError: no such device, or this machine has none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {shown(device)} cannot be used here: {reason}") from None
    return picked


def make_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a random generator of its own: nothing here touches the global random state.

    Raises:
        TypeError, ValueError: a seed that is no integer from 0 to 2**63 − 1, or a bad device.
    """
    check_count("seed", seed, 0, 2**63 - 1)
    return torch.Generator(device=pick_device(device)).manual_seed(seed)


def trainable_copy(policy: nn.Module, world: TextWorld) -> Trainable:
    """Return a copy of a policy that can be trained.

    Raises:
        TypeError: the policy is a table, so training needs a network to start from.
        ValueError: it was made for another world.
    """
    expected = "a PolicyModel or ResidualPolicy, since a table cannot be trained"
    check_type("start", policy, Trainable, expected)
    check_fits(policy, world)
    return copy.deepcopy(policy).requires_grad_(True)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=make_generator((seed * 1_000_003 + epoch) % 2**63))


def minibatch(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the rows [batch_size] of step `step`: each epoch is a new permutation of n rows.

    It depends on nothing but its arguments, so a run can resume from any step. The last rows of an
    epoch that do not fill a batch are left out; where n < batch_size, a batch is all n rows.
    """
    batch_size = min(batch_size, n)
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


def linear_decay(
    optimizer: Optimizer, learning_rate: float, step: int, steps: int, warmup_steps: int = 0
) -> None:
    """Set the learning rate of a step: it falls linearly, and reaches 0 after the last.

    During the first `warmup_steps` it is scaled by a factor that rises linearly to 1.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * warmup * (1 - step / steps)


class Stateful:
    """Something whose attributes are what a checkpoint saves of it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every attribute, by its name."""
        return {name: _saved(part) for name, part in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name, value in state.items():
            part = getattr(self, name)
            if isinstance(part, torch.Generator):
                part.set_state(value)
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                setattr(self, name, value)


def _saved(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part


class History(Stateful):
    """Metrics by name and step, in the order in which they were recorded."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def record(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Add metrics of a step; a second call for the same step extends its row."""
        if metrics and (not self.rows or self.rows[-1]["step"] != step):
            self.rows.append({"step": step})
        for name, value in metrics.items():
            self.rows[-1][name] = value.item() if isinstance(value, Tensor) else float(value)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a metric was recorded, and its values.

        Raises:
            KeyError: it was never recorded.
        """
        rows = [row for row in self.rows if name in row]
        if not rows:
            names = sorted({name for row in self.rows for name in row})
            raise KeyError(f"no metric {name!r}; there are {names}")
        return [row["step"] for row in rows], [row[name] for row in rows]

    def last(self, name: str) -> float:
        """Return a metric's last value; a KeyError if it was never recorded."""
        return self.series(name)[1][-1]

    def labelled(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return the last value of each metric in {metric: label}, as {label: text}."""
        recent: dict[str, float] = {}
        for row in self.rows[-100:]:
            recent |= row
        return {label: f"{recent[name]:.3g}" for name, label in labels.items() if name in recent}


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model whose weights follow the model's: d × old + (1 − d) × new.

    Call `update_parameters(model)` after every step; the copy is its `module`. d is `decay`, or
    (1 + n)/(10 + n) after n updates where that is less, so that a short run is not held back by
    its first weights. With a decay of 0 the copy is the model as it is.
    """

    def follow(averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, updates)

    return AveragedModel(model, multi_avg_fn=follow)


class BestSoFar(Stateful):
    """The weights with which a model had its lowest loss."""

    def __init__(self, model: nn.Module) -> None:
        self.loss = float("inf")
        self.weights = copy.deepcopy(model.state_dict())

    def offer(self, model: nn.Module, loss: float) -> None:
        """Keep a copy of the model's weights if this loss is the lowest so far."""
        if loss < self.loss:
            self.loss, self.weights = loss, copy.deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> None:
        """Load the best weights into the model."""
        model.load_state_dict(self.weights)


def frozen_reward(reward: Reward, world: TextWorld, device: torch.device) -> Reward:
    """Return a reward that training elsewhere cannot change, on the device.

    Raises:
        TypeError: it cannot be called.
        ValueError: a model that was made for another world.
    """
    kinds = "a RewardModel or a function such as world.response_rewards"
    check_type("reward", reward, Callable, kinds)
    if isinstance(reward, nn.Module):
        check_fits(reward, world)
        reward = copy.deepcopy(reward).to(device)
    return reward


def reward_digest(reward: Reward, world: TextWorld, device: torch.device) -> str:
    """Return a fingerprint of a reward: a model's weights, or a function's values.

    Functions are told apart by what they return for `PROBES` random responses and as many fluent
    ones, so a function whose values change from call to call never has the same fingerprint twice.
    """
    if isinstance(reward, nn.Module):
        return digest(type(reward).__name__, reward)
    generator = make_generator(0)
    tokens = torch.randint(world.n_actions, (PROBES, world.max_length), generator=generator)
    prompts, fluent = world.sample_corpus(PROBES, generator)
    prompts = prompts.repeat(2).to(device)
    responses = torch.cat([world.pad(tokens), fluent]).to(device)
    with torch.no_grad():
        return digest(check_scores(reward(prompts, responses), prompts))


class State(Stateful):
    """Everything that changes during training: a trainer's state adds models and optimizer.

    `generator` is the source of all randomness from here on, `step` the number of steps done.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.step = generator, 0


# Looks at a run after each step: steps done so far, the policy being trained, the history.
Watch = Callable[[int, nn.Module, History], None]


def run_steps(
    state: State,
    iterate: Callable[[], Metrics],
    steps: int,
    checkpoint: Checkpoint,
    measure: Callable[[], Metrics] = dict,
    measure_every: int = 1,
    record_every: int = 1,
    shown_metrics: Mapping[str, str] = {},
    watch: Watch | None = None,
) -> History:
    """Run the steps of a training that are still to do.

    Args:
        state: what `iterate` changes; its `step` counts the steps done.
        iterate: does one step and returns its metrics.
        steps: the number of steps of the whole run.
        checkpoint: where the run is saved every `CHECKPOINT_EVERY` steps and at the end.
        measure: returns further metrics, after every `measure_every`-th step and the last.
        record_every: steps between two records of the step's own metrics.
        shown_metrics: metrics to show beside the bar, as {metric: short label}.
        watch: called after every step with the steps done so far, the state's policy and the
            history, in place of the progress bar. The run waits for it. What it raises ends the
            run, which is saved first, so it can resume from this step.

    Returns:
        the history of all steps, with those that the checkpoint had.

    Raises:
        DivergenceError: a metric or a weight is not finite; the checkpoint keeps the last good
            state.
        ValueError: the checkpoint cannot be used.
    """
    check_type("watch", watch, (Callable, type(None)), "a function or None")
    history, name = History(), checkpoint.name
    if saved := checkpoint.load():
        state.load_state_dict(saved["state"])
        history.load_state_dict(saved["history"])

    def save() -> None:
        checkpoint.save({"state": state.state_dict(), "history": history.state_dict()})

    with tqdm(total=steps, initial=state.step, desc=name, disable=watch is not None) as bar:
        while state.step < steps:
            metrics = iterate()
            step, is_last = state.step, state.step == steps
            check_finite(name, state, metrics)
            if step % record_every == 0 or is_last:
                history.record(step, metrics)
            if step % measure_every == 0 or is_last:
                measured = measure()
                check_finite(name, state, measured)
                history.record(step, measured)
            bar.update()
            bar.set_postfix(history.labelled(shown_metrics), refresh=False)
            if is_last or step % CHECKPOINT_EVERY == 0:
                save()
            if watch is not None:
                try:
                    watch(step, state.policy, history)
                except BaseException:
                    save()
                    raise
    gap = history.rows[-1].get("exact/gap", 0.0) if history.rows else 0.0
    if gap > FAR_GAP:
        message = f"{name} ended {gap:.3g} times as far from the optimum as the reference is: "
        warnings.warn(message + _likely_cause(state), RuntimeWarning, stacklevel=3)
    return history


def check_finite(name: str, state: State, metrics: Metrics) -> None:
    """Raise a DivergenceError unless all metrics and all trained weights are finite."""
    models = [part for part in vars(state).values() if isinstance(part, nn.Module)]
    weights = [p.detach().flatten() for model in models for p in model.parameters()]
    values = {key: torch.as_tensor(value).detach() for key, value in metrics.items()}
    if weights:
        values["the sum of the weights"] = torch.cat(weights).sum()
    device = next((value.device for value in values.values()), "cpu")
    checked = [value.double().to(device) for value in values.values()]
    if not checked or torch.stack(checked).isfinite().all():  # a step's only wait for the device
        return
    metric, value = next(item for item in values.items() if not item[1].isfinite())
    where = f"{name} stopped at step {state.step}: {metric} is {float(value)}."
    kept = "A checkpoint, if there is one, keeps the last state that was saved."
    raise DivergenceError(f"{where} {_likely_cause(state)} {kept}")


def _likely_cause(state: State) -> str:
    optimizer = getattr(state, "optimizer", None)
    rate = f" (it was {optimizer.param_groups[0]['lr']:.3g} in this step)" if optimizer else ""
    cause = f"a learning rate that is too high{rate}, or rewards or a beta of extreme size"
    return f"The likely cause is {cause}."
