"""A user's own rollout buffer, of SB3's kind: rollouts of fixed length, filled and read by SB3's own calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.finite import check_finite, first_not_finite, not_finite
from sb3_reinforce.monte_carlo.episodes import Episodes


def check_buffer(buffer: RolloutBuffer, arguments: dict[str, Any]) -> None:
    """
    SB3's buffers hold rollouts of fixed length, and put the bootstrap of a truncated episode into its last reward.

    :param buffer: The rollout buffer
    :param arguments: The attributes of the algorithm, by the names of its arguments
    :raises ValueError: If the buffer cannot hold what the arguments ask for
    """
    if isinstance(buffer, EpisodeRolloutBuffer):
        return
    possible = {
        "complete_episodes": False,
        "reward_to_go": True,
        "bootstrap_on_truncation": True,
        "discount_state_distribution": False,
    }
    for argument, value in possible.items():
        if arguments[argument] != value:
            raise ValueError(
                f"`rollout_buffer_class` must be a subclass of EpisodeRolloutBuffer (or EpisodeDictRolloutBuffer) with "
                f"{argument}={not value}, got {type(buffer).__name__}."
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
    For the collection of a rollout by SB3.

    :param model: The model
    :param buffer: Its buffer
    :raises ValueError: If the policy refused an observation: which. Or if there is a number that is not finite in the buffer
        afterwards
    """
    try:
        yield
    except ValueError:
        check_finite("observation", model._last_obs, lambda env_id: buffer.pos, of="the rollout")
        raise
    if buffer.full:
        check_filled_buffer(buffer)


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
    # How far an episode had come before the rollout, the buffer does not say; only discounts by it would need it
    return Episodes(lengths, first // n_steps, np.zeros(len(first), dtype=int))


def read(buffer: RolloutBuffer) -> tuple[RolloutBufferSamples, th.Tensor]:
    """
    All samples of a buffer, as its ``get`` gives them.

    :param buffer: A filled buffer of SB3's
    :return: The samples, and where each of them is among the buffer's timesteps, environment by environment
    """
    # The log-probabilities are not learned from: in their place travel the numbers of the timesteps
    numbers = np.arange(buffer.buffer_size * buffer.n_envs)
    log_probs = buffer.log_probs if buffer.generator_ready else buffer.swap_and_flatten(buffer.log_probs)
    buffer.log_probs = numbers[:, None] if buffer.generator_ready else numbers.reshape(buffer.n_envs, -1).T
    samples = next(buffer.get())
    buffer.log_probs = log_probs
    return samples, samples.old_log_prob.long()


@contextmanager
def left_unread(buffer: RolloutBuffer) -> Iterator[None]:
    """
    What is read of a buffer inside is read again in the same order afterwards: ``get`` shuffles with NumPy's generator, and
    flattens the arrays.

    :param buffer: A buffer
    """
    random, attributes = np.random.get_state(), dict(vars(buffer))
    observations = dict(buffer.observations) if isinstance(buffer.observations, dict) else None
    try:
        yield
    finally:
        np.random.set_state(random)
        vars(buffer).update(attributes)
        if observations is not None:
            buffer.observations.update(observations)  # type: ignore[attr-defined]
