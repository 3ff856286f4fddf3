"""Run the whole RLHF pipeline and measure every policy against the exact optimum.

corpus → reference → preferences on the reference's own pairs → reward model → PPO on the true
reward and on the learned one; RLOO and GRPO on the learned one; DPO on the same preferences, and
online with fresh ones; best-of-n. In the long world policies are measured by their samples.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_toy.course.commands.usage import MOST_PREFERENCES, UsageError, check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_toy.envs import LongReview, WordMDP
    from rlhf_toy.exact import AutomatonYardstick, Measure, Yardstick
    from rlhf_toy.models import Policy, RewardModel

FIGURE_FORMATS = (".png", ".pdf", ".svg")
FEWEST_PREFERENCES = 100
ONLINE = {"rounds": 3, "pairs": 20_000}  # of online DPO
LONG_SFT = {"steps": 400}
LONG_TRAINING = {"iterations": 300, "batch_size": 512, "num_mini_batches": 8}  # online
SAMPLES_PER_PROMPT = 256  # of a policy's learned reward in the long world
LABELS = {  # in the figure
    "reference": "reference",
    "sft": "SFT",
    "ppo_true": "PPO, true reward",
    "ppo_learned": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "online_dpo": "online DPO",
    "best_of_n": "best-of-n",
    "gibbs": "optimum",
}
SHOWN_PROMPTS = slice(1, 3)  # of the world's prompts: one sample response to each is printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    parser.add_argument("--beta", type=float, help="KL weight (default 0.5; 0.1 in the long world)")
    parser.add_argument(
        "--preferences", type=int, default=20_000, help="number of pairs (default 20000)"
    )
    parser.add_argument(
        "--world",
        metavar="NAME",
        default="reviews",
        help="a world of rlhf_toy/course/worlds.py, such as long (default reviews)",
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

        figure = frontier_figure(yardstick, {LABELS[name]: m for name, m in measures.items()})
        with atomic_file(args.figure) as file:
            figure.savefig(file, format=args.figure.suffix[1:], dpi=150)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise a UsageError if an option cannot be used, before any work."""
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed must be between 0 and 2**63 - 1, got {args.seed}")
    if args.beta is not None and not 0 < args.beta < math.inf:
        raise UsageError(f"--beta must be a finite number above 0, got {args.beta}")
    if not FEWEST_PREFERENCES <= args.preferences <= MOST_PREFERENCES:
        limits = f"from {FEWEST_PREFERENCES} to {MOST_PREFERENCES}"
        raise UsageError(f"--preferences must be {limits}, got {args.preferences}")
    if args.figure and args.figure.suffix not in FIGURE_FORMATS:
        raise UsageError(f"--figure must end in {', '.join(FIGURE_FORMATS)}, got {args.figure}")
    options = (("--json", args.json), ("--figure", args.figure))
    targets = [check_writable(option, path) for option, path in options if path]
    if len(set(targets)) < len(targets):
        raise UsageError(f"--json and --figure must be two files, both are {targets[0]}")


