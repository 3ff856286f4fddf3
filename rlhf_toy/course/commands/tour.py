"""Run the whole RLHF pipeline and measure every policy against the exact optimum.

corpus → reference → preferences on the reference's own pairs → reward model → PPO on the true
reward and on the learned one; RLOO and GRPO on the learned one; DPO on the same preferences, and
online with fresh ones; best-of-n.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_toy.course.commands.usage import UsageError, check_writable

if TYPE_CHECKING:
    from rlhf_toy.exact import Measure, Yardstick

FIGURE_FORMATS = (".png", ".pdf", ".svg")
FEWEST_PREFERENCES = 100
ONLINE = {"rounds": 3, "pairs": 20_000}  # of online DPO
SHOWN_PROMPTS = slice(1, 3)  # of the world's prompts: one sample response to each is printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    parser.add_argument("--beta", type=float, default=0.5, help="KL weight (default 0.5)")
    parser.add_argument(
        "--preferences", type=int, default=20_000, help="number of pairs (default 20000)"
    )
    parser.add_argument(
        "--world",
        metavar="NAME",
        default="reviews",
        help="a word world of rlhf_toy/course/worlds.py (default reviews)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if available)")
    parser.add_argument("--quick", action="store_true", help="train less: results in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="write the figure to FILE (png, pdf or svg)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the tour, print its table, and write the files asked for.

    Raises:
        UsageError: an option cannot be used. Nothing has been written then.
    """
    _check(args)
    from rlhf_toy.files import atomic_file

    result, yardstick, measures = _tour(args)
    print(_table(result))
    if args.json:
        with atomic_file(args.json, text=True) as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    if args.figure:
        from rlhf_toy.plots import frontier_figure

        figure = frontier_figure(yardstick, measures)
        with atomic_file(args.figure) as file:
            figure.savefig(file, format=args.figure.suffix[1:], dpi=150)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise a UsageError if an option cannot be used, before any work."""
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed must be between 0 and 2**63 - 1, got {args.seed}")
    if not 0 < args.beta < math.inf:
        raise UsageError(f"--beta must be a finite number above 0, got {args.beta}")
    if args.preferences < FEWEST_PREFERENCES:
        raise UsageError(
            f"--preferences must be at least {FEWEST_PREFERENCES}, got {args.preferences}"
        )
    if args.figure and args.figure.suffix not in FIGURE_FORMATS:
        raise UsageError(f"--figure must end in {', '.join(FIGURE_FORMATS)}, got {args.figure}")
    options = (("--json", args.json), ("--figure", args.figure))
    targets = [check_writable(option, path) for option, path in options if path]
    if len(set(targets)) < len(targets):
        raise UsageError(f"--json and --figure must be two files, both are {targets[0]}")


def _tour(args: argparse.Namespace) -> tuple[dict[str, Any], Yardstick, dict[str, Measure]]:
    """Run the pipeline; return the content of the JSON, and what the figure shows."""
    import torch

    from rlhf_toy.annotators import BradleyTerryAnnotator, preference_ceiling
    from rlhf_toy.best_of_n import BestOfNSettings, run_best_of_n
    from rlhf_toy.course.worlds import WORLDS
    from rlhf_toy.dpo import DPOSettings, OnlineDPOSettings, train_dpo, train_online_dpo
    from rlhf_toy.envs import WordMDP
    from rlhf_toy.exact import (
        Yardstick,
        expected_reward,
        gibbs_policy,
        response_logps,
        response_scores,
    )
    from rlhf_toy.policy_gradient import PolicyGradientSettings, train_policy_gradient
    from rlhf_toy.ppo import PPOSettings, train_ppo
    from rlhf_toy.preferences import collect_preferences
    from rlhf_toy.reward_model import RewardModelSettings, train_reward_model
    from rlhf_toy.sft import SFTSettings, train_reference
    from rlhf_toy.training import make_generator, pick_device

    try:
        device = pick_device(args.device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from None
    if args.world not in WORLDS:
        raise UsageError(f"--world must be one of {', '.join(WORLDS)}, got {args.world!r}")
    seed, beta, world = args.seed, args.beta, WordMDP(WORLDS[args.world])
    steps = {"steps": 60} if args.quick else {}
    rounds = {"rounds": 2, "pairs": args.preferences // 2} if args.quick else ONLINE
    iterations = {"iterations": 20} if args.quick else {}
    ns = {"ns": (1, 2, 4, 8, 16)} if args.quick else {}
    seconds = {}

    def timed(name: str, train, *arguments, **options):
        start = time.perf_counter()
        trained = train(*arguments, seed=seed, device=device, **options)
        seconds[name] = time.perf_counter() - start
        return trained

    # 1. The reference, on fluent text. 2. Preferences on its own pairs, and a reward from them.
    sft = SFTSettings(**steps)
    reference, _ = timed("reference", train_reference, world, sft)
    generator = make_generator(seed, device)
    annotator = BradleyTerryAnnotator()
    preferences = collect_preferences(reference, world, annotator, args.preferences, generator)
    reward_model, rm_history = timed(
        "reward_model", train_reward_model, preferences, RewardModelSettings(**steps)
    )

    # 3. Policies: online on either reward, offline on the preferences, without training.
    ppo = PPOSettings(beta=beta, **iterations)
    ppo_true, _ = timed("ppo_true", train_ppo, world, reference, world.response_rewards, ppo)
    ppo_learned, _ = timed("ppo_learned", train_ppo, world, reference, reward_model, ppo)
    rloo = PolicyGradientSettings(beta=beta, **iterations)
    grpo = replace(
        rloo, advantage="grpo", kl="k3_loss", kl_level="token", aggregate="response_mean"
    )
    trained = {
        name: timed(name, train_policy_gradient, world, reference, reward_model, settings)[0]
        for name, settings in {"rloo": rloo, "grpo": grpo}.items()
    }
    dpo = DPOSettings(beta=beta, **steps)
    trained["dpo"], _ = timed("dpo", train_dpo, preferences, reference, dpo)
    online = OnlineDPOSettings(**rounds, dpo=replace(dpo, steps=dpo.steps // 2))
    trained["online_dpo"], _ = timed(
        "online_dpo", train_online_dpo, world, reference, annotator, online
    )
    scores = response_scores(reward_model, world).cpu()
    best_of_n, _ = timed(
        "best_of_n", run_best_of_n, world, reference, scores, BestOfNSettings(beta=beta, **ns)
    )

    # The yardstick.
    start = time.perf_counter()
    yardstick = Yardstick(world, reference, beta)
    gibbs = gibbs_policy(yardstick.ref_logps, yardstick.rewards, beta)
    seconds["gibbs"] = time.perf_counter() - start
    policies = {
        "reference": yardstick.ref_logps,
        "ppo_true": response_logps(ppo_true, world).cpu(),
        "ppo_learned": response_logps(ppo_learned, world).cpu(),
        **{name: response_logps(policy, world).cpu() for name, policy in trained.items()},
        "best_of_n": best_of_n,
        "gibbs": gibbs,
    }
    measures = {name: yardstick.measure(logps) for name, logps in policies.items()}
    # Only differences of a learned reward mean anything. To compare it with the true reward, shift
    # it, per prompt, to the true reward's mean under the reference.
    shift = expected_reward(yardstick.ref_logps, yardstick.rewards - scores)
    learned = scores + shift[:, None]
    rows = []
    for name, logps in policies.items():
        draws = {}
        for prompt in world.prompts[SHOWN_PROMPTS]:
            weights = logps[world.prompt_index(prompt)].exp()
            index = torch.multinomial(weights.float(), 1, generator=make_generator(seed))
            draws[prompt] = world.decode(world.all_responses[index[0]])
        rows.append(
            {
                "name": name,
                **asdict(measures[name]),
                "learned_reward": float(expected_reward(logps, learned).mean()),
                "seconds": seconds[name],
                "samples": draws,
            }
        )
    result = {
        "world": args.world,
        "beta": beta,
        "seed": seed,
        "preferences": args.preferences,
        "device": str(device),
        "optimum": yardstick.optimum,
        "reference": measures["reference"].objective,
        "reward_model": {
            "held_out_accuracy": rm_history.last("held_out/accuracy"),
            "ceiling": float(
                preference_ceiling(
                    annotator,
                    world.response_rewards(preferences.prompts, preferences.chosen),
                    world.response_rewards(preferences.prompts, preferences.rejected),
                )
            ),
            "seconds": seconds["reward_model"],
        },
        "policies": rows,
    }
    return result, yardstick, measures


def _table(result: dict[str, Any]) -> str:
    """Return the tour's result as a text."""
    lines = [
        "",
        f"word world {result['world']}, beta {result['beta']:g}, seed {result['seed']}, "
        f"{result['preferences']:,} preferences, on {result['device']}",
        f"optimum J* = {result['optimum']:.4f}, reference J = {result['reference']:.4f}",
        "reward model: held-out accuracy {held_out_accuracy:.4f}, "
        "ceiling {ceiling:.4f}, {seconds:.1f} s".format(**result["reward_model"]),
        "",
        f"{'policy':<12}{'true r':>9}{'learned r':>11}{'KL':>8}{'J':>9}{'gap':>9}{'seconds':>9}",
    ]
    for row in result["policies"]:
        lines.append(
            f"{row['name']:<12}{row['reward']:>9.3f}{row['learned_reward']:>11.3f}{row['kl']:>8.3f}"
            f"{row['objective']:>9.3f}{round(row['gap'], 4) + 0.0:>9.2%}{row['seconds']:>9.1f}"
        )
    lines += ["", "what they say"]
    for row in result["policies"]:
        said = "; ".join(
            f"{prompt}: {text or '(nothing)'}" for prompt, text in row["samples"].items()
        )
        lines.append(f"{row['name']:<12}  {said}")
    return "\n".join(lines)
