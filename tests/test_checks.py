"""The argument checks: what each lets through, what it refuses, and in which words."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_toy.checks import (
    check_choice,
    check_count,
    check_distribution,
    check_finite,
    check_generator,
    check_ids,
    check_last_dimension,
    check_number,
    check_positive,
    check_same_shape,
    check_settings,
    check_shapes,
    check_tensors,
    check_type,
    freeze,
    shown,
)

ROWS = torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)


# Values in messages


@given(st.recursive(st.text() | st.integers(), st.lists, max_leaves=50))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_a_value_is_shown_in_80_characters(value):
    text = shown(value)
    assert len(text) <= 80
    assert text == repr(value) or (text.endswith("...") and repr(value).startswith(text[:-3]))


def test_a_tensor_is_shown_by_its_shape_and_a_long_text_by_its_beginning():
    assert shown(torch.zeros(2, 3)) == "a tensor [2, 3] of torch.float32"
    assert shown("x" * 10**8) == "'" + 76 * "x" + "..."


# Numbers


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3)])
def test_every_kind_of_number_is_a_number(value):
    check_number("x", value)
    check_positive(x=value)


@pytest.mark.parametrize("value", [True, None, "1", [1.0], torch.tensor(1.0), 1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="x must be a number, got"):
        check_number("x", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_number_must_be_finite(value):
    with pytest.raises(ValueError, match="x must be a finite number, got"):
        check_number("x", value)


def test_the_limits_of_a_number_are_closed_or_open():
    for value in (0, 0.5, 1):
        check_number("x", value, low=0, high=1)
    check_number("x", 0.5, above=0, below=1)
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"at least 0 and at most 1, got {value}"):
            check_number("x", value, low=0, high=1)
    for value in (0, 1):
        with pytest.raises(ValueError, match=f"above 0 and below 1, got {value}"):
            check_number("x", value, above=0, below=1)


def test_each_number_is_named():
    with pytest.raises(ValueError, match="b must be a finite number above 0, got 0"):
        check_positive(a=1, b=0)


def test_a_count_is_an_integer_within_limits():
    for value in (1, np.int64(5), 10**400):
        check_count("n", value)
    for value in (0, 3):
        check_count("n", value, 0, 3)
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        check_count("n", 0)
    for value in (-1, 4):
        with pytest.raises(ValueError, match=f"n must be an integer from 0 to 3, got {value}"):
            check_count("n", value, 0, 3)
    for value in (1.0, True, "1", None):
        with pytest.raises(TypeError, match="n must be an integer, got"):
            check_count("n", value)


# Other values


def test_a_value_has_the_kind_that_is_expected():
    check_type("x", 1, int, "an integer")
    check_type("x", "a", int | str, "an integer or text")
    with pytest.raises(TypeError, match="x must be an integer, got 'a'"):
        check_type("x", "a", int, "an integer")


def test_a_choice_is_one_of_the_texts():
    check_choice("x", "b", ("a", "b"))
    with pytest.raises(ValueError, match="x must be one of 'a', 'b', got 'c'"):
        check_choice("x", "c", ("a", "b"))
    for value in (None, ["a"]):
        with pytest.raises(TypeError, match="x must be one of 'a', 'b', got"):
            check_choice("x", value, ("a", "b"))


def test_a_generator_is_torchs():
    check_generator(torch.Generator())
    for value in (None, 0, np.random.default_rng(0)):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
            check_generator(value)


# Tensors


def test_tensors_are_no_arrays_or_lists():
    check_tensors(x=ROWS, y=torch.zeros(0))
    for value in ([1.0], np.zeros(2), None):
        with pytest.raises(TypeError, match="y must be a tensor, got"):
            check_tensors(x=ROWS, y=value)


def test_tensors_of_one_shape():
    check_same_shape(x=ROWS, y=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"one shape, got x \[2, 2\], y \[2\]"):
        check_same_shape(x=ROWS, y=torch.zeros(2))
    with pytest.raises(ValueError, match=r"at least one entry, got x \[0, 2\]"):
        check_same_shape(x=ROWS[:0])


def test_a_letter_stands_for_one_size():
    sizes = check_shapes(x=(torch.zeros(4, 3, 2), "HSA"), y=(torch.zeros(3, 2), "SA"))
    assert sizes == {"H": 4, "S": 3, "A": 2}
    for y in (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 2, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError) as error:
            check_shapes(x=(torch.zeros(4, 3, 2), "HSA"), y=(y, "SA"))
        wanted, got = "x [H, S, A], y [S, A]", f"x [4, 3, 2], y {list(y.shape)}"
        assert str(error.value) == f"expected nonempty tensors {wanted}, got {got}"


def test_sizes_can_be_given():
    assert check_shapes({"A": 2}, x=(torch.zeros(3, 2), "SA")) == {"S": 3, "A": 2}
    with pytest.raises(ValueError, match=r"tensors x \[S, A\], A = 2, got x \[3, 3\]"):
        check_shapes({"A": 2}, x=(torch.zeros(3, 3), "SA"))


def test_no_size_is_0():
    with pytest.raises(ValueError, match=r"expected nonempty tensors x \[B\], got x \[0\]"):
        check_shapes(x=(torch.zeros(0), "B"))


def test_a_letter_may_stand_twice_in_one_shape():
    check_shapes(x=(torch.zeros(3, 3), "AA"))
    with pytest.raises(ValueError, match=r"x \[A, A\], got x \[3, 2\]"):
        check_shapes(x=(torch.zeros(3, 2), "AA"))


@pytest.mark.parametrize("other", [(3,), (2, 3), (1, 3), (5, 2, 3), (5, 1, 3)])
def test_shapes_with_one_last_dimension_that_broadcast(other):
    check_last_dimension(x=torch.zeros(2, 3), y=torch.zeros(other))


@pytest.mark.parametrize("other", [(1,), (2, 1), (4, 3), (3, 2), (), (0, 3), (2, 0)])
def test_shapes_that_do_not_broadcast_or_have_no_entries(other):
    with pytest.raises(ValueError) as error:
        check_last_dimension(x=torch.zeros(2, 3), y=torch.zeros(other))
    assert f"'y': {list(other)}" in str(error.value)


def test_finite_tensors():
    check_finite(x=ROWS, y=torch.tensor([1, 2]))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="y must be finite, got NaN or infinity in 1 of 2"):
            check_finite(x=ROWS, y=torch.tensor([0.0, bad]))
    check_finite(y=torch.zeros(0))


def test_ids_are_int64_within_limits():
    check_ids("ids", torch.tensor([0, 4]), 5, dim=1)
    check_ids("ids", torch.tensor([[-1, 4]]), 5, dim=2, low=-1)
    for bad in (torch.tensor([5]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="ids must be ids from 0 to 4, got ids from"):
            check_ids("ids", bad, 5, dim=1)
    with pytest.raises(ValueError, match="ids from -1 to 4, got ids from -2 to 0"):
        check_ids("ids", torch.tensor([-2, 0]), 5, dim=1, low=-1)
    one, no = torch.zeros(1), torch.zeros(0).long()
    for bad in (one, one.int(), one[None].long(), no):
        with pytest.raises(ValueError, match=r"a nonempty int64 tensor of 1 dimension\(s\), got a"):
            check_ids("ids", bad, 5, dim=1)


@pytest.mark.parametrize("log", [True, False])
def test_rows_that_are_distributions(log):
    rows = ROWS.log() if log else ROWS
    for good in (rows, rows.float(), rows[0], rows.expand(3, 2, 2)):
        check_distribution("p", good, log=log)
    wanted = "log-probabilities whose exponentials" if log else "probabilities, at least 0, that"
    for bad in (
        rows + 0.001,
        rows * math.nan,
        rows[:, :1],
        rows.long(),
        rows[:0],
        torch.tensor(0.0),
        ROWS if log else torch.tensor([1.5, -0.5]),
    ):
        with pytest.raises(ValueError, match=f"p must hold {wanted} sum to 1 in every row, got"):
            check_distribution("p", bad, log=log)


def test_the_sums_of_bad_rows_are_given():
    with pytest.raises(ValueError, match=r"got sums from 0\.5 to 2 and a least entry of 0$"):
        check_distribution("p", torch.tensor([[0.25, 0.25], [0.0, 2.0]]), log=False)


# Settings


@dataclass(frozen=True)
class Settings:
    steps: int = 60
    rate: float = 0.5
    limit: float | None = None
    flag: bool = True
    name: str = "walk"


@dataclass(frozen=True)
class Written:
    """Its annotations are texts, as in a module with `from __future__ import annotations`."""

    steps: "int" = 60
    limit: "float | None" = None


def test_settings_whose_annotations_are_texts_are_checked_too():
    check_settings(Written(steps=2))
    with pytest.raises(TypeError, match="steps must be an integer"):
        check_settings(Written(steps=1.5))
    with pytest.raises(ValueError, match="limit must be a finite number above 0"):
        check_settings(Written(limit=-1.0))


@pytest.mark.parametrize("change", [{"steps": 0}, {"steps": 1.5}, {"steps": True}])
def test_counts_must_be_whole_and_positive(change):
    with pytest.raises((TypeError, ValueError), match="steps must be an integer"):
        check_settings(Settings(**change))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_numbers_must_be_positive_and_finite(rate):
    with pytest.raises(ValueError, match="rate must be a finite number above 0"):
        check_settings(Settings(rate=rate))


def test_limits_replace_the_rule_of_their_field_only():
    check_settings(Settings(rate=0.0), rate={"low": 0, "high": 1})
    with pytest.raises(ValueError, match="rate must be a finite number at least 0 and at most 1"):
        check_settings(Settings(rate=1.5), rate={"low": 0, "high": 1})
    with pytest.raises(ValueError, match="rate"):
        check_settings(Settings(rate=0.0), steps={"low": 0})


def test_flags_must_be_true_or_false_and_only_what_may_be_none_may():
    check_settings(Settings(limit=None, name=3))
    with pytest.raises(TypeError, match="flag must be True or False"):
        check_settings(Settings(flag=1))
    with pytest.raises(ValueError, match="limit"):
        check_settings(Settings(limit=0.0))
    with pytest.raises(TypeError, match="rate must be a number, got None"):
        check_settings(Settings(rate=None))


def test_a_text_is_one_of_its_choices_where_these_are_given():
    check_settings(Settings(name="a"), name=("a", "b"))
    with pytest.raises(ValueError, match="name must be one of 'a', 'b', got 'c'"):
        check_settings(Settings(name="c"), name=("a", "b"))
    with pytest.raises(TypeError, match="name must be one of 'a', 'b', got 3"):
        check_settings(Settings(name=3), name=("a", "b"))


def test_frozen_fields_become_what_the_check_returns():
    settings = Settings(steps=2, rate=3)
    freeze(settings, lambda name, value, low: (name, value, low), "steps", "rate", low=1)
    assert settings == Settings(steps=("steps", 2, 1), rate=("rate", 3, 1))
