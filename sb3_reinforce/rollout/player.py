"""The state with which a model plays its rollouts, kept from one to the next."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.actor_critic.sampler import PolicySampler, reset_noise
from sb3_reinforce.buffers import EpisodeRolloutBuffer
from sb3_reinforce.distributed import Report
from sb3_reinforce.distributed.sharing import Statistics
from sb3_reinforce.rollout.advantages import AdvantageEstimator
from sb3_reinforce.rollout.dead_steps import DeadSteps
from sb3_reinforce.rollout.episode_infos import info_of_cut_episode
from sb3_reinforce.rollout.seeds import check_alike, seed_of_rollout, seeds_of_groups, set_seeds, takes_seeds
from sb3_reinforce.rollout.limits import EpisodeLimits
from sb3_reinforce.rollout.recorder import CompleteEpisodes, FixedLength, Recorder
from sb3_reinforce.rollout.rollout_start import Agreement, RolloutStart, Wish, copies_of_statistics


class Player:
    """
    Prepares and finishes the rollouts of a model, which plays them itself: it starts the recorder and the sampler, and
    computes the advantages of the recorded episodes.

    :param model: The model
    """

    def __init__(self, model: Any):
        self.model = model
        self.limits = EpisodeLimits()
        self._sampler: PolicySampler | None = None
        self._sampled_env: VecEnv | None = None
        self._rng: np.random.Generator | None = None
        # Timestep that each environment has reached in an episode that the next rollout continues
        self._reached_timesteps: list[int] = []
        self._n_timesteps_before = 0
        # What the present rollout began with, or, between two rollouts, what the next one begins with, if that is known
        self._start: RolloutStart | None = None
        #: What the first rollout of a run that is taken up from a file begins with
        self.taken_up: RolloutStart | None = None
        # What has been said of the differences between that run and this one
        self._differences: list[str] = []
        # The environments whose statistics that start has
        self._start_env: VecEnv | None = None
        # The environments that `learn` has reset with the seeds of the first rollout, and `VecNormalize`'s statistics before
        self._freshly_seeded: VecEnv | None = None
        self._statistics_before: list[Statistics] | None = None
        # What the seeds of the next rollout are derived from: the model's seed, and the number of rollouts since it was set
        self._seed: int | None = None
        self._n_rollouts = 0
        # What all workers have agreed on for this call of `learn`
        self._agreed = Agreement()
        self._discounts = (model.gamma, model.gae_lambda)

    def seed(self, seed: int) -> None:
        """
        :param seed: The seed of the actions
        """
        self._rng, self._sampler = np.random.default_rng(seed), None
        self._seed, self._n_rollouts = seed, 0
        self.taken_up = None
        if self._start is not None and not self._start.counted:  # no rollout is being played
            self._start = None

    @property
    def start(self) -> RolloutStart:
        """What the present rollout began with, or, between two rollouts, what the next one begins with."""
        if self._start is None:
            # A run that was not begun yet is taken up where it was. One of several workers may ask alone
            return self._next_start(False) if self.taken_up is None else self.taken_up._replace(counted={})
        if not self._start.counted and self._start_env is not self.model.env:
            return self._start._replace(statistics=copies_of_statistics(self.model.env))
        return self._start

    def _next_start(self, all_ask: bool = True) -> RolloutStart:
        model = self.model
        alone = model.workers.size == 1
        with_generators = model.seed is not None if alone else all_ask and self._agreed.generators_known
        of_player = self._rng, (self._seed, self._n_rollouts), self.limits.cuts_expected
        start = RolloutStart.of(model, *of_player, with_generators)
        return start if self._statistics_before is None else start._replace(statistics=self._statistics_before)

    def begin_learning(self, is_new_run: bool) -> Agreement:
        """
        Agree with the other workers on how the run begins.

        :param is_new_run: Whether it begins anew, also if the model comes from a file
        :return: What all have agreed on
        :raises ValueError: If the environments' episodes cannot be interrupted, which complete episodes need
        """
        model = self.model
        self._start = self._freshly_seeded = self._statistics_before = None
        self.limits.begin(model.env, model.horizon, model.complete_episodes, model._warned_of_horizon)
        if self._seed is None and model.seed is not None:  # set by hand
            self._seed = model.seed
        elif self._seed is None and model.group_size > 1:
            self._seed = int(th.randint(2**31, (1,)))
        own = Wish(
            model.env.num_envs,
            model.group_size > 1 or self._wants_seeds(),
            model.seed is not None,
            self._seed,
            self._n_rollouts,
            None if is_new_run else self.taken_up,
        )
        agreed = Agreement.of(model.workers.gather(own), model.workers.rank)
        if agreed.taken_up is not None:
            agreed.taken_up.restore_statistics(model.env)  # now, as the workers share them
        return agreed

    def before_reset(self, resets: bool, agreed: Agreement) -> None:
        """
        Called before `learn` resets the environments: this reset may be that of the first rollout.

        :param resets: Whether it does
        :param agreed: The result of :meth:`begin_learning`
        """
        # Only now, as seeding the workers has replaced them
        self._agreed, self.taken_up = agreed, agreed.taken_up
        self._seed, self._n_rollouts = agreed.seed, agreed.n_rollouts
        env = self.model.env
        if resets and agreed.taken_up is None and agreed.resets_seeded:
            self._statistics_before = copies_of_statistics(env)
            self._set_seeds(env)
            self._freshly_seeded = env

    def after_reset(self) -> None:
        """Called after `learn` may have reset the environments: for a run that is taken up, that reset was one more."""
        if self.taken_up is not None:
            self.taken_up.restore_statistics(self.model.env)

    def between_rollouts(self) -> None:
        """Called after an update, with which the last rollout is past."""
        self._start = None  # also if another worker is lost meanwhile
        self._start, self._start_env = self._next_start(), self.model.env

    def begin(self, buffer: RolloutBuffer) -> None:
        """
        Begin a rollout.

        :param buffer: The buffer of the rollout. It has its own copies of the discounts; a discount that was set by hand on
            it, as with SB3's algorithms, stays
        """
        model = self.model
        if self.taken_up is not None:
            self._take_up(self.taken_up)
            self.taken_up = None
        if self._sampler is not None:
            self._sampler.draw_afresh()
        self._start = (self._start or self._next_start()).with_counts(model)
        self._n_timesteps_before = model.num_timesteps
        discounts = (model.gamma, model.gae_lambda)
        if discounts != self._discounts:
            buffer.gamma, buffer.gae_lambda = self._discounts = discounts

    def warn_of_differences(self, start: RolloutStart, stacklevel: int, *others: str) -> None:
        """
        Warn of what keeps a run from being taken up exactly, once of each reason. Without a seed nobody expects that.

        :param start: What the run is taken up from
        :param stacklevel: See :func:`warnings.warn`
        :param others: Further reasons
        """
        differing = [each for each in start.differences(self.model) if each not in self._differences]
        self._differences += differing
        reasons = [f"the file was saved with {', '.join(differing)}"] if differing else []
        reasons += others
        if reasons and start.generators and self.model.workers.rank == 0:
            warnings.warn(
                "The run can be taken up, but need not end with the weights of one that was never interrupted, as "
                f"{', and as '.join(reasons)}.",
                UserWarning,
                stacklevel=stacklevel,
            )

    def _take_up(self, start: RolloutStart) -> None:
        model = self.model
        workers, others = model.workers, []
        if len(start.generators) != workers.size:
            others.append(f"the file was saved with {len(start.generators)} workers instead of {workers.size}")
        if model.seed_rollouts and model.complete_episodes and not self._agreed.resets_seeded:
            others.append("its environments cannot be reset with seeds")
        self.warn_of_differences(start, 7, *others)
        start.restore_generators(model, self._rng)
        self._seed, self._n_rollouts = start.seeds
        self.limits.note(start.cuts_expected)

    def start_recorder(self, env: VecEnv, n_steps: int) -> Recorder:
        """
        Put all environments at the start of an episode if whole episodes are wanted, and begin to record.

        :param env: The training environments
        :param n_steps: Number of steps per environment (with complete episodes: the least number)
        :return: The recorder, which determines which timesteps are recorded
        """
        model = self.model
        assert model._last_obs is not None and model._last_episode_starts is not None, "No previous observation was provided"
        if not model.complete_episodes:
            same = len(self._reached_timesteps) == env.num_envs  # else they belong to other environments
            reached = self._reached_timesteps if same else [0] * env.num_envs
            first = [0 if starts else t for starts, t in zip(model._last_episode_starts, reached, strict=True)]
            return FixedLength(env.num_envs, n_steps, first)
        if self._agreed.resets_seeded:
            if self._freshly_seeded is not env:
                self._set_seeds(env)
                model._last_obs = env.reset()
            self._freshly_seeded = self._statistics_before = None
            self._n_rollouts += 1
            if model.group_size > 1:
                check_alike(model._last_obs, model.group_size)
        elif not model._last_episode_starts.all() or DeadSteps(env).coming() is not None:
            model._last_obs = env.reset()
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        cuts_expected = self.limits.read(env, model.horizon)
        return CompleteEpisodes(env.num_envs, n_steps, model.n_episodes, self.limits.horizons, cuts_expected)

    def _wants_seeds(self) -> bool:
        model = self.model
        wanted = model.seed_rollouts and model.seed is not None and model.complete_episodes
        return wanted and self.limits.resets_allowed and takes_seeds(model.env)

    def _set_seeds(self, env: VecEnv) -> None:
        """Set the seeds of the next reset, fresh ones in each rollout, and the same within each group."""
        base, group_size = self._seed, self.model.group_size
        assert base is not None
        if group_size == 1:
            env.seed(seed_of_rollout(base, self._n_rollouts) + self._agreed.first_env)
            return
        first = self._agreed.first_env // group_size
        groups = range(first, first + env.num_envs // group_size)
        set_seeds(env, seeds_of_groups(base, self._n_rollouts, groups, group_size))

    def start_sampler(self, env: VecEnv) -> PolicySampler:
        """
        :param env: The training environments
        :return: The sampler of the present policy's actions
        """
        model = self.model
        if self._rng is None:
            # Without a seed of its own the model follows PyTorch's generator, as SB3's policies do
            self._rng = np.random.default_rng(int(th.randint(2**31, (1,))))
        actor_critic = model.actor_critic
        if self._sampler is None or self._sampled_env is not env or not actor_critic.fits(self._sampler):
            former, self._sampler = self._sampler, actor_critic.sampler(env, self._rng)
            self._sampler.go_on_from(former)
            self._sampled_env = env
        self._sampler.start_rollout()
        if model.use_sde:
            reset_noise(model.policy, env.num_envs)
        return self._sampler

    def infos_of_cut(self, env: VecEnv, env_ids: Sequence[int], infos: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Without these episodes, `rollout/ep_rew_mean` would be the mean of the short episodes only.

        :param env: The training environments
        :param env_ids: The environments whose episodes have been cut
        :param infos: The infos of the last step
        :return: The infos that these episodes have at their end
        """
        return [info_of_cut_episode(env, env_id, self.limits.horizons[env_id], infos[env_id]) for env_id in env_ids]

    @np.errstate(under="ignore")
    def finish(self, callback: BaseCallback, buffer: EpisodeRolloutBuffer, recorder: Recorder, values_known: bool) -> bool:
        """
        Compute values, returns and advantages of a recorded rollout, unless another worker was stopped.

        :param callback: The callback
        :param buffer: The buffer, to which the whole rollout has been added
        :param recorder: The recorder of the rollout
        :param values_known: Whether the values were also added
        :return: ``False``: a worker was stopped
        """
        model, limits = self.model, self.limits
        episodes, recorded = recorder.result()
        cuts = bool(recorder.cut), recorder.cuts_expected
        report = self.share(callback, True, episodes.n_timesteps, len(episodes), *cuts)
        if not report.goes_on:
            return False
        limits.note(report.cuts_expected)
        buffer.finish(episodes)
        assert self._start is not None
        self._start = self._start.with_baseline(model)  # it may remember the returns that it sees now
        AdvantageEstimator.of(model).fill(buffer, recorded, model.actor_critic, values_known)
        limits.note(report.cut)  # known too late for the baseline of this rollout
        self._reached_timesteps = recorder.next_timesteps
        if recorder.cut and not model._warned_of_horizon:
            model._warned_of_horizon = True
            limits.warn_of_cut(recorder.cut)
        return True

    def share(self, callback: BaseCallback, goes_on: bool, *recorded: Any) -> Report:
        """
        End this worker's rollout, with those of all others: count and log what they have played together.

        :param callback: The callback
        :param goes_on: ``False``: the callback has stopped this worker
        :param recorded: The other fields of the :class:`~sb3_reinforce.distributed.Report`
        :return: The sums over all workers
        """
        model = self.model
        report = Report(goes_on, model.num_timesteps - self._n_timesteps_before, *recorded)
        report = model.workers.share_rollout(model, callback, report)
        model.num_timesteps = self._n_timesteps_before + report.n_played
        OnPolicyAlgorithm._update_info_buffer(model, list(report.infos), np.ones(len(report.infos), dtype=bool))
        if not report.goes_on:
            # The environments are in the middle of episodes that are never used: start afresh next time
            model._last_obs = None
            return report
        model.logger.record("rollout/n_episodes", report.n_episodes)
        model.logger.record("rollout/n_steps", report.n_timesteps)
        model.logger.record("rollout/discarded_fraction", 1.0 - report.n_timesteps / report.n_played)
        return report
