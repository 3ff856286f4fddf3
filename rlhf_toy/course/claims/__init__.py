"""What papers claim: published results, each checked in a world small enough to be exact.

Each claim is one file that ends in `CLAIM`: what the paper says, the experiment, what was
predicted, and the rule that turns the measurements into a verdict. The rules were written before
the first run. `python -m rlhf_toy claims` checks all of them.
"""

from __future__ import annotations

from importlib import import_module

from rlhf_toy.course.claims.board import HOLDS, IN_PART, NOT_HERE, Claim, Finding, verdict

__all__ = ["HOLDS", "IN_PART", "NAMES", "NOT_HERE", "Claim", "Finding", "claim", "verdict"]

NAMES = (
    "likelihood_displacement", "hidden_context", "catastrophic_goodhart", "difficulty_bias",
    "kl_estimators", "preference_collapse", "robust_dpo", "best_of_n", "ties",
    "online_coverage", "chi_po", "offline_classifies", "good_teacher", "all_roads",
    "deterministic_preferences", "unseen_response", "overoptimisation_laws", "token_credit",
    "cycles",
)  # fmt: skip


def claim(name: str) -> Claim:
    """Return a claim of the board.

    Raises:
        ValueError: there is no claim of this name.
    """
    if name not in NAMES:
        raise ValueError(f"no claim is called {name!r}; there are {', '.join(NAMES)}")
    return import_module(f"rlhf_toy.course.claims.{name}").CLAIM
