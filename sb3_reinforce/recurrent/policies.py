"""Policies with memory: sb3-contrib's, and with masks, which sb3-contrib does not have."""

from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution, make_masked_proba_distribution
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule


class _IntegerFeatures(BasePolicy):
    """An LSTM wants the number of its inputs as Python's integer, and gets NumPy's for a MultiDiscrete observation."""

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        extractor = super().make_features_extractor()
        extractor._features_dim = int(extractor._features_dim)
        return extractor


class MlpLstmPolicy(_IntegerFeatures, RecurrentActorCriticPolicy):
    """sb3-contrib's policy of that name, which here also takes MultiDiscrete observations."""


class CnnLstmPolicy(_IntegerFeatures, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's policy of that name."""


class MultiInputLstmPolicy(_IntegerFeatures, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's policy of that name."""


class MaskableRecurrentActorCriticPolicy(_IntegerFeatures, RecurrentActorCriticPolicy):
    """
    sb3-contrib's recurrent policy with masks of actions: its arguments, with ``action_masks`` for the methods of
    ``MaskableActorCriticPolicy``.

    :param observation_space: Observation space
    :param action_space: Action space: Discrete, MultiDiscrete or MultiBinary
    :param lr_schedule: Learning rate schedule (could be constant)
    :param kwargs: The arguments of ``RecurrentActorCriticPolicy``
    """

    action_dist: MaskableDistribution

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Schedule, **kwargs: Any):
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)
        self.action_net = self.action_dist.proba_distribution_net(latent_dim=self.mlp_extractor.latent_dim_pi)
        if self.ortho_init:
            self.action_net.apply(partial(self.init_weights, gain=0.01))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> MaskableDistribution:
        return self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))

    def forward(  # type: ignore[override]
        self,
        obs: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: np.ndarray | th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """
        Forward pass in all the networks (actor and critic)

        :param obs: Observation
        :param lstm_states: The last hidden and memory states for the LSTM
        :param episode_starts: Whether the observations begin new episodes (we reset the lstm states in that case)
        :param deterministic: Whether to sample or use deterministic actions
        :param action_masks: Action masks to apply to the action distribution
        :return: action, value, log probability of the action, and the new states
        """
        latent_pi, latent_vf, states = self._latents(obs, lstm_states, episode_starts)
        distribution = self._masked(latent_pi, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *(self.action_space.shape or ()))), self.value_net(latent_vf), log_prob, states

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Evaluate actions according to the current policy, given the observations.

        :param obs: Observation
        :param actions: Actions
        :param lstm_states: The last hidden and memory states for the LSTM
        :param episode_starts: Whether the observations begin new episodes (we reset the lstm states in that case)
        :param action_masks: Action masks to apply to the action distribution
        :return: estimated value, log likelihood of taking those actions and entropy of the action distribution
        """
        latent_pi, latent_vf, _ = self._latents(obs, lstm_states, episode_starts)
        distribution = self._masked(latent_pi, action_masks)
        return self.value_net(latent_vf), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(  # type: ignore[override]
        self,
        obs: th.Tensor,
        lstm_states: tuple[th.Tensor, th.Tensor],
        episode_starts: th.Tensor,
        action_masks: np.ndarray | th.Tensor | None = None,
    ) -> tuple[MaskableDistribution, tuple[th.Tensor, ...]]:
        """
        Get the current policy distribution given the observations.

        :param obs: Observation
        :param lstm_states: The last hidden and memory states for the LSTM
        :param episode_starts: Whether the observations begin new episodes (we reset the lstm states in that case)
        :param action_masks: Action masks to apply to the action distribution
        :return: the action distribution and new hidden states
        """
        features = super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
        latent_pi, states = self._process_sequence(features, lstm_states, episode_starts, self.lstm_actor)
        return self._masked(self.mlp_extractor.forward_actor(latent_pi), action_masks), states  # type: ignore[return-value]

    def _latents(
        self, obs: th.Tensor, lstm_states: RNNStates, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, RNNStates]:
        features: Any = self.extract_features(obs)
        states_pi: Any
        of_actor, of_critic = features if isinstance(features, tuple) else (features, features)
        latent_pi, states_pi = self._process_sequence(of_actor, lstm_states.pi, episode_starts, self.lstm_actor)  # type: ignore[arg-type]
        states_vf: Any = states_pi
        if self.lstm_critic is not None:
            latent_vf, states_vf = self._process_sequence(of_critic, lstm_states.vf, episode_starts, self.lstm_critic)  # type: ignore[arg-type]
        elif self.shared_lstm:
            latent_vf, states_vf = latent_pi.detach(), (states_pi[0].detach(), states_pi[1].detach())
        else:
            assert self.critic is not None
            latent_vf = self.critic(of_critic)
        states = RNNStates(states_pi, states_vf)
        return self.mlp_extractor.forward_actor(latent_pi), self.mlp_extractor.forward_critic(latent_vf), states

    def _masked(self, latent_pi: th.Tensor, action_masks: np.ndarray | th.Tensor | None) -> MaskableDistribution:
        distribution = self._get_action_dist_from_latent(latent_pi)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def _predict(  # type: ignore[override]
        self,
        observation: th.Tensor,
        lstm_states: tuple[th.Tensor, th.Tensor],
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
        masks = self._masks_of_predict if action_masks is None else action_masks
        distribution, states = self.get_distribution(observation, lstm_states, episode_starts, masks)
        return distribution.get_actions(deterministic=deterministic), states

    _masks_of_predict: np.ndarray | None = None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation and hidden state.

        :param observation: The input observation
        :param state: The last hidden and memory states for the LSTM
        :param episode_start: Whether the observations begin new episodes (we reset the lstm states in that case)
        :param deterministic: Whether or not to return deterministic actions
        :param action_masks: Action masks to apply to the action distribution
        :return: the model's action and the next hidden state
        """
        self._masks_of_predict = action_masks  # sb3-contrib's method has no place for them
        try:
            return super().predict(observation, state, episode_start, deterministic)
        finally:
            self._masks_of_predict = None


class MaskableRecurrentActorCriticCnnPolicy(MaskableRecurrentActorCriticPolicy):
    """
    The policy for images.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: Features extractor to use
    :param kwargs: The arguments of ``RecurrentActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class MaskableRecurrentMultiInputActorCriticPolicy(MaskableRecurrentActorCriticPolicy):
    """
    The policy for dictionaries.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: Features extractor to use
    :param kwargs: The arguments of ``RecurrentActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )
