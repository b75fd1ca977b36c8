"""A user's own rollout buffer, of SB3's kind: rollouts of fixed length, filled and read with SB3's own calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce.actor_critic.actor_critic import ActorCritic, SeparableActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.finite import check_finite, first_not_finite, not_finite
from sb3_reinforce.monte_carlo.episodes import Episodes


def check_buffer(buffer: RolloutBuffer, arguments: dict[str, Any], actor_critic: ActorCritic) -> None:
    """
    SB3's buffers hold rollouts of fixed length, put the bootstrap of a truncated episode into its last reward, and are
    filled with the outputs of the policy's own ``forward``.

    :param buffer: The rollout buffer
    :param arguments: The attributes of the algorithm, by the names of its arguments
    :param actor_critic: The policy
    :raises ValueError: If the buffer cannot hold what the arguments require
    """
    if isinstance(buffer, EpisodeRolloutBuffer):
        return
    expected = "`rollout_buffer_class` must be a subclass of EpisodeRolloutBuffer (or EpisodeDictRolloutBuffer) with"
    possible = {
        "complete_episodes": False,
        "reward_to_go": True,
        "bootstrap_on_truncation": True,
        "discount_state_distribution": False,
    }
    for argument, value in possible.items():
        if arguments[argument] != value:
            raise ValueError(f"{expected} {argument}={not value}, got {type(buffer).__name__}.")
    if type(actor_critic).sampler not in (ActorCritic.sampler, SeparableActorCritic.sampler):
        raise ValueError(
            f"{expected} a sampler of one's own, that of {type(actor_critic).__name__}, got {type(buffer).__name__}."
        )


def check_filled_buffer(buffer: RolloutBuffer) -> None:
    """
    :param buffer: A rollout buffer of SB3's, filled
    :raises ValueError: If an observation, a reward or an action in it is not finite
    """
    for what, arrays in {"observation": buffer.observations, "reward": buffer.rewards, "action": buffer.actions}.items():
        for array in arrays.values() if isinstance(arrays, dict) else [arrays]:
            index = first_not_finite(array)
            if index is not None:
                raise not_finite(what, array[index], env_id=index[1], timestep=index[0], of="the rollout")


@contextmanager
def refused_observations_named(model: Any, buffer: RolloutBuffer) -> Iterator[None]:
    """
    Wraps the collection of a rollout by SB3.

    :param model: The model
    :param buffer: Its buffer
    :raises ValueError: If the policy refused an observation; the error names it
    """
    try:
        yield
    except (ValueError, RuntimeError):  # the second where PyTorch has been told not to validate distributions
        check_finite("observation", model._last_obs, lambda env_id: buffer.pos, of="the rollout")
        raise


def n_episodes(buffer: RolloutBuffer) -> int:
    """
    :param buffer: A filled buffer
    :return: The number of its episodes, or of the pieces of episodes in a buffer of SB3's own
    """
    return len(buffer.episodes) if isinstance(buffer, EpisodeRolloutBuffer) else len(pieces_of_episodes(buffer))


def pieces_of_episodes(buffer: RolloutBuffer) -> Episodes:
    """
    :param buffer: A filled buffer of SB3's
    :return: The pieces of episodes in it, environment by environment
    """
    n_steps, n_envs = buffer.buffer_size, buffer.n_envs
    begins = np.array(buffer.episode_starts.T, dtype=bool)
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    lengths = np.diff(np.append(first, n_envs * n_steps))
    # The buffer does not know the timestep at which an episode entered the rollout; only discounts would need it
    return Episodes(lengths, first // n_steps, np.zeros(len(first), dtype=int))


def read_in_order(buffer: RolloutBuffer, action_space: spaces.Space) -> Batch:
    """
    The timesteps of a filled buffer, environment by environment. Its own ``get`` would shuffle them with NumPy's generator and
    flatten its arrays: code that only looks at a rollout uses this function.

    :param buffer: A filled buffer of SB3's
    :param action_space: Action space
    :return: The batch, with the pieces of episodes
    """

    def flat(array: np.ndarray) -> np.ndarray:
        return array if buffer.generator_ready else buffer.swap_and_flatten(array)

    arrays = buffer.observations
    observations = {key: flat(array) for key, array in arrays.items()} if isinstance(arrays, dict) else flat(arrays)
    actions, advantages, returns = (
        th.as_tensor(flat(array).astype(np.float32), device=buffer.device)
        for array in (buffer.actions, buffer.advantages, buffer.returns)
    )
    return Batch(
        obs_as_tensor(observations, buffer.device),
        Batch.as_actions(actions, action_space),
        advantages.flatten(),
        returns.flatten(),
        pieces_of_episodes(buffer),
        slice(0, len(actions)),
    )
