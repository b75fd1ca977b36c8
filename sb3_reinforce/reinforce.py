import inspect
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import arguments
from sb3_reinforce.actor_critic.actor_critic import ActorCritic, make_actor_critic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import group_parameters, set_critic_rate, use_fused_adam
from sb3_reinforce.actor_critic.sampler import reset_noise, to_environment
from sb3_reinforce.actor_critic.state import all_or_nothing, forget_graphs
from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.distributed import ALONE, Alone, local_device, n_launched

from sb3_reinforce.finite import check_finite, without_underflow
from sb3_reinforce.monte_carlo.baselines import Baseline, BaselineFunction, make_baseline
from sb3_reinforce.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, SmallCnnPolicy
from sb3_reinforce.resumable import ResumableAlgorithm
from sb3_reinforce.rollout import sb3_buffer
from sb3_reinforce.rollout.callback_locals import RolloutCallbacks
from sb3_reinforce.rollout.dead_steps import DeadSteps, as_vec_env
from sb3_reinforce.rollout.episode_infos import telling_infos
from sb3_reinforce.rollout.observations import check_statistics, check_step, judged_observations
from sb3_reinforce.rollout.player import Player
from sb3_reinforce.rollout.rollout_start import RolloutStart
from sb3_reinforce.update.advice import Advisor, Seen, largest_entropy
from sb3_reinforce.update.automatic_step import AutomaticStep
from sb3_reinforce.update.critic import fit_critic
from sb3_reinforce.update.gradients import (
    Gradients,
    add_up,
    check_losses,
    check_weights,
    estimate_gradients,
    log_prob_weights,
    normalized_advantages,
)
from sb3_reinforce.update.kl import approximate_kl
from sb3_reinforce.update.natural_step import NaturalStep
from sb3_reinforce.update.policy_step import OptimizerStep, PolicyStep
from sb3_reinforce.update.return_units import ReturnUnits, in_units, say_nothing

#: Timesteps of an update over all environments, unless ``n_steps`` or ``n_episodes`` says otherwise
N_TIMESTEPS = 1024
#: Minibatch size of the critic, and the largest number of minibatches in a pass, unless ``batch_size`` says otherwise
BATCH_SIZE = 64
#: Entropy coefficient of actions that are not continuous, unless ``ent_coef`` says otherwise
ENT_COEF = 0.03
SelfREINFORCE = TypeVar("SelfREINFORCE", bound="REINFORCE")


