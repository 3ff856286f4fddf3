"""A claim, how it is checked, and how the result is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlhf_toy import checks

HOLDS, IN_PART, NOT_HERE = VERDICTS = "holds", "holds in part", "not here"

Measurements = Mapping[str, float]  # by names that a reader understands


def verdict(*parts: bool) -> str:
    """Return the verdict on a claim of several parts: all hold, some, or none."""
    return HOLDS if all(parts) else IN_PART if any(parts) else NOT_HERE


@dataclass(frozen=True)
class Finding:
    """What came out of one check."""

    measured: dict[str, float]
    verdict: str  # one of VERDICTS
    seconds: float  # of processor time

    def rounded(self, digits: int = 4) -> dict[str, float]:
        """Return the measurements with this many significant digits; up to 1e-9 they count as 0."""
        numbers = {name: x if abs(x) > 1e-9 else 0.0 for name, x in self.measured.items()}
        return {name: float(f"{x:.{digits}g}") for name, x in numbers.items()}

    def __str__(self) -> str:
        """The measurements in one line, to three significant digits."""
        return "; ".join(f"{name}: {x:g}" for name, x in self.rounded(3).items())


@dataclass(frozen=True)
class Claim:
    """A published claim with the experiment and the rule that decide whether it holds.

    State the prediction and the rule before you run the experiment for the first time, and do not
    change them afterwards. `found` is the one field that is written after it.

    Raises:
        TypeError: a text that is not a text, or an experiment or a rule that is not a function.
        ValueError: an empty text.
    """

    name: str  # of its file
    paper: str  # authors, year, arXiv number
    claim: str  # what the paper says, in our words
    read: str  # how far the paper was read
    world: str  # what the experiment does; begins with "In this world"
    predicted: str  # what it was expected to give
    rule: str  # which measurements lead to which verdict
    experiment: Callable[..., Measurements]
    judge: Callable[[Measurements], str]  # the rule as code
    perturbation: Mapping[str, Any]  # arguments of the experiment that must change the verdict
    perturbed: str  # what these change, in words
    not_tested: str
    found: str = field(default="not run yet")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("experiment", "judge"):
                checks.check_type(each.name, value, Callable, "a function")
            elif each.name == "perturbation":
                checks.check_type(each.name, value, Mapping, "arguments of the experiment")
            else:
                checks.check_type(each.name, value, str, "a text")
                if not value.strip():
                    raise ValueError(f"{each.name} of the claim is empty: write a sentence")

    def check(self, **changes: Any) -> Finding:
        """Run the experiment, and let the rule decide.

        Args:
            changes: arguments of the experiment, such as those of `perturbation`.

        Raises:
            ValueError: the rule gives something that is not a verdict.
        """
        start = time.process_time()
        measured = {name: float(x) for name, x in self.experiment(**changes).items()}
        decided = self.judge(measured)
        checks.check_choice("the verdict", decided, VERDICTS)
        return Finding(measured, decided, time.process_time() - start)

    def row(self) -> dict[str, Any]:
        """Check the claim as it stands and perturbed; return what the board's file says about it.

        Measurements are rounded to four significant digits; numbers up to 1e-9 count as 0.
        """
        finding, perturbed = self.check(), self.check(**self.perturbation)
        texts = {x.name: getattr(self, x.name) for x in fields(self) if x.type == "str"}
        return texts | {
            "measured": finding.rounded(),
            "verdict": finding.verdict,
            "verdict_if_perturbed": perturbed.verdict,
            "seconds": round(finding.seconds, 1),
        }
