"""
A baseline and a policy step of your own.

    python examples/own_strategies.py [--timesteps 20000] [--seed 0]

``Neighbours`` subtracts the mean return of the most similar observations in the other episodes of the batch. ``Backtracking``
takes the step of the optimizer, and halves it until the policy has moved by at most a given KL divergence.
"""

import argparse
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE, Baseline
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.monte_carlo.baselines import EpisodeReturns
from sb3_reinforce.update.gradients import Gradients
from sb3_reinforce.update.kl import approximate_kl
from sb3_reinforce.update.policy_step import OptimizerStep


class Neighbours(Baseline):
    """
    The mean return of the nearest observations in other episodes.

    :param n_neighbours: How many of them
    """

    of_others = True  # so an update must be able to hold two episodes

    def __init__(self, n_neighbours: int = 10):
        self.n_neighbours = n_neighbours

    def features(self, rollout: Any) -> np.ndarray:
        """
        :param rollout: The rollout buffer
        :return: What the baseline looks at, one row for each timestep
        """
        return rollout.flat_observations()

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        """
        :param episodes: Returns, episodes and features of the batch
        :return: One number for each timestep
        """
        assert episodes.features is not None
        x = episodes.features / (episodes.features.std(axis=0) + 1e-8)
        distances = np.square(x[:, None] - x).sum(axis=2)
        ids = episodes.episodes.episode_ids
        env_ids = episodes.episodes.env_ids[ids]
        # Only what does not depend on this episode's actions may count, or the gradient would be biased
        forbidden = ids[:, None] == ids
        if episodes.only_earlier_episodes:
            forbidden |= (env_ids[:, None] == env_ids) & (ids[:, None] < ids)
        distances[forbidden] = np.inf
        nearest = np.argsort(distances, axis=1)[:, : self.n_neighbours]
        known = np.isfinite(np.take_along_axis(distances, nearest, axis=1))
        return (episodes.returns[nearest] * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


class Backtracking(OptimizerStep):
    """The step of the optimizer, halved until the policy has moved by at most ``max_kl``."""

    max_kl = 0.01

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        """
        :param gradients: Losses of the batch and their gradients
        :param batch: The batch
        :param weights: Weight of each log-probability in the estimate
        :param parameters: The parameters that the update trains
        :return: What is logged as ``train/...``
        """
        start = [parameter.detach().clone() for parameter in parameters.actor]
        logs = super().take(gradients, batch, weights, parameters)
        share = 1.0
        while self._divergence(batch, gradients) > self.max_kl:
            share /= 2
            with th.no_grad():
                for parameter, before in zip(parameters.actor, start, strict=True):
                    parameter.lerp_(before, 0.5)
        return {**logs, "step_share": share}

    def _divergence(self, batch: Batch, gradients: Gradients) -> float:
        return approximate_kl(self.model.actor_critic, batch, gradients.log_probs, self.model.workers)


def main() -> None:
    """Learn CartPole with both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = make_vec_env("CartPole-v1", n_envs=4, seed=args.seed)
    model = REINFORCE("MlpPolicy", env, baseline=Neighbours(), n_steps=128, learning_rate=0.03, seed=args.seed, device="cpu")
    model.policy_step_class = Backtracking
    model.learn(args.timesteps)
    returns = [info["r"] for info in model.ep_info_buffer]  # type: ignore[union-attr]
    print(f"Mean return of the last {len(returns)} episodes: {np.mean(returns):.1f}")
    print(f"Share of the last step that was taken: {model.logger.name_to_value['train/step_share']:g}")


if __name__ == "__main__":
    main()
