"""The bridge: what Hugging Face's models and TRL's rewards compute is what ours compute."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_toy.bridge import (
    ToyForCausalLM,
    from_hugging_face,
    hugging_face_state_dict,
    to_hugging_face,
    to_reward_function,
    to_text,
    to_tokenizer,
)
from rlhf_toy.envs import LongReview, PromptBandit, WordMDP
from rlhf_toy.exact import response_logps
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.sampling import sample
from rlhf_toy.training import make_generator

WORLDS = {
    "words": lambda: WordMDP(max_length=3),
    "bandit": PromptBandit,  # no end token
    "long": lambda: LongReview(max_length=6),
}


@pytest.fixture(params=WORLDS)
def any_world(request):
    return WORLDS[request.param]()


def sharp_policy(world, seed=0, scale=1.5):
    """A small policy without zero weights; a larger `scale` gives sharper distributions."""
    generator = make_generator(seed)
    policy = PolicyModel(GPTConfig.for_world(world, n_head=2, n_embd=16), generator)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if name.endswith("bias"):  # zero in a fresh model
                weight.normal_(generator=generator)
            weight.mul_(scale)
    return policy


def read(tokenizer, prompts, responses):
    """The token ids that a trainer reads: a prompt, a response, the end, padding on the right."""
    texts = [
        prompt + response + " <end>" for prompt, response in zip(prompts, responses, strict=True)
    ]
    return tokenizer(texts, padding=True, return_tensors="pt")


def test_trl_reads_the_same_probabilities_from_the_hidden_states(any_world):
    utils = pytest.importorskip("trl.trainer.utils", exc_type=ImportError)
    policy = sharp_policy(any_world)
    model, tokenizer = to_hugging_face(policy, any_world)
    utils.add_fused_lm_head(model)
    drawn = sample(
        policy, any_world, any_world.sample_prompts(50, make_generator(0)), make_generator(1)
    )
    inputs = read(tokenizer, *to_text(any_world, drawn.prompts, drawn.responses))
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    labels[:, 0] = -100  # the prompt
    theirs = model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(1)
    ours = policy.token_logps(drawn.prompts, drawn.responses).sum(1)
    assert_close(theirs, ours, rtol=0, atol=1e-5)
    (slope,) = torch.autograd.grad(theirs.sum(), model.transformer.wte.weight)
    assert slope[: any_world.n_actions].abs().max() > 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_twin_gives_every_response_the_same_probability(any_world, seed):
    policy = sharp_policy(any_world, seed)
    model, tokenizer = to_hugging_face(policy, any_world)
    generator = make_generator(seed)
    drawn = sample(policy, any_world, any_world.sample_prompts(200, generator), generator)
    inputs = read(tokenizer, *to_text(any_world, drawn.prompts, drawn.responses))
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    with torch.no_grad():
        logps = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        logps = logps.gather(2, ids[:, 1:, None])[..., 0].where(mask[:, 1:], 0.0)
        ours = policy.token_logps(drawn.prompts, drawn.responses).sum(1)
    assert ours.std() > 0.5
    assert_close(logps.sum(1), ours, rtol=0, atol=1e-5)


def test_the_twin_writes_only_responses_of_the_world_and_as_often_as_it_should(any_world):
    policy = sharp_policy(any_world, scale=1.0)
    model, tokenizer = to_hugging_face(policy, any_world)
    prompt = torch.full((4_000, 1), any_world.n_actions + 1)
    torch.manual_seed(0)
    ids = model.generate(prompt, do_sample=True, top_k=0, max_new_tokens=any_world.max_length + 1)
    assert (ids == tokenizer.eos_token_id).any(1).all()  # every response ends
    before_end = (ids == tokenizer.eos_token_id).cumsum(1) == 0
    assert (ids[:, 1:][before_end[:, 1:]] < any_world.n_words).all()
    first = torch.bincount(ids[:, 1], minlength=len(tokenizer))[: any_world.n_actions]
    row = torch.full((1, any_world.max_length), any_world.pad_token)
    expected = policy(torch.zeros(1, dtype=torch.long), row)[0, 0].softmax(-1)
    assert_close(first / 4_000, expected, rtol=0, atol=0.03)


def test_padding_and_the_rest_of_the_batch_change_nothing(any_world):
    model, tokenizer = to_hugging_face(sharp_policy(any_world), any_world)
    prompts, responses = any_world.sample_corpus(8, make_generator(0))
    inputs = read(tokenizer, *to_text(any_world, prompts, responses))
    with torch.no_grad():
        together = model(**inputs).logits
        for i, row in enumerate(inputs["input_ids"]):
            length = int(inputs["attention_mask"][i].sum())
            alone = model(row[None, :length]).logits[0]
            # Forbidden logits are −10⁴, where float32 is exact to 1e-3.
            assert_close(together[i, :length], alone, rtol=1e-6, atol=1e-4)
            last = model(row[None, :length], logits_to_keep=2).logits[0]
            assert_close(last, alone[-2:])


def test_the_loss_is_that_of_the_masked_logits(any_world):
    model, tokenizer = to_hugging_face(sharp_policy(any_world), any_world)
    prompts, responses = any_world.sample_corpus(8, make_generator(0))
    inputs = read(tokenizer, *to_text(any_world, prompts, responses))
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    output = model(**inputs, labels=labels)
    logps = output.logits[:, :-1].log_softmax(-1)
    expected = torch.nn.functional.nll_loss(logps.flatten(0, 1), labels[:, 1:].flatten())
    assert_close(output.loss, expected)


def test_it_can_be_saved_loaded_and_turned_back(any_world, tmp_path):
    policy = sharp_policy(any_world)
    for part in to_hugging_face(policy, any_world):
        part.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rlhf_toy"
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(model, ToyForCausalLM)
    assert tokenizer.get_vocab() == to_tokenizer(any_world).get_vocab()
    back = from_hugging_face(model, any_world)
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, back.state_dict()[name]), name


def test_the_model_has_weights_of_its_own(world):
    policy = sharp_policy(world)
    model, _ = to_hugging_face(policy, world)
    for weight in [*model.parameters(), *hugging_face_state_dict(policy).values()]:
        weight.detach().zero_()
    assert all(weight.any() for weight in policy.parameters())


def test_training_the_twin_changes_the_policy_that_comes_back(world):
    policy = sharp_policy(world)
    model, tokenizer = to_hugging_face(policy, world)
    ids = read(tokenizer, ["film"], [" good"])["input_ids"]
    prompts, responses = torch.tensor([0]), torch.tensor([[world.words.index("good"), 10, 11]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    before, after = (
        response_logps(p, world)[0, int(world.response_index(responses)[0])]
        for p in (policy, from_hugging_face(model, world))
    )
    assert prompts.shape == (1,) and after > before + 0.01


def test_a_reward_is_called_as_trl_calls_one(any_world):
    generator = make_generator(0)
    prompts, responses = any_world.sample_corpus(30, generator)
    names, texts = to_text(any_world, prompts, responses)
    tokenizer = to_tokenizer(any_world)
    ids = [tokenizer(text + " <end>")["input_ids"] for text in texts]
    reward = to_reward_function(any_world.response_rewards, any_world)
    found = reward(prompts=names, completions=texts, completion_ids=ids, trainer_state=None)
    assert found == any_world.response_rewards(prompts, responses).tolist()


def test_what_does_not_fit_is_refused(world, bandit):
    policy = sharp_policy(world)
    model, _ = to_hugging_face(policy, world)
    with pytest.raises(ValueError, match="another world"):
        to_hugging_face(policy, bandit)
    with pytest.raises(ValueError, match="another world"):
        from_hugging_face(model, bandit)
    with pytest.raises(TypeError, match="ToyForCausalLM"):
        from_hugging_face(policy, world)
    with pytest.raises(TypeError, match="PolicyModel"):
        to_hugging_face(model, world)
