"""
Which timesteps of the environments belong to a rollout: the stopping rules.

With several environments, a batch of "the first K episodes to finish" holds too many short ones. Here every environment
records until it has its quota and its episode has ended. Whether an environment goes on depends only on its own past, so the
number of its episodes is a stopping time, and by Wald's identity the summed gradient stays unbiased.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_reinforce.actor_critic.sampler import Observation
from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.rollout.observations import row, truncation_observation


class RecordedEpisode(NamedTuple):
    """
    :param env_id: The environment
    :param start: Vector step of the rollout at which the recording begins
    :param stop: Vector step after the last recorded one
    :param first_timestep: Timestep of the episode at which the recording begins
    :param final_observation: The observation after the last recorded step if the episode could have gone on from there
        (a truncation), ``None`` if it terminated
    :param unfinished: Whether the episode goes on in the next rollout
    """

    env_id: int
    start: int
    stop: int
    first_timestep: int
    final_observation: Observation | None
    unfinished: bool = False


class Recorder:
    """
    Follows the environments through one rollout and says which of them still record.

    :param n_envs: Number of environments
    """

    def __init__(self, n_envs: int):
        self.n_envs = n_envs
        self.n_vector_steps = 0
        self.episodes: list[RecordedEpisode] = []
        #: Environments whose episode was cut at the horizon
        self.cut: list[int] = []
        #: Whether such cuts are expected
        self.cuts_expected = False
        #: Timestep that each environment has reached in an episode that the next rollout continues
        self.next_timesteps: list[int] = []
        #: Indices of the environments that still record; a new array whenever it changes
        self.recording = np.arange(n_envs)
        self._is_recording = np.ones(n_envs, dtype=bool)
        self._starts = np.zeros(n_envs, dtype=int)
        self._first_timesteps = [0] * n_envs
        # Vector step at which each environment's episode began, recorded or not; negative: before the rollout
        self._began = [0] * n_envs

    @property
    def finished(self) -> bool:
        """Whether all environments have stopped recording."""
        return len(self.recording) == 0

    def timestep(self, env_id: int) -> int:
        """
        :param env_id: An environment
        :return: The timestep, within its episode, that the environment is about to play
        """
        return self.n_vector_steps - self._began[env_id]

    def advance(self, dones: np.ndarray, infos: Sequence[dict[str, Any]], new_obs: Observation) -> None:
        """
        Take note of one vector step.

        :param dones: Whether the episodes ended with this step, shape ``(n_envs,)``
        :param infos: The environments' infos
        :param new_obs: The observations after the step (the first of the next episode where one ended)
        """
        raise NotImplementedError()

    def recording_without(self, dead: np.ndarray) -> np.ndarray:
        """
        :param dead: Some environments
        :return: Indices of the others that still record
        """
        is_recording = self._is_recording.copy()
        is_recording[dead] = False
        return is_recording.nonzero()[0]

    def skip(self, dead: np.ndarray) -> None:
        """
        Leave out the vector step that is noted next.

        :param dead: The environments for which it is no timestep: their episodes begin with the one after it
        """
        self._starts[dead] = self.n_vector_steps + 1
        for env_id in dead.tolist():
            self._began[env_id] = self.n_vector_steps + 1

    def _end_episode(self, env_id: int, final_observation: Observation | None, unfinished: bool = False) -> None:
        start, first_timestep = int(self._starts[env_id]), self._first_timesteps[env_id]
        self.episodes.append(
            RecordedEpisode(env_id, start, self.n_vector_steps, first_timestep, final_observation, unfinished)
        )
        self._starts[env_id], self._first_timesteps[env_id] = self.n_vector_steps, 0

    def result(self) -> tuple[Episodes, list[RecordedEpisode]]:
        """
        :return: The recorded episodes, environment by environment, in two forms
        """
        ordered = sorted(self.episodes, key=lambda episode: (episode.env_id, episode.start))
        episodes = Episodes(
            lengths=np.array([episode.stop - episode.start for episode in ordered]),
            env_ids=np.array([episode.env_id for episode in ordered]),
            first_timesteps=np.array([episode.first_timestep for episode in ordered]),
        )
        return episodes, ordered


class CompleteEpisodes(Recorder):
    """
    Every environment records whole episodes until it has its quota.

    :param n_envs: Number of environments
    :param n_steps: Least number of steps per environment, unless ``n_episodes`` is given
    :param n_episodes: Number of episodes per environment
    :param horizons: The longest episode that is recorded, for each environment. An episode that is still running then is cut,
        and its environment records no more in this rollout
    :param cuts_expected: Whether such cuts are expected
    """

    def __init__(
        self, n_envs: int, n_steps: int, n_episodes: int | None, horizons: Sequence[int], cuts_expected: bool = False
    ):
        super().__init__(n_envs)
        self.cuts_expected = cuts_expected
        self.n_steps = n_steps
        self.n_episodes = n_episodes
        self._n_played = [0] * n_envs
        self._horizons = np.array(horizons)
        # No episode reaches its horizon before this step
        self._next_cut = min(horizons)

    def advance(self, dones: np.ndarray, infos: Sequence[dict[str, Any]], new_obs: Observation) -> None:
        self.n_vector_steps += 1
        # This runs at every step, and at most steps there is nothing to do: no work for each environment that goes on
        if self.n_vector_steps < self._next_cut and not np.count_nonzero(dones):
            return
        stopped = False
        for env_id in np.flatnonzero(dones).tolist():
            self._began[env_id] = self.n_vector_steps
            if self._is_recording[env_id]:
                self._end_episode(env_id, truncation_observation(infos[env_id]))
                self._n_played[env_id] += 1
                if self._has_quota(env_id):
                    self._is_recording[env_id], stopped = False, True
        if self.n_vector_steps >= self._next_cut:
            stopped = self._cut_episodes(new_obs) or stopped
        if stopped:
            self.recording = self._is_recording.nonzero()[0]

    def _cut_episodes(self, new_obs: Observation) -> bool:
        """Stop the environments whose episodes are at their horizon; returns whether there are any."""
        ends = self._starts + self._horizons
        too_long = np.flatnonzero(self._is_recording & (self.n_vector_steps >= ends)).tolist()
        for env_id in too_long:
            self._end_episode(env_id, row(new_obs, env_id))
            self.cut.append(env_id)
            self._is_recording[env_id] = False
        # Later starts only put it off
        self._next_cut = int(ends[self._is_recording].min(initial=np.iinfo(ends.dtype).max))
        return bool(too_long)

    def _has_quota(self, env_id: int) -> bool:
        if self.n_episodes is not None:
            return self._n_played[env_id] >= self.n_episodes
        return self.n_vector_steps >= self.n_steps


class FixedLength(Recorder):
    """
    Every environment records a fixed number of steps, as in SB3; an unfinished episode goes on in the next rollout. More steps
    are played if all of these were dead.

    :param n_envs: Number of environments
    :param n_steps: Number of steps per environment
    :param first_timesteps: Timestep that each environment has reached in its episode, shape ``(n_envs,)``
    """

    def __init__(self, n_envs: int, n_steps: int, first_timesteps: Sequence[int]):
        super().__init__(n_envs)
        self.n_steps = n_steps
        self._first_timesteps = list(first_timesteps)
        self._began = [-timestep for timestep in first_timesteps]

    def advance(self, dones: np.ndarray, infos: Sequence[dict[str, Any]], new_obs: Observation) -> None:
        self.n_vector_steps += 1
        for env_id in np.flatnonzero(dones).tolist():
            self._end_episode(env_id, truncation_observation(infos[env_id]))
            self._began[env_id] = self.n_vector_steps
        if self.n_vector_steps < self.n_steps:
            return
        # An episode that has just begun with a dead step has no timestep yet
        unfinished = np.flatnonzero(self._starts < self.n_vector_steps).tolist()
        if self.episodes or unfinished:
            self.next_timesteps = [self.timestep(env_id) for env_id in range(self.n_envs)]
            for env_id in unfinished:
                self._end_episode(env_id, row(new_obs, env_id), unfinished=True)
            self._is_recording[:] = False
            self.recording = self.recording[:0]
