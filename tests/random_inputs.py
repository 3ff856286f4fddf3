"""Random inputs that several test files draw; pytest finds this module by `pythonpath`."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

random_inputs = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
betas = st.floats(1e-3, 1e3)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(seed, *shape, n=1):
    """n tensors of standard normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, dtype=torch.float64, generator=generator).unbind()


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


@st.composite
def masks(draw):
    """[B, T], one or more real tokens in each row, then pads."""
    length = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, length), min_size=1, max_size=4))
    return torch.arange(length) < torch.tensor(lengths)[:, None]
