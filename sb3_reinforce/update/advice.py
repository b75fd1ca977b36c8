"""What a run that stands still tells its user: what was seen, and what may help. Each warning comes once per model."""

import math
import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.monte_carlo.episodes import Episodes

#: Timesteps without any reward, and timesteps and episodes of equal return since the first, that are worth a warning. Random
#: actions on Acrobot need about 30,000 timesteps for their first episode that reaches the goal
NO_REWARD_TIMESTEPS = 10_000
EQUAL_TIMESTEPS, EQUAL_EPISODES = 50_000, 50
#: A policy is certain below this share of its largest entropy, or with a deviation below this share of the bounds, for this
#: many updates one after the other
CERTAIN, CERTAIN_UPDATES = 1e-3, 5
#: Returns move if they deviate by more than this share of their size
MOVING = 0.1
#: A critic is useless if it explains less than this share of the returns' variance for this many updates one after the other
USELESS, USELESS_UPDATES = -0.1, 50
#: Sizes of returns that a critic in raw units can follow
SMALLEST_RETURN, LARGEST_RETURN = 1e-3, 1e5
#: A deviation is far from the action bounds if fewer of its first actions than this are within them, or if it is less than
#: this share of half their distance
MOST_CLIPPED, NARROW = 0.1, 0.05


