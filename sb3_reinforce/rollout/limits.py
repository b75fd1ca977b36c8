"""The limits at which episodes are cut."""

import warnings
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.distributed.workers import Alone
from sb3_reinforce.rollout.wrappers import of_wrappers

#: The longest episode that is recorded if neither the user nor a ``TimeLimit`` sets a limit
DEFAULT_HORIZON = 10_000


class EpisodeLimits:
    """
    The longest episode that is recorded, for each environment, and whether episodes are expected to reach it. Read
    anew for each rollout, as a curriculum may change the limits between rollouts.
    """

    def __init__(self) -> None:
        #: The longest episode that is recorded, for each environment
        self.horizons: list[int] = []
        #: Whether a cut is expected: because the environment itself may exceed the horizon, or because there was a cut
        #: before
        self.cuts_expected = False
        #: Whether every environment can be reset at any time
        self.resets_allowed = True

    def begin(self, env: VecEnv, horizon: int | None, complete_episodes: bool, cut_before: bool) -> None:
        """
        Called when learning begins.

        :param env: The training environments
        :param horizon: Argument of REINFORCE
        :param complete_episodes: Argument of REINFORCE
        :param cut_before: Whether an episode of the model was cut before
        :raises ValueError: If their episodes cannot be interrupted, which complete episodes need
        """
        self.cuts_expected = self.read(env, horizon) or cut_before
        self.resets_allowed = False not in of_wrappers(env, Monitor, "allow_early_resets")
        if complete_episodes and not self.resets_allowed:
            check_resets(env, self.cuts_expected)

    def share(self, workers: Alone) -> None:
        """
        :param workers: The workers; if one of them expects cuts, all do
        """
        self.cuts_expected = any(workers.gather(self.cuts_expected))

    def read(self, env: VecEnv, horizon: int | None) -> bool:
        """
        Read the present limits. Only Gymnasium's ``TimeLimit`` wrapper is trusted: in another object ``_max_episode_steps``
        may mean anything, and an environment need not keep the limit in its ``spec``.

        :param env: The training environments
        :param horizon: Argument of REINFORCE
        :return: Whether a cut is expected because of these limits
        """
        limits = [_as_limit(limit) for limit in of_wrappers(env, gym.wrappers.TimeLimit, "_max_episode_steps")]
        self.horizons = [horizon or limit or DEFAULT_HORIZON for limit in limits]
        return any(
            cut_at < limit if limit is not None else horizon is not None
            for cut_at, limit in zip(self.horizons, limits, strict=True)
        )

    def note(self, cuts_expected: bool) -> None:
        """
        :param cuts_expected: Whether there were cuts in a rollout of any worker, or cuts were expected there
        """
        self.cuts_expected = self.cuts_expected or cuts_expected

    def warn_of_cut(self, env_ids: Sequence[int]) -> None:
        """
        Tell the user that an episode was cut, and how to avoid it.

        :param env_ids: Environments with such an episode
        """
        warnings.warn(
            f"An episode was cut after {self.horizons[env_ids[0]]} timesteps, at the `horizon`, and treated as truncated: "
            "its environment is done for the update. If that is not what you want, set another `horizon` (by default it is "
            "the limit of Gymnasium's `TimeLimit` wrapper, or 10,000 timesteps where there is none), or learn from "
            "fixed-length rollouts with `complete_episodes=False` (which a policy with an LSTM does not have).",
            UserWarning,
            stacklevel=4,
        )


def _as_limit(limit: object) -> int | None:
    return int(limit) if isinstance(limit, int | np.integer) and limit > 0 else None


def check_resets(env: VecEnv, cuts_expected: bool) -> None:
    """
    :param env: A vectorized environment whose episodes cannot be interrupted
    :param cuts_expected: Whether episodes are cut at the horizon
    :raises ValueError: If they are interrupted, to start several environments afresh
    """
    if env.num_envs > 1 or cuts_expected:
        raise ValueError(
            "`Monitor(allow_early_resets=False)` cannot be used with complete_episodes=True and several environments (or a "
            "`horizon` that cuts episodes), as each rollout starts from fresh episodes in all of them, "
            f"got {env.num_envs} environment{'s' if env.num_envs > 1 else ''}."
        )
