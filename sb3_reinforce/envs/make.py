"""Makes the usual vector environments."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from sb3_reinforce.envs.adapter import VectorEnvAdapter
from sb3_reinforce.envs.autoreset import SAME_STEP
from sb3_reinforce.envs.envpool_vec_env import EnvPoolVecEnv
from sb3_reinforce.envs.gymnasium_vec_env import GymnasiumVecEnv

_MODES = (None, "sync", "async", "vector_entry_point", "envpool")


def make_vector_env(
    env_id: str | EnvSpec | Callable[..., gym.Env],
    n_envs: int = 1,
    seed: int | None = None,
    vectorization_mode: str | None = None,
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
    env_kwargs: dict[str, Any] | None = None,
    vector_kwargs: dict[str, Any] | None = None,
) -> VectorEnvAdapter:
    """
    Make a vector environment of Gymnasium or EnvPool, as a ``VecEnv`` of SB3.

    :param env_id: The environment's id, its ``EnvSpec``, or a function that makes one environment
    :param n_envs: The number of environments
    :param seed: The seed of the first environment, from which the others count on; a random one if ``None``
    :param vectorization_mode: ``"sync"``: one after the other in this process, ``"async"``: a process for each,
        ``"vector_entry_point"``: the environment's own vector environment, which may have dead steps, or ``"envpool"``. If
        ``None``, the environment's own one if it has one, otherwise ``"sync"``, as with ``gymnasium.make_vec``
    :param wrappers: Functions that wrap each environment, with ``"sync"`` and ``"async"`` only
    :param env_kwargs: Arguments of the environment; with ``"envpool"`` those of ``envpool.make``
    :param vector_kwargs: Arguments of the ``SyncVectorEnv`` or ``AsyncVectorEnv``
    :return: The vector environment
    :raises ValueError: If an argument is none of these, or if the mode does not take the arguments
    """
    if isinstance(n_envs, bool) or not isinstance(n_envs, (int, np.integer)) or n_envs < 1:
        raise ValueError(f"`n_envs` must be an integer of at least 1, got {n_envs!r}.")
    if vectorization_mode not in _MODES:
        raise ValueError(f"`vectorization_mode` must be one of {_MODES}, got {vectorization_mode!r}.")
    if callable(wrappers):
        raise ValueError(f"`wrappers` must be a sequence of functions that each wrap an environment, got only {wrappers!r}.")
    env_kwargs, vector_kwargs = dict(env_kwargs or {}), dict(vector_kwargs or {})
    if vectorization_mode is None:
        has_native = not wrappers and not vector_kwargs and _native_entry_point(env_id) is not None
        vectorization_mode = "vector_entry_point" if has_native else "sync"
    if vectorization_mode in ("sync", "async"):
        makers = [_Maker(env_id, tuple(wrappers), env_kwargs)] * int(n_envs)
        if hasattr(gym.vector, "AutoresetMode"):
            vector_kwargs.setdefault("autoreset_mode", SAME_STEP)
        vector_class = gym.vector.SyncVectorEnv if vectorization_mode == "sync" else gym.vector.AsyncVectorEnv
        venv: VectorEnvAdapter = GymnasiumVecEnv(vector_class(makers, **vector_kwargs))
    elif wrappers or vector_kwargs or callable(env_id):
        raise ValueError(
            f"With vectorization_mode={vectorization_mode!r} expected an id and neither `wrappers` nor `vector_kwargs`, "
            f"got {env_id!r}, {list(wrappers)} and {vector_kwargs}."
        )
    elif vectorization_mode == "envpool":
        return _make_envpool(env_id, int(n_envs), seed, env_kwargs)
    else:
        native = gym.make_vec(env_id, num_envs=int(n_envs), vectorization_mode="vector_entry_point", **env_kwargs)
        venv = GymnasiumVecEnv(native)
    venv.seed(seed)
    return venv


def _native_entry_point(env_id: Any) -> Any:
    if isinstance(env_id, str):
        env_id = gym.spec(env_id)
    return getattr(env_id, "vector_entry_point", None)


def _make_envpool(env_id: Any, n_envs: int, seed: int | None, env_kwargs: dict[str, Any]) -> EnvPoolVecEnv:
    try:
        import envpool
    except ImportError as error:
        raise ImportError('EnvPool is not installed: `pip install "sb3-reinforce[envpool]"`.') from error
    if seed is None:
        seed = int(np.random.randint(0, 2**31 - n_envs))
    return EnvPoolVecEnv(envpool.make(env_id, env_type="gymnasium", num_envs=n_envs, seed=seed, **env_kwargs))


class _Maker:
    """
    Makes one environment. Unlike a function inside a function, it can be pickled.

    :param env_id: The environment's id, its ``EnvSpec``, or a function that makes it
    :param wrappers: Functions that wrap it
    :param env_kwargs: Arguments of the environment
    """

    def __init__(self, env_id: Any, wrappers: tuple[Callable[[gym.Env], gym.Env], ...], env_kwargs: dict[str, Any]):
        self.env_id, self.wrappers, self.env_kwargs = env_id, wrappers, env_kwargs

    def __call__(self) -> gym.Env:
        is_id = isinstance(self.env_id, (str, EnvSpec))
        env = gym.make(self.env_id, **self.env_kwargs) if is_id else self.env_id(**self.env_kwargs)
        for wrapper in self.wrappers:
            env = wrapper(env)
        return env
