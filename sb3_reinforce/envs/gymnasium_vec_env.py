"""Vector environments of Gymnasium as a ``VecEnv``."""

from typing import Any

import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from sb3_reinforce.envs.adapter import VectorEnvAdapter
from sb3_reinforce.envs.autoreset import DISABLED, NEXT_STEP, SAME_STEP, MaskedReset, declared_mode
from sb3_reinforce.envs.infos import FINAL_INFO, FINAL_OBSERVATION, Rows, split


class GymnasiumVecEnv(VectorEnvAdapter):
    """
    A ``VecEnv`` of SB3 over any vector environment of Gymnasium. SB3 sees each environment reset in the step that ends its
    episode, whatever the autoreset mode is: an environment that waits for the next step is reset at once if it can be reset
    alone (``reset(options={"reset_mask": ...})``). If not, the next step is a dead one, see ``has_dead_steps``.

    :param venv: The vector environment
    :raises ValueError: If it is no vector environment, or if SB3 does not support its spaces
    """

    def __init__(self, venv: VectorEnv):
        if not isinstance(venv, VectorEnv):
            raise ValueError(f"Expected a gymnasium.vector.VectorEnv, got {venv!r} of {type(venv)}.")
        self._mode = declared_mode(venv)
        self._masked_reset = MaskedReset(venv)
        self._base = self._masked_reset.base
        super().__init__(venv, int(venv.num_envs), venv.single_observation_space, venv.single_action_space)
        # Their environments get the actions as they are, as with SB3's own VecEnvs
        self._has_objects = isinstance(self._base, (SyncVectorEnv, AsyncVectorEnv))
        self._copies_observations = not (self._has_objects and venv is self._base and venv.copy)  # type: ignore[attr-defined]
        self.has_dead_steps = self._mode in (NEXT_STEP, None) and self._masked_reset.possible is False

    def _reset_all(self) -> tuple[Any, Any]:
        if not self._masked_reset.forgets:
            self._dead = None
        first, *others = self._groups_of_options()
        seeds = self._seeds_to_pass()
        try:
            if self._mode == SAME_STEP and not others:
                return self.venv.reset(seed=seeds, options=first[1])
            result = self._masked_reset.reset_all(seeds, first[1])
        except Exception as error:
            if isinstance(seeds, list) and not self._has_objects:
                raise ValueError(
                    f"This vector environment does not take a seed for each of its {self.num_envs} environments, but one from "
                    f"which they count on, got {seeds}."
                ) from error
            raise
        self.has_dead_steps = self._mode in (NEXT_STEP, None) and not self._masked_reset.possible
        return self._reset_with_options(result, others) if others else result

    def _seeds_to_pass(self) -> int | list[int | None] | None:
        """One number wherever it says the same, as native environments do not take a list."""
        first = self._seeds[0]
        if all(seed is None for seed in self._seeds):
            return None
        if first is not None and self._seeds == list(range(first, first + self.num_envs)):
            return int(first)
        return list(self._seeds)

    def _groups_of_options(self) -> list[tuple[list[int], dict[str, Any] | None]]:
        groups: list[tuple[list[int], dict[str, Any] | None]] = []
        for i, options in enumerate(self._options):
            for env_ids, known in groups:
                if options is known or data_equivalence(options or None, known):
                    env_ids.append(i)
                    break
            else:
                groups.append(([i], options or None))
        return groups

    def _reset_with_options(
        self, result: tuple[Any, Any], groups: list[tuple[list[int], dict[str, Any] | None]]
    ) -> tuple[Any, Any]:
        """Once more for environments with options of their own, as a reset takes one set of options."""
        obs, infos = result
        if not (self._has_objects and self._masked_reset.possible):
            raise ValueError(
                f"This vector environment takes the same options for all of its {self.num_envs} environments, "
                f"got {len(groups) + 1} different ones."
            )
        rows = split(infos, self.num_envs)
        for env_ids, options in groups:
            again = self._masked_reset.reset_some(np.array(env_ids), list(self._seeds), options)
            assert again is not None, "A wrapper refused to reset single environments"
            obs, new = again[0], split(again[1], self.num_envs)
            rows.update({i: new.get(i, {}) for i in env_ids})
        return obs, [rows.get(i, {}) for i in range(self.num_envs)]

    def _act(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        dtype = self.action_space.dtype
        if actions.dtype != dtype and not self._has_objects and not np.can_cast(actions.dtype, dtype):  # type: ignore[arg-type]
            actions = actions.astype(dtype)
        return self.venv.step(actions)

    def _renew(self, ended: np.ndarray, obs: Any, rows: Rows, final: Rows) -> list[Any]:
        if self._mode is None:
            has_final = any(key in final.get(int(ended[0]), {}) for key in FINAL_OBSERVATION)
            self._mode = SAME_STEP if has_final else NEXT_STEP
            self.has_dead_steps = not has_final and not self._masked_reset.possible
        if self._mode == SAME_STEP:
            return self._read_final(ended, rows, final)
        last_obs = self._batch.rows(obs, ended)
        result = self._reset_ended(ended)
        if result is None:
            self._dead = ended
        else:
            self._begin(ended, obs, *result)
        return last_obs

    def _reset_ended(self, ended: np.ndarray) -> tuple[Any, Any] | None:
        result = self._masked_reset.reset_some(ended) if self._masked_reset.possible else None
        if result is None and self._mode == DISABLED:
            if len(ended) == self.num_envs:
                return self.venv.reset()
            raise ValueError(
                "A vector environment with AutoresetMode.DISABLED must be able to reset single environments "
                f"(`reset(options={{'reset_mask': ...}})`), got {self.venv} which cannot."
            )
        if result is None:
            self.has_dead_steps = True
        return result

    def _begin(self, ended: np.ndarray, obs: Any, new_obs: Any, infos: Any) -> None:
        # Some return the environments that have been reset, others all of them
        n_rows = self._batch.count(new_obs)
        row_of = ended if n_rows == self.num_envs else np.arange(n_rows)
        self._batch.put(obs, ended, self._batch.take(new_obs, n_rows, copy=False), row_of)
        rows = split(self._plain_infos(infos), n_rows)
        for i, row in zip(ended.tolist(), row_of.tolist(), strict=True):
            self.reset_infos[i] = rows.get(row, {})

    def _read_final(self, ended: np.ndarray, rows: Rows, final: Rows) -> list[Any]:
        last_obs = []
        for i in ended.tolist():
            of_env = final.get(i, {})
            obs = next((of_env[key] for key in FINAL_OBSERVATION if of_env.get(key) is not None), None)
            if obs is None:
                raise ValueError(
                    "A vector environment with AutoresetMode.SAME_STEP must put the last observation of an episode into its "
                    f"infos as `final_obs`, got none for environment {i}."
                )
            last_obs.append(self._batch.single(obs))
            of_reset = rows.get(i, {})
            info = of_env.get(FINAL_INFO)
            # A wrapper of the vector environment writes the statistics of an episode beside the infos of the reset. Before
            # Gymnasium 1.4 its own wrapper counts wrong in this mode
            episode = of_reset.pop("episode", None)
            rows[i] = dict(of_reset) if info is None else info
            if episode is not None and episode.get("l") == self._statistics.lengths[i]:
                rows[i] = {"episode": episode, **rows[i]}
            self.reset_infos[i] = of_reset
        return last_obs
