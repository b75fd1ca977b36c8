"""The evaluation of a recorded rollout: values -> returns -> baseline -> advantages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.sampler import of_space
from sb3_reinforce.buffers import EpisodeRolloutBuffer, as_float32
from sb3_reinforce.distributed.workers import ALONE, Alone
from sb3_reinforce.finite import check_finite
from sb3_reinforce.monte_carlo.baselines import Baseline, EpisodeReturns, Value, evaluate, make_baseline
from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.returns import returns_to_go, whole_episode_returns
from sb3_reinforce.rollout.recorder import RecordedEpisode


@dataclass
class AdvantageEstimator:
    """
    How the returns and advantages of a rollout follow from its rewards and values.

    :param baseline: The baseline
    :param reward_to_go: Whether the advantages are those of the returns-to-go or of whole episodes
    :param bootstrap_on_truncation: Whether the critic estimates the return that follows a truncated episode
    :param only_earlier_episodes: Whether the later episodes of an environment depend on the earlier ones
    :param workers: The workers, over whose episodes a baseline of the batch is computed
    :param group_size: This many environments at a time have started from the same seed
    """

    baseline: Baseline
    reward_to_go: bool
    bootstrap_on_truncation: bool
    only_earlier_episodes: bool
    workers: Alone
    group_size: int = 1

    @classmethod
    def of(cls, model: Any) -> "AdvantageEstimator":
        """
        :param model: A model
        :return: The estimator with its present arguments
        """
        return cls(
            make_baseline(model.baseline),
            model.reward_to_go,
            model.bootstrap_on_truncation,
            model.only_earlier_episodes,
            model.workers,
            model.group_size,
        )

    def fill(
        self,
        buffer: EpisodeRolloutBuffer,
        recorded: Sequence[RecordedEpisode],
        actor_critic: ActorCritic,
        values_known: bool,
    ) -> None:
        """
        Fill in the values, returns and advantages of a finished buffer.

        :param buffer: The buffer
        :param recorded: Its episodes
        :param actor_critic: The policy, whose critic gives the values
        :param values_known: Whether the values are in the buffer already
        :raises ValueError: If an observation that the critic must evaluate is not finite
        """
        last_values = np.zeros(len(recorded))
        goes_on = [i for i, episode in enumerate(recorded) if self._is_bootstrapped(episode)]
        if goes_on or (self.baseline.uses_critic and not values_known):
            batch = _batch_of(buffer, actor_critic)
            if not values_known:
                buffer.values = actor_critic.values(batch).cpu().numpy()
            if goes_on:
                observations = _final_observations([recorded[i] for i in goes_on], actor_critic)
                last_values[goes_on] = actor_critic.last_values(batch, goes_on, observations).cpu().numpy()
        unfinished = {episode.env_id: i for i, episode in enumerate(recorded) if episode.unfinished}
        buffer.recompute = Recomputation(self, last_values, unfinished)
        self.compute(buffer, last_values)

    def _is_bootstrapped(self, episode: RecordedEpisode) -> bool:
        """Whether the critic estimates what follows an episode, if it could have gone on. Without a critic nothing follows."""
        may_be = self.bootstrap_on_truncation or episode.unfinished
        return self.baseline.uses_critic and may_be and episode.final_observation is not None

    def compute(self, buffer: EpisodeRolloutBuffer, last_values: np.ndarray) -> None:
        """
        Compute the returns and advantages.

        :param buffer: A buffer with rewards and values
        :param last_values: The value after each episode's last timestep, 0 where nothing follows, shape ``(n_episodes,)``
        """
        if isinstance(self.baseline, Value) and self.reward_to_go:
            buffer.set_returns_and_advantages(last_values)
            return
        returns = returns_to_go(buffer.rewards, buffer.gamma, buffer.episodes, last_values)
        if buffer.gae_lambda < 1.0:  # set by hand on the buffer: it affects only the targets of the critic
            buffer.set_returns_and_advantages(last_values)
        else:
            buffer.returns = as_float32(returns)
        buffer.advantages = as_float32(self.from_returns(buffer, returns))

    def from_returns(self, buffer: EpisodeRolloutBuffer, returns: np.ndarray) -> np.ndarray:
        """
        :param buffer: A buffer with values
        :param returns: The returns-to-go of its timesteps, shape ``(n_timesteps,)``
        :return: These returns, or those of whole episodes, minus the baseline, shape ``(n_timesteps,)``
        """
        if not self.reward_to_go:
            returns = whole_episode_returns(returns, buffer.episodes)
        baseline, only_earlier = self.baseline, self.only_earlier_episodes
        features = baseline.features(buffer)
        own = EpisodeReturns(
            returns, self.reward_to_go, buffer.episodes, buffer.values, features, only_earlier, self.group_size
        )
        # The episodes that the baseline is computed over; the critic needs no others
        of_workers = self.workers.gather(own) if baseline.over_batch else [own]
        first = sum(len(other.returns) for other in of_workers[: self.workers.rank]) if baseline.over_batch else 0
        result = evaluate(baseline, own if len(of_workers) == 1 else _join(of_workers))
        return returns - result[first : first + len(returns)]


def _batch_of(buffer: EpisodeRolloutBuffer, actor_critic: ActorCritic) -> Batch:
    """A rollout that has no advantages and returns yet."""
    device = actor_critic.policy.device
    actions = Batch.as_actions(th.as_tensor(buffer.actions, device=device), buffer.action_space)
    batch = Batch.of_observations(obs_as_tensor(buffer.observations, device), actions, buffer.episodes)
    return replace(batch, extras={name: th.as_tensor(array, device=device) for name, array in buffer.extras.items()})


def _final_observations(episodes: Sequence[RecordedEpisode], actor_critic: ActorCritic) -> PyTorchObs:
    """The observations after the last timesteps of episodes that could have gone on."""
    policy = actor_critic.policy
    tensors: list[Any] = []  # of dictionaries or not
    for episode in episodes:
        obs = of_space(episode.final_observation, policy.observation_space)  # type: ignore[arg-type]
        if actor_critic.reads_every_number:
            arrays = (
                {key: np.asarray(part)[None] for key, part in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
            )
            timestep = episode.first_timestep + episode.stop - episode.start
            check_finite("terminal observation", arrays, lambda _, timestep=timestep: timestep, [episode.env_id])  # type: ignore[misc]
        # In the shape of the space, as in SB3
        tensors.append(policy.obs_to_tensor(obs)[0])
    if isinstance(tensors[0], dict):
        return {key: th.cat([tensor[key] for tensor in tensors]) for key in tensors[0]}
    return th.cat(tensors)


@dataclass
class Recomputation:
    """
    Computes the returns and advantages of a rollout again, from rewards that a callback has changed.

    :param estimator: Computes them from the rewards
    :param last_values: The value after each episode's last timestep, shape ``(n_episodes,)``
    :param unfinished: For each environment, the index of its episode that goes on in the next rollout
    """

    estimator: AdvantageEstimator
    last_values: np.ndarray
    unfinished: dict[int, int]

    def __call__(self, buffer: EpisodeRolloutBuffer, last_values: np.ndarray, dones: np.ndarray) -> None:
        """
        :param buffer: The buffer of the rollout
        :param last_values: Values of the observations after the rollout, for the unfinished episodes, shape ``(n_envs,)``
        :param dones: Whether an episode ended with the last step, shape ``(n_envs,)``
        :raises ValueError: If an array does not have one number for each environment
        """
        for name, array in (("last_values", last_values), ("dones", dones)):
            if self.unfinished and array.shape != (buffer.n_envs,):
                raise ValueError(
                    f"`{name}` must hold one number for each of the {buffer.n_envs} environments, got the shape {array.shape}."
                )
        own = self.last_values.copy()
        for env_id, i in self.unfinished.items():
            own[i] = 0.0 if dones[env_id] else last_values[env_id]
        self.estimator.compute(buffer, own)


def _join(of_workers: Sequence[EpisodeReturns]) -> EpisodeReturns:
    """The returns of all workers joined, with their environments numbered consecutively."""
    n_envs = [max(own.episodes.env_ids, default=-1) + 1 for own in of_workers]
    episodes = Episodes(
        np.concatenate([own.episodes.lengths for own in of_workers]),
        np.concatenate([own.episodes.env_ids + sum(n_envs[:i]) for i, own in enumerate(of_workers)]),
        np.concatenate([own.episodes.first_timesteps for own in of_workers]),
    )
    features = [own.features for own in of_workers if own.features is not None]
    return replace(
        of_workers[0],
        returns=np.concatenate([own.returns for own in of_workers]),
        values=np.concatenate([own.values for own in of_workers]),
        episodes=episodes,
        features=np.concatenate(features) if features else None,
    )


def advantages_under(
    buffer: EpisodeRolloutBuffer,
    baseline: Baseline,
    reward_to_go: bool,
    only_earlier_episodes: bool,
    group_size: int = 1,
) -> np.ndarray:
    """
    The advantages that an evaluated rollout would have had under another baseline.

    :param buffer: An evaluated buffer. For a critic it must hold the values, and Monte Carlo returns (``gae_lambda=1``)
    :param baseline: The other baseline
    :param reward_to_go: Whether the advantages should be those of the returns-to-go or of whole episodes
    :param only_earlier_episodes: Whether the later episodes of an environment depend on the earlier ones
    :param group_size: This many environments at a time have started from the same seed, and some baselines are computed
        within them
    :return: Shape ``(n_timesteps,)``; nothing in the buffer changes
    """
    # Without the critic, the return of an episode that was cut ends with nothing
    returns = buffer.returns if baseline.uses_critic else returns_to_go(buffer.rewards, buffer.gamma, buffer.episodes)
    estimator = AdvantageEstimator(baseline, reward_to_go, False, only_earlier_episodes, ALONE, group_size)
    return estimator.from_returns(buffer, returns)
