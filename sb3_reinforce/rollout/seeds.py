"""The seeds of a rollout: fresh ones in each update, and the same for several attempts at one instance."""

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.actor_critic.sampler import Observation
from sb3_reinforce.rollout.wrappers import innermost


def seeds_of_groups(base: int, n_rollouts: int, groups: range, group_size: int) -> list[int]:
    """
    :param base: The model's seed
    :param n_rollouts: Number of rollouts so far
    :param groups: The numbers of this worker's groups among those of all workers
    :param group_size: Number of environments in a group
    :return: The seed of each environment, the same within a group
    """
    drawn = np.random.SeedSequence((base, n_rollouts)).generate_state(groups.stop)[groups.start :] % 2**31
    return [seed for seed in drawn.tolist() for _ in range(group_size)]


def seed_of_rollout(base: int, n_rollouts: int) -> int:
    """
    :param base: The model's seed
    :param n_rollouts: Number of rollouts so far
    :return: The seed of the first of all workers' environments, from which the others count on
    """
    return int(np.random.SeedSequence((base, n_rollouts)).generate_state(1)[0]) % (2**31 - 2**20)


def takes_seeds(env: VecEnv) -> bool:
    """
    :param env: Environments
    :return: Whether they can be seeded at a reset, as all can that do not deny it
    """
    return getattr(innermost(env), "takes_seeds", True) is not False


def set_seeds(env: VecEnv, seeds: list[int]) -> None:
    """
    :param env: Environments
    :param seeds: The seed of each for the next reset
    """
    inner = innermost(env)
    inner.seed(seeds[0])  # makes whatever such an environment keeps its seeds in
    inner._seeds = list(seeds)


def check_alike(observations: Observation, group_size: int) -> None:
    """
    :param observations: The first observations of all environments
    :param group_size: Number of environments in a group
    :raises ValueError: If they differ within a group
    """
    parts = observations.values() if isinstance(observations, dict) else [observations]
    for part in parts:
        by_group = part.reshape(-1, group_size, *part.shape[1:])
        same = (by_group == by_group[:, :1]) | ((by_group != by_group) & (by_group[:, :1] != by_group[:, :1]))
        alike = same.reshape(len(part), -1).all(axis=1)
        if not alike.all():
            env_id = int(alike.argmin())
            first = env_id - env_id % group_size
            raise ValueError(
                f"`group_size={group_size}` needs environments that begin alike when they are reset with the same seed, got "
                f"different first observations of the environments {first} and {env_id}: `reset(seed=...)` must draw all that "
                "differs between episodes from the seed, as with `super().reset(seed=seed)` and `self.np_random`."
            )
