"""What tests of policies share."""

from types import SimpleNamespace

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.sampler import PolicySampler


def make_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> PolicySampler:
    """
    :param policy: A policy
    :param n_envs: Number of environments
    :param rng: Source of randomness
    :return: What draws the policy's actions in that many environments
    """
    return make_actor_critic(policy).sampler(SimpleNamespace(num_envs=n_envs), rng)  # type: ignore[arg-type]
