"""What a recorded rollout was worth: its values, returns and advantages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce import baselines
from sb3_reinforce.baselines import BaselineFunction
from sb3_reinforce.buffers import EpisodeRolloutBuffer, as_float32, one_hot
from sb3_reinforce.checks import check_finite
from sb3_reinforce.distributed import ALONE, Workers
from sb3_reinforce.estimator import evaluate_values
from sb3_reinforce.policies import reads_every_number
from sb3_reinforce.recording import RecordedEpisode, of_space
from sb3_reinforce.returns import Episodes, returns_to_go, whole_episode_returns


@dataclass
class Evaluation:
    """
    How the returns and advantages of a rollout follow from its rewards and values.

    :param baseline: The baseline
    :param reward_to_go: Whether the advantages are those of the returns-to-go or of whole episodes
    :param bootstrap_on_truncation: Whether the critic says what follows a truncated episode
    :param only_earlier_episodes: Whether the later episodes of an environment depend on the earlier ones
    :param workers: The workers, whose episodes a baseline of the batch is taken over
    """

    baseline: str | BaselineFunction | None
    reward_to_go: bool
    bootstrap_on_truncation: bool
    only_earlier_episodes: bool
    workers: Workers

    @property
    def has_critic(self) -> bool:
        """Whether the policy's critic is the baseline."""
        return isinstance(self.baseline, str) and self.baseline == "value"

    def is_bootstrapped(self, episode: RecordedEpisode) -> bool:
        """
        :param episode: A recorded episode
        :return: Whether the critic says what follows it: if it could have gone on. Without a critic nothing follows
        """
        may_be = self.bootstrap_on_truncation or episode.unfinished
        return self.has_critic and may_be and episode.final_observation is not None


def evaluate_rollout(
    buffer: EpisodeRolloutBuffer,
    recorded: Sequence[RecordedEpisode],
    policy: ActorCriticPolicy,
    evaluation: Evaluation,
    values_known: bool,
) -> None:
    """
    Fill in the values, returns and advantages of a finished buffer.

    :param buffer: The buffer
    :param recorded: Its episodes
    :param policy: The policy, whose critic gives the values
    :param evaluation: What is made of them
    :param values_known: Whether the values are in the buffer already
    :raises ValueError: If an observation that the critic is asked for is not finite
    """
    if evaluation.has_critic and not values_known:
        observations = obs_as_tensor(buffer.observations, policy.device)
        buffer.values = evaluate_values(policy, observations, buffer.episodes.n_timesteps).cpu().numpy()
    last_values = np.zeros(len(recorded))
    goes_on = [i for i, episode in enumerate(recorded) if evaluation.is_bootstrapped(episode)]
    if goes_on:
        last_values[goes_on] = _final_values([recorded[i] for i in goes_on], policy)
    unfinished = {episode.env_id: i for i, episode in enumerate(recorded) if episode.unfinished}
    buffer.recompute = Recomputation(evaluation, last_values, unfinished)
    _set_advantages(buffer, evaluation, last_values)


