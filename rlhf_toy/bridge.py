"""To and from the ecosystem: policies, preferences and rewards as Hugging Face and TRL use them.

Importing this file needs the extra `bridge` and registers `ToyForCausalLM` with the Auto classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_toy.checks import check_type
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import AutomatonYardstick, Measure, Yardstick
from rlhf_toy.models import GPTConfig, PolicyModel, check_fits
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import Reward, make_generator

try:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GPT2Model,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
except ImportError as error:
    raise ImportError(
        'rlhf_toy.bridge needs transformers: pip install "rlhf_toy[bridge]"'
    ) from error

if TYPE_CHECKING:
    from datasets import Dataset

END, PAD = "<end>", "<pad>"
FORBIDDEN = -1e4  # a logit whose probability is 0 in float32


class ToyConfig(GPT2Config):
    """GPT-2's configuration; only the first `n_actions` tokens are ever written, or the end."""

    model_type = "rlhf_toy"
    # TRL looks for it in the configuration of every model that it loads.
    auto_map: ClassVar[dict] = {}

    def __init__(self, n_actions: int = 1, vocabulary: str = "", **sizes: Any) -> None:
        super().__init__(**sizes)
        self.n_actions, self.vocabulary = n_actions, vocabulary


class ToyBody(GPT2Model):
    """GPT-2's body. A hidden state has two more entries: is there room for a word, or for none?"""

    config_class = ToyConfig

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """As in `GPT2Model`."""
        cache = options.get("cache", options.get("past_key_values"))  # its name before 5.24
        start = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        output = super().forward(input_ids, **options)
        hidden = output.last_hidden_state
        is_full = (positions >= self.config.n_positions - 2)[:, None].expand(*hidden.shape[:2], 1)
        output.last_hidden_state = torch.cat([hidden, ~is_full, is_full], -1).to(hidden.dtype)
        return output


class ToyHead(nn.Module):
    """The output layer: a linear layer whose weights are the embeddings, and fixed ones."""

    bias = None

    def __init__(self, config: ToyConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.config, self.shared = config, (embedding,)  # a tuple: the weights stay the body's

    @property
    def weight(self) -> Tensor:
        """[V, n_embd + 2]; the last two columns forbid what cannot be written."""
        weight = self.shared[0].weight
        tokens = torch.arange(len(weight), device=weight.device)
        forbidden = [tokens >= self.config.n_actions, tokens != self.config.eos_token_id]
        return torch.cat([weight, FORBIDDEN * torch.stack(forbidden, 1).to(weight.dtype)], 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of hidden states [..., n_embd + 2]."""
        return nn.functional.linear(hidden, self.weight)


class ToyForCausalLM(GPT2LMHeadModel):
    """GPT-2 that writes a world's responses: prompt and pad tokens have probability 0.

    A sequence is a prompt's token and then the response. After as many words as the world allows,
    the end token has probability 1, so a response that was cut off has the same probability as in
    the world, although it is followed by an end token here. TRL multiplies the hidden states by the
    output layer's weights without calling `forward`, so this is done in body and head.
    """

    config_class = ToyConfig
    _tied_weights_keys: ClassVar[dict] = {}

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.transformer = ToyBody(config)
        self.lm_head = ToyHead(config, self.transformer.wte)


AutoConfig.register(ToyConfig.model_type, ToyConfig, exist_ok=True)
AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM, exist_ok=True)


def to_hugging_face(
    policy: PolicyModel, world: TextWorld
) -> tuple[ToyForCausalLM, PreTrainedTokenizerFast]:
    """Return a causal language model with the policy's probabilities, and its tokenizer.

    `save_pretrained`, `from_pretrained` (after importing this module), `generate` and TRL's
    trainers work. There is no dropout. The weights are copies.

    Raises:
        TypeError: not a PolicyModel.
        ValueError: it was made for another world.
    """
    world = unwrap(world)
    check_type("policy", policy, PolicyModel, "a PolicyModel")
    check_fits(policy, world)
    config, tokenizer = policy.config, to_tokenizer(world)
    model = ToyForCausalLM(
        ToyConfig(
            n_actions=config.n_actions,
            vocabulary=config.vocabulary,
            vocab_size=len(tokenizer),
            n_positions=config.n_positions + 1,  # an end token may follow a response of full length
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    ours, theirs = hugging_face_state_dict(policy), model.state_dict()
    for name, weight in theirs.items():  # an end token of its own and its position have a row more
        weight.zero_()[: len(ours[name])] = ours[name]
    return model.to(policy.device), tokenizer


def to_tokenizer(world: TextWorld) -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads a prompt and words, separated by blanks, as the world's ids.

    Blanks within a word or prompt are written "_". A world without an end token gets one more id,
    since Hugging Face's models have to stop somewhere.
    """
    world = unwrap(world)
    names = [*world.words, *[END] * (world.end_token is not None), PAD, *world.prompts]
    names += [END] * (world.end_token is None)
    vocabulary = {name.replace(" ", "_"): i for i, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise ValueError("two of the world's words and prompts have the same name, blanks aside")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=world.max_length + 2,
    )


def from_hugging_face(model: ToyForCausalLM, world: TextWorld) -> PolicyModel:
    """Return the policy that a model from `to_hugging_face` is now, after training for example.

    Raises:
        TypeError: not such a model.
        ValueError: it was made for another world.
    """
    world = unwrap(world)
    check_type("model", model, ToyForCausalLM, "a ToyForCausalLM, see to_hugging_face")
    theirs = model.config
    if theirs.vocabulary != world.vocabulary:
        raise ValueError(
            "the model was made for another world, with other prompts, words or length"
        )
    sizes = {name: getattr(theirs, name) for name in ("n_layer", "n_head", "n_embd")}
    policy = PolicyModel(GPTConfig.for_world(world, **sizes), make_generator(0))
    state = model.state_dict()
    with torch.no_grad():
        for name, weight in policy.body.named_parameters():
            found = state[_their_name(name)]
            weight.copy_((found.T if _is_linear(name) else found)[: len(weight)])
    return policy.to(model.device)


def _their_name(name: str) -> str:
    name = name.replace(".c_fc.", ".mlp.c_fc.")
    return "transformer." + (name if ".attn." in name else name.replace(".c_proj.", ".mlp.c_proj."))


def _is_linear(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))


def hugging_face_state_dict(policy: PolicyModel) -> dict[str, Tensor]:
    """Return a policy's weights under the names and in the layout of `GPT2LMHeadModel`.

    Linear weights are stored transposed there.

    Raises:
        TypeError: not a PolicyModel.
    """
    check_type("policy", policy, PolicyModel, "a PolicyModel")
    weights = {
        _their_name(name): (weight.T if _is_linear(name) else weight).detach().clone()
        for name, weight in policy.body.named_parameters()
    }
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights


def to_prompts(world: TextWorld) -> list[str]:
    """Return all prompts as texts for the tokenizer."""
    return [prompt.replace(" ", "_") for prompt in unwrap(world).prompts]


def to_text(world: TextWorld, prompts: Tensor, responses: Tensor) -> tuple[list[str], list[str]]:
    """Return prompts [B] and responses [B, T] as texts for the tokenizer, without end tokens.

    A response begins with a blank, so that it can be appended to its prompt.
    """
    world = unwrap(world)
    words = [word.replace(" ", "_") for word in world.words]
    written = world.written_mask(prompts, responses) & (responses < world.n_words)
    texts = [
        "".join(f" {words[token]}" for token in row[keep].tolist())
        for row, keep in zip(responses, written, strict=True)
    ]
    names = to_prompts(world)
    return [names[prompt] for prompt in prompts.tolist()], texts


def to_dataset(preferences: PreferenceDataset) -> Dataset:
    """Return a `datasets.Dataset` with the columns `prompt`, `chosen` and `rejected`, as texts.

    TRL's trainers append the end token.
    """
    from datasets import Dataset

    check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
    world = preferences.world
    prompts, chosen = to_text(world, preferences.prompts, preferences.chosen)
    _, rejected = to_text(world, preferences.prompts, preferences.rejected)
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})