class Advisor:
    """
    Watches the updates of a model, and warns of what keeps it from learning.

    :param model: The :class:`sb3_reinforce.REINFORCE`
    """

    def __init__(self, model: Any):
        self.model = model
        self.given: set[str] = set()  # the names of the warnings so far
        self._rewards_zero = self._returns_equal = True
        self._return: float | None = None  # of all episodes so far, as long as it is the same
        self._n_timesteps = self._n_episodes = 0
        self._n_certain = self._n_useless = 0

    def after_update(self, logs: dict[str, float], critic_is_raw: bool) -> None:
        """
        :param logs: What the update has logged
        :param critic_is_raw: Whether a critic is used whose targets are the returns as they are
        """
        buffer = self.model.rollout_buffer
        if not isinstance(buffer, EpisodeRolloutBuffer) or self.model.workers.rank > 0:
            return
        totals = episode_totals(buffer.rewards, buffer.episodes)
        self._n_timesteps += len(buffer.rewards)
        self._n_episodes += len(totals)
        self._watch_rewards(buffer.rewards, totals)
        self._watch_certainty(logs, totals)
        self._watch_critic(logs, buffer.returns if critic_is_raw else None)

    def before_first_update(self) -> None:
        """Compare the first actions with their bounds."""
        space, log_std = self.model.action_space, getattr(self.model.policy, "log_std", None)
        if not isinstance(space, spaces.Box) or not isinstance(log_std, th.Tensor) or self.model.workers.rank > 0:
            return
        low, high = space.low.ravel().astype(float), space.high.ravel().astype(float)
        if log_std.numel() != len(low) or self.model.use_sde or self.model.policy.squash_output:
            return
        std = log_std.detach().double().exp().clamp(min=np.finfo(np.float64).tiny).flatten().tolist()
        for i in range(len(low)):
            inside = (math.erf(high[i] / (math.sqrt(2.0) * std[i])) - math.erf(low[i] / (math.sqrt(2.0) * std[i]))) / 2
            far = std[i] < NARROW * (high[i] - low[i]) / 2
            if inside < MOST_CLIPPED or far:
                what = f"only {inside:.1%} of the first actions are within" if not far else "the first actions reach little of"
                self._advise(
                    "bounds",
                    f"With a deviation of {std[i]:.3g}, {what} the action bounds [{low[i]:g}, {high[i]:g}]. "
                    "`gymnasium.wrappers.RescaleAction(env, -1, 1)` brings them to where the policy begins, "
                    '`policy_kwargs={"log_std_init": ...}` sets the logarithm of its first deviation.',
                )
                return

    def _watch_rewards(self, rewards: np.ndarray, totals: np.ndarray) -> None:
        self._rewards_zero = self._rewards_zero and not rewards.any()
        if self._return is None and len(totals):
            self._return = float(totals[0])
        self._returns_equal = self._returns_equal and bool((totals == self._return).all())
        if self._rewards_zero and self._n_timesteps >= NO_REWARD_TIMESTEPS:
            self._advise(
                "no reward",
                f"All rewards of the first {self._n_timesteps:,} timesteps were zero, so there was nothing to learn from. "
                "Rewards on the way to the goal, starts that are nearer to it, a longer `horizon` or more exploration "
                "(`use_sde`, a larger `log_std_init`) may lead to the first one.",
            )
        elif self._returns_equal and self._n_timesteps >= EQUAL_TIMESTEPS and self._n_episodes >= EQUAL_EPISODES:
            self._advise(
                "equal returns",
                f"All of the first {self._n_episodes:,} episodes had the same return of {self._return:g}, so no action was "
                "better than another. Rewards on the way, longer episodes or more exploration (`use_sde`, a larger "
                "`log_std_init`) may make a difference.",
            )

    def _watch_certainty(self, logs: dict[str, float], totals: np.ndarray) -> None:
        share = self._certainty(logs)
        moving = len(totals) > 1 and totals.std() > MOVING * abs(totals.mean())
        self._n_certain = self._n_certain + 1 if share is not None and share < CERTAIN and moving else 0
        if self._n_certain >= CERTAIN_UPDATES:
            self._advise(
                "certain",
                f"The policy has become nearly certain of its actions, while the returns still move by {totals.std():.3g} "
                f"around {totals.mean():.3g}: it tries nothing else any more. If that is too early, a larger `ent_coef`, more "
                "timesteps per update (`n_steps`) or shorter steps (`target_kl`, or `learning_rate`) keep it open for longer.",
            )

    def _certainty(self, logs: dict[str, float]) -> float | None:
        """What is left of the entropy, or of the deviation; ``None`` where that is not known."""
        space = self.model.action_space
        if isinstance(space, spaces.Box):
            half = float(np.mean(space.high - space.low)) / 2
            return logs["std"] / half if "std" in logs and not self.model.use_sde and half > 0 else None
        most = self.model.largest_entropy
        return -logs["entropy_loss"] / most if most > 0 else None

    def _watch_critic(self, logs: dict[str, float], raw_returns: np.ndarray | None) -> None:
        explained = logs.get("explained_variance", math.nan)
        self._n_useless = self._n_useless + 1 if explained < USELESS else 0
        if self._n_useless >= USELESS_UPDATES:
            self._advise(
                "critic",
                f"For {USELESS_UPDATES} updates the critic has explained less than nothing of the returns' variance (now "
                f"{explained:.2f}), so it makes the gradient noisier. A smaller `critic_learning_rate`, fewer "
                "`n_critic_updates`, more timesteps per update (`n_steps`), a smaller `gamma` or another `baseline` may be "
                "better.",
            )
        if raw_returns is None or not len(raw_returns):
            return
        size = float(np.sqrt(np.mean(np.square(raw_returns, dtype=np.float64))))
        if size > LARGEST_RETURN or 0.0 < size < SMALLEST_RETURN:
            self._advise(
                "scale",
                f"The returns are of a size of {size:.3g}, which a critic that begins near 1 takes long to follow. "
                "`normalize_returns=True` (with a policy whose `value_net` puts out the value) or `VecNormalize` scales them.",
            )

    def _advise(self, name: str, text: str) -> None:
        if name not in self.given:
            self.given.add(name)
            warnings.warn(text, UserWarning, stacklevel=5)


def largest_entropy(space: spaces.Space) -> float:
    """
    :param space: A space of finitely many actions
    :return: The entropy of a policy to which all of them are alike
    """
    if isinstance(space, spaces.Discrete):
        return math.log(max(int(space.n), 1))
    if isinstance(space, spaces.MultiDiscrete):
        return float(np.log(space.nvec).sum())
    return math.log(2.0) * int(np.prod(space.shape or ()))


def episode_totals(rewards: np.ndarray, episodes: Episodes) -> np.ndarray:
    """
    :param rewards: The rewards of a rollout, shape ``(n_timesteps,)``
    :param episodes: Its episodes
    :return: The undiscounted return of each, shape ``(n_episodes,)``
    """
    return np.bincount(episodes.episode_ids, weights=rewards, minlength=len(episodes.lengths))
