"""Monitoring of the gradient estimate while a model learns."""

import math
import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import get_flattened_obs_dim

from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.arguments import check_flag, check_number, check_positive_int
from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.callbacks.figure import draw
from sb3_reinforce.callbacks.noise import EstimateNoise, divide, divisor_shares, measure_noise
from sb3_reinforce.distributed.workers import ALONE
from sb3_reinforce.monte_carlo.baselines import NAMED, Baseline, make_baseline
from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.groups import centered_within_groups, group_scales
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.advantages import advantages_under
from sb3_reinforce.rollout.sb3_buffer import read_in_order

if TYPE_CHECKING:
    from pandas import DataFrame

_COLUMNS = (
    "train/n_updates",
    "time/total_timesteps",
    "rollout/n_episodes",
    "rollout/n_steps",
    *(
        f"gradient/{name}"
        for name in (
            "norm",
            "squared_norm",
            "covariance_trace",
            "snr",
            "noise_scale_episodes",
            "noise_scale_timesteps",
            "cosine",
        )
    ),
)


class GradientMonitor(BaseCallback):
    r"""
    Shows how noisy the policy gradient of each update is, and what would reduce the noise. It does not affect the training.

    It measures each batch between its collection and the update. The gradient estimate
    :math:`\hat G = \sum_t \omega_t \nabla \log \pi(a_t|s_t)`, with the same weights :math:`\omega_t` as in the update
    (advantages as normalized, over the number of timesteps or episodes), is taken before the clipping, without the
    entropy bonus, with respect to the actor's parameters. It is the sum of the parts :math:`s_i` of the batch's :math:`N`
    episodes, and its deviation from its expectation is the mean of :math:`e_i = N (s_i - c_i \hat G)`. Here :math:`c_i` is
    the share of the episode in the divisor of the sum: :math:`1/N` with ``average_over="episodes"``, so that :math:`e_i`
    is the deviation of :math:`g_i = N s_i` from the mean :math:`\hat G` of all :math:`g_i`; its share of the timesteps
    with ``"timesteps"``; with ``normalize_advantage`` the fluctuation of the standard deviation is taken into account
    in the same way (:mod:`sb3_reinforce.callbacks.noise`). From the covariance :math:`\Sigma` of the :math:`e_i`, the
    covariance per episode, it logs

    - ``gradient/norm``: :math:`|\hat G|`, the norm of the estimate (equal to ``train/grad_norm`` if the entropy bonus is
      0 and a step is made);
    - ``gradient/covariance_trace``: :math:`\operatorname{tr} \Sigma / N`, the trace of the covariance of the estimate,
      see :func:`sb3_reinforce.callbacks.noise.covariance_trace`; unbiased with ``average_over="episodes"`` and
      advantages that are not normalized, else up to terms of higher order in :math:`1/N`;
    - ``gradient/snr``: the signal-to-noise ratio :math:`|G|^2 / (\operatorname{tr} \Sigma / N)` (a ratio of powers; Roberts
      and Tedrake, 2009) of the true gradient :math:`G`, whose squared norm is estimated (likewise unbiased) by
      :math:`|\hat G|^2 - \operatorname{tr} \Sigma / N`;
    - ``gradient/noise_scale_episodes``: the gradient noise scale :math:`\operatorname{tr} \Sigma / |G|^2` (McCandlish et
      al., 2018, arXiv 1812.06162, eq. 2.9 and appendix A.1), the number of episodes per update at which noise and signal
      are equal. With far fewer, twice the episodes are worth nearly twice as much; with far more, they gain nearly nothing.
      ``gradient/noise_scale_timesteps``: the same in timesteps;
    - ``gradient/cosine``: the cosine between the gradients of the even and of the odd groups of episodes;
    - ``gradient/variance_ratio_<baseline>`` with ``compare_baselines``: the trace of the covariance on this batch with
      that baseline, divided by the present trace. ``none``, ``mean``, ``leave_one_out``, ``linear``, and ``value`` if the
      critic is trained; with ``_whole_episode`` (or ``_reward_to_go``) appended for the other kind of returns. With a
      ``group_size``, those of the batch are computed within the groups, and with ``_ungrouped`` over all episodes. If the
      advantages are normalized, those under other baselines are centred, but keep the present
      scale, so that the same gradient is compared with more or less noise. Reward-to-go and whole episodes
      have the same expectation only with ``gamma=1`` or ``discount_state_distribution=True``.

    In ``snr`` and the noise scales, numerator and denominator are averages over the measured updates so far, in which
    each update weighs ``decay`` times as much as the next measured one. They are not logged
    while the average of the squared norm is not positive. A batch of fewer than two episodes is skipped.

    The mean that the normalization subtracts and the other episodes in a baseline are treated as fixed; their fluctuation adds
    terms smaller by a factor of the number of episodes. ``"leave_one_out"`` with reward-to-go is the exception when few
    episodes are still running: they then share the noise of a baseline of one or two others, which is not measured. On
    20 episodes of at most 5 steps 0.83 of the true variance was found. Dropout and batch normalization are evaluated as the
    policy acts, not as it trains. With ``complete_episodes=False``, also in a rollout buffer of SB3's own, the pieces of
    episodes in the rollout replace the episodes, and no baselines are compared.

    With several workers it is called on rank 0, and measures the noise in that worker's part of each batch.

    What a measurement costs, on one core with 512 steps per environment and the default policy:

    ============================  ==================  ===========  ==========================
    milliseconds                  rollout and update  measurement  with ``compare_baselines``
    ============================  ==================  ===========  ==========================
    CartPole, 1 environment       27                  5            17
    CartPole, 8 environments      121                 20           78
    LunarLander, 8 environments   471                 22           432
    ============================  ==================  ===========  ==========================

    At ``every_n_updates=10`` this is at most 2 % of the time, and 6 to 9 % with ``compare_baselines``.

    :param every_n_updates: Measure one update out of this many, beginning with the first
    :param compare_baselines: Whether to compare the variance with that under other baselines
    :param max_groups: With more episodes than this, groups of episodes replace them: cheaper, and noisier
    :param decay: Weight of a measurement relative to the next one in the averages, in (0, 1]; 1: the mean of all
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If an argument makes no sense, or the model is not a REINFORCE
    """

    ranks = (0,)

    def __init__(
        self,
        every_n_updates: int = 10,
        compare_baselines: bool = False,
        max_groups: int = 64,
        decay: float = 0.95,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        check_positive_int("every_n_updates", every_n_updates)
        check_flag("compare_baselines", compare_baselines)
        check_positive_int("max_groups", max_groups, least=2)
        check_number("decay", decay, 0, 1, low_excluded=True)
        self.every_n_updates = every_n_updates
        self.compare_baselines = compare_baselines
        self.max_groups = max_groups
        self.decay = decay
        self._n_rollouts = 0
        self._averages = RunningAverages()
        self._records: list[dict[str, float]] = []
        self._warned = False

    def _init_callback(self) -> None:
        if not isinstance(self.model, REINFORCE):
            raise ValueError(f"`GradientMonitor` needs a model of class REINFORCE, got {type(self.model).__name__}.")
        if self.compare_baselines and not self.model.complete_episodes and not self._warned:
            self._warned = True
            warnings.warn(
                "`compare_baselines=True` has no effect with complete_episodes=False, which takes no baseline but 'value'.",
                UserWarning,
                stacklevel=2,
            )

    def _on_step(self) -> bool:
        return True

    @np.errstate(under="ignore")
    def _on_rollout_end(self) -> None:
        self._n_rollouts += 1
        if (self._n_rollouts - 1) % self.every_n_updates != 0:
            return
        assert isinstance(self.model, REINFORCE)
        batch = coming_batch(self.model)
        episodes = batch.episodes
        # `None` if a user's buffer may leave timesteps out
        if episodes is None or len(episodes) < 2 * self.model.group_size:
            return
        weightings = {"": present_weighting(self.model, batch), **self._alternatives(self.model, batch)}
        groups, sizes = divide(episodes, self.max_groups, self.model.group_size)
        noises = measure_noise(
            self.model.actor_critic,
            batch,
            th.stack([weighting.weights for weighting in weightings.values()]),
            np.stack([weighting.shares for weighting in weightings.values()]),
            groups,
            sizes,
            self.model.actor_critic.actor_parameters(batch),
        )
        if all(math.isfinite(noise.squared_norm) for noise in noises):
            self._record(episodes, dict(zip(weightings, noises, strict=True)))

    def _alternatives(self, model: REINFORCE, batch: Batch) -> dict[str, "Weighting"]:
        """The weightings that the update would have under other baselines, by the baselines' names."""
        buffer = model.rollout_buffer
        if not (self.compare_baselines and model.complete_episodes and isinstance(buffer, EpisodeRolloutBuffer)):
            return {}
        result, present = {}, type(make_baseline(model.baseline))
        for reward_to_go in (True, False):
            suffix = "" if reward_to_go == model.reward_to_go else "_reward_to_go" if reward_to_go else "_whole_episode"
            for name, (baseline, group_size) in _comparable_baselines(model).items():
                if suffix == "" and type(baseline) is present and group_size == model.group_size:
                    continue
                advantages = advantages_under(buffer, baseline, reward_to_go, model.only_earlier_episodes, group_size)
                advantages = _in_present_units(model, buffer, advantages)
                tensor = th.as_tensor(advantages, dtype=th.float32, device=model.device)
                weights = model.weights(replace(batch, advantages=tensor), ALONE, reward_to_go, normalize_advantage=False)
                result[f"{name or 'none'}{suffix}"] = Weighting(weights, _shares(model, advantages, buffer.episodes))
        return result

    def _record(self, episodes: Episodes, noises: dict[str, EstimateNoise]) -> None:
        assert isinstance(self.model, REINFORCE)
        noise = noises.pop("")
        self._averages.add(noise, len(episodes.lengths), episodes.n_timesteps, self.decay)
        logged = {
            "norm": math.sqrt(noise.squared_norm),
            "covariance_trace": noise.covariance_trace,
            **self._averages.ratios(),
        }
        if noise.cosine is not None:
            logged["cosine"] = noise.cosine
        if noise.covariance_trace > 0.0:
            for name, other in noises.items():
                logged[f"variance_ratio_{name}"] = other.covariance_trace / noise.covariance_trace
        for key, value in logged.items():
            self.logger.record(f"gradient/{key}", value)
        self._records.append(
            {
                "train/n_updates": self.model._n_updates,
                "time/total_timesteps": self.num_timesteps,
                "rollout/n_episodes": len(episodes.lengths),
                "rollout/n_steps": episodes.n_timesteps,
                "gradient/squared_norm": noise.squared_norm - noise.covariance_trace,
                **{f"gradient/{key}": value for key, value in logged.items()},
            }
        )

    def summary(self) -> "DataFrame":
        """
        All measurements so far, including those of earlier calls of ``learn``.

        :return: A row for each measured update, with the columns that were logged, and
            ``gradient/squared_norm``: the unbiased estimate of :math:`|G|^2` from this update only, which may be negative.
            NaN where nothing was logged
        :raises ImportError: If pandas is not installed
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("`GradientMonitor.summary` needs pandas: pip install sb3-reinforce[plot]") from error
        columns = list(dict.fromkeys([*_COLUMNS, *(key for record in self._records for key in record)]))
        return pd.DataFrame(self._records, columns=columns)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """
        Draw the measurements so far, as PNG.

        :param path: The file to write
        :raises ImportError: If matplotlib is not installed
        :raises ValueError: If there is nothing to draw
        """
        try:
            draw(self._records, path)
        except ImportError as error:
            raise ImportError("`GradientMonitor.plot` needs matplotlib: pip install sb3-reinforce[plot]") from error


class RunningAverages:
    """Exponential moving averages of the terms of the noise scale, without a common factor, which would cancel."""

    def __init__(self) -> None:
        self.squared_norm = self.covariance_trace = self.episode_trace = self.n_episodes = self.n_timesteps = 0.0

    def add(self, noise: EstimateNoise, n_episodes: int, n_timesteps: int, decay: float) -> None:
        r"""
        :param noise: A measurement
        :param n_episodes: Number of episodes :math:`N` of its batch
        :param n_timesteps: Number of timesteps of its batch
        :param decay: Weight of the earlier measurements, relative to this one
        """
        new = {
            "squared_norm": noise.squared_norm - noise.covariance_trace,
            "covariance_trace": noise.covariance_trace,
            "episode_trace": n_episodes * noise.covariance_trace,
            "n_episodes": n_episodes,
            "n_timesteps": n_timesteps,
        }
        for name, value in new.items():
            setattr(self, name, decay * getattr(self, name) + value)

    def ratios(self) -> dict[str, float]:
        r"""
        :return: The signal-to-noise ratio :math:`|G|^2 / (\operatorname{tr} \Sigma / N)`, and the noise scale
            :math:`\operatorname{tr} \Sigma / |G|^2` in episodes and (times their mean length) in timesteps. Empty
            if :math:`|G|^2` or the noise is not positive
        """
        if not (self.squared_norm > 0.0 and self.covariance_trace > 0.0):
            return {}
        noise_scale = self.episode_trace / self.squared_norm
        return {
            "snr": self.squared_norm / self.covariance_trace,
            "noise_scale_episodes": noise_scale,
            "noise_scale_timesteps": noise_scale * self.n_timesteps / self.n_episodes,
        }


class Weighting(NamedTuple):
    """
    How an update weighs its timesteps.

    :param weights: Weight of each log-probability, shape ``(n_timesteps,)``
    :param shares: See :func:`sb3_reinforce.callbacks.noise.divisor_shares`, shape ``(n_timesteps,)``
    """

    weights: th.Tensor
    shares: np.ndarray


def coming_batch(model: REINFORCE) -> Batch:
    """
    Read the batch of the coming update from a model, without changing the model.

    :param model: A model that has just collected a rollout
    :return: The batch, episode by episode (in a rollout buffer of SB3's own: by pieces of episodes)
    """
    if isinstance(model.rollout_buffer, EpisodeRolloutBuffer):
        return model.batch()
    return read_in_order(model.rollout_buffer, model.action_space)


def _comparable_baselines(model: REINFORCE) -> dict[str | None, tuple[Baseline, int]]:
    """The baselines, and the size of the groups that each is computed in, by name."""
    found: dict[str | None, Baseline] = {name: kind() for name, kind in NAMED.items()}
    try:
        found["linear"].check(model.env, get_flattened_obs_dim(model.observation_space))
    except ValueError:  # its observations are too large
        del found["linear"]
    # An untrained critic tells nothing, and TD(lambda) targets are not returns
    if not model.uses_critic or model.gae_lambda < 1.0:
        del found["value"]
    result = {name: (baseline, model.group_size) for name, baseline in found.items()}
    if model.group_size > 1:
        result.update({f"{name}_ungrouped": (one, 1) for name, one in found.items() if one.within_groups})
    return result


def present_weighting(model: REINFORCE, batch: Batch) -> Weighting:
    """
    :param model: A model
    :param batch: Its batch, with episodes
    :return: The weighting in the coming update
    """
    # With several workers only rank 0 measures
    return Weighting(model.weights(batch, ALONE), _shares(model, batch.advantages.cpu().numpy(), batch.episodes))


def _in_present_units(model: REINFORCE, buffer: EpisodeRolloutBuffer, advantages: np.ndarray) -> np.ndarray:
    """The advantages of another baseline, divided by the deviations of the present ones, so that both can be compared."""
    if model.normalize_advantage == "group":
        scales = group_scales(buffer.advantages, buffer.returns, buffer.episodes, model.group_size)
        return centered_within_groups(advantages, buffer.episodes, model.group_size) * scales
    if model.normalize_advantage and len(buffer.advantages) > 1:
        return (advantages - advantages.mean()) / (float(buffer.advantages.std(ddof=1)) + 1e-8)
    return advantages


def _shares(model: REINFORCE, advantages: np.ndarray, episodes: Episodes | None) -> np.ndarray:
    assert episodes is not None
    # The deviation of a group belongs to it alone, and is no common divisor
    of_batch = bool(model.normalize_advantage) and model.normalize_advantage != "group"
    return divisor_shares(advantages, episodes, model.average_over, of_batch)