def _tour(args: argparse.Namespace) -> tuple[dict[str, Any], Yardstick, dict[str, Measure]]:
    """Run the pipeline; return the content of the JSON, and what the figure shows."""
    from rlhf_toy.annotators import BradleyTerryAnnotator, preference_ceiling
    from rlhf_toy.best_of_n import BestOfNSettings, run_best_of_n
    from rlhf_toy.course.worlds import WORLDS, beta_for, make_world
    from rlhf_toy.dpo import DPOSettings, OnlineDPOSettings, train_dpo, train_online_dpo
    from rlhf_toy.envs import LongReview
    from rlhf_toy.exact import make_yardstick, response_scores, table_reference
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
    seed, world = args.seed, make_world(args.world)
    is_long, beta = isinstance(world, LongReview), args.beta or beta_for(world)
    steps = {"steps": 60} if args.quick else {}
    rounds = {"rounds": 2, "pairs": args.preferences // 2} if args.quick else ONLINE
    online_settings = LONG_TRAINING if is_long else {}
    if args.quick:
        online_settings = online_settings | {"iterations": 20}
    ns = {"ns": (1, 2, 4, 8, 16)} if args.quick else {}
    seconds = {}

    def timed(name: str, train, *arguments, **options):
        start = time.perf_counter()
        trained = train(*arguments, seed=seed, device=device, **options)
        seconds[name] = time.perf_counter() - start
        return trained

    # 1. A language model of fluent text. It is the reference, except in the long world, where the
    # reference is the table from which the text comes, and the model only the place to start.
    sft = SFTSettings(**(LONG_SFT if is_long else {}) | steps)
    start, _ = timed("sft", train_reference, world, sft)
    reference = table_reference(world).to(device) if is_long else start
    begun = time.perf_counter()
    yardstick = make_yardstick(world, reference, beta)
    seconds["gibbs"] = time.perf_counter() - begun

    # 2. Preferences on the reference's own pairs, and a reward from them.
    generator = make_generator(seed, device)
    annotator = BradleyTerryAnnotator()
    preferences = collect_preferences(reference, world, annotator, args.preferences, generator)
    reward_model, rm_history = timed(
        "reward_model", train_reward_model, preferences, RewardModelSettings(**steps)
    )

    # 3. Policies: online on either reward, offline on the preferences, without training.
    policies = {"reference": reference}
    if is_long:
        policies["sft"] = start
    ppo = PPOSettings(beta=beta, **online_settings)
    rloo = PolicyGradientSettings(beta=beta, **online_settings)
    grpo = replace(
        rloo, advantage="grpo", kl="k3_loss", kl_level="token", aggregate="response_mean"
    )
    for name, train, reward, settings in (
        ("ppo_true", train_ppo, world.response_rewards, ppo),
        ("ppo_learned", train_ppo, reward_model, ppo),
        ("rloo", train_policy_gradient, reward_model, rloo),
        ("grpo", train_policy_gradient, reward_model, grpo),
    ):
        arguments = (world, reference, reward, settings)
        policies[name], _ = timed(name, train, *arguments, start=start, yardstick=yardstick)
    dpo = DPOSettings(beta=beta, **steps)
    policies["dpo"], _ = timed("dpo", train_dpo, preferences, reference, dpo, yardstick=yardstick)
    online = OnlineDPOSettings(**rounds, dpo=replace(dpo, steps=dpo.steps // 2))
    policies["online_dpo"], _ = timed(
        "online_dpo", train_online_dpo, world, reference, annotator, online, yardstick=yardstick
    )
    scores = reward_model if is_long else response_scores(reward_model, world).cpu()
    policies["best_of_n"], _ = timed(
        "best_of_n", run_best_of_n, world, reference, scores, BestOfNSettings(beta=beta, **ns)
    )

    results = (_by_samples if is_long else _by_enumeration)(
        world, yardstick, scores, policies, seed
    )
    seconds["reference"] = 0.0 if is_long else seconds["sft"]
    measures = {name: measure for name, (measure, _, _) in results.items()}
    result = {
        "world": args.world,
        "beta": beta,
        "seed": seed,
        "preferences": args.preferences,
        "device": str(device),
        "optimum": yardstick.optimum,
        "reference": yardstick.reference_objective,
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
        "policies": [
            {
                "name": name,
                **asdict(measure),
                "learned_reward": learned_reward,
                "seconds": seconds[name],
                "samples": samples,
            }
            for name, (measure, learned_reward, samples) in results.items()
        ],
    }
    return result, yardstick, measures


# Both return for each policy its measure, its mean learned reward, and a response to some prompts.
# Only differences of a learned reward mean anything. To compare it with the true reward, it is
# shifted, per prompt, to the true reward's mean under the reference.
Results = dict[str, tuple["Measure", float, dict[str, str]]]


def _by_enumeration(
    world: WordMDP,
    yardstick: Yardstick,
    scores: Tensor,
    policies: dict[str, Policy | Tensor],
    seed: int,
) -> Results:
    """Measure policies, models or tables [X, Y], exactly; the Gibbs optimum is added to them."""
    import torch

    from rlhf_toy.exact import expected_reward, gibbs_policy, response_logps
    from rlhf_toy.training import make_generator

    shift = expected_reward(yardstick.ref_logps, yardstick.rewards - scores)
    learned = scores + shift[:, None]
    gibbs = gibbs_policy(yardstick.ref_logps, yardstick.rewards, yardstick.beta)
    results = {}
    for name, policy in {**policies, "gibbs": gibbs}.items():
        is_table = isinstance(policy, torch.Tensor)
        logps = policy if is_table else response_logps(policy, world).cpu()
        draws = {}
        for prompt in world.prompts[SHOWN_PROMPTS]:
            weights = logps[world.prompt_index(prompt)].exp()
            index = torch.multinomial(weights.float(), 1, generator=make_generator(seed))
            draws[prompt] = world.decode(world.all_responses[index[0]])
        learned_reward = float(expected_reward(logps, learned).mean())
        results[name] = (yardstick.measure(logps), learned_reward, draws)
    return results


def _by_samples(
    world: LongReview,
    yardstick: AutomatonYardstick,
    reward_model: RewardModel,
    policies: dict[str, Policy | int],
    seed: int,
) -> Results:
    """Measure policies by samples; the optimum, added to them, and the reference are exact.

    The KL of best-of-n is not known here. Its upper bound is taken, which makes J a lower bound.
    """
    import torch

    from rlhf_toy.best_of_n import best_of_n_kl_bound, sample_best_of_n
    from rlhf_toy.exact import Measure
    from rlhf_toy.sampling import sample
    from rlhf_toy.training import make_generator

    reference = policies["reference"]
    device = reference.device
    prompts = torch.arange(world.n_prompts, device=device).repeat(SAMPLES_PER_PROMPT)
    generator = make_generator(seed, device)

    def measured(reward: float, kl: float) -> Measure:
        J = reward - yardstick.beta * kl
        most = yardstick.optimum - yardstick.reference_objective
        return Measure(reward, kl, objective=J, gap=(yardstick.optimum - J) / most)

    results, shift = {}, torch.zeros(world.n_prompts, device=device)
    for name, policy in {**policies, "gibbs": None}.items():
        if name == "gibbs":
            responses = yardstick.optimum_on(device).sample(prompts, generator)
            measure = measured(*yardstick.best_at(yardstick.beta))
        elif name == "best_of_n":
            draw = (reference, world, reward_model, prompts, policy, generator)
            responses, _ = sample_best_of_n(*draw)
            reward = float(world.response_rewards(prompts, responses).mean())
            measure = measured(reward, best_of_n_kl_bound(policy))
        else:
            responses = sample(policy, world, prompts, generator).responses
            table = world.automaton().ref_logps if name == "reference" else policy
            measure = yardstick.measure(table)
        with torch.inference_mode():
            learned = reward_model.to(device)(prompts, responses)
        if name == "reference":
            true = world.response_rewards(prompts, responses)
            shift = (true - learned).view(SAMPLES_PER_PROMPT, -1).mean(0)
        draws = {
            prompt: world.decode(responses[world.prompt_index(prompt)])
            for prompt in world.prompts[SHOWN_PROMPTS]
        }
        results[name] = (measure, float((learned + shift[prompts]).mean()), draws)
    return results


def _table(result: dict[str, Any]) -> str:
    """Return the tour's result as a text."""
    lines = [
        "",
        f"world {result['world']}, beta {result['beta']:g}, seed {result['seed']}, "
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