def to_reward_function(reward: Reward, world: TextWorld) -> Callable[..., list[float]]:
    """Return a reward of ours as TRL's RLOO and GRPO trainers call one.

    Args:
        reward: prompts [B], responses [B, T] → rewards [B], such as `world.response_rewards`.
        world: where the responses are from.

    Returns:
        a function of `prompts` (texts), `completions` (texts, not read) and `completion_ids` that
        returns a list of rewards.
    """
    world = unwrap(world)
    numbers = {prompt: i for i, prompt in enumerate(to_prompts(world))}

    def reward_function(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        responses = torch.full((len(prompts), world.max_length), world.pad_token)
        for row, ids in zip(responses, completion_ids, strict=True):
            ids = torch.tensor(ids[: world.max_length])
            row[: len(ids)] = ids.where(ids < world.n_actions, world.pad_token)
        with torch.no_grad():
            return reward(torch.tensor([numbers[prompt] for prompt in prompts]), responses).tolist()

    return reward_function


class GapCallback(TrainerCallback):
    """Measures the model of a Hugging Face or TRL trainer against the exact optimum as it trains.

    Args:
        world: where the model writes.
        reference: π_ref, a model from `to_hugging_face` as it is now. In a world that is too large
            to enumerate, π_ref is the world's table instead, see `AutomatonYardstick`.
        beta: KL weight.
        every: steps between two measurements; the end is always measured.

    Attributes:
        measures: the `Measure` at each step that was measured.
    """

    def __init__(
        self, world: TextWorld, reference: ToyForCausalLM, beta: float, every: int
    ) -> None:
        self.world, self.every = unwrap(world), every
        if hasattr(self.world, "automaton"):
            self.yardstick: Yardstick = AutomatonYardstick(self.world, beta)
        else:
            self.yardstick = Yardstick(self.world, from_hugging_face(reference, self.world), beta)
        self.measures: dict[int, Measure] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Measure the model after every `every` steps, and after the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            policy = from_hugging_face(objects["model"], self.world)
            self.measures[state.global_step] = self.yardstick.measure(policy)

    def __str__(self) -> str:
        return "\n".join(
            f"step {step}: gap {found.gap:.2%}, reward {found.reward:.3f}, KL {found.kl:.3f} nats"
            for step, found in self.measures.items()
        )
