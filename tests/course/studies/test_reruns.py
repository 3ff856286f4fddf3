"""One run of each study again, against its data file: `make test-studies`, outside CI.

A study's fingerprint does not cover the code of the trainers, so a change there can leave a data
file behind. `study NAME --recheck` runs every condition again; here it is the quickest one.
"""

import pytest

from rlhf_toy.course import studies
from rlhf_toy.course.commands import study

QUICKEST = {
    "ppo_parts": {"part": "no critic"},
    "overoptimisation": {"condition": "1,000 pairs"},
    "dpo_or_ppo": {"part": "race", "method": "gibbs"},
    "dpo_gap": {"arm": "reward model, exact optimum"},
    "fixed_points": {"world": "bandit", "method": "DPO"},
    "estimators": {"place": "half of the way", "advantage": "grpo", "group_size": 2},
    "long_world": {"arm": "PPO, no critic", "length": 8},
}
ROUNDING = 1e-6  # of a result without a seed, which nothing but rounding can change


def test_every_study_has_a_run_to_repeat():
    assert tuple(QUICKEST) == studies.NAMES


@pytest.mark.parametrize("name", QUICKEST)
def test_a_run_gives_what_its_file_says(name):
    module, condition = studies.study(name), QUICKEST[name]
    seeds = [row for row in studies.load(name) if condition.items() <= row.items()]
    task = {key: seeds[0][key] for key in module.tasks()[0]}
    result = {**task, **study._run_one(module.__name__, task)[1]}
    if len(seeds) > 1:
        assert study._distance(seeds[0], result, seeds) <= study.TOLERANCE
    else:
        assert study._numbers(result) == pytest.approx(study._numbers(seeds[0]), abs=ROUNDING)
