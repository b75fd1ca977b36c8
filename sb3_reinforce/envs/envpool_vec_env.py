"""Environments of EnvPool as a ``VecEnv``."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_reinforce.envs.adapter import VectorEnvAdapter
from sb3_reinforce.envs.infos import Rows, split

#: What the pool writes for its own use: numbers of environments, players and steps
_BOOKKEEPING = {"env_id", "players", "elapsed_step"}


class EnvPoolVecEnv(VectorEnvAdapter):
    """
    A ``VecEnv`` of SB3 over environments of EnvPool, ``envpool.make(..., env_type="gymnasium")``. Environments whose episodes
    have ended are reset at once, so that no step is lost. EnvPool takes its seed when it makes the environments only.

    :param envs: The environments of EnvPool
    :raises ValueError: If they are no such environments, or asynchronous, or if SB3 does not support their spaces
    """

    #: Whether a seed can be set after the environments were made
    takes_seeds = False

    def __init__(self, envs: Any):
        if not all(hasattr(envs, name) for name in ("all_env_ids", "config", "action_space", "step", "reset")):
            raise ValueError(
                f'Expected environments of envpool.make(..., env_type="gymnasium"), got {envs!r} of {type(envs)}.'
            )
        config = envs.config
        n_envs, batch_size = len(envs.all_env_ids), config.get("batch_size", 0)
        if batch_size not in (0, n_envs):
            raise ValueError(
                f"All environments of EnvPool must step together: expected batch_size={n_envs}, got {batch_size}."
            )
        if config.get("max_num_players", 1) != 1:
            raise ValueError(f"Environments of EnvPool must have 1 player, got {config['max_num_players']}.")
        super().__init__(envs, n_envs, envs.observation_space, envs.action_space)

    def _reset_all(self) -> tuple[Any, Any]:
        return self.venv.reset()

    def _act(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        return self.venv.step(np.ascontiguousarray(actions))

    def _plain_infos(self, infos: Any) -> Any:
        return {key: value for key, value in infos.items() if key not in _BOOKKEEPING}

    def _renew(self, ended: np.ndarray, obs: Any, rows: Rows, final: Rows) -> list[Any]:
        last_obs = self._batch.rows(obs, ended)
        new_obs, infos = self.venv.reset(ended.astype(np.int32))
        env_ids = np.asarray(infos.get("env_id", ended))
        self._batch.put(obs, env_ids, self._batch.take(new_obs, len(env_ids), copy=False), np.arange(len(env_ids)))
        of_reset = split(self._plain_infos(infos), len(env_ids))
        for row, i in enumerate(env_ids.tolist()):
            self.reset_infos[i] = of_reset.get(row, {})
        return last_obs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        EnvPool has no seeds that can be set afterwards, and warns if others are asked for.

        :param seed: The seed that is asked for
        :return: ``None`` for each environment
        """
        if seed is not None and seed != self.venv.config.get("seed"):
            warnings.warn(
                "The seed of environments of EnvPool is set by `envpool.make(..., seed=...)`, not afterwards: "
                f"got {seed}, they have {self.venv.config.get('seed')}.",
                stacklevel=2,
            )
        return [None] * self.num_envs

    def _render(self) -> Any:
        return self.venv.render(self.venv.all_env_ids)
