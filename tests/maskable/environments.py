"""Environments whose masks follow from the observation, and which take a forbidden action for an error."""

import functools
from typing import Any

import numpy as np
from gymnasium import spaces

from tests.helpers.environments import Scripted

SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(3),
}


def sizes_of(space: Any) -> list[int]:
    """How many values each dimension of an action has."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [2] * space.n


def mask_of(space: spaces.Space, episode: int, timestep: int) -> np.ndarray:
    """
    The mask of a state: of each dimension it forbids one value or none. It is another one in the next state, and (after most
    lengths of an episode) in the first state of the next episode.
    """
    return _mask(tuple(sizes_of(space)), 11 * episode + timestep).copy()


@functools.cache
def _mask(sizes: tuple[int, ...], number: int) -> np.ndarray:
    return np.concatenate([np.arange(size) != (number + i) % (size + 1) for i, size in enumerate(sizes)])


def is_allowed(space: spaces.Space, mask: np.ndarray, action: Any) -> bool:
    """Whether a mask allows an action."""
    starts = np.cumsum([0, *sizes_of(space)[:-1]])
    return bool(mask[starts + np.asarray(action, dtype=int).ravel()].all())


def every_other(timestep: int) -> float:
    return float(timestep % 2)


class Masked(Scripted):
    """
    Shows the number of the episode and the timestep, which determine the mask.

    :param action_space: Space of the actions
    :param lengths: Length of each episode
    :param kwargs: See :class:`tests.helpers.environments.Scripted`
    """

    def __init__(self, action_space: Any = SPACES["discrete"], lengths: Any = (4, 7, 2), **kwargs: Any) -> None:
        super().__init__(lengths, action_space=action_space, **{"reward": every_other, **kwargs})

    def action_masks(self) -> Any:
        return mask_of(self.action_space, self.n_resets, self.timestep)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        mask = mask_of(self.action_space, self.n_resets, self.timestep)
        if not is_allowed(self.action_space, mask, action):
            raise AssertionError(f"{action} is forbidden in episode {self.n_resets} at timestep {self.timestep}")
        return super().step(action)


def masks_of(space: spaces.Space, observations: np.ndarray) -> np.ndarray:
    """The masks of the states that were shown, shape ``(n_timesteps, n_choices)``."""
    return np.stack([mask_of(space, int(episode), int(timestep)) for episode, timestep in observations])
