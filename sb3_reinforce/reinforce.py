import inspect
import io
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import checks, distributed
from sb3_reinforce.acting import PolicySampler, make_sampler
from sb3_reinforce.baselines import BaselineFunction
from sb3_reinforce.buffers import (
    EpisodeDictRolloutBuffer,
    EpisodeRolloutBuffer,
    EpisodeRolloutBufferSamples,
    whole_rollout,
)
from sb3_reinforce.critic import fit_critic
from sb3_reinforce.distributed import Report
from sb3_reinforce.environments import check_resets, enforces_limits, episode_limits, info_of_cut_episode
from sb3_reinforce.estimator import (
    Gradients,
    add_up,
    all_or_nothing,
    check_losses,
    check_update,
    estimate_gradients,
    gradient_step,
    log_prob_weights,
    trainable,
)
from sb3_reinforce.evaluation import evaluate_rollout
from sb3_reinforce.natural_gradient import NoDirectionError, check_advantages, check_policy, natural_step
from sb3_reinforce.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, group_parameters
from sb3_reinforce.recording import DEFAULT_HORIZON, CompleteEpisodes, FixedLength, Recorder, check_step

#: Large steps at first, and hardly any by the end, so that what was learned is not lost again in the noise of an update
DEFAULT_LEARNING_RATE = LinearSchedule(start=1e-2, end=1e-4, end_fraction=1.0)

SelfREINFORCE = TypeVar("SelfREINFORCE", bound="REINFORCE")


