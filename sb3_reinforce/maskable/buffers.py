"""Rollout buffers of whole episodes with the mask of each timestep."""

from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.maskable.masks import MaskLayout


class MaskableEpisodeRolloutBufferSamples(NamedTuple):
    """The samples of an :class:`~sb3_reinforce.EpisodeRolloutBuffer` with masks, shape ``(batch_size, n_choices)``, bool."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    timesteps: th.Tensor
    episode_ids: th.Tensor
    action_masks: th.Tensor


class _WithMasks(EpisodeRolloutBuffer):
    @property
    def action_masks(self) -> np.ndarray:
        """
        The mask of each timestep: that of the state in which the action was taken, shape ``(n_timesteps, n_choices)``, bool.
        All true after a rollout without masks.
        """
        masks = self.extras.get("action_masks")
        return np.ones((len(self.rewards), MaskLayout(self.action_space).n), bool) if masks is None else masks[: self.pos]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray | slice, env: VecNormalize | None = None
    ) -> MaskableEpisodeRolloutBufferSamples:
        masks = self.to_torch(self.action_masks[batch_inds], copy=False)
        return MaskableEpisodeRolloutBufferSamples(*super()._get_samples(batch_inds, env), masks)


class MaskableEpisodeRolloutBuffer(_WithMasks):
    """
    An :class:`~sb3_reinforce.EpisodeRolloutBuffer` with ``action_masks``, an array of shape ``(n_timesteps, n_choices)``.

    :param buffer_size: Number of steps per environment for which memory is first set aside
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator;
        1 is the Monte Carlo return
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    """


class MaskableEpisodeDictRolloutBuffer(_WithMasks, EpisodeDictRolloutBuffer):  # type: ignore[misc]
    """
    :class:`MaskableEpisodeRolloutBuffer` for dictionary observations.

    :param buffer_size: Number of steps per environment for which memory is first set aside
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator;
        1 is the Monte Carlo return
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    """
