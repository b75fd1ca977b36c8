"""The natural gradient: the step of a whole update against the exact inverse of the Fisher information.

The reference shares no code with the package: in float64, with the Jacobian of the network's outputs row by row, the Fisher
information of each head by its formula, and a dense solver.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.batch import Batch, sub_sample
from sb3_reinforce.distributed import ALONE, Alone
from sb3_reinforce.update.fisher import Fisher
from sb3_reinforce.update.natural_step import Settings, natural_step
from tests.helpers.environments import Scripted, vec

VECTOR = spaces.Box(-1, 1, (3,), np.float32)


ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


TINY: dict[str, Any] = {"net_arch": [4]}


def episodes(actions: spaces.Space, observations: spaces.Space = VECTOR, n_envs: int = 1) -> DummyVecEnv:
    envs = [Scripted((5, 9, 3), observations, actions, reward=lambda t: math.cos(3.0 * t)) for _ in range(n_envs)]
    return vec(*envs)


class Watched(REINFORCE):
    """Keeps the policy as it was before the last update, in float64, and the last batch."""

    def train(self) -> None:
        self.before = copy.deepcopy(self.policy).double()
        super().train()
        self.trained_on = next(self.rollout_buffer.get(shuffle=False))


def make(env: Any, policy: Any = "MlpPolicy", learn: int = 0, **kwargs: Any) -> Watched:
    arguments: dict[str, Any] = {"n_steps": 32, "natural_gradient": True, "ent_coef": 0.0}
    model = Watched(policy, env, **{**arguments, "seed": 0, "device": "cpu", **kwargs})
    return model.learn(learn) if learn else model


def flat(tensors: Sequence[th.Tensor]) -> th.Tensor:
    return th.cat([tensor.detach().double().flatten() for tensor in tensors])


def actor(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    return [p for name, p in policy.named_parameters() if "value" not in name and p.requires_grad]


def moved(model: Watched) -> th.Tensor:
    """What the last update added to the actor's weights."""
    return flat(actor(model.policy)) - flat(actor(model.before))


def distribution(policy: ActorCriticPolicy, observations: th.Tensor) -> Distribution:
    """In float64, which SB3's preprocessing does not leave."""
    return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(observations.double()))


def jacobian(outputs: th.Tensor, parameters: list[nn.Parameter]) -> th.Tensor:
    """Shape ``(*outputs.shape, n_parameters)``"""
    rows = []
    for output in outputs.flatten():
        parts = th.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        rows.append(flat([th.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]))
    return th.stack(rows).view(*outputs.shape, -1)


def head_fisher(space: spaces.Space, outputs: th.Tensor) -> th.Tensor:
    """Of one action, in the outputs of the network (for a Gaussian: means and logarithms of the deviations)."""
    if isinstance(space, spaces.Box):
        mean, log_std = outputs.chunk(2)
        return th.diag(th.cat([(-2 * log_std).exp(), 2.0 * th.ones_like(mean)]))
    if isinstance(space, spaces.MultiBinary):
        p = th.sigmoid(outputs)
        return th.diag(p * (1 - p))
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [len(outputs)]
    parts = [th.softmax(part, dim=0) for part in outputs.split(sizes)]
    return th.block_diag(*(th.diag(p) - th.outer(p, p) for p in parts))


def exact_fisher(policy: ActorCriticPolicy, observations: th.Tensor) -> th.Tensor:
    parameters = actor(policy)
    outputs = policy.action_net(policy.mlp_extractor.policy_net(observations.double()))
    if isinstance(policy.action_space, spaces.Box):
        outputs = th.cat([outputs, policy.log_std.expand_as(outputs)], dim=1)
    parts = [
        J.T @ head_fisher(policy.action_space, row.detach()) @ J
        for J, row in zip(jacobian(outputs, parameters), outputs, strict=True)
    ]
    return th.stack(parts).mean(dim=0)


def exact_step(model: Watched, sub_sampling_factor: int = 1) -> th.Tensor:
    policy, batch = model.before, model.trained_on
    one = distribution(policy, batch.observations)
    actions = batch.actions.double()
    log_prob = one.log_prob(actions.flatten() if isinstance(policy.action_space, spaces.Discrete) else actions)
    entropy = one.entropy()
    assert entropy is not None
    advantages = batch.advantages.double()
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    objective = (advantages * log_prob).mean() + model.ent_coef * entropy.mean()
    gradient = jacobian(objective, actor(policy))
    fisher = exact_fisher(policy, batch.observations[sub_sample(len(actions), sub_sampling_factor, ALONE)])
    x = th.linalg.pinv(fisher + model.cg_damping * th.eye(len(fisher)), rtol=1e-12, hermitian=True) @ gradient
    whole = exact_fisher(policy, batch.observations)
    return th.sqrt(2 * model.target_kl / (x @ whole @ x)) * x


def divergence(model: Watched) -> float:
    """From the old to the new policy, a mean over the batch."""
    distributions = []
    for policy in (model.before, copy.deepcopy(model.policy).double()):
        one = distribution(policy, model.trained_on.observations).distribution
        distributions.append(one if isinstance(one, list) else [one])
    divergences = [th.distributions.kl_divergence(old, new) for old, new in zip(*distributions, strict=True)]
    return sum(float(part.sum()) for part in divergences) / len(model.trained_on.actions)


def batch_of(policy: ActorCriticPolicy, n: int = 20) -> tuple[th.Tensor, th.Tensor]:
    observations = th.as_tensor(np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32))
    with th.no_grad():
        return observations, policy.get_distribution(observations).sample()


def fisher_of(
    policy: ActorCriticPolicy,
    observations: th.Tensor,
    actions: th.Tensor,
    parameters: list[nn.Parameter],
    workers: Alone = ALONE,
) -> Fisher:
    return Fisher(make_actor_critic(policy), Batch.of_observations(observations, actions), parameters, workers)


def take_step(
    policy: ActorCriticPolicy,
    gradient: Sequence[th.Tensor],
    parameters: list[nn.Parameter],
    observations: th.Tensor,
    actions: th.Tensor,
    weights: th.Tensor,
    settings: Settings,
    workers: Alone = ALONE,
) -> None:
    batch = Batch.of_observations(observations, actions)
    natural_step(make_actor_critic(policy), batch, weights, gradient, parameters, settings, workers)


def make_policy(name: str, cls: type[ActorCriticPolicy] = ActorCriticPolicy, **kwargs: Any) -> ActorCriticPolicy:
    th.manual_seed(0)
    return cls(VECTOR, ACTIONS[name], lambda _: 1e-2, **{**TINY, **kwargs})
