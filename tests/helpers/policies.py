"""What tests of policies share."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.sampler import PolicySampler


class OneFunction(ActorCriticPolicy):
    """A policy whose value and distribution come from one method, ``both``."""

    def both(self, obs: Any) -> tuple[th.Tensor, Distribution]:
        """
        :param obs: Observations
        :return: Their values, shape ``(n, 1)``, and the distribution of the actions
        """
        raise AssertionError("to be defined")

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        value, distribution = self.both(obs)
        actions = distribution.get_actions(deterministic)
        return actions, value, distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        value, distribution = self.both(obs)
        return value, distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: Any) -> th.Tensor:
        return self.both(obs)[0]

    def get_distribution(self, obs: Any) -> Distribution:
        return self.both(obs)[1]


def make_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> PolicySampler:
    """
    :param policy: A policy
    :param n_envs: Number of environments
    :param rng: Source of randomness
    :return: What draws the policy's actions in that many environments
    """
    return make_actor_critic(policy).sampler(SimpleNamespace(num_envs=n_envs), rng)  # type: ignore[arg-type]
