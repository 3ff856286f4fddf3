"""A model that is small enough to check every probability it gives."""

import pytest
import torch

from rlhf_toy.models import GPTConfig


@pytest.fixture(scope="session")
def make_model():
    """A function (kind, world, seed, scale) that gives a model."""
    return _make_model


def _make_model(kind, world, seed=0, scale=1.0):
    """A small float64 model; a larger `scale` gives the sharp distributions of a trained one."""
    generator = torch.Generator().manual_seed(seed)
    config = GPTConfig.for_world(world, n_layer=2, n_head=2, n_embd=16)
    model = kind(config, generator).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or name.startswith("head"):  # zero in a fresh model
                weight.normal_(generator=generator)
            weight.mul_(scale)
    return model
