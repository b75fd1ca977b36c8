"""What a run that stands still tells its user: what was seen, and what may help. Each warning comes once per model."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.returns import are_alike, returns_to_go

#: Timesteps without any reward, and timesteps and episodes of equal return since the first, that are worth a warning. Random
#: actions on Acrobot need about 30,000 timesteps for their first episode that reaches the goal
NO_REWARD_TIMESTEPS = 10_000
EQUAL_TIMESTEPS, EQUAL_EPISODES = 50_000, 50
#: A policy is certain below this share of its largest entropy, or with a deviation below this share of the bounds and of what
#: it was at first, for this many updates one after the other
CERTAIN, CERTAIN_UPDATES = 1e-3, 5
#: A critic is useless if it explains less than this share of the returns' variance for this many updates one after the other
USELESS, USELESS_UPDATES = -0.1, 50
#: Sizes of returns that a critic in raw units can follow
SMALLEST_RETURN, LARGEST_RETURN = 1e-3, 1e5
#: A deviation is far from the action bounds if fewer of its first actions than this are within them, or if it is less than
#: this share of half their distance. Bounds further apart than the last number stand for none, which SB3 does not take
MOST_CLIPPED, NARROW, UNBOUNDED = 0.1, 0.05, 1e9


class Seen(NamedTuple):
    """
    What the updates of a model have shown so far. It is saved with the model, so that a run that is cut into pieces is
    watched like any other.

    :param given: The names of the warnings so far
    :param rewards_zero: Whether all rewards were zero
    :param returns_equal: Whether all episodes had the same return
    :param first_returns: Of the first episode, undiscounted and discounted
    :param last_return: Of the last episode, undiscounted
    :param largest_size: The largest size of the returns of an update
    :param n_timesteps: Number of timesteps
    :param n_episodes: Number of episodes
    :param n_certain: Number of updates, up to the last one, with a policy that was certain while its returns moved
    :param n_useless: Number of updates, up to the last one, with a critic that explained less than nothing
    """

    given: Sequence[str] = ()
    rewards_zero: bool = True
    returns_equal: bool = True
    first_returns: Sequence[float] | None = None
    last_return: float | None = None
    largest_size: float = 0.0
    n_timesteps: int = 0
    n_episodes: int = 0
    n_certain: int = 0
    n_useless: int = 0


class Advisor:
    """
    Watches the updates of a model, and warns of what keeps it from learning.

    :param model: The :class:`sb3_reinforce.REINFORCE`, whose attribute ``_seen`` it keeps
    """

    def __init__(self, model: Any):
        self.model = model

    @property
    def given(self) -> set[str]:
        """The names of the warnings so far."""
        return set(self._seen.given)

    @property
    def _seen(self) -> Seen:
        return Seen(*self.model._seen)  # a file has it as a list

    def _note(self, **seen: Any) -> None:
        self.model._seen = self._seen._replace(**seen)

    def after_update(self, logs: dict[str, float], critic_is_raw: bool) -> None:
        """
        :param logs: What the update has logged
        :param critic_is_raw: Whether a critic is used whose targets are the returns as they are
        """
        buffer = self.model.rollout_buffer
        if not isinstance(buffer, EpisodeRolloutBuffer) or self.model.workers.rank > 0:
            return
        whole = whole_episodes(self.model)
        totals = episode_totals(buffer.rewards, buffer.episodes)[whole]
        seen = self._seen
        self._note(n_timesteps=seen.n_timesteps + len(buffer.rewards), n_episodes=seen.n_episodes + len(totals))
        self._watch_rewards(buffer, whole, totals)
        self._watch_certainty(logs, totals)
        self._watch_critic(logs, buffer.returns, critic_is_raw)

    def before_first_update(self) -> None:
        """Compare the first actions with their bounds."""
        space, log_std = self.model.action_space, getattr(self.model.policy, "log_std", None)
        if not isinstance(space, spaces.Box) or not isinstance(log_std, th.Tensor) or self.model.workers.rank > 0:
            return
        low, high = space.low.ravel().astype(float), space.high.ravel().astype(float)
        if log_std.numel() != len(low) or self.model.use_sde or self.model.policy.squash_output:
            return
        std = log_std.detach().double().exp().clamp(min=np.finfo(np.float64).tiny).flatten().tolist()
        for i in np.flatnonzero((low < high) & (high - low < UNBOUNDED)).tolist():
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

    def _watch_rewards(self, buffer: EpisodeRolloutBuffer, whole: np.ndarray, totals: np.ndarray) -> None:
        seen = self._seen
        # Another worker, or a file that knows no more than that, may have found one
        zero = seen.rewards_zero and not self.model._reward_found and not buffer.rewards.any()
        equal, first = seen.returns_equal, seen.first_returns
        if equal and len(totals):
            # Equal sums may have different discounted ones: the sooner the goal is reached, the better
            discounted = returns_to_go(buffer.rewards, buffer.gamma, buffer.episodes)[buffer.episodes.starts][whole]
            first = (float(totals[0]), float(discounted[0])) if first is None else first
            equal = bool((totals == first[0]).all() and (discounted == first[1]).all())
        self._note(rewards_zero=zero, returns_equal=equal, first_returns=first)
        if zero and seen.n_timesteps >= NO_REWARD_TIMESTEPS:
            self._advise(
                "no reward",
                f"All rewards of the first {seen.n_timesteps:,} timesteps were zero, so there was nothing to learn from. "
                "Rewards on the way to the goal, starts that are nearer to it, a longer `horizon` or more exploration "
                "(`use_sde`, a larger `log_std_init`) may lead to the first one.",
            )
        elif equal and first is not None and seen.n_timesteps >= EQUAL_TIMESTEPS and seen.n_episodes >= EQUAL_EPISODES:
            self._advise(
                "equal returns",
                f"All of the first {seen.n_episodes:,} episodes had the same return of {first[0]:g}, so no action was "
                "better than another. Rewards on the way, longer episodes or more exploration (`use_sde`, a larger "
                "`log_std_init`) may make a difference.",
            )

    def _watch_certainty(self, logs: dict[str, float], totals: np.ndarray) -> None:
        if not len(totals):
            return
        seen, share = self._seen, self._certainty(logs)
        # An update of one episode is compared with the one before
        returns = np.append(totals, seen.last_return) if len(totals) == 1 and seen.last_return is not None else totals
        alike = are_alike(returns.mean(), returns.std())
        n_certain = seen.n_certain + 1 if share is not None and share < CERTAIN and not alike else 0
        self._note(n_certain=n_certain, last_return=float(totals[-1]))
        if n_certain >= CERTAIN_UPDATES:
            self._advise(
                "certain",
                f"The policy has become nearly certain of its actions, while returns still move by {returns.std():.3g} "
                f"around {returns.mean():.3g}: it tries nothing else any more. If that is too early, a larger `ent_coef`, "
                "more timesteps per update (`n_steps`) or shorter steps (`target_kl`, or `learning_rate`) keep it open "
                "for longer.",
            )

    def _certainty(self, logs: dict[str, float]) -> float | None:
        """What is left of the entropy, or of the deviation; ``None`` where that is not known."""
        space, policy = self.model.action_space, self.model.policy
        if isinstance(space, spaces.Box):
            half = (space.high.astype(float) - space.low.astype(float)).mean() / 2
            # A small deviation is no loss where it has been as small from the start, or the bounds are far apart
            first = th.as_tensor(getattr(policy, "log_std_init", 0.0), dtype=th.float64).exp().mean()
            large = min(half, float(first))
            return logs["std"] / large if "std" in logs and not self.model.use_sde and large > 0 else None
        most = self.model.largest_entropy
        return -logs["entropy_loss"] / most if most > 0 else None

    def _watch_critic(self, logs: dict[str, float], returns: np.ndarray, critic_is_raw: bool) -> None:
        explained = logs.get("explained_variance", math.nan)
        # When all goes well the returns are alike, and there is next to nothing to explain
        alike = are_alike(np.mean(returns, dtype=np.float64), np.std(returns, dtype=np.float64))
        n_useless = self._seen.n_useless + 1 if explained < USELESS and not alike else 0
        self._note(n_useless=n_useless)
        if n_useless >= USELESS_UPDATES:
            self._advise(
                "critic",
                f"For {USELESS_UPDATES} updates the critic has explained less than nothing of the returns' variance (now "
                f"{explained:.2f}), so it makes the gradient noisier. A smaller `critic_learning_rate`, fewer "
                "`n_critic_updates`, more timesteps per update (`n_steps`), a smaller `gamma` or another `baseline` may be "
                "better.",
            )
        if not critic_is_raw or not len(returns):
            return
        size = float(np.sqrt(np.mean(np.square(returns, dtype=np.float64))))
        # Returns that have become small are no trouble
        largest = max(size, self._seen.largest_size)
        self._note(largest_size=largest)
        if size > LARGEST_RETURN or 0.0 < largest < SMALLEST_RETURN:
            self._advise(
                "scale",
                f"The returns are of a size of {size:.3g}, which a critic that begins near 1 takes long to follow. "
                "`normalize_returns=True` (with a policy whose `value_net` puts out the value) or `VecNormalize` scales them.",
            )

    def _advise(self, name: str, text: str) -> None:
        if name not in self.given:
            self._note(given=(*self._seen.given, name))
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


def whole_episodes(model: Any) -> np.ndarray:
    """
    :param model: A model that has just played a rollout
    :return: For each of its episodes whether it both began and ended there, shape ``(n_episodes,)``
    """
    episodes = model.rollout_buffer.episodes
    whole = episodes.first_timesteps == 0
    if not model.complete_episodes:
        last = np.flatnonzero(np.diff(episodes.env_ids, append=-1))  # of each environment
        whole[last[~model._last_episode_starts[episodes.env_ids[last]]]] = False
    return whole


def episode_totals(rewards: np.ndarray, episodes: Episodes) -> np.ndarray:
    """
    :param rewards: The rewards of a rollout, shape ``(n_timesteps,)``
    :param episodes: Its episodes
    :return: The undiscounted return of each, shape ``(n_episodes,)``
    """
    return np.bincount(episodes.episode_ids, weights=rewards, minlength=len(episodes.lengths))
