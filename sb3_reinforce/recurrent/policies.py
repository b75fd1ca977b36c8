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
from torch import nn

from sb3_reinforce.arguments import check_positive_int


class _OwnPolicy(BasePolicy):
    """
    What our recurrent policies have beyond sb3-contrib's.

    :param args: The arguments of sb3-contrib's policy
    :param longest_memory: See :class:`MlpLstmPolicy`
    :param kwargs: Further arguments of sb3-contrib's policy
    :raises ValueError: If ``longest_memory`` is no integer of at least 2, or the LSTM has no biases
    """

    def __init__(self, *args: Any, longest_memory: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.longest_memory = longest_memory
        if longest_memory is not None:
            check_positive_int("longest_memory", longest_memory, least=2)
            for module in self.children():
                if isinstance(module, nn.LSTM):
                    if not module.bias:
                        raise ValueError(f"`longest_memory` needs an LSTM with biases, got {longest_memory} for one without.")
                    open_gates(module, longest_memory)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        extractor = super().make_features_extractor()
        # An LSTM wants the number of its inputs as Python's integer, and gets NumPy's for a MultiDiscrete observation
        extractor._features_dim = int(extractor._features_dim)
        return extractor

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own: Any = self
        return {
            **super()._get_constructor_parameters(),
            # sb3-contrib's method leaves them out, and such a policy could not be loaded separately
            "lstm_hidden_size": own.lstm_actor.hidden_size,
            "n_lstm_layers": own.lstm_actor.num_layers,
            "shared_lstm": own.shared_lstm,
            "enable_critic_lstm": own.enable_critic_lstm,
            "lstm_kwargs": own.lstm_kwargs,
            "longest_memory": self.longest_memory,
        }


def open_gates(lstm: nn.LSTM, longest_memory: int) -> None:
    """
    Biases with which the units of a new LSTM remember for times between 1 and a longest one. With PyTorch's own, half of
    a state is forgotten in each timestep. Paper: Tallec and Ollivier (2018), https://arxiv.org/abs/1804.11188, sec. 2

    :param lstm: An LSTM with biases
    :param longest_memory: The longest time, in timesteps
    """
    size = lstm.hidden_size
    with th.no_grad():
        for name, bias in lstm.named_parameters():
            if name.startswith("bias"):
                bias.zero_()
            if name.startswith("bias_ih"):
                bias[size : 2 * size] = th.empty(size).uniform_(1.0, max(longest_memory - 1.0, 1.0)).log()
                bias[:size] = -bias[size : 2 * size]


class MlpLstmPolicy(_OwnPolicy, RecurrentActorCriticPolicy):
    """
    sb3-contrib's policy of that name, which here also takes MultiDiscrete observations.

    :param args: The arguments of sb3-contrib's policy
    :param longest_memory: For how many timesteps a new LSTM remembers at most, where what matters comes long after it was
        seen. ``None``: PyTorch's own initialization, which forgets within a few timesteps
    :param kwargs: Further arguments of sb3-contrib's policy
    """


class CnnLstmPolicy(_OwnPolicy, RecurrentActorCriticCnnPolicy):
    """
    sb3-contrib's policy of that name.

    :param args: The arguments of sb3-contrib's policy
    :param longest_memory: See :class:`MlpLstmPolicy`
    :param kwargs: Further arguments of sb3-contrib's policy
    """


class MultiInputLstmPolicy(_OwnPolicy, RecurrentMultiInputActorCriticPolicy):
    """
    sb3-contrib's policy of that name.

    :param args: The arguments of sb3-contrib's policy
    :param longest_memory: See :class:`MlpLstmPolicy`
    :param kwargs: Further arguments of sb3-contrib's policy
    """


class MaskableRecurrentActorCriticPolicy(_OwnPolicy, RecurrentActorCriticPolicy):
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