class REINFORCE(ResumableAlgorithm):
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
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update. With complete episodes this is the
        minimum: each environment then finishes its current episode (fewer steps only after a cut at the horizon).
        ``None``: 1024, divided by the number of environments (of all workers)
    :param n_episodes: If given, each environment contributes this many episodes per update (fewer only after a cut at the
        horizon), and ``n_steps`` is ignored
    :param batch_size: Minibatch size of the critic's regression. ``None``: 64, or a 64th of the timesteps of the update if
        that is more, so that the number of the critic's steps is bounded
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: 1: the returns are sums of rewards, as in Monte Carlo methods. Below 1: Generalized Advantage
        Estimation, only with ``baseline="value"`` and ``reward_to_go=True``
    :param reward_to_go: Weight each action by the return from its own timestep on; ``False``: by the return of the whole
        episode
    :param baseline: What is subtracted from the returns: ``None``; ``"mean"`` of the batch (slightly biased, because it
        includes the sample itself); ``"leave_one_out"``, the mean of the other episodes at the same timestep;
        ``"linear"``, a ridge regression on the other episodes' observations and times (unless ``n_episodes`` fixes their
        number, both leave out the later episodes of the same environment; 0 where there is no other episode);
        ``"value"``, the policy's critic before it is fitted to this batch; a callable
        ``baseline(returns, timesteps, episode_ids)`` of flat float arrays, one number per recorded timestep, that returns
        an array of that shape; or an instance of a :class:`sb3_reinforce.Baseline`
    :param group_size: This many environments at a time are reset with the same seed, a fresh one per group and update, so that
        they make several attempts at the same instance; ``"mean"``, ``"leave_one_out"`` and ``"linear"`` are then computed
        within each group. Needs ``n_episodes=1``, and a number of environments that it divides
    :param complete_episodes: ``False``: SB3's rollouts of ``n_steps``, whose unfinished tails are bootstrapped with the
        critic
    :param horizon: The length of the longest episode that is recorded. An episode that is still running then is treated as
        truncated, and its environment is done for this update, even before it has its ``n_steps`` or ``n_episodes``.
        ``None``: the limit of Gymnasium's ``TimeLimit`` wrapper at the start of the rollout, else 10,000.
        ``rollout/ep_rew_mean`` then has the sum of the rewards before the cut. No effect with ``complete_episodes=False``
    :param bootstrap_on_truncation: With the value baseline, the return of an episode that was cut by a time limit ends
        with :math:`\gamma V(s_T)`; ``False``: with nothing (the return of a finite horizon), as always without a critic
    :param discount_state_distribution: Whether to weight the timesteps by :math:`\gamma^t`, as in the gradient of the
        discounted objective; common practice drops the factor. Only with ``reward_to_go``: the return of the whole
        episode is discounted already
    :param average_over: The sum over the batch is divided by the number of its ``"timesteps"`` or its ``"episodes"``.
        The latter is unbiased with ``n_episodes``; with ``n_steps`` the quotient has a bias of O(1/N)
    :param normalize_advantage: Whether to normalize the advantages over all recorded timesteps of the update; ``"group"``:
        within each group of ``group_size`` environments, so that instances of any scale have the same weight (GRPO). This
        is no longer an estimate of the gradient of the expected return
    :param ent_coef: Entropy coefficient for the loss calculation; it can be a function of the current progress remaining (from
        1 to 0). ``None``: 0 for continuous actions, whose entropy has no bound, and 0.03 for all others
    :param vf_coef: Value function coefficient of the joint step of policy and critic
    :param max_grad_norm: The maximum value for the gradient clipping; the gradients of actor and critic are clipped separately
    :param normalize_returns: Whether the critic learns the returns in units of their own mean and deviation (PopArt), so that
        rewards of any scale give the same policy. Its last layer is rescaled so that ``predict_values`` stays in raw units; a
        new critic says 0 until its first update. A policy whose ``value_net`` is no linear layer that puts out the value keeps
        raw units, as with ``False``, which A2C has
    :param n_critic_updates: Number of further passes of the critic over the rollout after each policy step;
        0: the joint step alone, as in A2C
    :param critic_learning_rate: A learning rate or schedule for the critic's own parameters; ``None``: ``learning_rate``
    :param natural_gradient: Whether the policy steps along its natural gradient :math:`F^{-1} g` (Kakade, 2001, "A Natural
        Policy Gradient"), with :math:`F` the Fisher information of the batch, so far that the KL divergence is
        ``target_kl`` to second order. ``learning_rate`` and ``max_grad_norm`` then apply to the critic only. Layers that the
        critic shares with the actor belong to the actor, as in sb3-contrib's TRPO: the value loss does not reach them.
        ``False``: a step of the optimizer, for which a ``learning_rate`` of 0.003 is a better start. ``None``: natural, but
        with a warning a step of the optimizer if the policy has no natural steps: its layers cannot be differentiated
        twice, the divergence between its distributions is not known, or actor and critic share all of their parameters
    :param target_kl: KL divergence of a natural step, summed over the dimensions of an action, averaged over timesteps;
        it can be a function of the current progress remaining (from 1 to 0). Where all returns are alike, and the critic's
        errors make the advantages vary more than them, a step is shorter. A step is shortened until its divergence is
        at most fifty times as large (or 0.001, if that is larger): on average over the batch for continuous actions, at every
        single timestep for all others, so that no action of a rare state is lost
    :param cg_max_steps: Maximum number of steps of the conjugate gradient method that solves for the natural gradient
    :param cg_damping: Multiple of the identity that is added to :math:`F` in these equations. Near 0, rounding
        errors decide the directions about which the batch says nothing
    :param sub_sampling_factor: :math:`F` is averaged over one timestep out of this many in these equations, to save
        time; the gradient and the divergence of the step are those of all timesteps. ``None``: 1, but of a batch of 16,384
        timesteps or more a part of at least 8,192 takes the place of all for :math:`F` and the length of the step
    :param seed_rollouts: Whether each rollout of whole episodes starts from a reset with seeds that are derived from ``seed``
        and the number of the rollout, so that a saved run can be taken up exactly. With a single environment this is one
        more reset per rollout. No effect without a ``seed``
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected. A class that
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
        "SmallCnnPolicy": SmallCnnPolicy,
    }
    #: The class that the policy must be derived from
    policy_base: ClassVar[type[BasePolicy]] = ActorCriticPolicy
    #: Further arguments of the policy, which callbacks may read; ``None`` if a rollout does without them
    policy_extras: ClassVar[tuple[str, ...]] = ()
    #: Action spaces that the policies have distributions for
    supported_action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = (
        spaces.Box,
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    #: The rollout buffers, for observations that are arrays and for dictionaries
    rollout_buffer_classes: ClassVar[tuple[type[EpisodeRolloutBuffer], type[EpisodeDictRolloutBuffer]]] = (
        EpisodeRolloutBuffer,
        EpisodeDictRolloutBuffer,
    )
    #: A policy step of your own, see :mod:`sb3_reinforce.update.policy_step`; it can also be set on a model. ``None``: the
    #: step of the optimizer, or the natural step
    policy_step_class: type[PolicyStep] | None = None

    _reward_found = False  # whether any reward so far was other than zero
    _warned_of_horizon = False
    _natural_refusal: str | None = None  # why the policy has no natural steps; empty if it has some, None before it was tried
    # Of the returns so far; a file has them as a list
    _return_units: ReturnUnits = ReturnUnits()
    # What the updates have shown so far, likewise
    _seen: Seen = Seen()

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        n_episodes: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        reward_to_go: bool = True,
        baseline: str | Baseline | BaselineFunction | None = "value",
        group_size: int = 1,
        complete_episodes: bool = True,
        horizon: int | None = None,
        bootstrap_on_truncation: bool = True,
        discount_state_distribution: bool = False,
        average_over: Literal["timesteps", "episodes"] = "timesteps",
        normalize_advantage: bool | str = True,
        ent_coef: float | Schedule | None = None,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        n_critic_updates: int = 5,
        critic_learning_rate: float | Schedule | None = None,
        normalize_returns: bool = True,
        natural_gradient: bool | None = None,
        target_kl: float | Schedule = 0.01,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        sub_sampling_factor: int | None = None,
        seed_rollouts: bool = True,
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
        arguments.check_arguments(locals())
        if env is None and _init_setup_model:  # `load` may pass no environment
            raise ValueError("`env` must be an environment or the name of one, got None.")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,  # type: ignore[arg-type]
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
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
            device=local_device(device),
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=self.supported_action_spaces,
        )
        self.n_episodes = n_episodes
        self.batch_size = batch_size
        self.reward_to_go = reward_to_go
        self.baseline = baseline
        self.group_size = group_size
        self.complete_episodes = complete_episodes
        self.horizon = horizon
        self.bootstrap_on_truncation = bootstrap_on_truncation
        self.discount_state_distribution = discount_state_distribution
        self.average_over = average_over
        self.normalize_advantage = normalize_advantage
        self.n_critic_updates = n_critic_updates
        self.critic_learning_rate = critic_learning_rate
        self.normalize_returns = normalize_returns
        self.natural_gradient = natural_gradient
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.sub_sampling_factor = sub_sampling_factor
        self.seed_rollouts = seed_rollouts

        if _init_setup_model:
            self._check_environment()
            self._arguments_checked = True
            self._setup_model()

    def _setup_model(self) -> None:
        if not vars(self).pop("_arguments_checked", False):  # `load` sets attributes without the constructor
            arguments.check_arguments(vars(self))
        self._convert_numbers()
        arguments.check_policy_class(self.policy_class, self.policy_base)
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = self.rollout_buffer_classes[isinstance(self.observation_space, spaces.Dict)]
        self.workers: Alone = ALONE
        self._seeded_env: VecEnv | None = None  # with several workers, the environments that were given seeds of their own
        self._policy_steps: dict[type[PolicyStep], PolicyStep] = {}
        self._player = Player(self)
        self._advisor = Advisor(self)
        n_steps, self.n_steps = self.n_steps, self.steps_per_environment  # SB3 gives it to the buffer
        self._make_parts()
        self.n_steps = n_steps
        self._player.taken_up = RolloutStart.of_attributes(vars(self))
        if self.normalize_returns:
            say_nothing(self.actor_critic.value_head())
        use_fused_adam(self.policy.optimizer)
        group_parameters(self.policy, self.actor_critic.split())
        self.policy_step.check()

    def _make_parts(self) -> None:
        """Make the schedule, the buffer and the policy, as SB3 does."""
        super()._setup_model()

    def _convert_numbers(self) -> None:
        for name in inspect.signature(REINFORCE).parameters:
            if hasattr(self, name):
                setattr(self, name, arguments.as_plain_number(getattr(self, name)))

    def _check_environment(self) -> None:
        """The checks of arguments that depend on the environments."""
        if self.env is None:
            raise ValueError("There is no environment to learn from, pass one to `load` or `set_env`.")
        baseline = make_baseline(self.baseline)
        if baseline.of_others:
            arguments.check_holds_two_episodes(
                self.env.num_envs * n_launched(), self.steps_per_environment, self.n_episodes, self.baseline
            )
        arguments.check_divides_environments(self.group_size, self.env.num_envs)
        baseline.check(self.env, get_flattened_obs_dim(self.env.observation_space))

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "_player"):
            self._player.seed(seed)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(f"Policy {policy_name} unknown, expected one of {', '.join(self.policy_aliases)}, or a class.")
        return self.policy_aliases[policy_name]

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return OnPolicyAlgorithm._wrap_env(as_vec_env(env), verbose, monitor_wrapper)

    # The strategies, which follow the model's current attributes, as any of these may be replaced

    @property
    def actor_critic(self) -> ActorCritic:
        """The policy on a batch of timesteps."""
        return make_actor_critic(self.policy)

    @property
    def policy_step(self) -> PolicyStep:
        """The strategy that moves the policy."""
        kind = self._get_policy_step_class()
        if kind not in self._policy_steps:
            self._policy_steps[kind] = kind(self)
        return self._policy_steps[kind]

    def _get_policy_step_class(self) -> type[PolicyStep]:
        if self.policy_step_class is not None:
            arguments.check_policy_step(self.policy_step_class, PolicyStep, self.natural_gradient)
            return self.policy_step_class
        if self.natural_gradient is None:
            return AutomaticStep
        return NaturalStep if self.natural_gradient else OptimizerStep

    @property
    def steps_per_environment(self) -> int:
        """The number of steps for each environment per update, see ``n_steps``."""
        if self.n_steps is None:
            return max(1, N_TIMESTEPS // (self.n_envs * n_launched()))
        return self.n_steps

    @property
    def entropy_coefficient(self) -> float:
        """The coefficient of the entropy in the loss, see ``ent_coef``."""
        if self.ent_coef is None:
            return 0.0 if isinstance(self.action_space, spaces.Box) else ENT_COEF
        return arguments.value_at("ent_coef", self.ent_coef, self._current_progress_remaining)

    @property
    def largest_entropy(self) -> float:
        """The entropy of a policy to which all actions are alike, on average over the rollout, if there are finitely many."""
        return largest_entropy(self.action_space)

    @property
    def uses_critic(self) -> bool:
        """Whether the baseline uses the values of the policy's critic, which is then trained."""
        return make_baseline(self.baseline).uses_critic

    @property
    def only_earlier_episodes(self) -> bool:
        """
        Whether the existence of an environment's later episodes depends on its earlier ones, so that the baseline of
        the earlier episodes must not use the later ones.
        """
        return self.n_episodes is None or self._player.limits.cuts_expected

    # Play

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int | None
    ) -> bool:
        """
        Play a rollout with the current policy and fill the buffer with its episodes.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Number of steps per environment (with complete episodes: the least number); ``None``: as many
            as an update takes
        :return: ``False`` if the callback stopped the rollout, which leaves the buffer unfinished
        :raises ValueError: If an observation, a reward or the output of the policy is not finite
        """
        self._player.begin(rollout_buffer)
        n_rollout_steps = self.steps_per_environment if n_rollout_steps is None else n_rollout_steps
        if not isinstance(rollout_buffer, EpisodeRolloutBuffer):
            return self._collect_with_sb3(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        recorder = self._player.start_recorder(env, n_rollout_steps)  # only now: a curriculum may have changed a limit
        sampler = self._player.start_sampler(env)
        timestep, judged = recorder.timestep, judged_observations(self.actor_critic)
        check_statistics(self._vec_normalize_env)
        check_finite("observation", judged(self._last_obs), timestep)  # type: ignore[arg-type]

        add, sample = without_underflow(rollout_buffer.add), without_underflow(sampler.sample)
        values_known = sampler.evaluates
        watched = bool(getattr(callback, "callbacks", True))  # only a callback can change the policy meanwhile
        dead_steps = DeadSteps(env)

        while not recorder.finished:
            n_steps = recorder.n_vector_steps
            if watched and not (sampler.policy is self.policy and sampler.acts_as_it_is()):
                sampler = self._player.start_sampler(env)
                sample, values_known = without_underflow(sampler.sample), values_known and sampler.evaluates
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                reset_noise(self.policy, env.num_envs)
            acted_on, dead = self._last_obs, dead_steps.coming()
            actions, *evaluated = sample(acted_on, timestep)
            clipped_actions = to_environment(actions, self.action_space, self.policy)

            new_obs, rewards, dones, infos = env.step(clipped_actions)

            self.num_timesteps += env.num_envs
            if watched:  # else nobody reads them
                callback.update_locals(locals())
            if not callback.on_step():
                return self._player.share(callback, goes_on=False).goes_on

            recording = recorder.recording if dead is None else recorder.recording_without(dead)
            check_step(judged(new_obs), rewards, recording, timestep, self._vec_normalize_env)  # type: ignore[arg-type]
            telling = telling_infos(infos, dones, recording)
            if telling:
                self._update_info_buffer([infos[i] for i in telling], dones[telling])
            step = (acted_on, actions, rewards, self._last_episode_starts, evaluated[0], evaluated[1], recording)
            add(*step, sampler.extras) if sampler.extras else add(*step)
            n_cut = len(recorder.cut)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            if dead is not None:
                recorder.skip(dead)
                self._last_episode_starts = dones.copy()  # callbacks may have kept the array
                self._last_episode_starts[dead] = True
            recorder.advance(dones, infos, new_obs)  # type: ignore[arg-type]
            if len(recorder.cut) > n_cut:
                ended = self._player.infos_of_cut(env, recorder.cut[n_cut:], infos)
                self._update_info_buffer(ended, np.ones(len(ended), dtype=bool))

        n_steps = recorder.n_vector_steps
        if not self._player.finish(callback, rollout_buffer, recorder, values_known):
            return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(*self.workers.logged_at_once(infos, dones))  # type: ignore[arg-type]

    def _collect_with_sb3(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """The fixed-length rollout of a user's own buffer, with SB3's own calls."""
        with sb3_buffer.refused_observations_named(self, rollout_buffer):
            completed = super().collect_rollouts(env, self.workers.postponed(callback), rollout_buffer, n_rollout_steps)
        if not completed:
            return self._player.share(callback, goes_on=False).goes_on
        sb3_buffer.check_filled_buffer(rollout_buffer)
        episodes = sb3_buffer.pieces_of_episodes(rollout_buffer)
        goes_on = self._player.share(callback, True, episodes.n_timesteps, len(episodes)).goes_on
        if goes_on:
            self.workers.end_rollout(callback)
        return goes_on

    # Weigh and step

    @np.errstate(under="ignore")
    def train(self) -> None:
        """
        Update the policy with the gradient estimate of the rollout (one step), then fit the critic to its returns.

        :raises ValueError: If a loss or a gradient is not finite; the weights are then unchanged
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        actor_critic, step, workers = self.actor_critic, self.policy_step, self.workers
        batch = self.batch()
        parameters = actor_critic.trainable(batch, workers, self.uses_critic, step.moves_shared_layers)
        self._update_learning_rate(self.policy.optimizer)
        weights = self.weights(batch)
        n_total, _ = workers.totals(len(batch), 0)
        head = actor_critic.value_head() if self.normalize_returns and self.uses_critic else None
        units = None if head is None else ReturnUnits(*self._return_units).with_returns(batch.returns, workers)
        with all_or_nothing(self.policy):
            with in_units(units, head, batch) as targets:
                gradients = estimate_gradients(
                    actor_critic, targets, weights, parameters, self.entropy_coefficient, self.vf_coef, n_total
                )
                check_losses(gradients, batch)
                gradients = add_up(gradients, workers)
                logs = dict(step.take(gradients, batch, weights, parameters) or {})
                gradients = gradients._replace(actor=[], critic=[])  # they may be as large as the policy
                batch_size = self.batch_size or max(BATCH_SIZE, -(-n_total // BATCH_SIZE))
                passes = (self.n_critic_updates, batch_size, self.max_grad_norm)
                fit_critic(actor_critic, targets, parameters.critic, *passes, workers)
            check_weights(self.policy)
            logs["approx_kl"] = approximate_kl(actor_critic, batch, gradients.log_probs, workers)
            workers.share_buffers(self.policy)
        self._n_updates += 1
        if units is not None:
            self._return_units = units
            gradients = gradients._replace(value_loss=gradients.value_loss * units.scale**2)
        self._player.between_rollouts()
        self._record_update(gradients, logs, self.uses_critic and units is None)

    def batch(self) -> Batch:
        """
        :return: The timesteps of the last rollout: episode by episode, or, with a buffer of SB3's own, in the order that
            its ``get`` gives
        """
        buffer = self.rollout_buffer
        if not isinstance(buffer, EpisodeRolloutBuffer):
            return Batch.of_samples(next(buffer.get()), self.action_space, None)
        extras = {name: buffer.to_torch(array, copy=False) for name, array in buffer.extras.items()}
        return Batch.of_samples(next(buffer.get(shuffle=False)), self.action_space, buffer.episodes, extras)

    def weights(
        self,
        batch: Batch,
        workers: Alone | None = None,
        reward_to_go: bool | None = None,
        normalize_advantage: bool | str | None = None,
    ) -> th.Tensor:
        r"""
        :param batch: The batch of an update
        :param workers: The workers whose batches make up the update; ``None``: those of the model
        :param reward_to_go: Whether the advantages are made of returns-to-go; ``None``: as in the model
        :param normalize_advantage: Whether to normalize the advantages; ``None``: as in the model
        :return: The weight :math:`w_t A_t / Z` of each log-probability in the estimate, shape ``(n_timesteps,)``
        """
        workers = self.workers if workers is None else workers
        reward_to_go = self.reward_to_go if reward_to_go is None else reward_to_go
        normalize_advantage = self.normalize_advantage if normalize_advantage is None else normalize_advantage
        discounts = None
        if self.discount_state_distribution and reward_to_go:  # the return of the whole episode is discounted already
            assert batch.timesteps is not None
            discounts = self.gamma**batch.timesteps
        n_timesteps, n_episodes = workers.totals(len(batch), sb3_buffer.n_episodes(self.rollout_buffer))
        divisor = n_episodes if self.average_over == "episodes" else n_timesteps
        advantages = normalized_advantages(batch, normalize_advantage, self.group_size, workers)
        return log_prob_weights(advantages, discounts, divisor)

    def _record_update(self, gradients: Gradients, logs: dict[str, float], critic_is_raw: bool) -> None:
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        logs = {"entropy_loss": gradients.entropy_loss, "policy_loss": gradients.policy_loss, **logs}
        if self.uses_critic:
            values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
            logs["value_loss"] = gradients.value_loss
            logs["explained_variance"] = self.workers.explained_variance(values, returns)
        if hasattr(self.policy, "log_std"):
            logs["std"] = th.exp(self.policy.log_std).mean().item()
        if callable(self.ent_coef):
            logs["ent_coef"] = self.entropy_coefficient
        self._advisor.after_update(logs, critic_is_raw)
        for name, value in logs.items():
            self.logger.record(f"train/{name}", value)

    # Schedules

    def _setup_lr_schedule(self) -> None:
        self.learning_rate = arguments.as_plain_number(self.learning_rate)  # SB3 does not accept NumPy's numbers
        super()._setup_lr_schedule()
        self._made_schedule = (self.learning_rate, self.lr_schedule)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # The last rollout finishes its episodes, beyond the total: a linear schedule must not turn negative there
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate, schedule = self._made_schedule
        if self.learning_rate != learning_rate and self.lr_schedule is schedule:  # else the user has also set a schedule
            self._setup_lr_schedule()
        super()._update_learning_rate(optimizers)
        if self.critic_learning_rate is not None:
            rate = FloatSchedule(arguments.as_plain_number(self.critic_learning_rate))(self._current_progress_remaining)
            set_critic_rate(self.policy.optimizer, rate)
            self.logger.record("train/critic_learning_rate", rate)

    # Learn

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self.workers = self.workers.joined(self.device)
        arguments.check_arguments(vars(self))  # they may have been set by hand
        self._convert_numbers()
        self._check_environment()
        sb3_buffer.check_buffer(self.rollout_buffer, vars(self), self.actor_critic)
        self.policy_step.check()
        agreed = self._player.begin_learning(reset_num_timesteps)
        self.workers.start(self, total_timesteps)
        self._player.limits.share(self.workers)
        self.policy_step.begin()
        if self.ent_coef is not None:
            arguments.check_over_time("ent_coef", self.ent_coef, self._current_progress_remaining)
        if self._n_updates == 0:
            self._advisor.before_first_update()
        self._player.before_reset(reset_num_timesteps or self._last_obs is None, agreed)
        if not self._custom_logger and hasattr(self, "_logger"):
            self._logger.close()  # SB3 leaves the files of the former call open
        begun = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._player.after_reset()
        return begun

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callback, progress_bar = self.workers.callbacks(callback, progress_bar)
        return super()._init_callback(RolloutCallbacks.of(callback), progress_bar)

    def learn(
        self: SelfREINFORCE,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfREINFORCE:
        if log_interval is not None:
            arguments.check_positive_int("log_interval", log_interval)
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except BaseException as error:
            # The environments may be in any state: the next call starts from fresh episodes
            self._last_obs = None
            forget_graphs(self.policy)  # an interrupted update leaves some
            workers, self.workers = self.workers, ALONE
            workers.fail(error)
            raise
