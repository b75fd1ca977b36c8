"""Which forms of a mask are accepted, and what is said of all others."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_reinforce.maskable.masks import MaskLayout

DISCRETE, MULTI, EQUAL, BINARY = (
    MaskLayout(space)
    for space in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 3]), spaces.MultiBinary(2))
)
RAGGED = np.empty(2, dtype=object)
RAGGED[:] = [np.array([True, False]), np.array([1, 0, 1])]


@pytest.mark.parametrize(
    ("layout", "mask", "expected"),
    [
        (DISCRETE, [True, False, True], [1, 0, 1]),
        (DISCRETE, (1, 0, 1), [1, 0, 1]),
        (DISCRETE, np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (DISCRETE, np.array([1.0, 0.0, 1.0]), [1, 0, 1]),
        (DISCRETE, th.tensor([True, False, True]), [1, 0, 1]),
        (MULTI, [1, 0, 1, 0, 1], [1, 0, 1, 0, 1]),
        (MULTI, [[1, 0], [1, 0, 1]], [1, 0, 1, 0, 1]),
        (MULTI, (np.array([True, False]), np.array([True, False, True])), [1, 0, 1, 0, 1]),
        (MULTI, RAGGED, [1, 0, 1, 0, 1]),
        (EQUAL, [[1, 0, 1], [0, 1, 1]], [1, 0, 1, 0, 1, 1]),
        (EQUAL, np.array([[1, 0, 1], [0, 1, 1]], bool), [1, 0, 1, 0, 1, 1]),
        (BINARY, [1, 0, 0, 1], [1, 0, 0, 1]),
        (BINARY, [[1, 0], [0, 1]], [1, 0, 0, 1]),
    ],
)
def test_masks_of_any_unambiguous_form_mean_the_same(layout: MaskLayout, mask: Any, expected: list[int]) -> None:
    row = layout.row(mask)
    assert row.dtype == bool and row.tolist() == [bool(allowed) for allowed in expected]
    rows = layout.rows([mask, expected], 2)
    assert rows.shape == (2, layout.n) and (rows == row).all()
    assert (layout.only_row([mask]) == row[None]).all()


@pytest.mark.parametrize(
    ("layout", "mask", "got"),
    [
        (DISCRETE, np.ones(4), r"\(4,\)"),
        (DISCRETE, np.ones((3, 1)), r"\(3, 1\)"),
        (DISCRETE, np.ones((1, 3)), r"\(1, 3\)"),
        (DISCRETE, [[1], [1, 0]], r"\[1, 2\]"),
        (DISCRETE, True, "True"),
        (DISCRETE, None, "None"),
        (DISCRETE, "101", "101"),
        (DISCRETE, {0: 1, 1: 1, 2: 0}, "0: 1"),
        (MULTI, np.ones((5, 1)), r"\(5, 1\)"),
        (MULTI, [[1, 0, 1], [1, 0]], r"\[3, 2\]"),
        (MULTI, np.ones(6), r"\(6,\)"),
        (EQUAL, np.ones((3, 2)), r"\(3, 2\)"),
        (EQUAL, np.ones(3), r"\(3,\)"),
        (BINARY, np.ones(2), r"\(2,\)"),
        (BINARY, np.ones((4, 1)), r"\(4, 1\)"),
    ],
)
def test_masks_of_another_shape_are_errors_with_both_shapes(layout: MaskLayout, mask: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"shape \({layout.n},\).*got.*{got}"):
        layout.row(mask)


@pytest.mark.parametrize("mask", [[2, 0, 1], [-1, 0, 1], [0.5, 1, 1], [np.nan, 1, 1], ["a", "b", "c"]], ids=str)
def test_masks_of_other_values_are_errors(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"zeros and ones, got"):
        DISCRETE.row(mask)


@pytest.mark.parametrize(
    "masks", [np.ones(6), np.ones((3, 2)), np.ones((1, 3)), np.ones((3, 3)), np.ones(3), "11", 1], ids=str
)
def test_masks_of_another_number_of_environments_are_errors(masks: Any) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*got"):
        DISCRETE.rows(masks, 2)


def test_the_environment_of_a_wrong_mask_is_named() -> None:
    with pytest.raises(ValueError, match="in environment 1"):
        DISCRETE.rows([[1, 1, 1], [1, 1]], 2)


def test_a_mask_that_leaves_a_dimension_without_a_choice_is_found() -> None:
    rows = np.array([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], bool)
    assert MULTI.first_without_choice(rows) == 1
    assert MULTI.first_without_choice(rows[[0, 2]]) == 1
    assert MULTI.first_without_choice(rows[:1]) is None
    assert DISCRETE.first_without_choice(np.array([[1, 0, 0], [0, 0, 0]], bool)) == 1
    assert BINARY.first_without_choice(np.array([[1, 0, 0, 0]], bool)) == 0


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([[2, 3], [4, 5]]), spaces.MultiBinary((2, 2))], ids=str)
def test_spaces_of_several_axes_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="one axis, got"):
        MaskLayout(space)
