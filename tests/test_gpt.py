"""What the GPT's body keeps between calls, and what it reads only once."""

import pytest
import torch

from rlhf_toy.gpt import KVCache, Prefixes


def test_every_beginning_is_read_once(world):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(world.all_responses), (200,), generator=generator)
    prompts, responses = world.sample_prompts(200, generator), world.all_responses[rows]
    tokens = torch.cat([world.prompt_tokens(prompts)[:, None], responses], dim=1)
    found = Prefixes(tokens, world.pad_token)
    until_pad = {
        tuple(row[: t + 1])
        for row in tokens.tolist()
        for t, token in enumerate(row)
        if token != world.pad_token
    }
    is_real = found.tokens != world.pad_token
    assert int(is_real.sum()) == len(until_pad) < is_real.numel() <= len(until_pad) + len(tokens[0])
    before = found.tokens[found.before][..., 0]  # [N, T]
    rows = [tuple(row[keep].tolist()) for row, keep in zip(before, found.mask, strict=True)]
    assert {row for row, real in zip(rows, is_real, strict=True) if real} == until_pad
    assert torch.equal(found.tokens[found.index][..., 0], tokens)
    assert torch.equal(found.positions[found.index][0, :, 0], torch.arange(tokens.shape[1]))


def test_no_responses_are_refused_in_words(world, policy):
    with pytest.raises(ValueError, match=r"expected nonempty tensors .* responses \[0, "):
        policy.token_logps(torch.empty(0, dtype=torch.long), world.all_responses[:0])


def test_what_is_appended_to_rows_of_a_cache_leaves_the_cache_as_it_is():
    first = torch.arange(24.0).view(3, 2, 2, 2)  # two positions
    cache = KVCache(first, -first, room=4)
    one, other = cache[torch.tensor([2, 0])], cache[1:]
    for added, branch in ((1.0, one), (2.0, other), (3.0, other)):
        keys, values = branch.append(torch.full((2, 1, 2, 2), added), torch.zeros(2, 1, 2, 2))
    assert (len(cache), cache.length, one.length, other.length) == (3, 2, 3, 4)
    assert torch.equal(cache.keys, torch.arange(24.0).view(3, 2, 2, 2))
    assert torch.equal(keys[:, :2], first[1:]) and torch.equal(values[:, :2], -first[1:])
    assert (keys[:, 2] == 2).all() and (keys[:, 3] == 3).all()
    assert torch.equal(one.keys[:, :2], first[[2, 0]]) and (one.keys[:, 2] == 1).all()
