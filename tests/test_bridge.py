"""The bridge: Hugging Face's GPT-2 with our weights computes what our policy computes."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_toy.bridge import hugging_face_state_dict
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import make_generator


def sharp_policy(world, seed=0, scale=1.0):
    """A small policy without zero weights; a larger `scale` gives sharper distributions."""
    generator = make_generator(seed)
    policy = PolicyModel(GPTConfig.for_world(world, n_head=2, n_embd=16), generator)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if name.endswith("bias"):  # zero in a fresh model
                weight.normal_(generator=generator)
            weight.mul_(scale)
    return policy


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_hugging_face_gpt2_has_the_same_logits(world, seed, scale):
    policy = sharp_policy(world, seed, scale)
    config = policy.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=config.end_token,
        )
    )
    twin.load_state_dict(hugging_face_state_dict(policy), strict=True)
    prompts, responses = world.sample_corpus(40, make_generator(seed))
    with torch.no_grad():
        tokens = policy.sequence(prompts, responses[:, :-1])
        theirs = twin.double()(tokens).logits[..., : config.n_actions]
        ours = policy.double()(prompts, responses)
    assert ours.std() > 0.5
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_exported_weights_are_copies(world):
    policy = sharp_policy(world)
    for weight in hugging_face_state_dict(policy).values():
        assert not weight.requires_grad
        weight.zero_()
    assert all(weight.any() for weight in policy.parameters())
