"""Our losses and advantages are TRL's, wherever TRL has them: the same tensors, the same numbers.

TRL keeps its losses inside its trainers' methods. Each is called here as it is, on a stand-in for
the trainer that has just the attributes which the method reads. Skipped where TRL is not installed.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from rlhf_toy.losses import (
    cdpo_loss,
    dpo_loss,
    grpo_advantages,
    ipo_loss,
    kto_loss,
    orpo_loss,
    policy_gradient_loss,
    rdpo_loss,
    rloo_advantages,
    simpo_loss,
)
from rlhf_toy.policy_gradient import (
    Experience,
    PolicyGradientSettings,
    experience_loss,
    make_experience,
)
from rlhf_toy.sampling import Rollout


def trl_trainer(module, name):
    return getattr(pytest.importorskip(f"trl.{module}", exc_type=ImportError), name)


DPOTrainer = trl_trainer("trainer.dpo_trainer", "DPOTrainer")
KTOTrainer = trl_trainer("trainer.kto_trainer", "KTOTrainer")
GRPOTrainer = trl_trainer("trainer.grpo_trainer", "GRPOTrainer")
RLOOTrainer = trl_trainer("trainer.rloo_trainer", "RLOOTrainer")
CPOTrainer = trl_trainer("experimental.cpo", "CPOTrainer")
ORPOTrainer = trl_trainer("experimental.orpo", "ORPOTrainer")

BETA = 0.4
pytestmark = pytest.mark.filterwarnings("default")  # TRL's warnings are not ours


class Settings(SimpleNamespace):
    """These attributes; every other one is None, which switches an option of TRL off."""

    def __getattr__(self, name):
        return None


def alone(x, **how):
    return x


def stand_in(**attributes):
    """What a trainer's method finds in `self`: one process, a model in training, no options."""
    accelerator = Settings(
        device=torch.device("cpu"), gather=alone, gather_for_metrics=alone, reduce=alone,
        num_processes=1, process_index=0,
    )  # fmt: skip
    common = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "ref_model": SimpleNamespace(),
        "args": Settings(
            steps_per_generation=1, gradient_accumulation_steps=1, per_device_train_batch_size=8
        ),
        "beta": BETA,
        "label_smoothing": 0.0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "current_gradient_accumulation_steps": 1,
    }
    return Settings(**common | attributes)


def same(ours, theirs, inputs, tolerance=1e-6):
    """Two losses are equal, and so are their gradients in the inputs."""
    assert_close(ours.double(), theirs.double(), atol=tolerance, rtol=0)
    pairs = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (ours, theirs)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, atol=tolerance, rtol=0)
        assert one.abs().max() > 1e-3


# Pairs


def four(n=6):
    """Log-probabilities of n pairs under a policy, to be differentiated, and under a reference."""
    logps = -4 * torch.rand(4, n, generator=torch.Generator().manual_seed(0)).double() - 0.1
    return [*(t.requires_grad_() for t in logps[:2].unbind()), *logps[2:]]


def outputs_of(logps, mask):
    """What TRL's models return: log-probabilities of tokens [N, T], all of them on the first one.

    `mask` [N, T + 1] has a column for the prompt.
    """
    log_probs = torch.zeros(mask[:, 1:].shape).double()
    log_probs[:, 0] = 1.0
    nothing = torch.zeros_like(log_probs)
    log_probs = log_probs * logps[:, None]
    return SimpleNamespace(
        log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )


def completion_masks(lengths):
    """A column for the prompt, then the tokens: [N, T + 1]."""
    return torch.nn.functional.pad(
        torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], (1, 0)
    )


def trl_dpo(loss_type, logps, lengths=None, **attributes):
    chosen, rejected, ref_chosen, ref_rejected = logps
    mask = completion_masks(lengths or [1] * (2 * len(chosen))).long()
    trainer = stand_in(
        loss_types=[loss_type], loss_weights=[1.0], f_divergence_type="reverse_kl",
        precompute_ref_logps=True, **attributes,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    outputs = outputs_of(torch.cat([chosen, rejected]), mask)
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def test_dpo_is_trl_s_sigmoid():
    logps = four()
    same(dpo_loss(*logps, BETA), trl_dpo("sigmoid", logps), logps[:2])


def test_rdpo_is_trl_s_robust():
    logps = four()
    theirs = trl_dpo("robust", logps, label_smoothing=0.2)
    same(rdpo_loss(*logps, BETA, 0.2), theirs, logps[:2])


def test_cdpo_is_trl_s_aot_of_one_pair_at_a_time():
    # TRL's "sigmoid" ignores label_smoothing. AOT smooths too, and sorting one pair does nothing.
    logps = four()
    theirs = [
        trl_dpo("aot_unpaired", [t[i : i + 1] for t in logps], label_smoothing=0.2)
        for i in range(6)
    ]
    same(cdpo_loss(*logps, BETA, 0.2), torch.stack(theirs).mean(), logps[:2])


def test_ipo_is_trl_s_for_responses_of_one_token():
    logps = four()
    same(ipo_loss(*logps, BETA), trl_dpo("ipo", logps), logps[:2])


def test_trl_s_ipo_is_ours_of_means_over_tokens():
    logps, lengths = four(), [1, 2, 3, 4, 5, 2, 3, 1, 2, 6, 1, 2]
    chosen, rejected = torch.tensor(lengths).chunk(2)
    means = [t / n for t, n in zip(logps, [chosen, rejected] * 2, strict=True)]
    theirs = trl_dpo("ipo", logps, lengths)
    same(ipo_loss(*means, BETA), theirs, logps[:2])
    assert abs(theirs - ipo_loss(*logps, BETA)) > 0.1


@pytest.mark.parametrize("kl", [0.0, 0.7])
def test_kto_is_trl_s(kl):
    logps = four()
    policy, reference = torch.cat(logps[:2]), torch.cat(logps[2:])
    mask = completion_masks([1] * 12).long()
    trainer = stand_in(
        loss_type="kto", calculate_KL=True, precompute_ref_logps=True, desirable_weight=1.5,
        undesirable_weight=0.7, _compute_kl_logps=lambda *_: torch.full((12,), kl).double(),
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.arange(12) < 6,
        "ref_logps": reference,
        "ref_KL_logps": torch.zeros(12).double(),
    }
    outputs = outputs_of(policy, mask)
    theirs = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    same(kto_loss(*logps, BETA, torch.tensor(kl), 1.5, 0.7), theirs, logps[:2])


LENGTHS = torch.tensor([1, 2, 3, 4, 5, 2]), torch.tensor([3, 1, 2, 6, 1, 2])


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_simpo_is_trl_s_cpo_of_means_over_tokens(gamma):
    logps = four()[:2]
    trainer = stand_in(alpha=0.0, loss_type="simpo", simpo_gamma=gamma)
    means = [t / n for t, n in zip(logps, LENGTHS, strict=True)]
    theirs, _, _ = CPOTrainer.cpo_loss(trainer, *means)
    same(simpo_loss(*logps, *LENGTHS, BETA, gamma), theirs.mean(), logps)


def test_orpo_is_trl_s_of_means_over_tokens():
    logps = four()[:2]
    chosen, rejected = (t / n for t, n in zip(logps, LENGTHS, strict=True))
    logits = torch.zeros(6)
    # TRL's supervised part is over all tokens of the batch; ours, as the paper's, by response.
    forward = chosen, rejected, logits, logits, -chosen.mean()
    trainer = stand_in(concatenated_forward=lambda *_: forward)
    trainer.odds_ratio_loss = lambda *a: ORPOTrainer.odds_ratio_loss(trainer, *a)
    theirs, _ = ORPOTrainer.get_batch_loss_metrics(trainer, None, None)
    same(orpo_loss(*logps, *LENGTHS, BETA), theirs, logps)


# Groups of responses: two prompts, four responses each, one to three tokens


B, T, G = 8, 3, 4
MASK = torch.arange(T) < torch.tensor([1, 2, 3, 3, 2, 1, 3, 2])[:, None]


def tokens(seed):
    """Log-probabilities of tokens [B, T], 0 after the end."""
    generator = torch.Generator().manual_seed(seed)
    return -2 * torch.rand(B, T, generator=generator).double() * MASK


OLD, REF, NEW = tokens(0), tokens(1), tokens(0) + 0.3 * (tokens(2) - tokens(3))
REWARDS = torch.randn(B, generator=torch.Generator().manual_seed(4)).double()


def an_experience(settings):
    ids = torch.zeros(B, T).long()
    rollout = Rollout(ids[:, 0], ids, ids, OLD, MASK)
    return make_experience(rollout, REWARDS, REF, settings)


def trl_experience(trainer_class, generated, **attributes):
    """What TRL makes of the same responses and rewards."""
    trainer = stand_in(
        num_generations=G,
        num_iterations=1,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        reward_weights=torch.ones(1).double(),
        reward_funcs=[None],
        reward_func_names=["reward"],
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        _calculate_rewards=lambda *_: REWARDS[:, None].clone(),
        _generate=lambda prompts: generated,
        **attributes,
    )
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        OLD if model is trainer.model else REF, None, None,
    )  # fmt: skip
    inputs = [{"prompt": "p"} for _ in range(B)]
    return trainer_class._generate_and_score_completions(trainer, inputs)


