"""What the studies share: one world, one reference a seed, settings without hidden defaults."""

import ast
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_toy.course.studies import parts
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig
from rlhf_toy.sft import train_reference

SETTINGS = ("REFERENCE", "REWARD_MODEL", "PPO", "DPO")


@pytest.mark.parametrize("name", SETTINGS)
def test_all_settings_are_stated(name):
    source = ast.parse(Path(parts.__file__).read_text(encoding="utf-8"))
    (call,) = (
        node.value
        for node in source.body
        if isinstance(node, ast.Assign) and node.targets[0].id == name
    )
    stated = {keyword.arg for keyword in call.keywords}
    assert stated == {field.name for field in fields(getattr(parts, name))}


def test_new_fields_are_fields_and_a_description_is_the_repr_of_all_others():
    known = {type(getattr(parts, name)) for name in SETTINGS} | {GPTConfig}
    names = {f"{kind.__qualname__}.{field.name}" for kind in known for field in fields(kind)}
    assert parts.NEW_FIELDS.keys() <= names
    for value in (WordMDP().world_spec, (1.5, "a"), None):
        assert parts.described(value) == repr(value)


def test_the_reference_is_the_seed_s_and_trained_once(monkeypatch):
    short = replace(parts.REFERENCE, steps=2, corpus_size=100)
    monkeypatch.setattr(parts, "REFERENCE", short)
    parts.reference.cache_clear()
    try:
        expected, _ = train_reference(parts.word_world(), short, 3, device="cpu")
        found = parts.reference(3)
        for name, weight in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], weight), name
        assert parts.reference(3) is found
        assert parts.reference(4) is not found
    finally:
        parts.reference.cache_clear()


def test_half_of_an_interval_is_student_s():
    values = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    # 4.302653 is the 97.5 % quantile of Student's t with 2 degrees of freedom.
    expected = 4.302653 * np.sqrt(((values[:, 0] - 3) ** 2).sum() / 2 / 3)
    np.testing.assert_allclose(parts.half_width(values), [expected, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(parts.half_width(values[:1]), [0.0, 0.0])


def test_the_fingerprint_covers_world_and_reference(monkeypatch):
    fingerprint = parts.fingerprint.__wrapped__
    before = fingerprint()
    assert before == fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(parts, "REFERENCE", replace(parts.REFERENCE, steps=201))
        assert fingerprint() != before
    with monkeypatch.context() as patch:
        patch.setattr(parts, "word_world", lambda: WordMDP(max_length=2))
        assert fingerprint() != before
    with monkeypatch.context() as patch:
        patch.setattr(parts, "NEW_FIELDS", {"SFTSettings.steps": 0, "GPTConfig.n_layer": 0})
        assert fingerprint() == before
        parts.NEW_FIELDS["SFTSettings.steps"] = parts.REFERENCE.steps
        assert fingerprint() != before
        parts.NEW_FIELDS["SFTSettings.steps"], parts.NEW_FIELDS["GPTConfig.n_layer"] = 0, 2
        assert fingerprint() != before
