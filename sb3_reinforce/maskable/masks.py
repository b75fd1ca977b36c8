"""Masks of actions: reading them from the environments, and checking them."""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_reinforce.envs.adapter import VectorEnvAdapter

#: Gives the masks of all environments, as these give them
MaskSource = Callable[[], Any]


class MaskLayout:
    """
    Which number of a mask belongs to which choice: one for each value of each dimension of an action, one dimension after
    the other.

    :param space: Action space
    :raises ValueError: If its actions cannot be masked
    """

    def __init__(self, space: spaces.Space):
        if isinstance(space, spaces.Discrete):
            self.sizes = [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            self.sizes = space.nvec.tolist()
        elif isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
            self.sizes = [2] * int(space.shape[0])
        else:
            raise ValueError(
                f"Masks need a Discrete space, or a MultiDiscrete or MultiBinary space with one axis, got {space}."
            )
        self.is_discrete = isinstance(space, spaces.Discrete)
        self.n = sum(self.sizes)
        self.starts = np.cumsum([0, *self.sizes[:-1]])

    def rows(self, masks: Any, n_envs: int) -> np.ndarray:
        """
        :param masks: One mask for each environment, see :meth:`row`
        :param n_envs: Number of environments
        :return: The masks, shape ``(n_envs, n)``, bool
        :raises ValueError: If they have another form
        """
        if isinstance(masks, np.ndarray) and masks.dtype == bool and masks.shape == (n_envs, self.n):
            return masks
        if not _is_sequence(masks) or len(masks) != n_envs:
            raise ValueError(
                f"The action masks must have the shape ({n_envs}, {self.n}), a row for each environment{self._or_parts()}, "
                f"got {_form(masks)}."
            )
        return np.stack([self.row(mask, f" in environment {i}") for i, mask in enumerate(masks)])

    def only_row(self, masks: Any) -> np.ndarray:
        """
        :param masks: The mask of the only action, see :meth:`row`, or a sequence with just this mask
        :return: The mask, shape ``(1, n)``, bool
        :raises ValueError: If it has another form
        """
        try:
            return self.row(masks)[None]
        except ValueError as error:
            if _is_sequence(masks) and len(masks) == 1:
                with suppress(ValueError):
                    return self.row(masks[0])[None]
            raise error

    def row(self, mask: Any, where: str = "") -> np.ndarray:
        """
        :param mask: The mask of one action: an array or a list of booleans, or of zeros and ones, flat, or with a part of its
            own for each dimension of the action
        :param where: Where it comes from, for an error
        :return: The mask, shape ``(n,)``, bool
        :raises ValueError: If it has another form
        """
        if isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.n,):
            return mask
        array = _as_array(mask)
        if array is None or array.dtype.kind == "O":  # perhaps the parts are of different lengths
            parts = [_as_array(part) for part in mask] if _is_sequence(mask) else []
            fits = [part.shape for part in parts if part is not None] == [(size,) for size in self.sizes]
            array = np.concatenate(parts) if fits and len(parts) == len(self.sizes) else None  # type: ignore[arg-type]
        elif not self.is_discrete and [*array.shape] == [len(self.sizes), self.sizes[0]] and len(set(self.sizes)) == 1:
            array = array.reshape(-1)
        if array is None or array.shape != (self.n,):
            raise ValueError(f"The action mask must have the shape ({self.n},){self._or_parts()}, got {_form(mask)}{where}.")
        # `isin` takes ten times as long
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise ValueError(f"The action mask must hold booleans, or zeros and ones, got {mask!r}{where}.")
        return array.astype(bool)

    def largest_entropy(self, masks: np.ndarray) -> float:
        """
        :param masks: Masks, shape ``(n_timesteps, n)``, bool
        :return: The mean entropy of a policy to which all allowed actions are alike
        """
        choices = np.add.reduceat(masks, self.starts, axis=1, dtype=int)
        return float(np.log(np.maximum(choices, 1)).sum(axis=1).mean())

    def first_without_choice(self, masks: np.ndarray) -> int | None:
        """
        :param masks: Masks, shape ``(n_envs, n)``, bool
        :return: Index of the first mask that allows no value of some dimension of the action; ``None`` if there is none
        """
        allowed = masks.any(axis=1) if self.is_discrete else np.logical_or.reduceat(masks, self.starts, axis=1).all(axis=1)
        return None if allowed.all() else int(allowed.argmin())

    def _or_parts(self) -> str:
        return "" if self.is_discrete else f", or a part for each dimension of the action, of lengths {self.sizes}"


def _is_sequence(masks: Any) -> bool:
    if isinstance(masks, np.ndarray | th.Tensor):
        return masks.ndim > 0
    return isinstance(masks, Sequence) and not isinstance(masks, str | bytes)


def _as_array(mask: Any) -> np.ndarray | None:
    if isinstance(mask, th.Tensor):
        mask = mask.detach().cpu()
    try:
        return np.asarray(mask)
    except ValueError:  # its parts are of different lengths
        return None


def _form(mask: Any) -> str:
    array = _as_array(mask)
    if array is None or array.dtype.kind == "O" or array.ndim == 0:
        lengths = [len(part) if hasattr(part, "__len__") else 1 for part in mask] if _is_sequence(mask) else None
        return repr(mask) if lengths is None else f"parts of lengths {lengths}"
    return f"the shape {array.shape}"


def of_vec_env(env: VecEnv) -> MaskSource | None:
    """
    :param env: Environments
    :return: The method ``action_masks`` of the outermost vector environment that has one, which gives the masks of all
        environments at once
    """
    layer: Any = env
    # A wrapper that has none would pass the question on, and refuse to answer if several layers further in have one
    while isinstance(layer, VecEnvWrapper) and not (
        hasattr(type(layer), EXPECTED_METHOD_NAME) or EXPECTED_METHOD_NAME in vars(layer)
    ):
        layer = layer.venv
    method = getattr(layer, EXPECTED_METHOD_NAME, None)
    return method if callable(method) else None


def has_masks(env: Any) -> bool:
    """
    :param env: Environments
    :return: Whether they are known to have a method ``action_masks``
    """
    if env is None:
        return False
    try:
        return of_vec_env(env) is not None or bool(env.has_attr(EXPECTED_METHOD_NAME))
    except Exception:  # an environment of another make may not be able to say
        return False


def mask_source(env: VecEnv) -> MaskSource:
    """
    :param env: Environments that have masks
    :return: Gives their masks
    """
    own = of_vec_env(env)
    if own is not None:
        return own
    inner = env
    while isinstance(inner, VecEnvWrapper) and type(inner).env_method is VecEnvWrapper.env_method:
        inner = inner.venv
    if type(inner) is DummyVecEnv:
        return partial(_of_each, inner)
    if isinstance(inner, VectorEnvAdapter) and type(inner).env_method is VectorEnvAdapter.env_method:
        return inner.action_masks_of_all
    return partial(env.env_method, EXPECTED_METHOD_NAME)


def _of_each(env: DummyVecEnv) -> list[Any]:
    # As copies: all of them may write to the same array
    return [copy.copy(single.get_wrapper_attr(EXPECTED_METHOD_NAME)()) for single in env.envs]
