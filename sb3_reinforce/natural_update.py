"""When an algorithm steps along its natural gradient, and what it tells of it."""

import math
import warnings

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import checks
from sb3_reinforce.buffers import EpisodeRolloutBufferSamples
from sb3_reinforce.episodic import EpisodicAlgorithm
from sb3_reinforce.estimator import Gradients, trainable
from sb3_reinforce.natural_gradient import (
    NaturalStep,
    NoDirectionError,
    TooFarError,
    check_advantages,
    check_policy,
    check_second_derivative,
    natural_step,
)
from sb3_reinforce.policies import split_parameters


class NaturalGradientAlgorithm(EpisodicAlgorithm):
    """
    An episodic algorithm whose policy may step along its natural gradient.

    Its subclass sets the attributes below (see :class:`sb3_reinforce.REINFORCE`), and calls :meth:`_check_natural_gradient`
    when learning begins and :meth:`_natural_step` in ``train()``.
    """

    normalize_advantage: bool
    target_kl: float | Schedule
    cg_max_steps: int
    cg_damping: float
    sub_sampling_factor: int

    _reward_found = False

    @property
    def _actor_parameters(self) -> list[th.nn.Parameter]:
        """The parameters that reach the log-probabilities or the entropy, of the policy as it is now."""
        actor, _ = split_parameters(self.policy)
        return [parameter for parameter in self.policy.parameters() if parameter in actor]

    _warned_of_direction = False
    _warned_of_overshoot = False
    _warned_of_undoing = False

    def _check_natural_gradient(self) -> None:
        """
        :raises ValueError: If the policy has no natural gradient, or ``target_kl`` is no divergence
        """
        check_policy(self.policy)
        check_second_derivative(self.policy, trainable(self._actor_parameters))
        for progress_remaining in (1.0, self._current_progress_remaining, 0.0):
            self._target_kl_at(progress_remaining)

    def _setup_rollouts(self, env: VecEnv, total_timesteps: int) -> None:
        super()._setup_rollouts(env, total_timesteps)
        self._reward_found = any(self._workers.gather(self._reward_found))

    def _natural_step(
        self,
        gradients: Gradients,
        batch: EpisodeRolloutBufferSamples | RolloutBufferSamples,
        actions: th.Tensor,
        weights: th.Tensor,
        actor_parameters: list[th.nn.Parameter],
    ) -> float:
        """Move the actor along its natural gradient, if it has a direction; returns the norm of the gradient."""
        target_kl = self._target_kl_at(self._current_progress_remaining)
        self.logger.record("train/target_kl", target_kl)
        step = NaturalStep(0.0, 0.0)
        try:
            # Also with an entropy bonus: for that alone no step is worth its full length
            self._check_reward_found()
            check_advantages(batch.advantages, batch.returns, self.normalize_advantage, self._workers)
            step = natural_step(
                self.policy,
                gradients.actor,
                actor_parameters,
                batch.observations,
                actions,
                weights,
                target_kl,
                self.cg_max_steps,
                self.cg_damping,
                self.sub_sampling_factor,
                self._workers,
            )
            if step.overshot(target_kl) and not self._warned_of_overshoot:
                self._warned_of_overshoot = True
                warn_of_length(
                    f"A natural step moved the policy by a KL divergence of {step.divergence:.3g}, with `target_kl` at "
                    f"{target_kl:.3g}."
                )
        except NoDirectionError as error:
            # A solved task has such batches, as has one whose reward is yet to be found: the next one may be different
            if not self._warned_of_direction:
                warnings.warn(f"{error} No natural step is made in such updates.", UserWarning, stacklevel=2)
                self._warned_of_direction = True
        except TooFarError as error:
            if not self._warned_of_undoing:
                self._warned_of_undoing = True
                warn_of_length(str(error))
        self.logger.record("train/kl_divergence", step.divergence)
        return step.gradient_norm

    def _target_kl_at(self, progress_remaining: float) -> float:
        target_kl = self.target_kl(progress_remaining) if callable(self.target_kl) else self.target_kl
        if isinstance(target_kl, (th.Tensor, np.ndarray)) and math.prod(target_kl.shape) == 1:
            target_kl = target_kl.item()
        checks.check_number("target_kl", target_kl, 0)  # a schedule may end at zero
        return float(target_kl)

    def _check_reward_found(self) -> None:
        """
        :raises NoDirectionError: If no reward other than zero has ever been recorded, so that what the critic finds better or
            worse is its own error
        """
        if not self._reward_found:
            # SB3's own buffer has the critic's value in the last reward of a truncated episode, which then counts as found
            self._reward_found = any(self._workers.gather(bool(np.any(self.rollout_buffer.rewards))))
        if not self._reward_found:
            raise NoDirectionError("The natural gradient needs a direction: all rewards so far were zero.")

    def _excluded_save_params(self) -> list[str]:
        own = ["_warned_of_direction", "_warned_of_overshoot", "_warned_of_undoing"]
        return [*super()._excluded_save_params(), *own]


def warn_of_length(what: str) -> None:
    """
    :param what: What a natural step has come to
    """
    warnings.warn(
        f"{what} Its length is measured to second order, which does not reach far enough where the policy is all but "
        "deterministic, or the damping all but zero. A smaller `target_kl`, a little entropy (`ent_coef`) or a larger "
        "`cg_damping` helps. `train/kl_divergence` shows the steps that were made.",
        UserWarning,
        stacklevel=3,
    )
