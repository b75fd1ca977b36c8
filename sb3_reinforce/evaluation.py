"""What a recorded rollout was worth: its values, returns and advantages."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce import baselines
from sb3_reinforce.baselines import BaselineFunction
from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.distributed import ALONE, Workers
from sb3_reinforce.estimator import evaluate_values
from sb3_reinforce.recording import RecordedEpisode, stack
from sb3_reinforce.returns import Episodes, returns_to_go, whole_episode_returns


def evaluate_rollout(
    buffer: EpisodeRolloutBuffer,
    recorded: Sequence[RecordedEpisode],
    policy: ActorCriticPolicy,
    baseline: str | BaselineFunction | None,
    reward_to_go: bool,
    bootstrap_on_truncation: bool,
    only_earlier_episodes: bool,
    values_known: bool,
    workers: Workers = ALONE,
) -> None:
    """
    Fill in the values, returns and advantages of a finished buffer.

    :param buffer: The buffer
    :param recorded: Its episodes
    :param policy: The policy, whose critic gives the values
    :param baseline: The baseline
    :param reward_to_go: Whether the advantages are those of the returns-to-go or of whole episodes
    :param bootstrap_on_truncation: Whether the critic says what follows a truncated episode
    :param only_earlier_episodes: Whether the later episodes of an environment depend on the earlier ones
    :param values_known: Whether the values are in the buffer already
    :param workers: The workers, whose episodes a baseline of the batch is taken over
    """
    episodes = buffer.episodes
    has_critic = isinstance(baseline, str) and baseline == "value"
    if has_critic and not values_known:
        observations = obs_as_tensor(buffer.observations, policy.device)
        buffer.values = evaluate_values(policy, observations, episodes.n_timesteps).cpu().numpy()

    # What follows an episode that could have gone on is the critic's to say; without one it is nothing
    last_values = np.zeros(len(recorded))
    goes_on = [
        i
        for i, episode in enumerate(recorded)
        if has_critic and episode.final_observation is not None and (bootstrap_on_truncation or episode.unfinished)
    ]
    if goes_on:
        final = stack([recorded[i].final_observation for i in goes_on])
        last_values[goes_on] = evaluate_values(policy, obs_as_tensor(final, policy.device), len(goes_on)).cpu().numpy()

    buffer.compute_returns_and_advantage(last_values, dones=~np.isin(np.arange(len(recorded)), goes_on))
    if has_critic and reward_to_go:
        return
    returns = returns_to_go(buffer.rewards, buffer.gamma, episodes, last_values)
    if not reward_to_go:
        returns = whole_episode_returns(returns, episodes)
    advantages = _advantages(buffer, baseline, returns, reward_to_go, only_earlier_episodes, workers)
    buffer.advantages = advantages.astype(np.float32)


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
        return np.eye(int(space.n))[rows[:, 0].astype(int)]
    if isinstance(space, spaces.MultiDiscrete):
        columns = zip(rows.T.astype(int), space.nvec.ravel().tolist(), strict=True)
        return np.concatenate([np.eye(n)[column] for column, n in columns], axis=1)
    return rows