IDS = [[1] * int(n) for n in MASK.sum(1)]


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_rloo_advantages_are_trl_s_with_k1_in_the_reward(beta):
    generated = [[0]] * B, IDS, ["text"] * B
    theirs = trl_experience(RLOOTrainer, generated, beta=beta)["advantages"]
    kl = "k1_reward" if beta else "none"
    settings = PolicyGradientSettings(BETA, "rloo", kl, batch_size=B, num_mini_batches=1)
    assert_close(an_experience(settings).advantages, theirs, atol=1e-6, rtol=0)
    if not beta:
        assert_close(rloo_advantages(REWARDS.view(2, G)).flatten(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [True, False])
def test_grpo_advantages_are_trl_s(scale):
    generated = [[0]] * B, IDS, None, ["text"] * B, None, {}, None, None
    how = {"scale_rewards": "group" if scale else "none"}
    theirs = trl_experience(
        GRPOTrainer, generated, multi_objective_aggregation="sum_then_normalize", **how
    )["advantages"]
    ours = grpo_advantages(REWARDS.view(2, G), scale).flatten()
    assert_close(ours, theirs, atol=1e-6, rtol=0)


def trl_batch(logps, advantages, **more):
    ids = torch.zeros(B, T).long()
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones(B, 1),
        "completion_ids": ids,
        "completion_mask": MASK.double(),
        "advantages": advantages,
        **more,
    }


def test_rloo_s_loss_has_the_gradient_of_trl_s_where_the_ratio_is_1():
    advantages, logps = rloo_advantages(REWARDS.view(2, G)).flatten(), OLD.clone().requires_grad_()
    forward = logps, torch.zeros_like(logps), None
    trainer = stand_in(
        epsilon_low=0.2,
        epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *_, **__: forward,
    )
    batch = trl_batch(logps, advantages, old_logps=OLD.sum(1))
    theirs = RLOOTrainer._compute_loss(trainer, None, batch)
    ours = policy_gradient_loss(logps, advantages[:, None], MASK)
    slopes = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    assert_close(*slopes, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("loss_type", "aggregate", "factor"),
    [
        ("grpo", "response_mean", 1.0),
        ("bnpo", "token", 1.0),
        ("luspo", "sequence", 1.0),
        ("dr_grpo", "sequence", 1 / T),  # TRL divides by the longest length that is allowed
    ],
)
@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("cliprange", [0.1, 0.3])
def test_clip_k3_and_means_are_trl_s_grpo(loss_type, aggregate, factor, beta, cliprange):
    logps = NEW.clone().requires_grad_()
    settings = PolicyGradientSettings(
        BETA, "grpo", "k3_loss" if beta else "none", "token", aggregate, batch_size=B,
        num_mini_batches=2, cliprange=cliprange,
    )  # fmt: skip
    batch = an_experience(settings)
    assert isinstance(batch, Experience)
    ours = factor * experience_loss(logps, batch, settings)

    forward = logps, torch.zeros_like(logps), None
    trainer = stand_in(
        beta=beta, loss_type=loss_type, epsilon_low=cliprange, epsilon_high=cliprange,
        importance_sampling_level="token", top_entropy_quantile=1.0, max_completion_length=T,
        _get_per_token_logps_and_entropies=lambda *_, **__: forward,
    )  # fmt: skip
    known = {"old_per_token_logps": OLD, "ref_per_token_logps": REF}
    theirs = GRPOTrainer._compute_loss(trainer, None, trl_batch(logps, batch.advantages, **known))
    same(ours, theirs, [logps])
    ratio = (NEW - OLD).exp()[MASK]
    assert (((ratio - 1).abs() > cliprange).float().mean() > 0.1).item(), "something is clipped"
