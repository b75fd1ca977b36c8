"""Checks of numbers: they find NaN and infinity before these do harm, and the error says where they came from."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_ZEROS: dict[tuple[int, np.dtype], np.ndarray] = {}


def first_not_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """
    :param array: Any array
    :return: Index of its first NaN or infinity, ``None`` if there is none
    """
    if array.dtype.kind != "f":
        return None
    not_finite = ~np.isfinite(array)
    if not not_finite.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(not_finite)), array.shape))


def without_underflow(function: Callable[..., T]) -> Callable[..., T]:
    """
    For functions that are called at every timestep: free unless the user has asked NumPy to report underflows.

    :param function: A function
    :return: The function, in which the smallest numbers silently become 0
    """
    return function if np.geterr()["under"] == "ignore" else np.errstate(under="ignore")(function)


def surely_finite(array: np.ndarray) -> bool:
    """
    A quick check of a few numbers, in a third of the time of ``np.isfinite(array).all()``, at every timestep.

    :param array: Any array
    :return: Whether it is known to hold neither NaN nor infinity
    """
    if array.dtype.kind != "f":
        return True
    flat = array.ravel()
    key = (flat.size, flat.dtype)
    if key not in _ZEROS:
        _ZEROS[key] = np.zeros(flat.size, flat.dtype)
    try:
        return bool(flat.dot(_ZEROS[key]) == 0.0)  # NaN and infinity times zero are NaN
    except (RuntimeWarning, FloatingPointError):  # NumPy's warning as an error, or its own error
        return False


def check_finite(
    what: str,
    array: np.ndarray | dict[str, np.ndarray],
    timestep: Callable[[int], int],
    env_ids: Sequence[int] | None = None,
    of: str = "its episode",
) -> None:
    """
    :param what: What the numbers are
    :param array: The numbers, the environments along the first axis
    :param timestep: Gives the timestep that an environment is at
    :param env_ids: The environments; all of them if ``None``
    :param of: The episode or rollout within which the timestep is counted
    :raises ValueError: If one of the numbers is not finite
    """
    if isinstance(array, dict):
        for key, value in array.items():
            check_finite(f"{what} {key!r}", value, timestep, env_ids, of)
        return
    index = first_not_finite(array)
    if index is not None:
        env_id = index[0] if env_ids is None else env_ids[index[0]]
        raise not_finite(what, array[index], env_id, timestep(env_id), of)


def not_finite(what: str, value: object, env_id: int, timestep: int, of: str = "its episode") -> ValueError:
    """
    :param what: Name of the number that is not finite
    :param value: The number
    :param env_id: Index of the environment
    :param timestep: The timestep
    :param of: The episode or rollout within which the timestep is counted
    :return: The error that says so
    """
    return ValueError(f"The {what} must be finite, got {value} in environment {env_id} at timestep {timestep} of {of}.")
