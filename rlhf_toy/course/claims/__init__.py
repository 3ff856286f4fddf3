"""What papers claim: published results, each checked in a world small enough to be exact.

Each claim is one file that ends in `CLAIM`: what the paper says, the experiment, what was
predicted, and the rule that turns the measurements into a verdict. The rules were written before
the first run. `python -m rlhf_toy claims` checks all of them.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from rlhf_toy.course.claims.board import HOLDS, IN_PART, NOT_HERE, Claim, Finding, verdict
from rlhf_toy.course.studies import data_file

__all__ = ["HOLDS", "IN_PART", "NAMES", "NOT_HERE", "Claim", "Finding", "claim", "load", "verdict"]

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


def load() -> list[dict[str, Any]]:
    """Return the saved board, a row for each claim in the order of `NAMES`, see `Claim.row`.

    Raises:
        FileNotFoundError: the board was never written.
        ValueError: the file is damaged, or has other claims than there are now.
    """
    path = data_file("claims", "claims --json figures/data/claims.json")
    advice = "write it again with `python -m rlhf_toy claims --json figures/data/claims.json`"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        names = tuple(row["name"] for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged ({problem:.200}): {advice}") from None
    if names != NAMES:
        raise ValueError(f"{path} has other claims than there are now: {advice}")
    return rows
