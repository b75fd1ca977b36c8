"""Drawing actions from a recurrent policy: the states of its LSTM are carried from timestep to timestep."""

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_reinforce.actor_critic.inspection import has_own_forward
from sb3_reinforce.actor_critic.numpy_sampler import HEADS, Head, NumpySampler, is_understood, sigmoid
from sb3_reinforce.actor_critic.sampler import Observation, PolicySampler, Sample, Timestep, of_space
from sb3_reinforce.recurrent.sequences import SequenceBatch, States, no_states


class CriticMemory:
    """
    The states of the critic's LSTM. Only callbacks ask for values while a rollout is played, so the LSTM runs when they do,
    through all that it has missed.

    :param policy: The policy
    :param n_envs: Number of environments
    """

    def __init__(self, policy: Any, n_envs: int):
        self.policy = policy
        self._states = no_states(policy.lstm_critic, n_envs) if policy.lstm_critic is not None else None
        self._missed: list[tuple[Observation, np.ndarray]] = []

    def note(self, obs: Observation, begins: np.ndarray) -> None:
        """
        :param obs: Observations that the policy acts on
        :param begins: Whether an episode begins with them, shape ``(n_envs,)``
        """
        if self._states is None:
            return
        if begins.all():
            self._missed.clear()
        self._missed.append((obs, begins))

    def before_last(self) -> States | None:
        """
        :return: The states before the last observations
        """
        if self._states is None or not self._missed:
            return self._states
        *missed, last = self._missed
        for step in missed:
            self._states = self._after(*step)
        self._missed = [last]
        return begun(self._states, last[1])

    def after_last(self, begins: np.ndarray) -> States | None:
        """
        :param begins: Whether an episode begins after the last observations, shape ``(n_envs,)``
        :return: The states after them
        """
        if self.before_last() is None:
            return None
        # They are not kept: the states before the last observations may be asked for again
        return begun(self._after(*self._missed[0]) if self._missed else self._states, begins)  # type: ignore[arg-type]

    def go_on_from(self, states: tuple[th.Tensor, ...]) -> None:
        """
        :param states: The states after the last observations, of a memory that this one replaces
        """
        if self._states is not None and states[0].shape == self._states[0].shape:
            self._states, self._missed = (states[0], states[1]), []

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_missed": []}  # a copy holds no rollout, and begins with new episodes

    def _after(self, obs: Observation, begins: np.ndarray) -> States:
        policy = self.policy
        tensor = obs_as_tensor(of_space(obs, policy.observation_space), policy.device)
        with th.no_grad():
            features = BasePolicy.extract_features(policy, tensor, policy.vf_features_extractor)
            assert self._states is not None
            return policy.lstm_critic(features[None], begun(self._states, begins))[1]


def begun(states: States, begins: np.ndarray) -> States:
    """
    :param states: The states of all environments
    :param begins: Whether an episode begins, shape ``(n_envs,)``
    :return: The same, and zero where one begins
    """
    goes_on = th.as_tensor(~begins, dtype=th.float32, device=states[0].device)[:, None]
    return states[0] * goes_on, states[1] * goes_on


def episode_begins(timestep: Timestep, n_envs: int) -> np.ndarray:
    """
    :param timestep: Gives the timestep within its episode that an environment is at
    :param n_envs: Number of environments
    :return: Whether an episode begins, shape ``(n_envs,)``
    """
    return np.fromiter((timestep(env_id) == 0 for env_id in range(n_envs)), bool, n_envs)


def at_start(env_id: int) -> int:
    """
    :param env_id: An environment
    :return: Its timestep before any rollout
    """
    return 0


