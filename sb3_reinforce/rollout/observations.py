"""The observations of a step: which of them are checked, and which are kept."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.sampler import Observation, of_space
from sb3_reinforce.finite import check_finite, surely_finite


def judged_observations(actor_critic: ActorCritic) -> Callable[[Observation], Observation]:
    """
    :param actor_critic: The policy that acts on them
    :return: Selects from observations what must be finite: the parts that surely reach the networks
    """
    if not actor_critic.reads_every_number:
        return lambda obs: {}
    space = actor_critic.policy.observation_space
    return partial(of_space, space=space) if isinstance(space, spaces.Dict) else lambda obs: obs


def truncation_observation(info: dict[str, Any]) -> Observation | None:
    """
    :param info: The info of a step that ended an episode
    :return: A copy of the episode's last observation if a time limit cut it, ``None`` if it terminated
    """
    if not info.get("TimeLimit.truncated", False):
        return None
    return copy.deepcopy(info.get("terminal_observation"))


def row(obs: Observation, env_id: int) -> Observation:
    """
    :param obs: Observations of all environments
    :param env_id: One of them
    :return: A copy of its observation
    """
    if isinstance(obs, dict):
        return {key: value[env_id].copy() for key, value in obs.items()}
    return np.array(obs[env_id])


def check_step(
    new_obs: Observation,
    rewards: np.ndarray,
    recording: np.ndarray,
    timestep: Callable[[int], int],
    normalizer: VecNormalize | None = None,
) -> None:
    """
    :param new_obs: Observations after a vector step, as far as they are checked
    :param rewards: Its rewards
    :param recording: The environments that record the step: nothing is learned from the others' rewards
    :param timestep: Gives the timestep within its episode that an environment has just played
    :param normalizer: The wrapper that has normalized the observations and rewards, if any
    :raises ValueError: If a number among them is not finite
    """
    rewards = np.asarray(rewards)
    finite = surely_finite(new_obs) if isinstance(new_obs, np.ndarray) else all(map(surely_finite, new_obs.values()))
    if not (finite and surely_finite(rewards)):
        if normalizer is not None:
            # A single bad number spoils everything that is normalized with it
            check_finite("reward", normalizer.get_original_reward(), timestep)
            check_finite("observation", normalizer.get_original_obs(), lambda env_id: timestep(env_id) + 1)
        check_finite("reward", rewards[recording], timestep, recording.tolist())
        check_finite("observation", new_obs, lambda env_id: timestep(env_id) + 1)


def check_statistics(normalizer: VecNormalize | None) -> None:
    """
    :param normalizer: The wrapper that normalizes observations and rewards, if any
    :raises ValueError: If its statistics turn everything into NaN, for which one bad number is enough
    """
    if normalizer is None:
        return
    of_observations = getattr(normalizer, "obs_rms", {})  # missing with `norm_obs=False`
    statistics = dict(of_observations) if isinstance(of_observations, dict) else {"observations": of_observations}
    statistics["rewards"] = normalizer.ret_rms
    for what, moments in statistics.items():
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.var).all()):
            raise ValueError(
                f"The statistics of VecNormalize must be finite, got a mean of {moments.mean} and a variance of {moments.var} "
                f"for {what}: it has seen NaN or infinity, and has to be made or loaded anew."
            )
