import inspect
import io
import pathlib
import warnings
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule, TensorDict
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import checks, distributed, files
from sb3_reinforce.baselines import BaselineFunction
from sb3_reinforce.buffers import whole_rollout
from sb3_reinforce.critic import fit_critic
from sb3_reinforce.estimator import (
    Gradients,
    add_up,
    all_or_nothing,
    check_losses,
    check_update,
    estimate_gradients,
    gradient_step,
    log_prob_weights,
    pieces,
    take,
    trainable,
)
from sb3_reinforce.natural_gradient import check_policy
from sb3_reinforce.natural_update import NaturalGradientAlgorithm
from sb3_reinforce.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    group_parameters,
    has_sb3_forward,
    split_parameters,
    use_fused_adam,
)

SelfREINFORCE = TypeVar("SelfREINFORCE", bound="REINFORCE")


class REINFORCE(NaturalGradientAlgorithm):
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
    :param n_steps: The number of steps to run for each environment per update. With complete episodes it is the least
        number: each environment then finishes the episode that it is in (fewer only after a cut at the horizon)
    :param n_episodes: If given, each environment contributes so many episodes per update (fewer only after a cut at the
        horizon), and ``n_steps`` is ignored
    :param batch_size: Minibatch size of the critic's regression
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: 1: the returns are sums of rewards, as Monte Carlo methods have them. Below it, Generalized Advantage
        Estimation, with ``baseline="value"`` and ``reward_to_go=True`` only
    :param reward_to_go: Weight each action by the return from its own timestep on; ``False``: by that of the whole episode
    :param baseline: What is subtracted from the returns: ``None``; ``"mean"`` of the batch (slightly biased, the sample
        itself is in it); ``"leave_one_out"``, the mean of the other episodes at the same timestep; ``"linear"``, a ridge
        regression on the other episodes' observations and times (both, unless ``n_episodes`` fixes their number, without
        the later episodes of the same environment; 0 where there is no other); ``"value"``, the policy's critic as it was
        before this batch; or a callable ``baseline(returns, timesteps, episode_ids)`` of flat float arrays,
        one number per recorded timestep, that returns an array of that shape
    :param complete_episodes: ``False``: SB3's rollouts of ``n_steps``, whose unfinished tails are bootstrapped with the
        critic
    :param horizon: The longest episode that is recorded; one that is still running then is treated like a truncated one, and
        its environment is done for this update, also before it has its ``n_steps`` or ``n_episodes``. ``None``: the
        limit of Gymnasium's ``TimeLimit`` wrapper, as it is at the start of the rollout, else 10,000.
        ``rollout/ep_rew_mean`` has what it came to until then.
        Of no effect with ``complete_episodes=False``
    :param bootstrap_on_truncation: With the value baseline, an episode that was cut by a time limit ends in
        :math:`\gamma V(s_T)`; ``False``: in nothing (the return of a finite horizon). Without a critic always the latter
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
        ``target_kl`` to second order. ``learning_rate`` and ``max_grad_norm`` are then the critic's alone. Layers that the
        critic shares with the actor are the actor's, as in sb3-contrib's TRPO: the value loss does not reach them
    :param target_kl: KL divergence of a natural step, summed over the dimensions of an action, averaged over timesteps;
        it can be a function of the current progress remaining (from 1 to 0). A step that would really go a hundred times
        as far (and beyond 0.1), as it may from a policy that is all but deterministic, is left out
    :param cg_max_steps: Maximum number of steps of the conjugate gradient method that solves for the natural gradient
    :param cg_damping: Multiple of the identity that is added to :math:`F` in these equations. Near 0, what the batch
        says nothing about is left to rounding errors
    :param sub_sampling_factor: :math:`F` is averaged over one of so many timesteps of the batch in these equations, to save
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

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3.5e-3,
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
        if env is None and _init_setup_model:  # `load` comes without
            raise ValueError("`env` must be an environment or the name of one, got None.")
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
        if self.env is not None:
            self._check_environment(self.env)

        if _init_setup_model:
            self._setup_model()

    @property
    def uses_critic(self) -> bool:
        """Whether the policy's critic is the baseline."""
        return isinstance(self.baseline, str) and self.baseline == "value"

    def _setup_model(self) -> None:
        self._check_arguments()  # `load` sets attributes without the constructor
        checks.check_policy_class(self.policy_class)
        super()._setup_model()
        self._setup_optimizer()

    def _check_arguments(self) -> None:
        checks.check_arguments(vars(self))
        for name in inspect.signature(REINFORCE).parameters:
            value = getattr(self, name, None)
            if isinstance(value, np.number):  # which would carry the precision of its type into what it is multiplied with
                setattr(self, name, value.item())
            elif isinstance(value, Real) and not isinstance(value, int | float):
                setattr(self, name, float(value))

    def _setup_optimizer(self) -> None:
        use_fused_adam(self.policy.optimizer)
        group_parameters(self.policy)
        if self.natural_gradient:
            check_policy(self.policy)

    def _setup_lr_schedule(self) -> None:
        if isinstance(self.learning_rate, Real):  # SB3 knows no numbers of NumPy's
            self.learning_rate = float(self.learning_rate)
        super()._setup_lr_schedule()
        self._made_schedule = (self.learning_rate, self.lr_schedule)

    def _group_parameters(self, observations: PyTorchObs, actions: th.Tensor) -> tuple[list[th.nn.Parameter], ...]:
        """
        The trainable parameters of the actor and those that reach the values, at which the optimizer's groups are divided:
        policy, optimizer and what is frozen may be others than at the last update.
        """
        if has_sb3_forward(self.policy):
            actor, value = split_parameters(self.policy)
        else:
            actor, value = set(), set()
            for rows in pieces(self.policy, len(actions)):  # some layers are for some observations only
                reached = split_parameters(self.policy, take(observations, rows), actions[rows])
                actor, value = actor | reached[0], value | reached[1]
            actor, value = self._workers.union(list(self.policy.parameters()), actor, value)
        return tuple(trainable(parameters) for parameters in group_parameters(self.policy, (actor, value)))

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # The last rollout ends with its episodes, beyond the total: a linear schedule must not turn negative there
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate, schedule = self._made_schedule
        if self.learning_rate != learning_rate and self.lr_schedule is schedule:  # else a schedule was set by hand, too
            self._setup_lr_schedule()
        super()._update_learning_rate(optimizers)
        if self.critic_learning_rate is None:
            return
        rate = self.critic_learning_rate
        critic_rate = FloatSchedule(rate if callable(rate) else float(rate))(self._current_progress_remaining)
        for group in self.policy.optimizer.param_groups:
            if group["critic"]:
                group["lr"] = critic_rate
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
        self._check_arguments()  # they may have been set by hand
        if self.env is None:
            raise ValueError("There is no environment to learn from, pass one to `load` or `set_env`.")
        self._check_environment(self.env)
        if self.natural_gradient:
            self._check_natural_gradient()
        checks.check_buffer(self.rollout_buffer, vars(self))
        self._setup_rollouts(self.env, total_timesteps)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    @np.errstate(under="ignore")
    def train(self) -> None:
        """
        Update the policy with the gradient estimate of the rollout (one step), then fit the critic to its returns.

        :raises ValueError: If a loss or a gradient is not finite; the weights are then as they were
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)

        batch = whole_rollout(self.rollout_buffer)
        actions = batch.actions
        if isinstance(self.action_space, spaces.Discrete):
            # Convert discrete action from float to long
            actions = actions.long().flatten()
        actor_parameters, value_parameters = self._group_parameters(batch.observations, actions)
        self._update_learning_rate(self.policy.optimizer)

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
        if not self.uses_critic:
            value_parameters = []
        critic_parameters = [p for p in value_parameters if all(p is not shared for shared in actor_parameters)]
        if self.natural_gradient:
            # The critic's loss would move the policy through the layers that they share, far beyond the divergence
            value_parameters = critic_parameters
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
                grad_norm = self._natural_step(gradients, batch, actions, weights, actor_parameters)
                # The optimizer moves what the critic's loss reaches, and passes by parameters without a gradient
                gradient_step(self.policy.optimizer, gradients._replace(actor=[]), [], joint, self.max_grad_norm)
            else:
                grad_norm = gradient_step(self.policy.optimizer, gradients, actor_parameters, joint, self.max_grad_norm)
            gradients = gradients._replace(actor=[], critic=[])  # they may be as large as the policy
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
        if log_interval is not None:
            checks.check_positive_int("log_interval", log_interval)
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    @classmethod
    def load(
        cls: type[SelfREINFORCE],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfREINFORCE:
        """
        Load the model from a zip-file, as SB3 does, but refuse arguments that do not exist or make no sense.

        Of a file that A2C or PPO (or another algorithm with such a policy) has saved, it takes the policy, the spaces,
        ``gamma``, gSDE, the seed and the settings of the log, with a warning. The optimizer starts anew, and all other
        arguments are REINFORCE's defaults, unless ``kwargs`` say otherwise.

        :param path: Path to the file (or a file-like) where to load the agent from
        :param env: The new environment to run the loaded model on (can be None if you only need prediction from a trained
            model) has priority over any saved environment
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading, see
            :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
        :param kwargs: Further arguments of the constructor, to change them
        :return: New model instance with loaded parameters
        :raises ValueError: If a name is no argument, or a value is none that the argument takes, or the policy in the file is
            of a kind that does not fit
        """
        known = {*checks.constructor_arguments(cls), *inspect.signature(super().load).parameters}
        checks.check_names(kwargs, known, f"{cls.__name__}.load")
        if files.is_of_another_algorithm(path):
            warnings.warn(
                "The file was saved by another algorithm: its policy, gamma, gSDE, seed and settings of the log are taken "
                f"over, all other arguments are those of {cls.__name__}.load or its defaults.",
                UserWarning,
                stacklevel=2,
            )
            path = files.without_foreign_arguments(path, device, custom_objects)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        parameters: dict[str, dict[str, Any]] = super().get_parameters()
        # By these the groups of another optimizer are arranged before it takes over the state
        groups = parameters["policy.optimizer"]["param_groups"]
        for group, names in zip(groups, files.parameter_names(self.policy), strict=True):
            group["names"] = names
        return parameters

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a given zip-file or a nested dictionary (see ``get_parameters``), also of A2C or PPO. The state of
        an optimizer that is not like this one's is not taken over, with a warning; the optimizer then starts anew.

        :param load_path_or_dict: Location of the saved data (path or file-like, see ``save``), or a nested dictionary of
            state-dictionaries
        :param exact_match: If True, the given parameters should include parameters for each module and each of their
            parameters
        :param device: Device on which the code should run.
        :raises ValueError: If the parameters are those of another network; all is then as it was
        """
        parameters: dict[str, Any]
        loaded: Any = load_path_or_dict
        if not isinstance(loaded, dict):
            _, loaded, _ = load_from_zip_file(loaded, device=device, load_data=False)
        parameters = dict(loaded)
        expected = set(self._get_torch_save_params()[0])
        if (exact_match and set(parameters) != expected) or not set(parameters) <= expected:
            raise ValueError(
                f"Names of parameters do not match agents' parameters: expected {expected}, got {set(parameters)}"
            )
        if "policy" in parameters:
            files.check_weights(self.policy, parameters["policy"], exact_match)
        groups = [dict(group) for group in self.policy.optimizer.param_groups]
        try:
            with all_or_nothing(self.policy):
                if "policy.optimizer" in parameters:
                    parameters["policy.optimizer"] = files.state_of_optimizer(self.policy, parameters["policy.optimizer"])
                super().set_parameters(parameters, exact_match, device)
        except BaseException:
            self.policy.optimizer.param_groups = groups
            raise

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_made_schedule"]
