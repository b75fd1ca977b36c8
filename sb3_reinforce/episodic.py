"""How rollouts of whole episodes are played: the loop of acting, recording and evaluating."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import checks, distributed
from sb3_reinforce.acting import PolicySampler, make_sampler
from sb3_reinforce.baselines import BaselineFunction
from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.environments import EpisodeLimits, check_resets, check_statistics, info_of_cut_episode, read_limits
from sb3_reinforce.evaluation import Evaluation, evaluate_rollout
from sb3_reinforce.parallel import DataParallelAlgorithm
from sb3_reinforce.policies import reads_every_number
from sb3_reinforce.recording import CompleteEpisodes, FixedLength, Observation, Recorder, check_step, of_space

#: The longest episode that is recorded where neither the user nor a ``TimeLimit`` sets a limit
DEFAULT_HORIZON = 10_000


class EpisodicAlgorithm(DataParallelAlgorithm):
    """
    An on-policy algorithm whose rollouts are whole episodes, or SB3's of a fixed length.

    Its subclass sets the attributes below (see :class:`sb3_reinforce.REINFORCE`), calls :meth:`_setup_rollouts` when
    learning begins, and learns from the rollouts in ``train()``.
    """

    n_episodes: int | None
    reward_to_go: bool
    baseline: str | BaselineFunction | None
    complete_episodes: bool
    horizon: int | None
    bootstrap_on_truncation: bool

    _warned_of_horizon = False
    _cuts_expected: bool
    #: The environments' limits in the present rollout
    _limits: EpisodeLimits

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
        self._sampler: PolicySampler | None = None
        self._action_rng: np.random.Generator | None = None
        # Timestep that each environment has reached in an episode that the next rollout goes on with
        self._reached_timesteps: list[int] | None = None
        super()._setup_model()
        self._discounts_of_buffer = (self.gamma, self.gae_lambda)

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        if seed is not None:
            self._action_rng = np.random.default_rng(seed)
            self._sampler = None

    def _setup_rollouts(self, env: VecEnv, total_timesteps: int) -> None:
        """What the first rollout has to know of the environments and of the other workers; when learning begins."""
        self._cuts_expected = read_limits(env, self.horizon, DEFAULT_HORIZON).cuts_expected
        if self.complete_episodes:
            check_resets(env, self._cuts_expected)
        self._take_over_from_rank_0(total_timesteps)
        self._cuts_expected = any(self._workers.gather(self._cuts_expected))

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Play a rollout with the current policy and fill the buffer with its episodes.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Number of steps per environment (with complete episodes: the least number)
        :return: ``False`` if the callback stopped the rollout, which leaves the buffer unfinished
        :raises ValueError: If an observation, a reward or the output of the policy is not finite
        """
        self._n_timesteps_before = self.num_timesteps
        self._pass_on_discounts(rollout_buffer)
        if not isinstance(rollout_buffer, EpisodeRolloutBuffer):
            return self._collect_with_sb3(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        recorder = self._start_recorder(env, n_rollout_steps)  # after a curriculum has changed a limit
        sampler = self._start_sampler(env)
        timestep = recorder.timestep
        judged, add = self._judged_observations(), checks.without_underflow(rollout_buffer.add)
        check_statistics(self._vec_normalize_env)
        checks.check_finite("observation", judged(self._last_obs), timestep)  # type: ignore[arg-type]

        sample, values_known = checks.without_underflow(sampler.sample), sampler.evaluates
        watched = bool(getattr(callback, "callbacks", True))  # nobody else can change the policy meanwhile

        while not recorder.finished:
            n_steps = recorder.n_vector_steps
            if watched and not (sampler.policy is self.policy and sampler.acts_as_it_is()):
                sampler = self._start_sampler(env)
                sample, values_known = checks.without_underflow(sampler.sample), values_known and sampler.evaluates
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self._reset_noise(env)
            acted_on = self._last_obs
            actions, *evaluated = sample(acted_on, timestep)
            clipped_actions = self._to_environment(actions)

            new_obs, rewards, dones, infos = env.step(clipped_actions)

            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return self._share_rollout(callback, goes_on=False).goes_on

            recording = recorder.recording
            check_step(judged(new_obs), rewards, recording, timestep, self._vec_normalize_env)  # type: ignore[arg-type]
            if np.count_nonzero(dones) or any("episode" in info for info in infos):
                self._update_info_buffer([infos[i] for i in recording], dones[recording])
            add(acted_on, actions, rewards, self._last_episode_starts, evaluated[0], evaluated[1], recording)
            n_cut = len(recorder.cut)
            recorder.advance(dones, infos, new_obs)  # type: ignore[arg-type]
            if len(recorder.cut) > n_cut:
                self._count_cut_episodes(env, recorder.cut[n_cut:], infos)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]

        n_steps = recorder.n_vector_steps
        if not self._finish_rollout(callback, rollout_buffer, recorder, values_known):
            return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _pass_on_discounts(self, buffer: RolloutBuffer) -> None:
        """The buffer has its own copies. One that was set by hand there, as with SB3's algorithms, stays."""
        discounts = (self.gamma, self.gae_lambda)
        if discounts != self._discounts_of_buffer:
            buffer.gamma, buffer.gae_lambda = self._discounts_of_buffer = discounts

    def _judged_observations(self) -> Callable[[Observation], Observation]:
        """What of the observations must be finite: what is sure to reach the networks."""
        if not reads_every_number(self.policy):
            return lambda obs: {}
        space = self.observation_space
        return partial(of_space, space=space) if isinstance(space, spaces.Dict) else lambda obs: obs

    def _count_cut_episodes(self, env: VecEnv, env_ids: list[int], infos: list[dict[str, Any]]) -> None:
        """Were they left out, `rollout/ep_rew_mean` would be that of the short episodes alone."""
        ended = [info_of_cut_episode(env, env_id, self._limits.horizons[env_id], infos[env_id]) for env_id in env_ids]
        self._update_info_buffer(ended, np.ones(len(ended), dtype=bool))

    def _start_sampler(self, env: VecEnv) -> PolicySampler:
        if self._action_rng is None:
            # Without a seed of its own the model follows PyTorch's generator, as SB3's policies do
            self._action_rng = np.random.default_rng(int(th.randint(2**31, (1,))))
        other_envs = getattr(self._sampler, "n_envs", env.num_envs) != env.num_envs
        if self._sampler is None or other_envs or not self._sampler.is_current(self.policy):
            former, self._sampler = self._sampler, make_sampler(self.policy, env.num_envs, self._action_rng)
            self._sampler.go_on_from(former)
        self._sampler.start_rollout()
        if self.use_sde:
            self._reset_noise(env)
        return self._sampler

    def _reset_noise(self, env: VecEnv) -> None:
        with th.no_grad():  # a graph behind the noise could not be copied
            self.policy.reset_noise(env.num_envs)

    def _start_recorder(self, env: VecEnv, n_rollout_steps: int) -> Recorder:
        """Put all environments at the start of an episode if whole ones are wanted, and begin to record."""
        assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation was provided"
        if not self.complete_episodes:
            reached = self._reached_timesteps or []
            if len(reached) != env.num_envs:  # of other environments than these
                reached = [0] * env.num_envs
            first = [0 if starts else t for starts, t in zip(self._last_episode_starts, reached, strict=True)]
            return FixedLength(env.num_envs, n_rollout_steps, first)
        if not self._last_episode_starts.all():
            self._last_obs = env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self._limits = read_limits(env, self.horizon, DEFAULT_HORIZON)
        return CompleteEpisodes(env.num_envs, n_rollout_steps, self.n_episodes, self._limits.horizons)

    def _to_environment(self, actions: np.ndarray) -> np.ndarray:
        """The actions as the environment takes them: SB3 samples Gaussians without bounds."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)

    @np.errstate(under="ignore")
    def _finish_rollout(
        self, callback: BaseCallback, buffer: EpisodeRolloutBuffer, recorder: Recorder, values_known: bool
    ) -> bool:
        """Compute values, returns and advantages of a recorded rollout, unless another worker was stopped."""
        episodes, recorded = recorder.result()
        expected = isinstance(recorder, CompleteEpisodes) and self._limits.cuts_expected
        report = self._share_rollout(callback, True, episodes.n_timesteps, len(recorded), bool(recorder.cut), expected)
        if not report.goes_on:
            return False
        self._cuts_expected = self._cuts_expected or report.cuts_expected
        buffer.finish(episodes)
        evaluation = Evaluation(
            baseline=self.baseline,
            reward_to_go=self.reward_to_go,
            bootstrap_on_truncation=self.bootstrap_on_truncation,
            only_earlier_episodes=self._only_earlier_episodes(),
            workers=self._workers,
        )
        evaluate_rollout(buffer, recorded, self.policy, evaluation, values_known)
        if isinstance(recorder, FixedLength):
            self._reached_timesteps = recorder.next_timesteps
        elif isinstance(recorder, CompleteEpisodes) and recorder.cut and not self._warned_of_horizon:
            self._warned_of_horizon = True
            recorder.warn_of_cut()
        self._cuts_expected = self._cuts_expected or report.cut
        return True

    def _only_earlier_episodes(self) -> bool:
        """
        Whether the existence of an environment's later episodes depends on the earlier ones, so that they must not
        be in their baseline.
        """
        return self.n_episodes is None or self._cuts_expected

    def _collect_with_sb3(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """The fixed-length rollout of a user's own buffer, by SB3's own calls."""
        try:
            playing = callback if self._workers.alone else distributed.WithoutRolloutEnd(callback)
            completed = super().collect_rollouts(env, playing, rollout_buffer, n_rollout_steps)  # type: ignore[arg-type]
        except ValueError:
            # If the policy refused an observation, say which
            checks.check_finite("observation", self._last_obs, lambda env_id: rollout_buffer.pos, of="the rollout")  # type: ignore[arg-type]
            raise
        if not completed:
            return self._share_rollout(callback, goes_on=False).goes_on
        checks.check_filled_buffer(rollout_buffer)
        starts = np.array(rollout_buffer.episode_starts, dtype=bool)
        starts[0] = True
        report = self._share_rollout(callback, True, int(starts.size), int(starts.sum()))
        if report.goes_on and not self._workers.alone:
            callback.on_rollout_end()
        return report.goes_on

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes a logger of its own when it learns: this one may hold open files
        state = {name: value for name, value in vars(self).items() if name != "_logger"}
        return {**state, "_custom_logger": False}

    def _excluded_save_params(self) -> list[str]:
        own = ["_sampler", "_action_rng", "_limits", "_cuts_expected", "_reached_timesteps", "_discounts_of_buffer"]
        return [*super()._excluded_save_params(), *own]
