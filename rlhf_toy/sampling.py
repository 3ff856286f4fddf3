"""Responses drawn from a policy, word by word with a KV cache, and what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rlhf_toy import checks
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.gpt import SHARE_UP_TO
from rlhf_toy.losses import approx_kl, masked_mean
from rlhf_toy.models import Policy, check_fits


@dataclass(frozen=True)
class Rollout:
    """Sampled responses: tensors with one row a response, which are indexed together."""

    prompts: Tensor  # [B] prompt indices
    actions: Tensor  # [B, T] what the policy chose, padded
    responses: Tensor  # [B, T] what the world appended: the same unless transitions are stochastic
    logps: Tensor  # [B, T] log π(action | state) in nats, 0 after the end
    mask: Tensor  # [B, T] True up to and including the end

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Return some of the rows, by a slice, a mask or indices."""
        return type(self)(*(tensor[rows] for tensor in vars(self).values()))

    def metrics(self, scores: Tensor, ref_logps: Tensor, beta: float) -> dict[str, Tensor]:
        """Return what the samples say of the policy that drew them, under the field's names.

        Args:
            scores: [B] rewards of the responses.
            ref_logps: [B, T] log π_ref of each token.
            beta: KL weight.
        """
        kl, score = approx_kl(self.logps, ref_logps).sum(1).mean(), scores.mean()
        return {
            "objective/kl": kl,
            "objective/entropy": -self.logps.sum(1).mean(),
            "objective/scores": score,
            "objective/non_score_reward": -beta * kl,
            "objective/rlhf_reward": score - beta * kl,
        }

    def ratio_metrics(
        self, logps: Tensor, cliprange: float, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return how far a policy with these log-probabilities [B, T] is from the one that sampled.

        Means over the tokens: of the ratio, of the KL from one to the other (k3), and of whether
        the ratio is beyond the clip range.
        """
        ratio = (logps - self.logps).exp()
        clipped = ((ratio - 1).abs() > cliprange).float()
        approxkl = approx_kl(self.logps, logps, "k3")
        return {
            "val/ratio": masked_mean(ratio, self.mask, weights),
            "policy/approxkl": masked_mean(approxkl, self.mask, weights),
            "policy/clipfrac": masked_mean(clipped, self.mask, weights),
        }


def sample(
    policy: Policy, world: TextWorld, prompts: Tensor, generator: torch.Generator
) -> Rollout:
    """Return a `Rollout` without gradient: a response to each prompt, y ~ π_θ(·|x).

    Args:
        policy: the language model, or a table.
        world: where the words are appended, bare or in Gymnasium's wrappers.
        prompts: [B] prompt indices, on the policy's device.
        generator: the source of randomness, on the same device.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: prompts that the world does not have, a policy made for another world, or a
            generator on another device.
    """
    world = unwrap(world)
    check_fits(policy, world)
    checks.check_generator(generator, policy.device)
    columns, is_short = [], world.max_length < SHARE_UP_TO
    with torch.inference_mode():
        # `latest` are the tokens to read next, and `rows` says which of them each response needs:
        # short responses that begin alike are read once.
        latest, past = world.prompt_tokens(prompts, dim=1), None
        rows = torch.arange(len(prompts), device=prompts.device)
        if is_short:
            latest, rows = latest.unique(return_inverse=True)
        over = torch.zeros_like(prompts, dtype=torch.bool)
        for _ in range(world.max_length):
            logits, past = policy.next_logits(latest, past)
            logps = logits.log_softmax(-1)[rows]  # [B, A]
            # What `multinomial` draws, without its checks, which wait for the device.
            races = torch.empty_like(logps).exponential_(generator=generator)
            action = token = (logps.exp() / races).argmax(-1)
            logp = logps.gather(1, action[:, None])[:, 0].masked_fill(over, 0.0)
            uniforms = torch.rand(len(prompts), generator=generator, device=prompts.device)
            if not world.is_deterministic:
                token = world.transition(action, uniforms)
            action, tokens = (x.masked_fill(over, world.pad_token) for x in (action, token))
            columns.append((action, tokens, logp, ~over))
            if world.end_token is not None:
                over = over | (tokens == world.end_token)
            latest = tokens
            if is_short:
                pairs, rows = (rows * world.vocab_size + tokens).unique(return_inverse=True)
                latest = pairs % world.vocab_size
                past = [layer[pairs // world.vocab_size] for layer in past]
        drawn = [torch.stack(column, dim=1) for column in zip(*columns, strict=True)]
    # Clones of what inference mode made can be used where gradients are taken.
    return Rollout(prompts, *(x.clone() for x in drawn))
