"""A world as a finite automaton, on which long responses can be scored, sampled and optimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from rlhf_toy import checks


@dataclass(frozen=True)
class Automaton:
    """The states that responses go through, what each token earns, and a reference policy.

    The last action is the end token. It leads to a state that is never left, where nothing is
    earned. After `horizon` tokens a response is cut off.

    Args:
        successors: [S, A] int64, the state after each token.
        rewards: [X, S, A] what each token earns, in logits.
        ref_logps: [S, A], or [X, S, A] where the prompts differ, log π_ref of each token.
        final_rewards: [X, S] what a response that is cut off in each state earns, in logits.
        start: the state in which every response begins, or [X] one for each prompt.
        horizon: T, the largest number of tokens.

    Raises:
        TypeError: a table that is not a tensor, or a horizon that is not an integer.
        ValueError: shapes that do not fit, states that do not exist, numbers that are not finite, a
            reference that is no distribution or has a probability of 0, a state in which the end
            token does not end the response, or a horizon below 1.
    """

    successors: Tensor
    rewards: Tensor
    ref_logps: Tensor
    final_rewards: Tensor
    start: int | Tensor
    horizon: int

    def __post_init__(self) -> None:
        checks.check_tensors(ref_logps=self.ref_logps)
        sizes = checks.check_shapes(
            rewards=(self.rewards, "XSA"),
            successors=(self.successors, "SA"),
            ref_logps=(self.ref_logps, "XSA" if self.ref_logps.dim() == 3 else "SA"),
            final_rewards=(self.final_rewards, "XS"),
        )
        checks.check_ids("successors", self.successors, sizes["S"])
        if isinstance(self.start, Tensor):
            checks.check_shapes(sizes, start=(self.start, "X"))
            checks.check_ids("start", self.start, sizes["S"])
        else:
            checks.check_count("start", self.start, 0, sizes["S"] - 1)
        checks.check_count("horizon", self.horizon)
        checks.check_finite(rewards=self.rewards, final_rewards=self.final_rewards)
        checks.check_distribution("ref_logps", self.ref_logps)
        if not self.ref_logps.isfinite().all():
            raise ValueError("ref_logps must be finite: give every token a probability above 0")
        ended = self.successors[:, -1]
        stays = (self.successors[ended] == ended[:, None]).all(1)
        earns = self.rewards[:, ended].any(2) | (self.final_rewards[:, ended] != 0)
        if bad := torch.where(~stays | earns.any(0))[0].tolist():
            wanted = "to a state that is never left and earns nothing"
            raise ValueError(f"the last action must lead {wanted}; in state {bad[0]} it does not")

    def to(self, device: str | torch.device) -> Automaton:
        """Return the same tables on a device."""
        values = (getattr(self, field.name) for field in fields(self))
        return Automaton(*(v.to(device) if isinstance(v, Tensor) else v for v in values))

    @property
    def starts(self) -> Tensor:
        """[X] the state in which the response to each prompt begins."""
        start = torch.as_tensor(self.start, device=self.successors.device)
        return start.expand(len(self.rewards))

    @cached_property
    def branches(self) -> tuple[Tensor, Tensor]:
        """The different states that can follow each state, few where many tokens lead to one.

        Returns:
            slots [S, A], which of the K states each token leads to, and those states [S, K]; unused
            ones are 0.
        """
        ordered, order = self.successors.sort(1)
        is_new = torch.diff(ordered, dim=1, prepend=ordered[:, :1]) > 0
        slots = torch.empty_like(order).scatter_(1, order, is_new.cumsum(1))
        following = self.successors.new_zeros(len(slots), int(slots.max()) + 1)
        return slots, following.scatter_(1, slots, self.successors)

    def walk(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the states that responses go through: [B], [B, T] → [B, T + 1].

        A token that is no action, such as the pad token, changes nothing.
        """
        states = [self.starts[prompts]]
        for tokens in responses.T:
            after = self.successors[states[-1], tokens.clamp(max=self.successors.shape[1] - 1)]
            states.append(torch.where(tokens < self.successors.shape[1], after, states[-1]))
        return torch.stack(states, dim=1)

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return what responses earn, cut off where they are padded without an end token: [B]."""
        states, is_action = self.walk(prompts, responses), responses < self.successors.shape[1]
        tokens = responses.where(is_action, 0)
        earned = self.rewards[prompts[:, None], states[:, :-1], tokens] * is_action
        return earned.sum(1) + self.final_rewards[prompts, states[:, -1]]

    def ref_logps_at(self, prompts: Tensor, states: Tensor) -> Tensor:
        """Return log π_ref of every token in some states: two tensors [...] → [..., A]."""
        table = self.ref_logps
        return table[states] if table.dim() == 2 else table[prompts, states]

    def sample(
        self, prompts: Tensor, generator: torch.Generator, logps_at: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """Sample a response to each prompt from any policy on the automaton: [B] → [B, T].

        Args:
            prompts: [B] prompt indices.
            generator: the source of randomness, on the automaton's device.
            logps_at: returns log π [B, A] of the next token, given the number of tokens so far and
                the states [B].
        """
        states, tokens = self.starts[prompts], []
        over, end = torch.zeros_like(prompts, dtype=torch.bool), self.successors.shape[1] - 1
        for t in range(self.horizon):
            logps = logps_at(t, states)
            # What `multinomial` draws, without its checks, which wait for the device.
            races = torch.empty_like(logps).exponential_(generator=generator)
            drawn = (logps.exp() / races).argmax(-1)
            tokens.append(drawn.masked_fill(over, end + 1))  # the pad token
            states, over = self.successors[states, drawn], over | (drawn == end)
        return torch.stack(tokens, dim=1)
