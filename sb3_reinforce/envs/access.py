"""Attributes and methods of the single environments inside a vector environment."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped

from sb3_reinforce.envs.autoreset import layers_of
from sb3_reinforce.envs.batches import as_numpy


class _SubEnvs(Protocol):
    """The environments inside a vector environment that has an object for each."""

    def has(self, name: str, env_ids: Sequence[int]) -> bool:
        """
        :param name: Name of an attribute
        :param env_ids: Some of the environments
        :return: Whether all of them have it
        """

    def get(self, name: str, env_ids: Sequence[int]) -> list[Any]:
        """
        :param name: Name of an attribute that they have
        :param env_ids: Some of the environments
        :return: The value in each of them
        """

    def set(self, name: str, value: Any, env_ids: Sequence[int]) -> None:
        """
        :param name: Name of an attribute
        :param value: Its new value
        :param env_ids: Some of the environments
        """

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], env_ids: Sequence[int]) -> list[Any]:
        """
        :param name: Name of a method that they have
        :param args: Its arguments
        :param kwargs: Its further arguments
        :param env_ids: Some of the environments
        :return: What it returned in each of them
        """

    def are_wrapped(self, wrapper: type[gym.Wrapper], env_ids: Sequence[int]) -> list[bool]:
        """
        :param wrapper: Class of a wrapper
        :param env_ids: Some of the environments
        :return: Whether each of them has such a wrapper
        """


class _SyncSubEnvs:
    """
    The environments of a ``SyncVectorEnv``.

    :param venv: The vector environment, without its wrappers
    """

    def __init__(self, venv: SyncVectorEnv):
        self.venv = venv

    def has(self, name: str, env_ids: Sequence[int]) -> bool:
        return all(self.venv.envs[i].has_wrapper_attr(name) for i in env_ids)

    def get(self, name: str, env_ids: Sequence[int]) -> list[Any]:
        return [self.venv.envs[i].get_wrapper_attr(name) for i in env_ids]

    def set(self, name: str, value: Any, env_ids: Sequence[int]) -> None:
        for env in [self.venv.envs[i] for i in env_ids]:
            getattr(env, "set_wrapper_attr", env.__setattr__)(name, value)

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], env_ids: Sequence[int]) -> list[Any]:
        return [method(*args, **kwargs) for method in self.get(name, env_ids)]

    def are_wrapped(self, wrapper: type[gym.Wrapper], env_ids: Sequence[int]) -> list[bool]:
        return [is_wrapped(self.venv.envs[i], wrapper) for i in env_ids]


#: Methods that an ``AsyncVectorEnv`` calls only in all of its environments
_OF_ALL = ("reset", "step", "close")


class _AsyncSubEnvs:
    """
    The environments of an ``AsyncVectorEnv``. Its own ``call`` asks all of them, and a process ends if its environment does
    not have what it is asked for.

    :param venv: The vector environment, without its wrappers
    """

    def __init__(self, venv: AsyncVectorEnv):
        self.venv = venv
        self._known: set[tuple[str, int]] = set()

    def has(self, name: str, env_ids: Sequence[int]) -> bool:
        unknown = [i for i in env_ids if (name, i) not in self._known]
        if not unknown:
            return True
        found = self._ask("_call", ("has_wrapper_attr", (name,), {}), unknown)
        self._known.update((name, i) for i, has in zip(unknown, found, strict=True) if has)
        return all(found)

    def get(self, name: str, env_ids: Sequence[int]) -> list[Any]:
        # By its name alone, a process calls what can be called
        return self._ask("_call", ("get_wrapper_attr", (name,), {}), env_ids)

    def set(self, name: str, value: Any, env_ids: Sequence[int]) -> None:
        self._ask("_setattr", (name, value), env_ids)

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], env_ids: Sequence[int]) -> list[Any]:
        if name in _OF_ALL:  # a process would end
            raise ValueError(f"`env_method` of an AsyncVectorEnv takes any method except {', '.join(_OF_ALL)}, got {name!r}.")
        return self._ask("_call", (name, tuple(args), kwargs), env_ids)

    def are_wrapped(self, wrapper: type[gym.Wrapper], env_ids: Sequence[int]) -> list[bool]:
        # An environment names its wrappers in its text, like "<TimeLimit<OrderEnforcing<CartPoleEnv<CartPole-v1>>>>"
        names = {cls.__name__ for cls in _with_subclasses(wrapper)}
        texts = self._ask("_call", ("__str__", (), {}), env_ids)
        return [bool(names.intersection(text.strip("<>").split("<"))) for text in texts]

    def _ask(self, command: str, data: tuple[Any, ...], env_ids: Sequence[int]) -> list[Any]:
        pipes: list[Any] = [self.venv.parent_pipes[i] for i in env_ids]
        for pipe in pipes:
            pipe.send((command, data))
        answers = [pipe.recv() for pipe in pipes]
        successes = dict.fromkeys(range(self.venv.num_envs), True)
        successes.update({i: success for i, (_, success) in zip(env_ids, answers, strict=True)})
        self.venv._raise_if_errors(list(successes.values()))
        return [answer for answer, _ in answers]


def _with_subclasses(cls: type) -> set[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    return {cls}.union(*map(_with_subclasses, subclasses))


class Access:
    """
    Attributes and methods by environment. What a vector environment itself has beyond Gymnasium's own vector environments
    comes first, then what its single environments have, if it has an object for each. Without such objects, an attribute is
    that of the vector environment.

    :param venv: The vector environment
    :param n_envs: The number of its environments
    """

    def __init__(self, venv: Any, n_envs: int):
        self.layers: list[Any] = layers_of(venv)
        self.n_envs = n_envs
        base = self.layers[-1]
        self._sub_envs: _SubEnvs | None = None
        if isinstance(base, SyncVectorEnv):
            self._sub_envs = _SyncSubEnvs(base)
        elif isinstance(base, AsyncVectorEnv):
            self._sub_envs = _AsyncSubEnvs(base)

    @property
    def single_envs(self) -> Sequence[gym.Env] | None:
        """The environments, if each is an object in this process."""
        return self._sub_envs.venv.envs if isinstance(self._sub_envs, _SyncSubEnvs) else None

    def has(self, name: str) -> bool:
        """
        :param name: Name of an attribute
        :return: Whether all environments have it
        """
        return self._owner(name, range(self.n_envs)) is not None

    def get(self, name: str, env_ids: Sequence[int]) -> list[Any]:
        """
        :param name: Name of an attribute
        :param env_ids: Some of the environments
        :return: The value for each of them
        :raises AttributeError: If one of them does not have it
        """
        owner: Any = self._existing_owner(name, env_ids)
        if self._sub_envs is not None and owner is self._sub_envs:
            return self._sub_envs.get(name, env_ids)
        return [getattr(owner, _SINGLE.get(name, name))] * len(env_ids)

    def set(self, name: str, value: Any, env_ids: Sequence[int]) -> None:
        """
        :param name: Name of an attribute
        :param value: Its new value
        :param env_ids: Some of the environments
        :raises ValueError: If it is an attribute of all environments together, and ``env_ids`` are not all
        """
        owner = self._owner(name, env_ids)
        if self._sub_envs is not None and (owner is None or owner is self._sub_envs):
            self._sub_envs.set(name, value, env_ids)
            return
        if set(env_ids) != set(range(self.n_envs)):
            raise ValueError(
                f"The vector environment has one attribute {name!r} for all of its {self.n_envs} environments, "
                f"got only the indices {list(env_ids)} to set it for."
            )
        setattr(self.layers[-1] if owner is None else owner, name, value)

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], env_ids: Sequence[int]) -> list[Any]:
        """
        :param name: Name of a method
        :param args: Its arguments
        :param kwargs: Its further arguments
        :param env_ids: Some of the environments
        :return: What it returned for each of them
        :raises AttributeError: If one of them does not have it
        """
        owner: Any = self._existing_owner(name, env_ids)
        if self._sub_envs is not None and owner is self._sub_envs:
            return self._sub_envs.call(name, args, kwargs, env_ids)
        rows = self._rows(getattr(owner, name)(*args, **kwargs))
        return [rows[i] for i in env_ids]

    def call_in_all(self, name: str) -> Sequence[Any] | np.ndarray:
        """
        :param name: Name of a method
        :return: What it returned for each environment: an array with a row for each, if it is a method of the vector
            environment that returns one
        :raises AttributeError: If one of them does not have it
        """
        owner: Any = self._existing_owner(name, range(self.n_envs))
        if self._sub_envs is not None and owner is self._sub_envs:
            return self._sub_envs.call(name, (), {}, range(self.n_envs))
        return self._rows(getattr(owner, name)())

    def _rows(self, result: Any) -> Sequence[Any] | np.ndarray:
        """What a method of all environments has returned, for each of them."""
        by_env = as_numpy(result) if hasattr(result, "detach") else result
        is_batch = isinstance(by_env, (list, tuple)) or (isinstance(by_env, np.ndarray) and by_env.ndim > 0)
        return by_env if is_batch and len(by_env) == self.n_envs else [result] * self.n_envs

    def are_wrapped(self, wrapper: type[gym.Wrapper], env_ids: Sequence[int]) -> list[bool]:
        """
        :param wrapper: Class of a wrapper, of single or of vector environments
        :param env_ids: Some of the environments
        :return: Whether each of them has such a wrapper
        """
        if any(isinstance(layer, wrapper) for layer in self.layers[:-1]):
            return [True] * len(env_ids)
        return [False] * len(env_ids) if self._sub_envs is None else self._sub_envs.are_wrapped(wrapper, env_ids)

    def _existing_owner(self, name: str, env_ids: Sequence[int]) -> Any:
        owner = self._owner(name, env_ids)
        if owner is None:
            raise AttributeError(f"The environments of {self.layers[0]} have no attribute {name!r}.")
        return owner

    def _owner(self, name: str, env_ids: Sequence[int]) -> Any:
        """The vector environment, its wrapper or its single environments: whichever has the attribute."""
        if self._sub_envs is None:
            return next((layer for layer in self.layers if hasattr(layer, _SINGLE.get(name, name))), None)
        if name not in _GYMNASIUM_API:
            for layer in self.layers:
                if hasattr(type(layer), name):
                    return layer
        if self._sub_envs.has(name, env_ids):
            return self._sub_envs
        return next((layer for layer in self.layers if name in vars(layer)), None)


#: What the attributes of a single environment are called in a vector environment
_SINGLE = {"observation_space": "single_observation_space", "action_space": "single_action_space"}


def _gymnasium_api() -> set[str]:
    classes: list[Callable[..., Any] | None] = [VectorEnv, SyncVectorEnv, AsyncVectorEnv]
    classes += [getattr(gym.vector, name, None) for name in ("VectorWrapper", "VectorEnvWrapper")]
    return {name for cls in classes if cls is not None for name in dir(cls)}


_GYMNASIUM_API = _gymnasium_api()
