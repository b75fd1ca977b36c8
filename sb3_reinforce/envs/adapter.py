"""What the adapters of all kinds of vector environments have in common."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_reinforce.envs.access import Access
from sb3_reinforce.envs.batches import ObservationBatch, as_numpy, check_spaces
from sb3_reinforce.envs.infos import Rows, split, without_final
from sb3_reinforce.envs.statistics import EpisodeStatistics

_OF_DEAD_STEPS = (
    "This vector environment plays a dead step after every episode, in which it ignores the action, gives no reward and "
    "resets the environment. An algorithm learns from it as from any other step, unless it leaves out the steps with "
    '`info["dead_step"]`, as REINFORCE does. Other algorithms need a vector environment that resets in the same step '
    "(`AutoresetMode.SAME_STEP`) or that can reset single environments (the option `reset_mask`)."
)


class VectorEnvAdapter(VecEnv):
    """
    The base of the adapters: SB3's interface over a vector environment, with one step in Python for all environments.

    ``has_dead_steps`` says whether a step is lost after each episode, as known since the first ``reset``. The infos of such
    steps hold ``dead_step``, and the first one warns, unless ``warns_of_dead_steps`` was set to ``False`` by an algorithm that
    leaves them out.

    :param venv: The vector environment
    :param n_envs: The number of its environments
    :param observation_space: The observation space of one environment
    :param action_space: The action space of one environment
    :raises ValueError: If SB3 does not support the spaces, or if there is no environment
    """

    def __init__(self, venv: Any, n_envs: int, observation_space: gym.Space, action_space: gym.Space):
        check_spaces(observation_space, action_space)
        if n_envs < 1:
            raise ValueError(f"A vector environment must have at least one environment, got {n_envs}.")
        self.venv = venv
        self.has_dead_steps = False
        self.warns_of_dead_steps = True
        self._access = Access(venv, n_envs)
        self._batch = ObservationBatch(observation_space)
        self._statistics = EpisodeStatistics(n_envs)
        self._copies_observations = True
        self._actions: Any = None
        # The environments whose next step is dead; ``None`` as long as there was no such step
        self._dead: np.ndarray | None = None
        super().__init__(n_envs, observation_space, action_space)
        self.metadata = dict(getattr(venv, "metadata", None) or self.metadata)
        # With a monitor around each environment, an episode is what the monitor says, as with the lives of an Atari game
        monitors = (Monitor, gym.wrappers.RecordEpisodeStatistics)
        self._has_monitors = any(all(self.env_is_wrapped(monitor)) for monitor in monitors)

    @property
    def next_dead(self) -> np.ndarray | None:
        """The environments whose next step is dead; ``None`` if there are none."""
        return self._dead

    @property
    def single_envs(self) -> Sequence[gym.Env] | None:
        """The environments, if each is an object in this process; otherwise ``None``."""
        return self._access.single_envs

    # What the kinds of vector environments do in ways of their own

    @abstractmethod
    def _reset_all(self) -> tuple[Any, Any]:
        """Reset all environments with the seeds and options: observations and infos."""

    @abstractmethod
    def _act(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        """A step: observations, rewards, terminations, truncations and infos."""

    @abstractmethod
    def _renew(self, ended: np.ndarray, obs: Any, rows: Rows, final: Rows) -> list[Any]:
        """
        Put the first observations of new episodes into the observations and into ``reset_infos``, and the infos of the last
        steps into ``rows``: the last observations of the episodes that have ended, as copies.
        """

    def _plain_infos(self, infos: Any) -> Any:
        """The infos that are about the environments."""
        return infos

    # The interface of SB3

    def reset(self) -> VecEnvObs:
        """
        Reset all environments, with the seeds and options that were set before.

        :return: The first observations
        """
        obs, infos = self._reset_all()
        self._reset_seeds()
        self._reset_options()
        self._statistics.clear()
        rows = split(self._plain_infos(infos or {}), self.num_envs)
        self.reset_infos = [rows.get(i, {}) for i in range(self.num_envs)]
        return self._batch.take(obs, self.num_envs)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: The actions of the next step, of shape (n_envs, \\*shape of the action space)
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Play a step in all environments. Where it ends an episode, the next one begins.

        :return: Observations, rewards, dones and infos
        """
        new_obs, rewards, terminated, truncated, infos = self._act(np.asarray(self._actions))
        obs = self._batch.take(new_obs, self.num_envs, self._copies_observations)
        rewards = as_numpy(rewards)
        terminated, truncated = (as_numpy(flags).astype(bool, copy=False) for flags in (terminated, truncated))
        if not rewards.shape == terminated.shape == truncated.shape == (self.num_envs,):
            raise ValueError(
                f"The vector environment returned rewards of shape {rewards.shape}, terminations of shape {terminated.shape} "
                f"and truncations of shape {truncated.shape}, expected {(self.num_envs,)}."
            )
        dones = np.logical_or(terminated, truncated)
        ended = dones.nonzero()[0]
        dead, self._dead = self._dead, None
        self._statistics.add(rewards, dead)
        plain = self._plain_infos(infos)
        rest, final = without_final(plain, self.num_envs, ended.tolist()) if plain else ({}, {})
        rows = split(rest, self.num_envs) if rest else {}
        # Most environments have nothing to say at most steps: they share a dict, which is not used again
        step_infos: list[dict[str, Any]] = [{}] * self.num_envs
        if dead is not None:
            self._mark_dead(dead.tolist(), rows, step_infos)
        if len(ended):
            last_obs = self._renew(ended, obs, rows, final)
            cut = truncated.take(ended) & ~terminated.take(ended)
            self._complete_infos(ended, rows, step_infos, last_obs, cut.tolist())
        for i, row in rows.items():
            step_infos[i] = row
        return obs, rewards.astype(np.float32), dones, step_infos

    def _mark_dead(self, dead: Sequence[int], rows: Rows, step_infos: list[dict[str, Any]]) -> None:
        marked, nothing = {"dead_step": True}, dict[str, Any]()
        for i in dead:
            row = rows.pop(i, nothing)
            self.reset_infos[i] = row
            step_infos[i] = {**row, **marked} if row else marked
        if self.warns_of_dead_steps:
            self.warns_of_dead_steps = False
            warnings.warn(_OF_DEAD_STEPS, stacklevel=5)

    def _complete_infos(
        self, ended: np.ndarray, rows: Rows, step_infos: list[dict[str, Any]], last_obs: list[Any], cut: list[bool]
    ) -> None:
        """Put the infos of the last steps of episodes in place, with what SB3 expects there."""
        returns, lengths, seconds = self._statistics.end(ended)
        without_infos = not rows and not self._has_monitors
        for i, obs, was_cut, r, length in zip(ended.tolist(), last_obs, cut, returns, lengths, strict=True):
            episode = {"r": r, "l": length, "t": seconds}
            info = {"terminal_observation": obs, "TimeLimit.truncated": was_cut, "episode": episode}
            step_infos[i] = info if without_infos else self._with_own(rows.pop(i, {}), info)

    def _with_own(self, own: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        """The environment's own info of a last step, completed. Its own statistics come first."""
        episode = info.pop("episode")
        return {**({} if self._has_monitors else {"episode": episode}), **own, **info}

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Set the seeds of the next ``reset``.

        :param seed: The seed of the first environment, from which the others count on; a random one if ``None``
        :return: The seeds of all environments
        """
        if seed is None:  # as SB3 does, but below what fits into the 32 bits of native environments
            seed = int(np.random.randint(0, 2**31 - self.num_envs))
        return super().seed(seed)

    def close(self) -> None:
        """Close the vector environment."""
        self.venv.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: A picture of each environment, if its render mode is ``"rgb_array"``
        """
        if self.render_mode != "rgb_array":
            warnings.warn(f"The render mode is {self.render_mode}, but there are images only with `rgb_array`.", stacklevel=2)
            return [None] * self.num_envs
        return list(self._render())

    def _render(self) -> Any:
        return self.venv.render()

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Name of an attribute
        :return: Whether all environments have it
        """
        return self._access.has(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute
        :param indices: The environments; all of them if ``None``
        :return: The value for each of them
        """
        return self._access.get(attr_name, self._env_ids(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute
        :param value: Its new value
        :param indices: The environments; all of them if ``None``
        :raises ValueError: If it is an attribute of all environments together, and not all are wanted
        """
        self._access.set(attr_name, value, self._env_ids(indices))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: Name of a method
        :param method_args: Its arguments
        :param indices: The environments; all of them if ``None``
        :param method_kwargs: Its further arguments
        :return: What it returned for each of them
        """
        env_ids = self._env_ids(indices)
        results = self._access.call(method_name, method_args, method_kwargs, env_ids)
        return self._allowing_all_in_dead_steps(results, env_ids) if method_name == "action_masks" else results

    def action_masks_of_all(self) -> Sequence[Any] | np.ndarray:
        """
        :return: What ``action_masks`` returns for each environment: an array with a row for each, without a step in Python for
            each, if it is a method of the vector environment that returns one
        :raises AttributeError: If one of them has no such method
        """
        return self._allowing_all_in_dead_steps(self._access.call_in_all("action_masks"), range(self.num_envs))

    def _allowing_all_in_dead_steps(self, masks: Any, env_ids: Sequence[int]) -> Any:
        """No action is wrong in a dead step, and where an episode has ended there may be none that is right."""
        if self._dead is None:
            return masks
        if isinstance(masks, np.ndarray):
            masks = masks.copy()
            masks[self._dead] = True
            return masks
        dead = set(self._dead.tolist())
        return [_allowing_all(mask) if i in dead else mask for i, mask in zip(env_ids, masks, strict=True)]

    def running_episode(self, env_id: int) -> tuple[float, int, float] | None:
        """
        :param env_id: One of the environments
        :return: The return and length so far of the episode that it plays, and when the counting began; ``None`` if a monitor
            around each environment says what an episode is
        """
        return None if self._has_monitors else self._statistics.running(env_id)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: The environments; all of them if ``None``
        :return: Whether each of them has such a wrapper
        """
        return self._access.are_wrapped(wrapper_class, self._env_ids(indices))

    def _env_ids(self, indices: VecEnvIndices) -> list[int]:
        if isinstance(indices, np.integer):
            indices = int(indices)
        return [range(self.num_envs)[i] for i in self._get_indices(indices)]


def _allowing_all(mask: Any) -> Any:
    """An action mask, or one with a part for each dimension of the action, that allows every action."""
    if isinstance(mask, (list, tuple)):
        return [_allowing_all(part) for part in mask]
    return np.ones_like(as_numpy(mask))[()]
