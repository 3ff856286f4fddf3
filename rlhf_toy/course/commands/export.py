"""Export a policy, preferences and training scripts to a folder, for Hugging Face's TRL.

The folder gets model/ (model and tokenizer), train.jsonl and test.jsonl (preferences on the
policy's own responses), train_dpo.py and train_rloo.py. Each script trains the model with TRL and
prints its gap to the exact optimum. In the long world that is the optimum around the world's table,
which the exported reference imitates. Needs the extra `bridge`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from rlhf_toy.course.commands.usage import MOST_PREFERENCES, UsageError

if TYPE_CHECKING:
    from rlhf_toy.envs import TextWorld
    from rlhf_toy.models import PolicyModel

OLDEST_TRL = Version("1.16")
TEST_SHARE = 0.1
SCRIPTS = ("train_dpo.py", "train_rloo.py")  # in rlhf_toy/course/exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or an empty folder")
    parser.add_argument("--world", metavar="NAME", default="reviews", help="see `tour`")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint of train_reference, train_ppo or train_policy_gradient in this world, "
        "with default sizes (default: a reference is trained first)",
    )
    parser.add_argument("--preferences", type=int, default=20_000, help="pairs (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")


def run(args: argparse.Namespace) -> int:
    """Write the folder, whole or not at all.

    Raises:
        UsageError: a folder that is not empty, an option that cannot be used, a checkpoint that
            does not fit, or the extra `bridge` is missing or too old. Nothing was written then.
    """
    from rlhf_toy.annotators import BradleyTerryAnnotator
    from rlhf_toy.course import exported
    from rlhf_toy.course.worlds import WORLDS, beta_for, make_world
    from rlhf_toy.preferences import collect_preferences
    from rlhf_toy.sft import train_reference
    from rlhf_toy.training import make_generator

    try:
        from rlhf_toy.bridge import to_dataset, to_hugging_face

        import_module("datasets")
        is_old = Version(version("trl")) < OLDEST_TRL
    except ImportError:
        raise UsageError('export needs an extra: pip install "rlhf_toy[bridge]"') from None
    if is_old:
        raise UsageError(f"export needs trl {OLDEST_TRL} or newer, found {version('trl')}")
    if args.world not in WORLDS:
        raise UsageError(f"--world must be one of {', '.join(WORLDS)}, got {args.world!r}")
    if not 10 <= args.preferences <= MOST_PREFERENCES:
        limits = f"from 10 to {MOST_PREFERENCES}"
        raise UsageError(f"--preferences must be {limits}, got {args.preferences}")
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed must be between 0 and 2**63 - 1, got {args.seed}")
    target, world = _check_folder(args.folder), make_world(args.world)
    policy = _read_policy(args.policy, world) if args.policy else None
    if policy is None:
        policy, _ = train_reference(world, seed=args.seed, device="cpu")
    generator = make_generator(args.seed)
    pairs = collect_preferences(policy, world, BradleyTerryAnnotator(), args.preferences, generator)
    train, test = pairs.split(1 - TEST_SHARE, args.seed)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        folder = Path(temporary) / "export"
        for part in to_hugging_face(policy, world):
            part.save_pretrained(folder / "model")
        for name, rows in (("train", train), ("test", test)):
            to_dataset(rows).to_json(folder / f"{name}.jsonl")
        about = {"world": args.world, "beta": beta_for(world), "version": version("rlhf_toy")}
        (folder / "export.json").write_text(json.dumps(about), encoding="utf-8")
        for name in SCRIPTS:
            shutil.copy(Path(exported.__file__).parent / name, folder)
        os.replace(folder, target)  # in one step; an empty folder is replaced
    print(f"{target} has a model, {len(train)} + {len(test)} preferences and two scripts.")
    print(f"Try: python {args.folder / 'train_dpo.py'}")
    return 0


def _check_folder(folder: Path) -> Path:
    target = Path(os.path.realpath(folder))
    if os.path.lexists(target) and (not os.path.isdir(target) or any(target.iterdir())):
        raise UsageError(f"{folder} is not empty: give a new or an empty folder")
    try:
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.").cleanup()
    except OSError:  # such as a name that is too long
        raise UsageError(
            f"{folder} cannot be created: there is no folder for it that can be written to"
        ) from None
    return target


def _read_policy(path: Path, world: TextWorld) -> PolicyModel:
    """Return the policy of a checkpoint."""
    import torch

    from rlhf_toy.checkpoints import digest, read_checkpoint
    from rlhf_toy.models import GPTConfig, PolicyModel
    from rlhf_toy.training import make_generator

    try:
        saved = read_checkpoint(path)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(f"--policy: {error}") from None
    if saved["identity"].get("world") != digest(world.fingerprint):
        raise UsageError(f"--policy: {path} is of another world; give its name with --world")
    policy = PolicyModel(GPTConfig.for_world(world), make_generator(0))
    try:
        policy.load_state_dict(saved["state"]["policy"])
    except (KeyError, RuntimeError):
        wanted = "a policy that is one GPT of the default sizes"
        raise UsageError(f"--policy: {path} does not hold {wanted}") from None
    return policy.requires_grad_(False).to(torch.device("cpu"))
