"""sb3-contrib's maskable policies on batches of timesteps, each with its mask."""

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Distribution

from sb3_reinforce.actor_critic.actor_critic import ActorCritic, Evaluation, SeparableActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.inspection import has_sb3_forward
from sb3_reinforce.actor_critic.numpy_sampler import is_understood
from sb3_reinforce.actor_critic.sampler import PolicySampler
from sb3_reinforce.maskable.distributions import evaluate, make_distributions, sample
from sb3_reinforce.maskable.masks import MaskLayout
from sb3_reinforce.maskable.sampler import (
    HEADS,
    MaskableActorSampler,
    MaskableNumpySampler,
    MaskablePolicySampler,
    MaskReader,
    has_known_distribution,
)


class MaskableActorCritic(ActorCritic):
    """
    Any maskable policy, called with SB3-contrib's own ``forward`` and ``evaluate_actions``.

    :param policy: The policy
    :param use_masking: Whether the actions are drawn among those that the environments allow
    """

    def __init__(self, policy: Any, use_masking: bool):
        super().__init__(policy)
        self.use_masking = use_masking

    @property
    def layout(self) -> MaskLayout:
        """The form of a mask."""
        return MaskLayout(self.policy.action_space)

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        return (
            MaskablePolicySampler(self.policy, MaskReader(env, self.layout)) if self.use_masking else super().sampler(env, rng)
        )

    def fits(self, sampler: PolicySampler) -> bool:
        kind = MaskablePolicySampler if self.use_masking else PolicySampler
        return sampler.policy is self.policy and type(sampler) is kind


class SeparableMaskableActorCritic(SeparableActorCritic):
    """
    A maskable policy with sb3-contrib's own methods: its actor and its critic can be called separately.

    :param policy: The policy
    :param use_masking: Whether the actions are drawn among those that the environments allow
    """

    def __init__(self, policy: Any, use_masking: bool):
        super().__init__(policy)
        self.use_masking = use_masking
        self.layout = MaskLayout(policy.action_space)

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        reader = MaskReader(env, self.layout) if self.use_masking else None
        if is_understood(self.policy, HEADS):
            return MaskableNumpySampler(self.policy, reader, env.num_envs, rng)
        return PolicySampler(self.policy) if reader is None else MaskableActorSampler(self.policy, reader, self.draw)

    def fits(self, sampler: PolicySampler) -> bool:
        if sampler.policy is not self.policy or (getattr(sampler, "reader", None) is not None) is not self.use_masking:
            return False
        if isinstance(sampler, MaskableNumpySampler):
            return is_understood(self.policy, HEADS) and sampler.has_layers_of(self.policy)
        return not is_understood(self.policy, HEADS)

    def evaluate(self, piece: Batch) -> Evaluation:
        policy = self.policy
        features = policy.extract_features(piece.observations)
        of_actor, of_critic = features if isinstance(features, tuple) else (features, features)
        values = policy.value_net(policy.mlp_extractor.forward_critic(of_critic)).flatten()
        return values, *evaluate(self._of_features(of_actor, piece.extras.get("action_masks")), piece.actions)

    def act(self, piece: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        return evaluate(self.distributions(piece), piece.actions)  # type: ignore[arg-type]

    def distributions(self, piece: Batch) -> list[Distribution]:
        return self._of_observations(piece.observations, piece.extras.get("action_masks"))

    def draw(self, observations: PyTorchObs, masks: np.ndarray) -> th.Tensor:
        """
        :param observations: Observations
        :param masks: Masks, shape ``(n_envs, n_choices)``
        :return: Actions, shape ``(n_envs, *action_shape)``
        """
        distributions = self._of_observations(observations, th.as_tensor(masks, device=self.policy.device))
        return sample(distributions, self.policy.action_space.shape or ())  # type: ignore[arg-type]

    def _of_observations(self, observations: PyTorchObs, masks: th.Tensor | None) -> list[Distribution]:
        features = BasePolicy.extract_features(self.policy, observations, self.policy.pi_features_extractor)
        return self._of_features(features, masks)

    def _of_features(self, features: th.Tensor, masks: th.Tensor | None) -> list[Any]:
        logits = self.policy.action_net(self.policy.mlp_extractor.forward_actor(features))
        return make_distributions(logits, masks, self.layout.sizes)


def make_maskable_actor_critic(policy: MaskableActorCriticPolicy, use_masking: bool) -> ActorCritic:
    """
    :param policy: A policy
    :param use_masking: Whether the actions are drawn among those that the environments allow
    :return: Its actor and critic, called separately if that gives the same results
    """
    separable = has_sb3_forward(policy, MaskableActorCriticPolicy) and has_known_distribution(policy)  # type: ignore[arg-type]
    return (SeparableMaskableActorCritic if separable else MaskableActorCritic)(policy, use_masking)
