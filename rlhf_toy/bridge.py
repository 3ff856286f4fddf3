"""To and from the ecosystem: weights under the names that Hugging Face models use."""

from __future__ import annotations

from torch import Tensor

from rlhf_toy.checks import check_type
from rlhf_toy.models import PolicyModel


def hugging_face_state_dict(policy: PolicyModel) -> dict[str, Tensor]:
    """A policy's weights under the names and in the layout of Hugging Face's `GPT2LMHeadModel`.

    With `GPT2Config(vocab_size, n_positions, n_embd, n_layer, n_head)` as in `policy.config`, the
    first `n_actions` logits of that model are this policy's exactly; the rest, of prompts and pad
    token, must be suppressed. Linear weights are stored transposed there.

    Raises:
        TypeError: not a PolicyModel.
    """
    check_type("policy", policy, PolicyModel, "a PolicyModel")
    weights = {}
    for name, weight in policy.body.state_dict().items():
        name = name.replace(".c_fc.", ".mlp.c_fc.")
        if ".attn." not in name:
            name = name.replace(".c_proj.", ".mlp.c_proj.")
        is_linear = name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
        weights[f"transformer.{name}"] = (weight.T if is_linear else weight).detach().clone()
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights
