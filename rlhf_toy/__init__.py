"""Reinforcement learning from human feedback in worlds small enough to be solved exactly."""

from importlib.metadata import version

from rlhf_toy import envs  # registers the worlds with Gymnasium

__all__ = ["envs"]
__version__ = version("rlhf_toy")
