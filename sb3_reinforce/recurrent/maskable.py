"""Memory and masks together."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Distribution

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.inspection import has_sb3_forward
from sb3_reinforce.actor_critic.numpy_sampler import Head
from sb3_reinforce.actor_critic.sampler import PolicySampler, Sample, Timestep
from sb3_reinforce.maskable.distributions import evaluate, make_distributions, sample
from sb3_reinforce.maskable.masks import MaskLayout
from sb3_reinforce.maskable.reinforce import MaskableREINFORCE
from sb3_reinforce.maskable.sampler import HEADS, MaskReader, has_known_distribution, masked_outputs
from sb3_reinforce.recurrent.actor_critic import RecurrentActorCritic, SeparableRecurrentActorCritic
from sb3_reinforce.recurrent.policies import (
    MaskableRecurrentActorCriticCnnPolicy,
    MaskableRecurrentActorCriticPolicy,
    MaskableRecurrentMultiInputActorCriticPolicy,
)
from sb3_reinforce.recurrent.reinforce import RecurrentREINFORCE
from sb3_reinforce.recurrent.sampler import RecurrentActorSampler, RecurrentNumpySampler, RecurrentPolicySampler, understands


class _WithMasks:
    """A sampler that reads the masks before it acts."""

    reader: MaskReader | None = None
    extras: dict[str, np.ndarray]

    def start_rollout(self) -> None:
        super().start_rollout()  # type: ignore[misc]
        if self.reader is not None:
            self.reader.start_rollout()

    def sample(self, obs: Any, timestep: Timestep) -> Sample:
        if self.reader is not None:
            self.extras = {"action_masks": self.reader(timestep)}
        return super().sample(obs, timestep)  # type: ignore[misc]


class MaskedRecurrentPolicySampler(_WithMasks, RecurrentPolicySampler):
    """
    Acts with the policy's own ``forward``, which gets the masks.

    :param policy: The policy
    :param n_envs: Number of environments
    """

    def act(self, obs: Any, timestep: Timestep) -> tuple[th.Tensor, th.Tensor | None, th.Tensor | None]:
        actions, *evaluated = super().act(obs, timestep)
        if self.reader is not None:
            self.reader.check_allowed(actions, self.extras["action_masks"], self.policy, timestep)
        return actions, *evaluated  # type: ignore[return-value]


class MaskedRecurrentActorSampler(_WithMasks, RecurrentActorSampler):
    """
    Acts with the actor alone.

    :param policy: The policy
    :param n_envs: Number of environments
    """

    def draw(self, latent: th.Tensor) -> th.Tensor:
        masks = self.extras.get("action_masks")
        of_policy = None if masks is None else th.as_tensor(masks, device=latent.device)
        layout = MaskLayout(self.policy.action_space)
        distributions = make_distributions(self.policy.action_net(latent), of_policy, layout.sizes)
        return sample(distributions, self.policy.action_space.shape or ())


class MaskedRecurrentNumpySampler(_WithMasks, RecurrentNumpySampler):
    """
    Acts in NumPy.

    :param policy: The policy
    :param n_envs: Number of environments
    :param rng: Source of the actions' randomness
    """

    def make_head(self) -> Head:
        return HEADS[type(self.policy.action_dist)](self.policy, self.n_envs)

    def allowed(self, outputs: np.ndarray, timestep: Timestep) -> np.ndarray:
        return masked_outputs(outputs, self.extras.get("action_masks"))


class MaskableRecurrentActorCritic(RecurrentActorCritic):
    """
    Any policy with memory and masks, called with its own ``forward`` and ``evaluate_actions``.

    :param policy: The policy
    :param max_sequence_length: The gradient goes back through at most this many timesteps; ``None``: through the whole episode
    :param use_masking: Whether the actions are drawn among those that the environments allow
    """

    def __init__(self, policy: Any, max_sequence_length: int | None, use_masking: bool):
        super().__init__(policy, max_sequence_length)
        self.use_masking = use_masking

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        sampler = MaskedRecurrentPolicySampler(self.policy, env.num_envs)
        sampler.reader = MaskReader(env, MaskLayout(self.policy.action_space)) if self.use_masking else None
        return sampler

    def fits(self, sampler: PolicySampler) -> bool:
        if not isinstance(sampler, MaskedRecurrentPolicySampler) or sampler.policy is not self.policy:
            return False
        return (sampler.reader is not None) is self.use_masking


class SeparableMaskableRecurrentActorCritic(SeparableRecurrentActorCritic):
    """
    A policy with memory and masks and the methods of ours.

    :param policy: The policy
    :param max_sequence_length: The gradient goes back through at most this many timesteps; ``None``: through the whole episode
    :param use_masking: Whether the actions are drawn among those that the environments allow
    """

    def __init__(self, policy: Any, max_sequence_length: int | None, use_masking: bool):
        super().__init__(policy, max_sequence_length)
        self.use_masking = use_masking
        self.layout = MaskLayout(policy.action_space)

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        sampler: Any
        if understands(self.policy, HEADS):
            sampler = MaskedRecurrentNumpySampler(self.policy, env.num_envs, rng)
        else:
            sampler = MaskedRecurrentActorSampler(self.policy, env.num_envs)
        sampler.reader = MaskReader(env, self.layout) if self.use_masking else None
        return sampler

    def fits(self, sampler: PolicySampler) -> bool:
        if sampler.policy is not self.policy or (getattr(sampler, "reader", None) is not None) is not self.use_masking:
            return False
        if not isinstance(sampler, RecurrentNumpySampler):
            return not understands(self.policy, HEADS)
        return understands(self.policy, HEADS) and sampler.has_layers_of(self.policy)

    def _judged(self, latent: th.Tensor, piece: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        return evaluate(self._distributions_of(latent, piece), piece.actions)  # type: ignore[arg-type]

    def _distributions_of(self, latent: th.Tensor, piece: Batch) -> list[Distribution]:
        logits = self.policy.action_net(self.policy.mlp_extractor.forward_actor(latent))
        return list(make_distributions(logits, piece.extras.get("action_masks"), self.layout.sizes))


class MaskableRecurrentREINFORCE(MaskableREINFORCE, RecurrentREINFORCE):  # type: ignore[misc]
    """
    REINFORCE with an LSTM whose actions are drawn among those that the state allows: :class:`RecurrentREINFORCE` and
    :class:`MaskableREINFORCE` in one. The policies are our own, as sb3-contrib has none with both.

    :param policy: The policy model to use (MlpLstmPolicy, CnnLstmPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: Arguments of :class:`sb3_reinforce.REINFORCE` by position, from ``learning_rate`` on
    :param max_sequence_length: See :class:`RecurrentREINFORCE`
    :param kwargs: All other arguments are those of :class:`sb3_reinforce.REINFORCE`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MaskableRecurrentActorCriticPolicy,
        "CnnLstmPolicy": MaskableRecurrentActorCriticCnnPolicy,
        "MultiInputLstmPolicy": MaskableRecurrentMultiInputActorCriticPolicy,
    }
    policy_base: ClassVar[type[BasePolicy]] = MaskableRecurrentActorCriticPolicy

    @property
    def actor_critic(self) -> ActorCritic:
        separable = has_sb3_forward(self.policy, MaskableRecurrentActorCriticPolicy) and has_known_distribution(self.policy)
        kind = SeparableMaskableRecurrentActorCritic if separable else MaskableRecurrentActorCritic
        return kind(self.policy, self.max_sequence_length, self._use_masking)

    _predicted_states: tuple[np.ndarray, ...] | None = None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation and hidden state.

        In some versions of sb3-contrib, ``evaluate_policy`` for masks drops the states that it gets. So without a state, an
        episode that according to ``episode_start`` is going on is continued from the states of the last call.

        :param observation: The observation, or those of several environments
        :param state: The last hidden and memory states for the LSTM
        :param episode_start: Which episodes have just begun; ``None``: without a state, all of them
        :param deterministic: Whether or not to return deterministic actions
        :param action_masks: Which actions are allowed, see :meth:`MaskableREINFORCE.predict`
        :return: The model's action and the next hidden state
        :raises ValueError: If a mask has another form, or allows no action
        """
        last = self._predicted_states
        if state is None and last is not None and episode_start is not None and last[0].shape[1] == np.size(episode_start):
            state = last
        actions, self._predicted_states = super().predict(observation, state, episode_start, deterministic, action_masks)
        return actions, self._predicted_states

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_predicted_states"]