def _final_values(episodes: Sequence[RecordedEpisode], policy: ActorCriticPolicy) -> np.ndarray:
    """The values of the observations after the last timesteps of episodes that could have gone on."""
    judged = reads_every_number(policy)
    tensors: list[Any] = []  # of dictionaries or not
    for episode in episodes:
        obs = of_space(episode.final_observation, policy.observation_space)  # type: ignore[arg-type]
        if judged:
            arrays = (
                {key: np.asarray(part)[None] for key, part in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
            )
            timestep = episode.first_timestep + episode.stop - episode.start
            check_finite("terminal observation", arrays, lambda _, timestep=timestep: timestep, [episode.env_id])  # type: ignore[misc]
        # To the shape of the space, as SB3 does it
        tensors.append(policy.obs_to_tensor(obs)[0])
    if isinstance(tensors[0], dict):
        batch: Any = {key: th.cat([tensor[key] for tensor in tensors]) for key in tensors[0]}
    else:
        batch = th.cat(tensors)
    return evaluate_values(policy, batch, len(episodes)).cpu().numpy()


@dataclass
class Recomputation:
    """
    Computes the returns and advantages of a rollout again, from rewards that a callback has changed.

    :param evaluation: What is made of the rewards
    :param last_values: What each episode is worth after its last timestep, shape ``(n_episodes,)``
    :param unfinished: By their environments, the episodes that go on in the next rollout
    """

    evaluation: Evaluation
    last_values: np.ndarray
    unfinished: dict[int, int]

    def __call__(self, buffer: EpisodeRolloutBuffer, last_values: np.ndarray, dones: np.ndarray) -> None:
        """
        :param buffer: The buffer of the rollout
        :param last_values: Values of the observations after the rollout, shape ``(n_envs,)``: for the unfinished episodes
        :param dones: Whether an episode ended with the last step, shape ``(n_envs,)``
        :raises ValueError: If there is not a number for each environment
        """
        for name, array in (("last_values", last_values), ("dones", dones)):
            if self.unfinished and array.shape != (buffer.n_envs,):
                raise ValueError(
                    f"`{name}` must hold one number for each of the {buffer.n_envs} environments, got the shape {array.shape}."
                )
        own = self.last_values.copy()
        for env_id, i in self.unfinished.items():
            own[i] = 0.0 if dones[env_id] else last_values[env_id]
        _set_advantages(buffer, self.evaluation, own)


def _set_advantages(buffer: EpisodeRolloutBuffer, evaluation: Evaluation, last_values: np.ndarray) -> None:
    buffer.set_returns_and_advantages(last_values)
    if evaluation.has_critic and evaluation.reward_to_go:
        return
    returns = returns_to_go(buffer.rewards, buffer.gamma, buffer.episodes, last_values)
    if not evaluation.reward_to_go:
        returns = whole_episode_returns(returns, buffer.episodes)
    advantages = _advantages(
        buffer,
        evaluation.baseline,
        returns,
        evaluation.reward_to_go,
        evaluation.only_earlier_episodes,
        evaluation.workers,
    )
    buffer.advantages = as_float32(advantages)


def _advantages(
    buffer: EpisodeRolloutBuffer,
    baseline: str | BaselineFunction | None,
    returns: np.ndarray,
    reward_to_go: bool,
    only_earlier_episodes: bool,
    workers: Workers,
) -> np.ndarray:
    features = linear_features(buffer) if isinstance(baseline, str) and baseline == "linear" else None
    own = Batch(returns, buffer.values, buffer.episodes, features)
    # What a baseline of the batch is taken over; the critic's says something of every timestep by itself
    by_itself = baseline is None or (isinstance(baseline, str) and baseline == "value")
    batches = [own] if by_itself else workers.gather(own)
    batch = batches[0] if len(batches) == 1 else _join(batches)
    result = baselines.evaluate(
        baseline, batch.returns, batch.values, batch.episodes, reward_to_go, only_earlier_episodes, batch.features
    )
    first = 0 if by_itself else sum(len(other.returns) for other in batches[: workers.rank])
    return returns - result[first : first + len(returns)]


class Batch(NamedTuple):
    """
    What a baseline is taken over.

    :param returns: Returns, shape ``(n_timesteps,)``
    :param values: Values of the observations, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param features: For ``"linear"``, shape ``(n_timesteps, n_features)``
    """

    returns: np.ndarray
    values: np.ndarray
    episodes: Episodes
    features: np.ndarray | None


def _join(batches: Sequence[Batch]) -> Batch:
    """The batches of all workers as one, their environments numbered through."""
    n_envs = [max(batch.episodes.env_ids, default=-1) + 1 for batch in batches]
    episodes = Episodes(
        np.concatenate([batch.episodes.lengths for batch in batches]),
        np.concatenate([batch.episodes.env_ids + sum(n_envs[:i]) for i, batch in enumerate(batches)]),
        np.concatenate([batch.episodes.first_timesteps for batch in batches]),
    )
    features = [batch.features for batch in batches if batch.features is not None]
    return Batch(
        np.concatenate([batch.returns for batch in batches]),
        np.concatenate([batch.values for batch in batches]),
        episodes,
        np.concatenate(features) if features else None,
    )


def advantages_under(
    buffer: EpisodeRolloutBuffer, baseline: str | None, reward_to_go: bool, only_earlier_episodes: bool
) -> np.ndarray:
    """
    The advantages that an evaluated rollout would have had under another baseline.

    :param buffer: An evaluated buffer. For ``"value"`` it must hold the values, and Monte Carlo returns (``gae_lambda=1``)
    :param baseline: The other baseline
    :param reward_to_go: Whether the advantages are to be those of the returns-to-go or of whole episodes
    :param only_earlier_episodes: Whether the later episodes of an environment depend on the earlier ones
    :return: Shape ``(n_timesteps,)``; nothing in the buffer changes
    """
    # Without the critic an episode that was cut ends in nothing
    returns = buffer.returns if baseline == "value" else returns_to_go(buffer.rewards, buffer.gamma, buffer.episodes)
    if not reward_to_go:
        returns = whole_episode_returns(returns, buffer.episodes)
    return _advantages(buffer, baseline, returns, reward_to_go, only_earlier_episodes, ALONE)


def linear_features(buffer: EpisodeRolloutBuffer) -> np.ndarray:
    """
    :param buffer: A finished buffer
    :return: What ``baseline="linear"`` is linear in, shape ``(n_timesteps, n_features)``
    """
    return baselines.linear_features(_flatten(buffer.observations, buffer.observation_space), buffer.timesteps)


def _flatten(observations: np.ndarray | dict[str, np.ndarray], space: spaces.Space) -> np.ndarray:
    """The observations as rows of numbers, in which a discrete one has a number for each of its values."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flatten(observations[key], part) for key, part in space.spaces.items()], axis=1)
    assert isinstance(observations, np.ndarray)
    rows = observations.reshape(len(observations), -1)
    if isinstance(space, spaces.Discrete):
        # As SB3 has it, without the `start` of the space
        return one_hot(rows, [int(space.n)])
    if isinstance(space, spaces.MultiDiscrete):
        return one_hot(rows, space.nvec.ravel().tolist())
    return rows
