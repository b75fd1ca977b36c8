import functools
import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.ppo_mask.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.arguments import check_flag
from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.maskable.actor_critic import make_maskable_actor_critic
from sb3_reinforce.maskable.buffers import MaskableEpisodeDictRolloutBuffer, MaskableEpisodeRolloutBuffer
from sb3_reinforce.maskable.masks import MaskLayout, has_masks
from sb3_reinforce.reinforce import REINFORCE

SelfMaskableREINFORCE = TypeVar("SelfMaskableREINFORCE", bound="MaskableREINFORCE")


class MaskableREINFORCE(REINFORCE):
    """
    REINFORCE with invalid action masking: actions are drawn among those that the state allows.

    An environment says which these are with a method ``action_masks()``, as for sb3-contrib's MaskablePPO; the policies, the
    ``ActionMasker`` wrapper, ``MaskableEvalCallback`` and ``evaluate_policy`` are sb3-contrib's own. The policy that is
    trained is the masked one: an action that is not allowed has a probability of zero, and the estimate of the gradient
    stays unbiased. Paper: Huang and Ontañón (2022), https://arxiv.org/abs/2006.14171

    All arguments are those of :class:`sb3_reinforce.REINFORCE`. The action space must be Discrete, or MultiDiscrete or
    MultiBinary with one axis, and the policy a subclass of sb3-contrib's ``MaskableActorCriticPolicy``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy_base: ClassVar[type[BasePolicy]] = MaskableActorCriticPolicy
    policy_extras: ClassVar[tuple[str, ...]] = ("action_masks",)
    supported_action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    rollout_buffer_classes: ClassVar[tuple[type[EpisodeRolloutBuffer], type[EpisodeDictRolloutBuffer]]] = (
        MaskableEpisodeRolloutBuffer,
        MaskableEpisodeDictRolloutBuffer,
    )

    _use_masking = True
    _warned_of_masks = False

    def _make_parts(self) -> None:
        policy_class = self.policy_class
        MaskLayout(self.action_space)
        if issubclass(policy_class, MaskableActorCriticPolicy):
            self.policy_class = _without_sde(policy_class)
        try:
            super()._make_parts()
        finally:
            self.policy_class = policy_class

    @property
    def actor_critic(self) -> ActorCritic:
        return make_maskable_actor_critic(self.policy, self._use_masking)  # type: ignore[arg-type]

    @property
    def largest_entropy(self) -> float:
        """The entropy of a policy to which all allowed actions are alike, on average over the rollout."""
        masks = self.rollout_buffer.extras.get("action_masks")  # type: ignore[attr-defined]
        return super().largest_entropy if masks is None else MaskLayout(self.action_space).largest_entropy(masks)

    def _check_environment(self) -> None:
        super()._check_environment()
        is_learning = hasattr(self, "_player")  # the constructor does not know yet if masks are wanted
        if is_learning and self._use_masking and not has_masks(self.env):
            raise ValueError(
                "The environment must have a method `action_masks()`, got none. sb3-contrib's `ActionMasker` wrapper adds "
                "one; `learn(..., use_masking=False)` learns without masks."
            )

    def learn(  # type: ignore[override]
        self: SelfMaskableREINFORCE,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableREINFORCE:
        """
        Learn, see :meth:`sb3_reinforce.REINFORCE.learn`.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: Callback(s) called at every step with state of the algorithm
        :param log_interval: The number of updates between two logs
        :param tb_log_name: The name of the run for TensorBoard logging; ``None``: that of the class
        :param reset_num_timesteps: Whether or not to reset the current timestep number (used in logging)
        :param use_masking: Whether to draw the actions among those that the environments allow
        :param progress_bar: Display a progress bar using tqdm and rich
        :return: The trained model
        :raises ValueError: If the environments have no masks, or a mask of another form, or one that allows no action
        """
        check_flag("use_masking", use_masking)
        self._use_masking = bool(use_masking)
        tb_log_name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar=progress_bar
        )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation (and optional hidden state).

        :param observation: The observation, or those of several environments
        :param state: The last hidden states (used in recurrent policies)
        :param episode_start: Which episodes have just begun (used in recurrent policies)
        :param deterministic: Whether or not to return deterministic actions
        :param action_masks: Which actions are allowed: the mask of the observation, or one for each environment. ``None``: all
            of them, with a warning if the model was trained with masks
        :return: The model's action and the next hidden state (used in recurrent policies)
        :raises ValueError: If a mask has another form, or allows no action
        """
        if action_masks is None:
            self._warn_of_missing_masks()
        elif not isinstance(observation, tuple):  # for which the policy has an error of its own
            action_masks = self._check_masks(observation, action_masks)
        return self.policy.predict(  # type: ignore[call-arg]
            observation, state, episode_start, deterministic, action_masks=action_masks
        )

    def _check_masks(self, observation: np.ndarray | dict[str, np.ndarray], masks: Any) -> np.ndarray:
        layout = MaskLayout(self.action_space)
        obs = observation if isinstance(observation, dict) else np.asarray(observation)
        n_obs = 1
        if self.policy.is_vectorized_observation(obs):
            n_obs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        rows = layout.only_row(masks) if n_obs == 1 else layout.rows(masks, n_obs)
        row = layout.first_without_choice(rows)
        if row is not None:
            raise ValueError(f"The action mask must allow at least one choice, got {rows[row]!r} for observation {row}.")
        return rows

    def _warn_of_missing_masks(self) -> None:
        # The file of a MaskablePPO tells the timesteps, not the updates
        trained = self._n_updates > 0 or self.num_timesteps > 0
        if self._warned_of_masks or not (self._use_masking if trained else has_masks(self.env)):
            return
        self._warned_of_masks = True
        warnings.warn(
            "The actions are predicted without masks, so they may be invalid, and an environment that ignores such actions "
            "may never end: pass `action_masks` to `predict`, and evaluate with sb3-contrib's "
            "`sb3_contrib.common.maskable.evaluation.evaluate_policy` or `MaskableEvalCallback`.",
            UserWarning,
            stacklevel=3,
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_warned_of_masks"]


def _without_sde(policy_class: type[BasePolicy]) -> Any:
    """The class as a function without the argument `use_sde`, which SB3 passes to all policies, and these do not take."""

    @functools.wraps(policy_class, updated=())
    def make(*args: Any, use_sde: bool, **kwargs: Any) -> BasePolicy:
        return policy_class(*args, **kwargs)

    return make