class RecurrentPolicySampler(PolicySampler):
    """
    Acts with the policy's own ``forward``.

    :param policy: The policy
    :param n_envs: Number of environments
    """

    def __init__(self, policy: Any, n_envs: int):
        super().__init__(policy)
        self.n_envs = n_envs
        self.states = RNNStates(no_states(policy.lstm_actor, n_envs), no_states(policy.lstm_actor, n_envs))
        self._timestep: Timestep = at_start

    def memory(self) -> RNNStates:
        """
        :return: The states after the last observations
        """
        return self.states

    def go_on_from(self, sampler: PolicySampler | None) -> None:
        if isinstance(sampler, RecurrentPolicySampler | RecurrentNumpySampler):
            states = sampler.memory()
            if states.pi[0].shape == self.states.pi[0].shape:
                self.states = states

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_timestep": at_start}

    def begins(self, timestep: Timestep) -> np.ndarray:
        """
        :param timestep: Gives the timestep within its episode that an environment is at
        :return: Whether an episode begins, shape ``(n_envs,)``
        """
        self._timestep = timestep
        return episode_begins(timestep, self.n_envs)

    def act(self, obs: Any, timestep: Timestep) -> tuple[th.Tensor, th.Tensor | None, th.Tensor | None]:
        starts = th.as_tensor(self.begins(timestep), dtype=th.float32, device=self.policy.device)
        actions, values, log_probs, self.states = self.policy(obs, self.states, starts, **self.extras)
        return actions, values, log_probs

    def next_values(self, obs: Any) -> th.Tensor:
        starts = th.as_tensor(self.begins(self._timestep), dtype=th.float32, device=self.policy.device)
        return self.policy.predict_values(obs, self.states.vf, starts)  # type: ignore[call-arg]

    def probe(self, obs: Any, env_id: int) -> None:
        of_env = RNNStates(*((h[:, [env_id]], c[:, [env_id]]) for h, c in self.states_before()))
        starts = th.as_tensor(self.begins(self._timestep)[[env_id]], dtype=th.float32, device=self.policy.device)
        extras = {name: array[[env_id]] for name, array in self.extras.items()}
        self.policy(obs, of_env, starts, **extras)

    def states_before(self) -> RNNStates:
        """
        :return: The states before an action that could not be drawn
        """
        return self.states


class RecurrentActorSampler(RecurrentPolicySampler):
    """
    Acts with the actor alone.

    :param policy: The policy
    :param n_envs: Number of environments
    """

    evaluates = False

    def __init__(self, policy: Any, n_envs: int):
        super().__init__(policy, n_envs)
        self._before: States = self.states.pi  # type: ignore[assignment]
        self._critic = CriticMemory(policy, n_envs)
        self._obs: Observation = {}

    def memory(self) -> RNNStates:
        return RNNStates(self.states.pi, self._critic.after_last(np.zeros(self.n_envs, bool)) or self.states.pi)

    def go_on_from(self, sampler: PolicySampler | None) -> None:
        super().go_on_from(sampler)
        self._critic.go_on_from(self.states.vf)

    def states_before(self) -> RNNStates:
        return RNNStates(self._before, self._before)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_obs": {}}

    def sample(self, obs: Observation, timestep: Timestep) -> Sample:
        self._obs = obs
        return super().sample(obs, timestep)

    def act(self, obs: Any, timestep: Timestep) -> tuple[th.Tensor, th.Tensor | None, th.Tensor | None]:
        policy: Any = self.policy
        begins = self.begins(timestep)
        self._critic.note(self._obs, begins)
        self._before = begun(self.states.pi, begins)  # type: ignore[arg-type]
        features = BasePolicy.extract_features(policy, obs, policy.pi_features_extractor)
        latent, after = policy.lstm_actor(features[None], self._before)
        self.states = RNNStates(after, after)
        return self.draw(policy.mlp_extractor.forward_actor(latent[0])), None, None

    def draw(self, latent: th.Tensor) -> th.Tensor:
        """
        :param latent: Output of the actor's MLP, shape ``(n_envs, latent_dim)``
        :return: Actions, shape ``(n_envs, *action_shape)``
        """
        actions = self.policy._get_action_dist_from_latent(latent).get_actions()
        return actions.reshape(-1, *(self.policy.action_space.shape or ()))

    def evaluate_last(self, actor_critic: Any, piece: Any) -> tuple[th.Tensor, th.Tensor]:
        return evaluate_one_step(actor_critic, piece, self._before, self._critic.before_last())

    def next_values(self, obs: Any) -> th.Tensor:
        begins = self.begins(self._timestep)
        states = self._critic.after_last(begins) or begun(self.states.pi, begins)  # type: ignore[arg-type]
        return self.policy.predict_values(obs, states, th.zeros(self.n_envs, device=self.policy.device))  # type: ignore[call-arg]


