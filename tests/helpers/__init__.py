"""What the tests share."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

#: The folder of the project
ROOT = Path(__file__).parents[2]
#: A test that warns of nothing. A file that an earlier test left open may be closed while it runs
no_warnings = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")


def slow(*values: Any) -> Any:
    """The values of a parametrized test that takes long; with the others it is tested often enough."""
    return pytest.param(*values, marks=pytest.mark.slow)


def return_name(value: Any) -> str | None:
    """What a test is called where a value of ``reward_to_go`` is one of its parameters."""
    return {True: "reward_to_go", False: "whole_episode"}[value] if isinstance(value, bool) else None


def checkered(*axes: Iterable[Any]) -> list[Any]:
    """All combinations of the values of a parametrized test. Every other one is slow, like the dark squares of a board."""
    combinations = product(*(list(enumerate(axis)) for axis in axes))
    return [
        (slow if sum(index for index, _ in combination) % 2 else pytest.param)(*(value for _, value in combination))
        for combination in combinations
    ]
