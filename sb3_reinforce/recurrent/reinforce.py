from typing import Any, ClassVar, TypeVar

from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_reinforce import arguments
from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.recurrent.actor_critic import make_recurrent_actor_critic
from sb3_reinforce.recurrent.policies import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from sb3_reinforce.reinforce import REINFORCE

SelfRecurrentREINFORCE = TypeVar("SelfRecurrentREINFORCE", bound="RecurrentREINFORCE")


class RecurrentREINFORCE(REINFORCE):
    """
    REINFORCE with an LSTM, for environments whose observations do not tell everything.

    The policies are those of sb3-contrib's RecurrentPPO, and so is :meth:`predict`, with ``state`` and ``episode_start``. A
    rollout consists of whole episodes, each of which begins with a state of zero: no states are stored, and the gradient goes
    back through the whole episode, without approximation.

    :param policy: The policy model to use (MlpLstmPolicy, CnnLstmPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: Arguments of :class:`sb3_reinforce.REINFORCE` by position, from ``learning_rate`` on
    :param max_sequence_length: The gradient goes back through at most this many timesteps; the states are carried on. It
        bounds the memory of long episodes, at the cost of one more forward pass and of a bias: what an observation teaches
        about actions more than this many timesteps later is lost. ``None``: through the whole episode
    :param kwargs: All other arguments are those of :class:`sb3_reinforce.REINFORCE`. ``batch_size`` is the size of the
        critic's minibatches that is aimed at: they consist of whole episodes, at least one
    :raises ValueError: If an argument, or a combination of arguments, makes no sense
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MlpLstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }
    policy_base: ClassVar[type[BasePolicy]] = RecurrentActorCriticPolicy

    max_sequence_length: int | None = None

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        max_sequence_length: int | None = None,
        **kwargs: Any,
    ):
        self.max_sequence_length = max_sequence_length
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        self._check_own_arguments()
        super()._setup_model()

    def _check_own_arguments(self) -> None:
        if self.max_sequence_length is not None:
            arguments.check_positive_int("max_sequence_length", self.max_sequence_length)
        if not self.complete_episodes:
            raise ValueError(
                "`complete_episodes` must be True for a recurrent policy, whose states are known at the start of an episode "
                "only, got False."
            )

    def _check_environment(self) -> None:
        self._check_own_arguments()  # they may have been set by hand
        super()._check_environment()

    @property
    def actor_critic(self) -> ActorCritic:
        return make_recurrent_actor_critic(self.policy, self.max_sequence_length)  # type: ignore[arg-type]

    def learn(
        self: SelfRecurrentREINFORCE,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RecurrentREINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrentREINFORCE:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