class REINFORCE(OnPolicyAlgorithm):
    r"""
    REINFORCE (Monte Carlo policy gradient)

    One gradient step per batch of fresh, whole episodes. For the episodes :math:`i = 1..N` the estimate is

    .. math::
        \frac{1}{Z} \sum_i \sum_t w_t (G_t - b_t) \nabla \log \pi(a_t | s_t), \qquad
        G_t = \sum_{k \geq t} \gamma^{k-t} r_k

    with the baseline :math:`b_t`, :math:`w_t = 1` (or :math:`\gamma^t`) and :math:`Z` the number of timesteps or episodes.

    Papers: Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning";
    Sutton and Barto (2018), "Reinforcement Learning: An Introduction", sec. 13.3 and 13.4;
    https://arxiv.org/abs/1506.02438 for the advantages when ``gae_lambda`` is below 1.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0);
        by default it falls linearly from 0.01 to 0.0001 over the run
    :param n_steps: The number of steps to run for each environment per update. With complete episodes it is the least
        number: each environment then finishes the episode that it is in
    :param n_episodes: If given, each environment contributes so many episodes per update (fewer only after a cut at the
        horizon), and ``n_steps`` is ignored
    :param batch_size: Minibatch size of the critic's regression
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: 1 is pure Monte Carlo. Below it, Generalized Advantage Estimation, with ``baseline="value"`` and
        ``reward_to_go=True`` only
    :param reward_to_go: Weight each action by the return from its own timestep on; ``False``: by that of the whole episode
    :param baseline: What is subtracted from the returns: ``None``; ``"mean"`` of the batch (slightly biased, the sample
        itself is in it); ``"leave_one_out"``, the mean of the other episodes at the same timestep; ``"linear"``, a ridge
        regression on the other episodes' observations and times; ``"value"``, the policy's critic as it was before this
        batch; or a callable ``baseline(returns, timesteps, episode_ids)`` of flat float arrays,
        one number per recorded timestep, that returns an array of that shape
    :param complete_episodes: ``False``: SB3's rollouts of ``n_steps``, whose unfinished tails are bootstrapped with the
        critic
    :param horizon: The longest episode that is recorded; one that is still running then is treated like a truncated one, and
        its environment is done for this update. ``None``: the environment's own limit where it declares one, else 10,000.
        ``rollout/ep_rew_mean`` has what it came to until then. Of no effect with ``complete_episodes=False``
    :param bootstrap_on_truncation: With the value baseline, an episode that was cut by a time limit ends in
        :math:`\gamma V(s_T)`; ``False``: in nothing (pure finite-horizon Monte Carlo). Without a critic always the latter
    :param discount_state_distribution: Whether to weight the timesteps by :math:`\gamma^t`, as the gradient of the discounted
        objective has it; common practice drops the factor. With ``reward_to_go`` only: the return of the whole episode
        is discounted already
    :param average_over: What the sum over the batch is divided by, its ``"timesteps"`` or its ``"episodes"``. The latter is
        unbiased with ``n_episodes``; with ``n_steps`` the quotient has a bias of O(1/N)
    :param normalize_advantage: Whether to normalize the advantages over all recorded timesteps of the update
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient of the joint step of policy and critic
    :param max_grad_norm: The maximum value for the gradient clipping; the actor's gradient is clipped by itself
    :param n_critic_updates: Number of further passes of the critic over the rollout after each policy step;
        0: the joint step alone, as in A2C
    :param critic_learning_rate: A learning rate or schedule for the critic's own parameters; ``None``: ``learning_rate``
    :param natural_gradient: Whether the policy steps along its natural gradient :math:`F^{-1} g` (Kakade, 2001, "A Natural
        Policy Gradient"), with :math:`F` the Fisher information of the batch, and so far that the KL divergence is
        ``target_kl`` to second order. ``learning_rate`` is then the critic's alone (with what it shares with the actor), and
        ``max_grad_norm`` too
    :param target_kl: KL divergence of a natural step, summed over the dimensions of an action, averaged over timesteps;
        it can be a function of the current progress remaining (from 1 to 0)
    :param cg_max_steps: Maximum number of steps of the conjugate gradient method that solves for the natural gradient
    :param cg_damping: Multiple of the identity that is added to :math:`F` in these equations. Near 0, what the batch
        says nothing about is left to rounding errors
    :param sub_sampling_factor: :math:`F` is averaged over every so many timesteps of the batch in these equations, to save
        time; the gradient, and the divergence of the step, are those of all of them
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected. One that
        cannot hold whole episodes needs ``complete_episodes=False``
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: If an argument, or a combination of arguments, makes no sense
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    _cuts_expected: bool

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = DEFAULT_LEARNING_RATE,
        n_steps: int = 512,
        n_episodes: int | None = None,
        batch_size: int = 256,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        reward_to_go: bool = True,
        baseline: str | BaselineFunction | None = "value",
        complete_episodes: bool = True,
        horizon: int | None = None,
        bootstrap_on_truncation: bool = True,
        discount_state_distribution: bool = False,
        average_over: Literal["timesteps", "episodes"] = "timesteps",
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        n_critic_updates: int = 5,
        critic_learning_rate: float | Schedule | None = None,
        natural_gradient: bool = False,
        target_kl: float | Schedule = 0.01,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        sub_sampling_factor: int = 1,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        checks.check_arguments(locals())
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=distributed.local_device(device),
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=(
                spaces.Box,
                spaces.Discrete,
                spaces.MultiDiscrete,
                spaces.MultiBinary,
            ),
        )
        self.n_episodes = n_episodes
        self.batch_size = batch_size
        self.reward_to_go = reward_to_go
        self.baseline = baseline
        self.complete_episodes = complete_episodes
        self.horizon = horizon
        self.bootstrap_on_truncation = bootstrap_on_truncation
        self.discount_state_distribution = discount_state_distribution
        self.average_over = average_over
        self.normalize_advantage = normalize_advantage
        self.n_critic_updates = n_critic_updates
        self.critic_learning_rate = critic_learning_rate
        self.natural_gradient = natural_gradient
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.sub_sampling_factor = sub_sampling_factor
        self._warned_of_horizon = False
        self._warned_of_direction = False
        if self.env is not None:
            self._check_environment(self.env)

        if _init_setup_model:
            self._setup_model()

    @property
    def uses_critic(self) -> bool:
        """Whether the policy's critic is the baseline."""
        return isinstance(self.baseline, str) and self.baseline == "value"

    def _setup_model(self) -> None:
        checks.check_arguments(vars(self))  # `load` sets attributes without the constructor
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
        self._workers = distributed.ALONE
        self._seeded_env: VecEnv | None = None  # among several workers, the environments that were given seeds of their own
        self._new_infos: list[dict[str, Any]] = []  # of the present rollout's episodes, for the other workers
        self._sampler: PolicySampler | None = None
        self._action_rng: np.random.Generator | None = None
        # Timestep that each environment has reached in an episode that the next rollout goes on with
        self._reached_timesteps: list[int] | None = None
        super()._setup_model()
        self._setup_optimizer()

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        rate = self.learning_rate if self.critic_learning_rate is None else self.critic_learning_rate
        self.critic_lr_schedule = FloatSchedule(rate)

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        if seed is not None:
            self._action_rng = np.random.default_rng(seed)
            self._sampler = None

    def _setup_optimizer(self) -> None:
        self._actor_parameters, self._value_parameters = group_parameters(self.policy)
        if self.natural_gradient:
            check_policy(self.policy)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # The last rollout ends with its episodes, beyond the total: a linear schedule must not turn negative there
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        critic_rate = self.critic_lr_schedule(self._current_progress_remaining)
        for group in self.policy.optimizer.param_groups:
            if group["critic"]:
                group["lr"] = critic_rate
        if self.critic_learning_rate is not None:
            self.logger.record("train/critic_learning_rate", critic_rate)

    def _check_environment(self, env: VecEnv) -> None:
        """
        The checks of arguments that depend on the environments.

        :param env: The training environments
        :raises ValueError: If the arguments do not fit them
        """
        if isinstance(self.baseline, str) and self.baseline in ("leave_one_out", "linear"):
            checks.check_holds_two_episodes(
                env.num_envs * distributed.n_launched(), self.n_steps, self.n_episodes, self.baseline
            )
        if isinstance(self.baseline, str) and self.baseline == "linear":
            checks.check_linear(env.observation_space)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._join_workers()
        checks.check_arguments(vars(self))  # they may have been set by hand
        if self.env is None:
            raise ValueError("There is no environment to learn from, pass one to `load` or `set_env`.")
        self._check_environment(self.env)
        if self.natural_gradient:
            check_policy(self.policy)
        checks.check_buffer(self.rollout_buffer, vars(self))
        self._read_limits(self.env)
        if self.complete_episodes:
            check_resets(self.env, self._cuts_expected)
        self._sampler = None
        self._take_over_from_rank_0(total_timesteps)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _join_workers(self) -> None:
        if not (self._workers.alone or distributed.is_together()):  # the group has been left, or the model has come here
            self._workers = distributed.ALONE
        if self._workers.alone:
            self._workers = distributed.join(self.device)

    def _take_over_from_rank_0(self, total_timesteps: int) -> None:
        if self._workers.alone:
            return
        arguments = {**distributed.comparable_arguments(self), "total_timesteps": total_timesteps}
        self._workers.start(self, arguments)
        self._cuts_expected = any(self._workers.gather(self._cuts_expected))
        if any(self._workers.gather(self.env is not self._seeded_env)):
            seed = self._workers.seed(self.seed)
            self._seeded_env = self.env
            if self._workers.rank > 0:
                self.set_random_seed(seed)
                self._last_obs = None  # what was reset before has another seed
        if self._workers.rank > 0:
            self.set_logger(Logger(folder=None, output_formats=[]))

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if self._workers.alone:
            return super()._init_callback(callback, progress_bar)
        return super()._init_callback(self._workers.callback(callback, progress_bar))

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        if self._workers.alone:
            super()._update_info_buffer(infos, dones)
            return
        # Until the end of the rollout, when those of all workers take their places in turn
        ended = [info for info, done in zip(infos, dones, strict=True) if done]  # type: ignore[arg-type]
        self._new_infos += [{key: info[key] for key in ("episode", "is_success") if key in info} for info in ended]

    def _share_rollout(
        self, callback: BaseCallback, goes_on: bool, n_timesteps: int = 0, n_episodes: int = 0, cut: bool = False
    ) -> Report:
        """
        The end of this worker's rollout, and of those of all others: count and log what was played together.

        :param callback: The callback
        :param goes_on: ``False``: it has stopped this worker
        :param n_timesteps: Recorded timesteps
        :param n_episodes: Recorded episodes
        :param cut: Whether an episode was cut at the horizon
        :return: The sums over all workers
        """
        n_played = self.num_timesteps - self._n_timesteps_before
        report = self._workers.share_rollout(
            self, Report(goes_on, n_played, n_timesteps, n_episodes, cut, tuple(self._new_infos))
        )
        self.num_timesteps = self._n_timesteps_before + report.n_played
        self._new_infos.clear()
        if not self._workers.alone:
            super()._update_info_buffer(list(report.infos), np.ones(len(report.infos), dtype=bool))
            distributed.count_again(callback, self.num_timesteps)
        if not report.goes_on:
            # The environments stand in the middle of episodes that are never used: start afresh next time
            self._last_obs = None
            return report
        self._n_rollout_episodes, self._n_rollout_timesteps = report.n_episodes, report.n_timesteps
        self.logger.record("rollout/n_episodes", report.n_episodes)
        self.logger.record("rollout/n_steps", report.n_timesteps)
        self.logger.record("rollout/discarded_fraction", 1.0 - report.n_timesteps / report.n_played)
        return report

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
        if not isinstance(rollout_buffer, EpisodeRolloutBuffer):
            return self._collect_with_sb3(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        recorder = self._start_recorder(env, n_rollout_steps)
        rollout_buffer.reset()
        callback.on_rollout_start()
        sampler = self._start_sampler(env)
        timestep = recorder.timestep
        checks.check_finite("observation", self._last_obs, timestep)  # type: ignore[arg-type]

        while not recorder.finished:
            if self.use_sde and self.sde_sample_freq > 0 and recorder.n_vector_steps % self.sde_sample_freq == 0:
                self._reset_noise(env)
            actions, values, log_probs = sampler.sample(self._last_obs, timestep)  # type: ignore[arg-type]
            clipped_actions = self._to_environment(actions)

            new_obs, rewards, dones, infos = env.step(clipped_actions)

            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return self._share_rollout(callback, goes_on=False).goes_on

            check_step(new_obs, rewards, dones, infos, timestep, self._vec_normalize_env)  # type: ignore[arg-type]
            recording = recorder.recording
            if np.count_nonzero(dones):
                self._update_info_buffer([infos[i] for i in recording], dones[recording])
            rollout_buffer.add(
                self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs, recording  # type: ignore[arg-type]
            )
            n_cut = len(recorder.cut)
            recorder.advance(dones, infos, new_obs)  # type: ignore[arg-type]
            if len(recorder.cut) > n_cut:
                self._count_cut_episodes(env, recorder.cut[n_cut:])
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]

        if not self._finish_rollout(callback, rollout_buffer, recorder, values_known=sampler.evaluates):
            return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _count_cut_episodes(self, env: VecEnv, env_ids: list[int]) -> None:
        """Were they left out, `rollout/ep_rew_mean` would be that of the short episodes alone."""
        infos = [info_of_cut_episode(env, env_id, self._horizons[env_id]) for env_id in env_ids]
        self._update_info_buffer(infos, np.ones(len(infos), dtype=bool))

    def _start_sampler(self, env: VecEnv) -> PolicySampler:
        if self._action_rng is None:
            # Without a seed of its own the model follows PyTorch's generator, as SB3's policies do
            self._action_rng = np.random.default_rng(int(th.randint(2**31, (1,))))
        if self._sampler is None or self._sampler.policy is not self.policy:
            self._sampler = make_sampler(self.policy, env.num_envs, self._action_rng)
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
        return CompleteEpisodes(env.num_envs, n_rollout_steps, self.n_episodes, self._horizons)

    def _read_limits(self, env: VecEnv) -> None:
        limits = episode_limits(env)
        self._horizons = [self.horizon or limit or DEFAULT_HORIZON for limit in limits]
        enforced = enforces_limits(env)
        # Whose limit a cut is at: never the environment's if it keeps it (a wrapper may make one episode of several)
        self._own_limits = [enforced or horizon != limit for horizon, limit in zip(self._horizons, limits, strict=True)]
        # Whether a cut is to be expected: at a horizon that the environment does not keep by itself
        self._cuts_expected = any(
            horizon < limit or not enforced if limit is not None else self.horizon is not None
            for horizon, limit in zip(self._horizons, limits, strict=True)
        )

    def _to_environment(self, actions: np.ndarray) -> np.ndarray:
        """The actions as the environment takes them: SB3 samples Gaussians without bounds."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)

    def _finish_rollout(
        self, callback: BaseCallback, buffer: EpisodeRolloutBuffer, recorder: Recorder, values_known: bool
    ) -> bool:
        """Compute values, returns and advantages of a recorded rollout, unless another worker was stopped."""
        episodes, recorded = recorder.result()
        cut = isinstance(recorder, CompleteEpisodes) and bool(recorder.cut)
        report = self._share_rollout(callback, True, episodes.n_timesteps, len(recorded), cut)
        if not report.goes_on:
            return False
        buffer.finish(episodes)
        evaluate_rollout(
            buffer,
            recorded,
            self.policy,
            baseline=self.baseline,
            reward_to_go=self.reward_to_go,
            bootstrap_on_truncation=self.bootstrap_on_truncation,
            only_earlier_episodes=self._only_earlier_episodes(),
            values_known=values_known,
            workers=self._workers,
        )
        if isinstance(recorder, FixedLength):
            self._reached_timesteps = recorder.next_timesteps
        elif isinstance(recorder, CompleteEpisodes) and recorder.cut:
            self._warned_of_horizon = self._warned_of_horizon or recorder.warn_of_cut(self._own_limits)
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

    def train(self) -> None:
        """
        Update the policy with the gradient estimate of the rollout (one step), then fit the critic to its returns.

        :raises ValueError: If a loss or a gradient is not finite; the weights are then as they were
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)

        batch = whole_rollout(self.rollout_buffer)
        actions = batch.actions
        if isinstance(self.action_space, spaces.Discrete):
            # Convert discrete action from float to long
            actions = actions.long().flatten()

        # Those of all workers
        n_timesteps = len(batch.advantages) if self._workers.alone else self._n_rollout_timesteps
        weights = log_prob_weights(
            batch.advantages,
            # The return of the whole episode is discounted from its start already
            self.gamma**batch.timesteps if self.discount_state_distribution and self.reward_to_go else None,  # type: ignore[union-attr]
            self._n_rollout_episodes if self.average_over == "episodes" else n_timesteps,
            self.normalize_advantage,
            self._workers,
        )
        # What is frozen may change from one update to the next
        actor_parameters = trainable(self._actor_parameters)
        value_parameters = trainable(self._value_parameters) if self.uses_critic else []
        critic_parameters = [p for p in value_parameters if all(p is not shared for shared in self._actor_parameters)]
        with all_or_nothing(self.policy):
            gradients = estimate_gradients(
                self.policy,
                batch.observations,
                actions,
                weights,
                batch.returns,
                self.ent_coef,
                self.vf_coef,
                actor_parameters,
                value_parameters,
                n_timesteps,
            )
            check_losses(gradients, batch, self.rollout_buffer)
            gradients = add_up(gradients, self._workers)
            # With vf_coef=0 the critic is left to its own passes: not even its momentum moves it here
            joint = value_parameters if self.vf_coef > 0 else []
            if self.natural_gradient and actor_parameters:
                grad_norm = self._natural_step(gradients, batch, actions, actor_parameters)
                # The optimizer moves what the critic's loss reaches, and passes by parameters without a gradient
                gradient_step(self.policy.optimizer, gradients._replace(actor=[]), [], joint, self.max_grad_norm)
            else:
                grad_norm = gradient_step(self.policy.optimizer, gradients, actor_parameters, joint, self.max_grad_norm)
            if critic_parameters and self.n_critic_updates > 0:
                fit_critic(
                    self.policy,
                    batch.observations,
                    actions,
                    batch.returns,
                    critic_parameters,
                    self.n_critic_updates,
                    self.batch_size,
                    self.max_grad_norm,
                    self._workers,
                )
            approx_kl = check_update(self.policy, batch.observations, actions, gradients.log_probs, self._workers)
            self._workers.share_buffers(self.policy)

        self._n_updates += 1
        self._record_update(gradients, grad_norm, approx_kl)

    def _natural_step(
        self,
        gradients: Gradients,
        batch: EpisodeRolloutBufferSamples | RolloutBufferSamples,
        actions: th.Tensor,
        actor_parameters: list[th.nn.Parameter],
    ) -> float:
        """Move the actor along its natural gradient, if it has a direction; returns the norm of the gradient."""
        target_kl = self.target_kl(self._current_progress_remaining) if callable(self.target_kl) else float(self.target_kl)
        checks.check_number("target_kl", target_kl, 0)  # a schedule may end at zero
        self.logger.record("train/target_kl", target_kl)
        try:
            # Also with an entropy bonus, however small: for that alone no step is worth its full length
            check_advantages(batch.advantages, batch.returns, self.normalize_advantage, self._workers)
            return natural_step(
                self.policy,
                gradients.actor,
                actor_parameters,
                batch.observations,
                actions,
                target_kl,
                self.cg_max_steps,
                self.cg_damping,
                self.sub_sampling_factor,
                self._workers,
            )
        except NoDirectionError as error:
            # A solved task has such batches, as has one whose reward is yet to be found: the next one may be different
            if not self._warned_of_direction:
                self._warned_of_direction = True
                warnings.warn(f"{error} The policy is left as it is in such updates.", UserWarning, stacklevel=2)
            return 0.0

    def _record_update(self, gradients: Gradients, grad_norm: float, approx_kl: float) -> None:
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/entropy_loss", gradients.entropy_loss)
        self.logger.record("train/policy_loss", gradients.policy_loss)
        self.logger.record("train/grad_norm", grad_norm)
        self.logger.record("train/approx_kl", approx_kl)
        if self.uses_critic:
            self.logger.record("train/value_loss", gradients.value_loss)
            self.logger.record("train/explained_variance", self._explained_variance())
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def _explained_variance(self) -> float:
        values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        if self._workers.alone:
            return explained_variance(values, returns)
        residuals, targets = self._workers.moments(returns - values), self._workers.moments(returns)
        return float(1.0 - residuals.deviation / targets.deviation) if targets.deviation > 0 else np.nan

    def learn(
        self: SelfREINFORCE,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfREINFORCE:
        try:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        except BaseException as error:
            # The environments may stand anywhere: the next call starts from fresh episodes
            self._last_obs = None
            workers, self._workers = self._workers, distributed.ALONE
            workers.fail(error)
            raise

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        with self._workers.whole_file(path) as file:
            super().save(file, exclude, include)

    @classmethod
    def load(
        cls: type[SelfREINFORCE], path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any
    ) -> SelfREINFORCE:
        """
        Load the model from a zip-file, as SB3 does, but refuse arguments that do not exist or make no sense.

        :param path: Path to the file (or a file-like) where to load the agent from
        :param args: See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`
        :param kwargs: Likewise; further names are arguments of the constructor, to change them
        :return: New model instance with loaded parameters
        :raises ValueError: If a name is no argument, or a value is none that the argument takes
        """
        known = {*checks.constructor_arguments(cls), *inspect.signature(super().load).parameters}
        checks.check_names(kwargs, known, f"{cls.__name__}.load")
        return super().load(path, *args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_sampler",
            "_action_rng",
            "_horizons",
            "_own_limits",
            "_cuts_expected",
            "_actor_parameters",
            "_value_parameters",
            "_reached_timesteps",
            "critic_lr_schedule",
            "_workers",
            "_seeded_env",
            "_new_infos",
            "_n_timesteps_before",
            "_n_rollout_timesteps",
        ]
