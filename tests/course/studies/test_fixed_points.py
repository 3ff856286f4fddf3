"""The study of fixed points."""

import matplotlib.pyplot as plt
import pytest
import torch

from rlhf_toy.course.studies import fixed_points as study
from rlhf_toy.exact import fixed_point, gibbs_policy, objective, response_token_logps
from rlhf_toy.policy_gradient import PolicyGradientSettings, experience_loss, make_experience
from rlhf_toy.sampling import Rollout

TREE = study.world_tables("tree")


def test_every_method_is_tried_once_in_each_world_where_it_can_be():
    tasks = [(task["world"], task["method"]) for task in study.tasks()]
    assert len(set(tasks)) == len(tasks)
    everywhere = set(study.PREFERENCES) | {"k3 in the loss", "Dr. GRPO, G = 2, k3 in the loss"}
    for world in study.GROUPS:
        assert everywhere <= {method for w, method in tasks if w == world}
    assert ("words", "GRPO, G = 4, k3 in the loss") not in tasks


def test_a_tree_has_every_response_once():
    assert len({tuple(row) for row in TREE.responses.tolist()}) == 13
    assert TREE.mask.sum(1).tolist() == [1] + 12 * [2]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("k3 per token, mean per response", {"advantage": "reinforce", "kl": "k3_loss",
            "kl_level": "token", "aggregate": "response_mean"}),
        ("k2 in the loss", {"advantage": "reinforce", "kl": "k2_loss"}),
        ("k1 in the reward", {"advantage": "reinforce", "kl": "k1_reward"}),
    ],
)  # fmt: skip
def test_the_loss_has_the_gradient_of_the_trainer_s(method, settings):
    logits = study._elsewhere(TREE.ref_logps).requires_grad_()
    logps = logits.log_softmax(-1)
    loss = study.method_loss(method, TREE)(logps)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    settings = PolicyGradientSettings(
        beta=study.BETA, num_generations=1, batch_size=13, num_mini_batches=1, **settings
    )
    tokens = response_token_logps(logps, TREE.responses)[0]
    zeros = torch.zeros(13, dtype=torch.long)
    rollout = Rollout(zeros, TREE.responses, TREE.responses, tokens.detach(), TREE.mask)
    ref_tokens = response_token_logps(TREE.ref_logps, TREE.responses)[0]
    batch = make_experience(rollout, TREE.rewards[0], ref_tokens, settings)
    loss = experience_loss(tokens, batch, settings, logps.detach()[0].exp())
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, expected)


def test_online_pairs_come_from_the_policy_and_flips_are_counted():
    losses = [
        float(study.method_loss(name, TREE)(study._elsewhere(TREE.ref_logps)))
        for name in ("DPO", "online DPO", "DPO, flips")
    ]
    assert len(set(losses)) == 3


def test_a_run_measures_the_limit(monkeypatch):
    best = gibbs_policy(TREE.ref_logps, TREE.rewards, study.BETA)
    start = study._elsewhere(TREE.ref_logps)
    loss = study.method_loss("IPO", TREE)
    limit = fixed_point(loss, TREE.ref_logps, TREE.rewards, study.BETA, start).logps
    J = [
        float(objective(logps, TREE.ref_logps, TREE.rewards, study.BETA).mean())
        for logps in (best, limit, TREE.ref_logps)
    ]
    result = study.run({"world": "tree", "method": "IPO"})
    assert result["gap"] == pytest.approx((J[0] - J[1]) / (J[0] - J[2]), abs=1e-6)
    assert result["starts_differ"] < 1e-6 and not result["boundary"]
    monkeypatch.setattr("rlhf_toy.exact.fixed_points.MOST_CALLS", 3)
    words = "no fixed point found: still moving after 3 calls"
    assert study.run({"world": "tree", "method": "IPO"}) == {"problem": words}


def test_the_figure_tells_the_boundary_and_failures_apart():
    rows = [
        {"world": "tree", "method": "KTO", "gap": 0.1, "boundary": True},
        {"world": "tree", "method": "DPO", "gap": 0.0, "boundary": False},
        {"world": "tree", "method": "IPO", "problem": "no fixed point found"},
    ]
    figure = study.figure(rows)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() == "white" for line in lines[:2]] == [True, False]
    assert [line.get_marker() for line in lines] == ["s", "s", "x"]
    plt.close(figure)