def evaluate_one_step(
    actor_critic: Any, piece: Any, of_actor: States, of_critic: States | None
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param actor_critic: The policy on a batch
    :param piece: One timestep of each environment
    :param of_actor: The states of the actor before it
    :param of_critic: The states of the critic; ``None``: those of the actor
    :return: Values and log-probabilities, shape ``(n_envs,)`` each
    """
    states = RNNStates(of_actor, of_actor if of_critic is None else of_critic)
    values, log_probs, _ = actor_critic.evaluate(SequenceBatch.of(piece, np.ones(len(piece), int), states))
    return values, log_probs


def understands(policy: Any, heads: dict[type, type[Head]] = HEADS) -> bool:
    """
    :param policy: A recurrent policy with sb3-contrib's own methods
    :param heads: The classes of its ``action_dist`` that can be drawn from
    :return: Whether :class:`RecurrentNumpySampler` can act for it
    """
    lstm = policy.lstm_actor
    return (
        is_understood(policy, heads)
        and type(lstm) is nn.LSTM
        and not (lstm.bidirectional or lstm.batch_first or lstm.proj_size)
        and not has_own_forward(lstm)
    )


class RecurrentNumpySampler(NumpySampler):
    """
    Acts in NumPy, see :class:`~sb3_reinforce.actor_critic.numpy_sampler.NumpySampler`, with one step of the LSTM.

    :param policy: The policy
    :param n_envs: Number of environments
    :param rng: Source of the actions' randomness
    """

    def __init__(self, policy: Any, n_envs: int, rng: np.random.Generator):
        super().__init__(policy, n_envs, rng)
        self._lstm: nn.LSTM = policy.lstm_actor
        self._hidden, self._cell = (
            [np.zeros((n_envs, self._lstm.hidden_size), np.float32) for _ in range(self._lstm.num_layers)] for _ in range(2)
        )
        self._before = ([*self._hidden], [*self._cell])
        self._critic = CriticMemory(policy, n_envs)
        self._timestep: Timestep = at_start

    def has_layers_of(self, policy: Any) -> bool:
        return super().has_layers_of(policy) and policy.lstm_actor is self._lstm

    def acts_as_it_is(self) -> bool:
        same = self.policy.lstm_actor is self._lstm and not has_own_forward(self._lstm)
        return same and super().acts_as_it_is()

    def _memory(self) -> list[int]:
        return [*super()._memory(), *(parameter.data_ptr() for parameter in self._lstm.parameters())]

    def start_rollout(self) -> None:
        super().start_rollout()
        lstm = self._lstm
        self._weights: list[list[np.ndarray]] = []
        for layer in lstm.all_weights:
            weights = [weight.detach().numpy() for weight in layer]
            self._weights.append([weights[0].T, weights[1].T, *weights[2:]])

    def go_on_from(self, sampler: PolicySampler | None) -> None:
        super().go_on_from(sampler)
        if isinstance(sampler, RecurrentPolicySampler | RecurrentNumpySampler):
            states = sampler.memory()
            if states.pi[0].shape == (len(self._hidden), *self._hidden[0].shape):
                self._hidden, self._cell = ([layer.numpy().copy() for layer in of_all.cpu()] for of_all in states.pi)
            self._critic.go_on_from(states.vf)

    def memory(self) -> RNNStates:
        """
        :return: The states after the last observations
        """
        of_actor = _as_tensors(self._hidden, self._cell)
        return RNNStates(of_actor, self._critic.after_last(np.zeros(self.n_envs, bool)) or of_actor)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_weights": [], "_timestep": at_start}

    def sample(self, obs: Observation, timestep: Timestep) -> Sample:
        begins = self._begins(timestep)
        self._critic.note(obs, begins)
        if begins.any():
            for states in (*self._hidden, *self._cell):
                states[begins] = 0.0
        return super().sample(obs, timestep)

    def _begins(self, timestep: Timestep) -> np.ndarray:
        self._timestep = timestep
        return episode_begins(timestep, self.n_envs)

    def inputs(self, obs: Observation) -> np.ndarray:
        x = super().inputs(obs)
        self._before = ([*self._hidden], [*self._cell])
        size = self._lstm.hidden_size
        for i, (of_input, of_state, *biases) in enumerate(self._weights):
            gates = x @ of_input
            gates += self._hidden[i] @ of_state
            for bias in biases:
                gates += bias
            new = np.tanh(gates[:, 2 * size : 3 * size])
            sigmoid(gates, gates)
            new *= gates[:, :size]
            self._cell[i] = gates[:, size : 2 * size] * self._cell[i]
            self._cell[i] += new
            x = self._hidden[i] = gates[:, 3 * size :] * np.tanh(self._cell[i])
        return x

    def evaluate_last(self, actor_critic: Any, piece: Any) -> tuple[th.Tensor, th.Tensor]:
        return evaluate_one_step(actor_critic, piece, _as_tensors(*self._before), self._critic.before_last())

    def next_values(self, obs: Any) -> th.Tensor:
        begins = self._begins(self._timestep)
        states = self._critic.after_last(begins) or begun(_as_tensors(self._hidden, self._cell), begins)
        return self.policy.predict_values(obs, states, th.zeros(self.n_envs))  # type: ignore[call-arg]


def _as_tensors(hidden: list[np.ndarray], cell: list[np.ndarray]) -> States:
    return th.from_numpy(np.stack(hidden)), th.from_numpy(np.stack(cell))
