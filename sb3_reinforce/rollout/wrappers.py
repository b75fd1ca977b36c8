"""Questions to the wrappers around environments, which may have no answer."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_reinforce.envs.adapter import VectorEnvAdapter


def innermost(env: VecEnv) -> VecEnv:
    """
    :param env: A vectorized environment
    :return: The object inside all wrappers, which need not be a ``VecEnv``
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def of_wrappers(env: VecEnv, wrapper: type[gym.Wrapper], name: str, env_ids: Sequence[int] | None = None) -> list[Any]:
    """
    An attribute of a wrapper around each environment. ``get_attr`` alone might return an attribute of the same name
    of any other object in between.

    :param env: The vectorized environment, which may not answer requests that SB3's algorithms do not make
    :param wrapper: Class of the wrapper
    :param name: Name of the attribute
    :param env_ids: Which of the environments; all of them if ``None``
    :return: The value for each environment; ``None`` where there is no such wrapper, or no answer
    """
    base = innermost(env)
    env_ids = range(env.num_envs) if env_ids is None else env_ids
    unknown = [None] * len(env_ids)
    try:
        if base.num_envs != env.num_envs:  # a wrapper in between changes the environments
            return unknown
        envs = _single_envs(base)
        if envs is not None:
            return [getattr(unwrap_wrapper(envs[i], wrapper), name, None) for i in env_ids]
        is_wrapped = dict(zip(env_ids, base.env_is_wrapped(wrapper, env_ids), strict=True))
        # Only these: a worker process without the attribute would die of the request
        wrapped = [env_id for env_id in env_ids if is_wrapped[env_id]]
        found = dict(zip(wrapped, base.get_attr(name, wrapped), strict=True)) if wrapped else {}
        if found and isinstance(base, SubprocVecEnv):
            holds = base.env_is_wrapped(_Holding(wrapper, name, list(found.values())), wrapped)  # type: ignore[arg-type]
            found = {env_id: found[env_id] for env_id, holding in zip(wrapped, holds, strict=True) if holding}
    except Exception:  # a simulator's own VecEnv may raise anything, or not return a list
        return unknown
    return [found.get(env_id) for env_id in env_ids]


def _single_envs(base: VecEnv) -> Sequence[gym.Env] | None:
    """The environments, if each is an object in this process."""
    if isinstance(base, DummyVecEnv):
        return base.envs
    return base.single_envs if isinstance(base, VectorEnvAdapter) else None


class _Holding:
    """
    Stands in for a class in the ``isinstance`` checks of a worker process: instances are the wrappers of a class that have one
    of some values in an attribute of their own.

    :param wrapper: Class of the wrapper
    :param name: Name of the attribute
    :param values: The values
    """

    def __init__(self, wrapper: type[gym.Wrapper], name: str, values: Sequence[Any]):
        self.wrapper, self.name, self.values = wrapper, name, values

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.wrapper) and getattr(instance, self.name, None) in self.values
