"""The words of a live training: the run, its last measurement, and what the policy says."""

from __future__ import annotations

import html
from collections.abc import Sequence

import torch

from rlhf_toy.course.widgets.live_run import GAP, Settings, measurements
from rlhf_toy.envs import TextWorld
from rlhf_toy.models import Policy
from rlhf_toy.sampling import sample
from rlhf_toy.training import History, make_generator

N_PROMPTS = 3  # prompts whose responses are shown
SAMPLE_SEED = 0


def describe(name: str, settings: Settings) -> str:
    """Return a run's method, β and learning rate."""
    return f"{name}, β = {settings.beta:.3g}, learning rate {settings.learning_rate:.3g}"


def measured_words(history: History, best_held_out: bool = False) -> str:
    """Return the last exact measurement as a sentence.

    Args:
        history: of the run.
        best_held_out: describe instead the measurement with the lowest held-out loss, whose policy
            DPO with early stopping returns.
    """
    rows = measurements(history)
    if not rows:
        return "Nothing has been measured yet."
    row = min(rows, key=lambda row: row["held_out/loss"]) if best_held_out else rows[-1]
    which = ", where the held-out loss was lowest (this policy is kept)," if best_held_out else ""
    return (
        f"At step {row['step']}{which} the gap is {row[GAP]:.1%}: "
        f"exact KL {row['exact/kl']:.2f} nats, true reward {row['exact/reward']:.2f} logits."
    )


def responses_of(policy: Policy, world: TextWorld) -> list[tuple[str, str, float]]:
    """Sample prompt, response and true reward (logits) for the first prompts, with a fixed seed."""
    with torch.inference_mode():
        prompts = torch.arange(min(N_PROMPTS, world.n_prompts), device=policy.device)
        generator = make_generator(SAMPLE_SEED, policy.device)
        responses = sample(policy, world, prompts, generator).responses
        rewards = world.response_rewards(prompts, responses)
    texts = [world.decode(response) for response in responses.cpu()]
    return [
        (world.prompts[x], text or "(empty)", float(reward))
        for x, text, reward in zip(prompts.tolist(), texts, rewards, strict=True)
    ]


def responses_table(
    reference: Sequence[tuple[str, str, float]], policy: Sequence[tuple[str, str, float]]
) -> str:
    """Return the responses of two policies to the same prompts as HTML; see `responses_of`."""
    head = "<tr><th>prompt</th><th>the reference says</th><th>the policy says</th></tr>"
    rows = []
    for (prompt, before, reward_before), (_, now, reward_now) in zip(
        reference, policy, strict=True
    ):
        cells = (prompt, f"{before} ({reward_before:+.2f})", f"{now} ({reward_now:+.2f})")
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = "Sampled with the same random numbers; in brackets the true reward in logits:"
    return (
        "<style>.rlhf-live td, .rlhf-live th {padding: 0 1.5em 0 0; text-align: left}</style>"
        f'<div class="rlhf-live" style="line-height:1.5">{caption}<table>{head}{body}</table></div>'
    )
