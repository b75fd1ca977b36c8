"""Arrays over all environments, as vector environments return them and as SB3 expects them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

Observation = np.ndarray | dict[str, np.ndarray]

_PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def as_numpy(value: Any) -> np.ndarray:
    """
    :param value: An array of any library
    :return: The same numbers as a NumPy array, without a copy where possible
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # a tensor of PyTorch, perhaps on a GPU
        value = value.detach().cpu()
    return np.asarray(value)


def check_spaces(observation_space: Any, action_space: Any) -> None:
    """
    :param observation_space: The observation space of one environment
    :param action_space: The action space of one environment
    :raises ValueError: If SB3 does not support one of them
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    for part in parts:
        if not isinstance(part, _PLAIN):
            raise ValueError(
                f"SB3 does not support the observation space {observation_space}, expected Box, Discrete, MultiDiscrete, "
                "MultiBinary, or a Dict of these."
            )
    if not isinstance(action_space, _PLAIN):
        raise ValueError(
            f"SB3 does not support the action space {action_space}, expected Box, Discrete, MultiDiscrete or MultiBinary."
        )


class ObservationBatch:
    """
    Observations of many environments, in the shapes and types that the space of one environment says.

    :param space: The observation space of one environment
    """

    def __init__(self, space: spaces.Space):
        self.parts: dict[Any, spaces.Space] = dict(space.spaces) if isinstance(space, spaces.Dict) else {None: space}

    def take(self, obs: Any, n_envs: int, copy: bool = True) -> Observation:
        """
        :param obs: Observations of some environments, as a vector environment returned them
        :param n_envs: The number of these environments
        :param copy: Whether the vector environment may write into its arrays again
        :return: The observations, each part of shape (n_envs, \\*shape of the space)
        :raises ValueError: If they have another shape
        """
        if None in self.parts:
            return self._part(None, obs, n_envs, copy)
        return {key: self._part(key, obs[key], n_envs, copy) for key in self.parts}

    def _part(self, key: Any, values: Any, n_envs: int, copy: bool) -> np.ndarray:
        space = self.parts[key]
        array = as_numpy(values)
        # A view would change with the next step of an environment that keeps its arrays
        array = array.astype(space.dtype, order="C", copy=copy)
        if array.shape != (n_envs, *space.shape):  # type: ignore[misc]
            of_part = "" if key is None else f" for {key!r}"
            raise ValueError(
                f"The vector environment returned observations of shape {array.shape}{of_part}, "
                f"expected {(n_envs, *space.shape)}."  # type: ignore[misc]
            )
        return array

    def count(self, obs: Any) -> int:
        """
        :param obs: Observations of some environments, as a vector environment returned them
        :return: The number of these environments
        """
        first = next(iter(self.parts))
        return len(obs if first is None else obs[first])

    def rows(self, obs: Observation, env_ids: np.ndarray) -> list[Any]:
        """
        :param obs: Observations of all environments
        :param env_ids: Some of the environments
        :return: A copy of the observation of each of them
        """
        if isinstance(obs, dict):
            columns = {key: list(value.take(env_ids, axis=0)) for key, value in obs.items()}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return list(obs.take(env_ids, axis=0))

    def single(self, obs: Any) -> Any:
        """
        :param obs: The observation of one environment
        :return: A copy, in the types of the space
        """
        if None in self.parts:
            return np.array(as_numpy(obs), dtype=self.parts[None].dtype)[()]
        return {key: np.array(as_numpy(obs[key]), dtype=space.dtype)[()] for key, space in self.parts.items()}

    def put(self, obs: Observation, env_ids: np.ndarray, new: Observation, rows: Sequence[int] | np.ndarray) -> None:
        """
        :param obs: Observations of all environments, which are overwritten in place
        :param env_ids: The environments that have new observations
        :param new: These observations
        :param rows: The row of each of the environments in them
        """
        if isinstance(obs, dict):
            assert isinstance(new, dict)
            for key, value in obs.items():
                value[env_ids] = new[key][rows]
        else:
            assert isinstance(new, np.ndarray)
            obs[env_ids] = new[rows]
