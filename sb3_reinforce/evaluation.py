"""What a recorded rollout was worth: its values, returns and advantages."""

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce import baselines
from sb3_reinforce.baselines import BaselineFunction
from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.estimator import evaluate_values
from sb3_reinforce.recording import RecordedEpisode, stack
from sb3_reinforce.returns import returns_to_go, whole_episode_returns


def evaluate_rollout(
    buffer: EpisodeRolloutBuffer,
    recorded: Sequence[RecordedEpisode],
    policy: ActorCriticPolicy,
    baseline: str | BaselineFunction | None,
    reward_to_go: bool,
    bootstrap_on_truncation: bool,
    only_earlier_episodes: bool,
    values_known: bool,
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
    subtracted = baselines.evaluate(baseline, returns, buffer.values, episodes, reward_to_go, only_earlier_episodes)
    buffer.advantages = (returns - subtracted).astype(np.float32)
