"""The GPT: what it may look at, and what it must ignore."""

import random

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rlhf_toy import gpt
from rlhf_toy.envs import WordMDP
from rlhf_toy.envs.text_world import response_mask
from rlhf_toy.exact import response_logps, state_logps
from rlhf_toy.models import (
    GPTConfig,
    PolicyModel,
    ResidualPolicy,
    RewardModel,
    TablePolicy,
    ValueModel,
)
from rlhf_toy.sampling import sample

MODELS = (PolicyModel, RewardModel, ValueModel)


def make_model(kind, world, seed=0, scale=1.0):
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


def outputs(model, prompts, responses):
    """What a model says of each real token, or of each response: [B, T] or [B]."""
    if isinstance(model, PolicyModel):
        return model.token_logps(prompts, responses)
    return model(prompts, responses)


def some_responses(world, n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(world.all_responses), (n,), generator=generator)
    rows[:3] = torch.tensor([0, 1, len(world.all_responses) - 1])  # the shortest, the longest
    prompts = world.sample_prompts(n, generator)
    return prompts, world.all_responses[rows]


def only_real(world, responses, values):
    return values * response_mask(responses, world.end_token) if values.dim() == 2 else values


# What a model may look at


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_after_the_end_counts(world, kind):
    model = make_model(kind, world)
    prompts, responses = some_responses(world)
    garbage = torch.randint(
        world.vocab_size, responses.shape, generator=torch.Generator().manual_seed(1)
    )
    littered = torch.where(world.response_mask(responses), responses, garbage)
    assert not torch.equal(littered, responses)
    expected = only_real(world, responses, outputs(model, prompts, responses))
    got = only_real(world, responses, outputs(model, prompts, littered))
    assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_a_response_does_not_notice_the_rest_of_the_batch(world, kind):
    model = make_model(kind, world)
    prompts, responses = some_responses(world)
    together = outputs(model, prompts, responses)
    alone = [outputs(model, prompts[i : i + 1], responses[i : i + 1]) for i in range(len(prompts))]
    assert_close(torch.cat(alone), together, rtol=0, atol=1e-12)
    reverse = outputs(model, prompts.flip(0), responses.flip(0)).flip(0)
    assert_close(reverse, together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_a_response_does_not_notice_how_far_it_is_padded(world, kind):
    model = make_model(kind, world)
    prompts, responses = some_responses(world)
    short = world.response_mask(responses).sum(1) <= 2
    prompts, responses = prompts[short], responses[short]
    padded = only_real(world, responses, outputs(model, prompts, responses))
    cut = only_real(world, responses[:, :2], outputs(model, prompts, responses[:, :2]))
    if cut.dim() == 2:
        assert (padded[:, 2:] == 0).all()
        padded = padded[:, :2]
    assert_close(cut, padded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_float32_agrees_to_five_digits_whatever_the_batch(world, kind):
    model = make_model(kind, world)
    prompts, responses = some_responses(world)
    expected = outputs(model, prompts, responses).float()
    model.float()
    alone = [outputs(model, prompts[i : i + 1], responses[i : i + 1]) for i in range(len(prompts))]
    assert_close(outputs(model, prompts, responses), expected, rtol=1e-5, atol=1e-5)
    assert_close(torch.cat(alone), expected, rtol=1e-5, atol=1e-5)


def test_logits_and_values_look_back_and_never_ahead(world):
    policy, critic = make_model(PolicyModel, world), make_model(ValueModel, world)
    prompts = torch.tensor([2])
    before = torch.tensor([[0, 1, 2]])
    for t in range(3):
        after = before.clone()
        after[:, t] = 5
        for model in (policy, critic):
            difference = (model(prompts, before) - model(prompts, after)).abs()
            # The entry for y_{t+1} is made from what stands before it.
            changed = difference.view(3, -1).amax(1) > 1e-9
            assert changed.tolist() == [k > t for k in range(3)]


def test_values_and_rewards_are_read_at_their_states(world):
    critic, reward_model = make_model(ValueModel, world), make_model(RewardModel, world)
    prompts, responses = some_responses(world, n=10)
    lengths = world.response_mask(responses).sum(1).tolist()
    values, rewards = critic(prompts, responses), reward_model(prompts, responses)

    def head_after(model, b, t):
        state = torch.cat([world.prompt_tokens(prompts[b : b + 1]), responses[b, :t]])
        return model.head(model.body(state[None])[0])[0, -1, 0]

    for b, length in enumerate(lengths):
        for t in range(length):
            assert_close(values[b, t], head_after(critic, b, t))
        assert_close(rewards[b], head_after(reward_model, b, length))


@pytest.mark.parametrize("kind", MODELS)
def test_the_prompt_matters(world, kind):
    model = make_model(kind, world)
    response = world.encode("very good")
    prompts = torch.arange(world.n_prompts)
    values = outputs(model, prompts, response.expand(world.n_prompts, -1))
    assert len(values.reshape(world.n_prompts, -1)[:, 0].unique()) == world.n_prompts


def test_only_words_and_the_end_token_have_logits(world, bandit):
    for env in (world, bandit):
        policy = make_model(PolicyModel, env)
        responses = env.all_responses[:2]
        logits = policy(torch.zeros(2, dtype=torch.long), responses)
        assert logits.shape == (*responses.shape, env.n_actions)


# How it is made


@pytest.mark.parametrize("kind", MODELS)
def test_weights_come_from_the_generator_alone(world, kind):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    config = GPTConfig.for_world(world)
    weights = [kind(config, torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
        if name.endswith(("wte.weight", "c_attn.weight", "c_fc.weight", "c_proj.weight")):
            assert not torch.equal(weight, weights[2][name])


def test_reward_and_value_start_at_zero(world):
    policy = make_model(PolicyModel, world)
    for kind in (RewardModel, ValueModel):
        model = kind(policy.config, torch.Generator().manual_seed(5)).double()
        assert (model(*some_responses(world)) == 0).all()


def test_a_critic_starts_with_a_copy_of_another_models_body(world):
    policy = make_model(PolicyModel, world)
    critic = ValueModel(policy.config, torch.Generator().manual_seed(5)).double()
    critic.start_from(policy)
    tokens = policy.sequence(*some_responses(world))
    assert torch.equal(critic.body(tokens)[0], policy.body(tokens)[0])
    with torch.no_grad():
        critic.body.wte.weight.zero_()  # a copy: the policy keeps its own
    assert policy.body.wte.weight.any()


# A policy beside a reference


def some_reference(world, kind):
    """A GPT, or a Markov chain over three states whose prompts differ."""
    if kind == "gpt":
        return make_model(PolicyModel, world, seed=3)
    generator = torch.Generator().manual_seed(4)
    shape = 3, world.n_actions
    logits = torch.randn(world.n_prompts, *shape, generator=generator, dtype=torch.float64)
    successors = torch.randint(3, shape, generator=generator)
    return TablePolicy(world, logits, successors, torch.arange(world.n_prompts) % 3)


def residual(world, kind, moved=True):
    """A float64 policy beside a reference; `moved`: its network no longer says 0."""
    generator = torch.Generator().manual_seed(6)
    config = GPTConfig.for_world(world, n_layer=2, n_head=2, n_embd=16)
    policy = ResidualPolicy(some_reference(world, kind), config, generator).double()
    if moved:
        torch.nn.init.normal_(policy.net.head.weight, generator=generator)
    return policy


kinds = pytest.mark.parametrize("kind", ["gpt", "table"])


@kinds
def test_a_residual_policy_starts_as_its_reference(world, kind):
    policy, reference = residual(world, kind, moved=False), some_reference(world, kind)
    rows = some_responses(world)
    assert torch.equal(policy(*rows), reference(*rows))
    assert torch.equal(policy.token_logps(*rows), reference.token_logps(*rows))
    assert torch.equal(state_logps(policy, world), state_logps(reference, world))


@kinds
def test_a_residual_policy_adds_its_network_to_the_reference_s_logits(world, kind):
    policy, reference = residual(world, kind), some_reference(world, kind)
    prompts, responses = some_responses(world)
    hidden, _ = policy.body(policy.net.states(prompts, responses))
    added = hidden @ policy.net.head.weight.T + policy.net.head.bias
    # π_θ(a|s) ∝ π_ref(a|s) exp(f(s, a)), in numpy.
    mass = np.exp((reference(prompts, responses).log_softmax(-1) + added).detach().numpy())
    found = policy(prompts, responses).softmax(-1).detach().numpy()
    np.testing.assert_allclose(found, mass / mass.sum(-1, keepdims=True), atol=1e-12)
    reference_s = reference(prompts, responses).softmax(-1).detach().numpy()
    assert np.abs(found - reference_s).max() > 0.1


@kinds
def test_a_residual_policy_with_a_cache_equals_one_without(world, kind):
    policy = residual(world, kind)
    prompts, responses = some_responses(world)
    expected, past = policy(prompts, responses), None
    tokens = world.prompt_tokens(prompts)
    for t in range(responses.shape[1]):
        logits, past = policy.next_logits(tokens, past)
        real = world.response_mask(responses)[:, t]
        assert_close(logits[real], expected[real, t], rtol=0, atol=1e-10)
        tokens = responses[:, t]
    rollout = sample(policy, world, prompts, torch.Generator().manual_seed(0))
    exact = policy.token_logps(prompts, rollout.responses).detach()
    assert_close(rollout.logps, exact, rtol=0, atol=1e-10)


@kinds
def test_the_exact_tables_of_a_residual_policy_agree_with_its_log_probabilities(world, kind):
    policy = residual(world, kind)
    table, responses = response_logps(policy, world), world.all_responses
    assert_close(table.exp().sum(1), torch.ones(world.n_prompts).double())
    for prompt in (0, world.n_prompts - 1):
        logps = policy.token_logps(torch.full((len(responses),), prompt), responses).sum(1)
        assert_close(table[prompt], logps.detach(), rtol=0, atol=1e-10)


@kinds
def test_training_never_changes_the_reference(world, kind):
    policy = residual(world, kind, moved=False)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.requires_grad_(False).requires_grad_(True)  # what the trainers do to a copy
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=1.0)
    policy.token_logps(*some_responses(world)).sum().backward()
    optimizer.step()
    changed = {n for n, value in policy.state_dict().items() if not torch.equal(value, before[n])}
    assert "net.head.weight" in changed
    assert not any(name.startswith("reference.") for name in changed)
    assert all(p.grad is None for p in policy.reference.parameters())


@kinds
def test_a_residual_policy_keeps_a_copy_of_its_reference(world, kind):
    reference, rows = some_reference(world, kind), some_responses(world)
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=8)
    policy = ResidualPolicy(reference, config, torch.Generator().manual_seed(0)).double()
    before = policy(*rows).detach()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.5)
    assert torch.equal(policy(*rows), before)
    assert all(p.requires_grad for p in reference.parameters())


def test_the_network_of_a_residual_policy_comes_from_the_generator(world, policy):
    one, same, other = (
        ResidualPolicy(policy, GPTConfig.for_world(world), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.body.wte.weight, same.body.wte.weight)
    assert not torch.equal(one.body.wte.weight, other.body.wte.weight)
    assert (one.net.head.weight == 0).all() and (one.net.head.bias == 0).all()
    assert one.device == policy.device


@pytest.mark.parametrize("kind", MODELS)
def test_reading_each_beginning_once_changes_neither_outputs_nor_gradients(
    world, kind, monkeypatch
):
    rows = some_responses(world, n=200)
    found = []
    for limit in (gpt.SHARE_UP_TO, 0):
        monkeypatch.setattr(gpt, "SHARE_UP_TO", limit)
        model = make_model(kind, world)
        values = only_real(world, rows[1], outputs(model, *rows))
        (values**2).mean().backward()
        found.append([values.detach(), *(weight.grad for weight in model.parameters())])
    assert_close(*found, rtol=1e-9, atol=1e-12)


# Other devices: mixing CPU tensors with those of the device "meta", which compute nothing, fails.


def on_meta(world):
    """One model of each kind, moved to the device "meta" with all that belongs to it."""
    generator = torch.Generator().manual_seed(0)
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=8)
    models = [kind(config, generator) for kind in MODELS]
    table = torch.zeros(3, world.n_actions)
    models.append(TablePolicy(world, table, table.long()))
    models += [ResidualPolicy(model, config, generator) for model in (models[0], models[-1])]
    return [model.to("meta") for model in models]


def test_every_model_computes_where_its_weights_are():
    world = WordMDP(max_length=9)  # too long to look for equal beginnings, which needs their values
    prompts = torch.zeros(4, dtype=torch.long, device="meta")
    responses = torch.zeros(4, world.max_length, dtype=torch.long, device="meta")
    for model in on_meta(world):
        assert model.device.type == model(prompts, responses).device.type == "meta"
        if hasattr(model, "next_logits"):
            logits, past = model.next_logits(prompts)
            for _ in range(world.max_length - 1):
                logits, past = model.next_logits(prompts, past)
            assert logits.shape == (4, world.n_actions) and logits.device.type == "meta"
