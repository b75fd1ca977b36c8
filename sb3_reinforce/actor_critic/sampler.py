"""Drawing actions from a policy while a rollout is played, with SB3's own calls, and passing them to the environments."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce.finite import check_finite, not_finite

Observation = np.ndarray | dict[str, np.ndarray]
Timestep = Callable[[int], int]
#: Actions of shape ``(n_envs, *action_shape)``, and values and log-probabilities if they are computed anyway
Sample = tuple[np.ndarray, th.Tensor | None, th.Tensor | None]


class PolicySampler:
    """
    Acts with SB3's own call, ``policy.forward``, which works for every policy.

    :param policy: The policy
    """

    #: Whether :meth:`sample` also returns values and log-probabilities
    evaluates = True

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy
        #: Further arguments of the policy for the last actions, besides the observations, by name, for the buffer: arrays
        #: of shape ``(n_envs, ...)``
        self.extras: dict[str, np.ndarray] = {}

    def acts_as_it_is(self) -> bool:
        """
        :return: Whether the sampler still acts with the policy's present layers and weights
        """
        return True

    def go_on_from(self, sampler: "PolicySampler | None") -> None:
        """
        :param sampler: The sampler that this one replaces
        """

    def draw_afresh(self) -> None:
        """Discard noise that was drawn ahead: the next actions depend on the state of the generators alone."""

    def start_rollout(self) -> None:
        """Take over the policy's present weights."""

    def sample(self, obs: Observation, timestep: Timestep) -> Sample:
        """
        :param obs: Observations of all environments
        :param timestep: Gives the timestep within its episode that an environment is at
        :return: Actions, values and log-probabilities
        :raises ValueError: If the policy's output is not finite
        """
        obs = of_space(obs, self.policy.observation_space)
        with th.no_grad():
            try:
                actions_tensor, values, log_probs = self.act(obs_as_tensor(obs, self.policy.device), timestep)
            except (ValueError, RuntimeError) as error:
                if not _refuses_numbers(error):
                    raise
                self._locate(error, obs, timestep)
                raise
        actions = actions_tensor.cpu().numpy()
        check_finite("action", actions, timestep)
        return actions, values, log_probs

    def act(
        self, obs: th.Tensor | dict[str, th.Tensor], timestep: Timestep
    ) -> tuple[th.Tensor, th.Tensor | None, th.Tensor | None]:
        """
        :param obs: Observations
        :param timestep: Gives the timestep within its episode that an environment is at
        :return: Actions, and values and log-probabilities if the sampler :attr:`evaluates`
        """
        return self.policy(obs)

    def evaluate_last(self, actor_critic: Any, piece: Any) -> tuple[th.Tensor, th.Tensor]:
        """
        :param actor_critic: The policy on a batch
        :param piece: The last observations and actions of all environments
        :return: Their values and log-probabilities, shape ``(n_envs,)`` each
        """
        values, log_probs, _ = actor_critic.evaluate(piece)
        return values, log_probs

    def next_values(self, obs: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """
        :param obs: The observations after the last sample
        :return: Their values, shape ``(n_envs, 1)``
        """
        return self.policy.predict_values(obs)

    def _locate(self, error: Exception, obs: Observation, timestep: Timestep) -> None:
        """Raise an error that names the environment for whose observation the policy has no finite output."""
        check_finite("observation", obs, timestep)
        n_envs = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        for env_id in range(n_envs):
            single = {key: value[[env_id]] for key, value in obs.items()} if isinstance(obs, dict) else obs[[env_id]]
            try:
                self.probe(obs_as_tensor(single, self.policy.device), env_id)
            except (ValueError, RuntimeError):
                raise not_finite("output of the policy", "nan", env_id, timestep(env_id)) from error

    def probe(self, obs: th.Tensor | dict[str, th.Tensor], env_id: int) -> None:
        """
        Try whether the policy has an output for one environment alone.

        :param obs: Its observation
        :param env_id: The environment
        """
        self.policy(obs)


def _refuses_numbers(error: Exception) -> bool:
    """Whether PyTorch's distributions raise this error for NaN and infinity, with or without their checks of arguments."""
    return "to satisfy the constraint" in str(error) or "probability tensor contains" in str(error)


def of_space(obs: Observation, space: spaces.Space) -> Observation:
    """
    :param obs: An observation, or the observations of several environments
    :param space: The observation space
    :return: The same without the keys that the space lacks, which no policy of SB3's takes
    """
    return {key: obs[key] for key in space.spaces} if isinstance(space, spaces.Dict) else obs


def to_environment(actions: np.ndarray, action_space: spaces.Space, policy: ActorCriticPolicy) -> np.ndarray:
    """
    :param actions: Actions as the policy draws them
    :param action_space: Action space of the environment
    :param policy: The policy
    :return: The actions that the environment takes: SB3 samples Gaussians without bounds
    """
    if not isinstance(action_space, spaces.Box):
        return actions
    if policy.squash_output:
        return policy.unscale_action(actions)
    return np.minimum(np.maximum(actions, action_space.low), action_space.high)


def reset_noise(policy: ActorCriticPolicy, n_envs: int) -> None:
    """
    :param policy: A policy with gSDE, which then draws new matrices
    :param n_envs: Number of environments
    """
    with th.no_grad():  # noise with a graph attached could not be copied
        policy.reset_noise(n_envs)
