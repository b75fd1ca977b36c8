"""
sb3-contrib's recurrent policies on batches of whole episodes.

The LSTM begins each episode with a state of zero. So no states are stored with a rollout: an update runs through the episodes
from their start, and finds the states again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Distribution

from sb3_reinforce.actor_critic.actor_critic import ActorCritic, Evaluation, NoNaturalStepError, Regression
from sb3_reinforce.actor_critic.batch import MAX_NUMBERS, Batch, piece_size, sub_sample, take
from sb3_reinforce.actor_critic.inspection import has_sb3_forward, passes_on_every_number
from sb3_reinforce.actor_critic.parameters import Split
from sb3_reinforce.actor_critic.sampler import PolicySampler
from sb3_reinforce.distributed.workers import Alone
from sb3_reinforce.recurrent.sampler import RecurrentActorSampler, RecurrentNumpySampler, RecurrentPolicySampler, understands
from sb3_reinforce.recurrent.sequences import Blocks, SequenceBatch, States, differentiable, no_states, rows_of, runs, segments

#: How many numbers each unit of an LSTM counts as for one timestep: its gates, its states, and their gradients
_PER_UNIT = 16


class RecurrentActorCritic(ActorCritic):
    """
    Any recurrent policy, called with sb3-contrib's own ``forward`` and ``evaluate_actions``, for which the sequences are
    padded. What the policy puts out for the padding is dropped. It has no natural steps.

    :param policy: The policy
    :param max_sequence_length: The gradient goes back through at most this many timesteps; ``None``: through the whole episode
    """

    policy: RecurrentActorCriticPolicy
    # PyTorch's LSTMs are 20 to 50 times as slow when they are differentiated twice as once, and on a GPU they cannot be
    has_second_derivative = False
    #: Whether the sequences of a piece are padded
    pads = True

    def __init__(self, policy: Any, max_sequence_length: int | None = None):
        super().__init__(policy)
        self.max_sequence_length = max_sequence_length

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        return RecurrentPolicySampler(self.policy, env.num_envs)

    def fits(self, sampler: PolicySampler) -> bool:
        return sampler.policy is self.policy and type(sampler) is RecurrentPolicySampler

    # Sequences

    def pieces(self, batch: Batch) -> Iterator[Batch]:
        if batch.episodes is None:  # timesteps without a past
            return super().pieces(batch)
        lengths = segments(batch.episodes.lengths, self.max_sequence_length)
        states = self._states_before(batch, lengths) if len(lengths) > len(batch.episodes) else None
        return (
            SequenceBatch.of(batch.part(rows), lengths[own], None if states is None else _of_sequences(states, own))
            for own, rows in runs(lengths, self._piece_size(), self.pads)
        )

    def _piece_size(self) -> int:
        lstm = self.policy.lstm_actor
        of_lstm = MAX_NUMBERS // (_PER_UNIT * lstm.num_layers * lstm.hidden_size)
        return max(1, min(of_lstm, piece_size(self.policy.observation_space, self.policy.action_space)))

    def _states_before(self, batch: Batch, lengths: np.ndarray) -> RNNStates:
        """The states before each segment, found without a graph: the first segment of all episodes, then the second, ..."""
        assert batch.episodes is not None and self.max_sequence_length is not None
        counts = -(-batch.episodes.lengths // self.max_sequence_length)
        first = np.cumsum(counts) - counts
        states = _zero_states(self.policy, len(lengths))
        with th.no_grad():
            for i in range(int(counts.max()) - 1):
                now = (first + i)[counts > i + 1]
                part = self.sub_batch(batch, lengths, now)
                before = RNNStates(*(tuple(each[:, now] for each in of) for of in states))
                after = self._states_after(SequenceBatch.of(part, lengths[now], before))
                for found, kept in zip((*after.pi, *after.vf), (*states.pi, *states.vf), strict=True):
                    kept[:, now + 1] = found
        return states

    def _states_after(self, piece: SequenceBatch) -> RNNStates:
        """The states after the last timestep of each sequence; all sequences are of the same length here."""
        assert piece.lengths is not None
        states = piece.states or _zero_states(self.policy, len(piece.lengths))
        starts = th.zeros(len(piece), device=self.policy.device)
        return self.policy(piece.observations, states, starts)[3]

    def sub_batch(self, batch: Batch, lengths: np.ndarray, chosen: np.ndarray) -> Batch:
        """
        :param batch: A batch of sequences
        :param lengths: Number of timesteps of each sequence
        :param chosen: Indices of some sequences
        :return: The batch of these
        """
        rows = th.from_numpy(rows_of(lengths, chosen)).to(batch.actions.device)
        part = batch.part(rows)
        if batch.episodes is None or len(lengths) != len(batch.episodes):
            return part
        episodes = batch.episodes
        own = type(episodes)(episodes.lengths[chosen], episodes.env_ids[chosen], episodes.first_timesteps[chosen])
        return replace(part, episodes=own)

    @staticmethod
    def _lengths(piece: Batch) -> np.ndarray:
        if isinstance(piece, SequenceBatch) and piece.lengths is not None:
            return piece.lengths
        # Without episodes, each timestep is the first of one
        return np.ones(len(piece), int) if piece.episodes is None else piece.episodes.lengths

    # On a piece

    def evaluate(self, piece: Batch) -> Evaluation:
        rows, inside, states, starts = self._padded(piece)
        extras = {name: array[rows] for name, array in piece.extras.items()}
        with differentiable(self.policy.lstm_actor):
            values, log_probs, entropy = self.policy.evaluate_actions(
                take(piece.observations, rows), piece.actions[rows], states, starts, **extras  # type: ignore[arg-type]
            )
        return values.flatten()[inside], log_probs[inside], None if entropy is None else entropy[inside]

    def _padded(self, piece: Batch) -> tuple[th.Tensor, th.Tensor, RNNStates, th.Tensor]:
        """The rows of the padded sequences, which of them are no padding, the first states, and that none begins later."""
        lengths = self._lengths(piece)
        first = np.cumsum(lengths) - lengths
        place = np.arange(lengths.max())
        rows = first[:, None] + np.minimum(place, lengths[:, None] - 1)
        rows, inside = (th.from_numpy(each.ravel()).to(piece.actions.device) for each in (rows, place < lengths[:, None]))
        states = piece.states if isinstance(piece, SequenceBatch) else None
        return rows, inside, states or _zero_states(self.policy, len(lengths)), th.zeros(len(rows), device=rows.device)

    def value(self, piece: Batch) -> th.Tensor:
        return self.evaluate(piece)[0]

    def last_values(self, batch: Batch, episode_ids: Sequence[int], observations: PyTorchObs) -> th.Tensor:
        assert batch.episodes is not None
        lengths = batch.episodes.lengths
        joined = _joined(batch.observations, observations)
        results = []
        with th.no_grad():
            for own, _ in runs(lengths[episode_ids] + 1, self._piece_size(), self.pads):
                ids = np.asarray(episode_ids)[own]
                rows = rows_of(lengths, ids)
                ends = np.cumsum(lengths[ids])
                # Each episode, and the observation after it; `evaluate_actions` wants some action there
                place = np.insert(rows, ends, len(batch) + np.arange(own.start, own.stop))
                repeated = th.from_numpy(np.insert(rows, ends, rows[ends - 1])).to(batch.actions.device)
                appended = Batch.of_observations(
                    take(joined, th.from_numpy(place).to(batch.actions.device)), batch.actions[repeated]
                )
                appended = replace(appended, extras={name: array[repeated] for name, array in batch.extras.items()})
                values = self.value(SequenceBatch.of(appended, lengths[ids] + 1))
                results.append(values[th.from_numpy(np.cumsum(lengths[ids] + 1) - 1).to(values.device)])
        return th.cat(results)

    def distributions(self, piece: Batch) -> list[Distribution]:
        raise NoNaturalStepError(
            "`natural_gradient=True` needs a recurrent policy with sb3-contrib's own methods, "
            f"got {type(self.policy).__name__}."
        )

    # The critic's regression

    def regression(self, batch: Batch) -> Regression:
        return SequenceRegression(self, batch, self.value)

    def minibatches(self, batch: Batch, batch_size: int, workers: Alone) -> Iterator[tuple[np.ndarray, int]]:
        """
        :param batch: A batch
        :param batch_size: The size of a minibatch that is aimed at: it holds whole episodes, at least one
        :param workers: The workers, each with a batch of its own
        :return: For each minibatch of one pass the episodes of this worker, and the number of timesteps of all workers
        """
        assert batch.episodes is not None
        lengths = batch.episodes.lengths
        n_timesteps, counts = sum(workers.gather(len(batch))), workers.gather(len(lengths))
        n_parts = max(1, min(-(-n_timesteps // batch_size), sum(counts)))
        offset, order = sum(counts[: workers.rank]), np.random.permutation(len(lengths))
        parts = [order[(i - offset) % n_parts :: n_parts] for i in range(n_parts)]
        totals = np.sum(workers.gather([int(lengths[part].sum()) for part in parts]), axis=0)
        return ((part, int(n_total)) for part, n_total in zip(parts, totals, strict=True))

    def sub_sample(self, batch: Batch, factor: int, workers: Alone) -> Batch:
        """
        :param batch: A batch
        :param factor: Number of episodes from which one is taken
        :param workers: The workers, each with a batch of its own
        :return: One episode out of each ``factor``, as a timestep needs those before it
        """
        assert batch.episodes is not None
        chosen = sub_sample(len(batch.episodes), factor, workers).numpy()
        return self.sub_batch(batch, batch.episodes.lengths, chosen)


class SeparableRecurrentActorCritic(RecurrentActorCritic):
    """
    A recurrent policy with sb3-contrib's own methods: its actor and its critic can be called separately, and the sequences
    need no padding.

    :param policy: The policy
    :param max_sequence_length: The gradient goes back through at most this many timesteps; ``None``: through the whole episode
    """

    pads = False

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        if understands(self.policy):
            return RecurrentNumpySampler(self.policy, env.num_envs, rng)
        return RecurrentActorSampler(self.policy, env.num_envs)

    def fits(self, sampler: PolicySampler) -> bool:
        if sampler.policy is not self.policy or understands(self.policy) is not isinstance(sampler, RecurrentNumpySampler):
            return False
        return not isinstance(sampler, RecurrentNumpySampler) or sampler.has_layers_of(self.policy)

    @property
    def reads_every_number(self) -> bool:
        return passes_on_every_number(self.policy)

    @property
    def critic_is_recurrent(self) -> bool:
        """Whether the critic has an LSTM of its own."""
        return self.policy.lstm_critic is not None

    def evaluate(self, piece: Batch) -> Evaluation:
        blocks = self._blocks(piece)
        features = self.policy.extract_features(piece.observations)
        of_actor, of_critic = features if isinstance(features, tuple) else (features, features)
        latent, _ = self._run_actor(piece, of_actor, blocks)
        if self.policy.shared_lstm:
            values = self._values_of_latent(latent.detach())
        else:
            values = self._values_of_features(piece, of_critic, blocks)
        return values, *self._judged(latent, piece)

    def act(self, piece: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        return self._judged(self._actor_latent(piece), piece)

    def value(self, piece: Batch) -> th.Tensor:
        if self.policy.shared_lstm:
            with th.no_grad():
                latent = self._actor_latent(piece)
            return self._values_of_latent(latent)
        return self._values_of_features(piece, self._features(piece.observations, self.policy.vf_features_extractor))

    def distributions(self, piece: Batch) -> list[Distribution]:
        return self._distributions_of(self._actor_latent(piece), piece)

    # The actor

    def _features(self, observations: PyTorchObs, extractor: Any) -> th.Tensor:
        return BasePolicy.extract_features(self.policy, observations, extractor)

    def _blocks(self, piece: Batch) -> Blocks:
        return Blocks(self._lengths(piece), piece.actions.device)

    def _run_actor(self, piece: Batch, features: th.Tensor, blocks: Blocks | None = None) -> tuple[th.Tensor, States]:
        states = piece.states.pi if isinstance(piece, SequenceBatch) and piece.states is not None else None
        return (blocks or self._blocks(piece)).run(self.policy.lstm_actor, features, states)  # type: ignore[arg-type]

    def _actor_latent(self, piece: Batch) -> th.Tensor:
        return self._run_actor(piece, self._features(piece.observations, self.policy.pi_features_extractor))[0]

    def _judged(self, latent: th.Tensor, piece: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        """Log-probabilities and entropies."""
        distribution = self.policy._get_action_dist_from_latent(self.policy.mlp_extractor.forward_actor(latent))
        return distribution.log_prob(piece.actions), distribution.entropy()

    def _distributions_of(self, latent: th.Tensor, piece: Batch) -> list[Distribution]:
        distribution = self.policy._get_action_dist_from_latent(self.policy.mlp_extractor.forward_actor(latent)).distribution
        return distribution if isinstance(distribution, list) else [distribution]

    # The critic

    def _values_of_latent(self, latent: th.Tensor) -> th.Tensor:
        return self.policy.value_net(self.policy.mlp_extractor.forward_critic(latent)).flatten()

    def _values_of_features(self, piece: Batch, features: th.Tensor, blocks: Blocks | None = None) -> th.Tensor:
        lstm = self.policy.lstm_critic
        if lstm is None:
            assert self.policy.critic is not None
            return self._values_of_latent(self.policy.critic(features))
        states = piece.states.vf if isinstance(piece, SequenceBatch) and piece.states is not None else None
        return self._values_of_latent((blocks or self._blocks(piece)).run(lstm, features, states)[0])  # type: ignore[arg-type]

    def _states_after(self, piece: SequenceBatch) -> RNNStates:
        policy, blocks = self.policy, self._blocks(piece)
        features = policy.extract_features(piece.observations)
        of_actor, of_critic = features if isinstance(features, tuple) else (features, features)
        of_pi = self._run_actor(piece, of_actor, blocks)[1]
        if policy.lstm_critic is None:
            return RNNStates(of_pi, of_pi)
        states = None if piece.states is None else piece.states.vf
        return RNNStates(of_pi, blocks.run(policy.lstm_critic, of_critic, states)[1])  # type: ignore[arg-type]

    def regression(self, batch: Batch) -> Regression:
        policy = self.policy
        if self.critic_is_recurrent:
            if not policy.share_features_extractor:
                return SequenceRegression(self, batch, self.value)
            with th.no_grad():  # the actor's, which the passes do not move
                pieces = [self._features(piece.observations, policy.vf_features_extractor) for piece in self.pieces(batch)]
            return SequenceRegression(self, batch, self.value, features=th.cat(pieces))
        if policy.shared_lstm:
            with th.no_grad():
                return Regression(self, batch, self.value, th.cat([self._actor_latent(piece) for piece in self.pieces(batch)]))
        return Regression(self, batch, self.value)

    def minibatches(self, batch: Batch, batch_size: int, workers: Alone) -> Iterator[tuple[np.ndarray, int]]:
        if self.critic_is_recurrent:
            return super().minibatches(batch, batch_size, workers)
        return workers.minibatches(len(batch), batch_size)  # the timesteps are independent for such a critic

    def split(self, batch: Batch | None = None) -> Split:
        policy = self.policy
        modules = [policy.vf_features_extractor, policy.mlp_extractor.value_net, policy.value_net]
        modules += [module for module in (policy.lstm_critic, policy.critic) if module is not None]
        value = {parameter for module in modules for parameter in module.parameters()}
        actors = [policy.pi_features_extractor, policy.lstm_actor, policy.mlp_extractor.policy_net, policy.action_net]
        actor = {parameter for module in actors for parameter in module.parameters()}
        if policy.shared_lstm:  # the LSTM is the actor's, and so are the features
            value -= actor
        return actor | {parameter for parameter in policy.parameters() if parameter not in value}, value

    def _shared_split(self, batch: Batch, workers: Alone) -> Split:
        return self.split()


class SequenceRegression(Regression):
    """
    A recurrent critic as a function of the episodes that it is fitted to.

    :param actor_critic: The policy
    :param batch: The timesteps
    :param value: Gives the values of a piece
    :param features: Inputs of the critic's LSTM, if they are kept, shape ``(n_timesteps, features_dim)``
    """

    def __init__(
        self,
        actor_critic: RecurrentActorCritic,
        batch: Batch,
        value: Callable[[Batch], th.Tensor],
        features: th.Tensor | None = None,
    ):
        super().__init__(actor_critic, batch, value)
        self.features = features

    def values_and_returns(self, rows: th.Tensor | slice) -> Iterator[tuple[th.Tensor, th.Tensor]]:
        """
        :param rows: Indices of some of the episodes
        :return: Values with their graph, and their target returns, in pieces of bounded size
        """
        actor_critic, batch = self.actor_critic, self.batch
        assert isinstance(actor_critic, RecurrentActorCritic) and batch.episodes is not None and isinstance(rows, th.Tensor)
        if len(rows) == 0:
            return
        part = actor_critic.sub_batch(batch, batch.episodes.lengths, rows.cpu().numpy())
        assert isinstance(part.rows, th.Tensor)
        for piece in actor_critic.pieces(part):
            if self.features is None:
                yield self.value(piece), piece.returns
            else:
                assert isinstance(actor_critic, SeparableRecurrentActorCritic)
                features = self.features[part.rows[piece.rows]]
                yield actor_critic._values_of_features(piece, features), piece.returns


def _zero_states(policy: RecurrentActorCriticPolicy, n_sequences: int) -> RNNStates:
    states = [no_states(policy.lstm_actor, n_sequences) for _ in range(2)]
    return RNNStates(*((hidden.clone(), cell.clone()) for hidden, cell in states))


def _of_sequences(states: RNNStates, chosen: slice) -> RNNStates:
    return RNNStates(*((hidden[:, chosen], cell[:, chosen]) for hidden, cell in states))


def _joined(observations: PyTorchObs, last: PyTorchObs) -> Any:
    if isinstance(observations, dict):
        assert isinstance(last, dict)
        return {key: _joined(array, last[key]) for key, array in observations.items()}
    # The observations of a buffer have an axis of their own for a discrete number
    return th.cat([observations, last.reshape(-1, *observations.shape[1:]).to(observations.dtype)])  # type: ignore[union-attr]


def make_recurrent_actor_critic(policy: RecurrentActorCriticPolicy, max_sequence_length: int | None) -> ActorCritic:
    """
    :param policy: A policy
    :param max_sequence_length: The gradient goes back through at most this many timesteps; ``None``: through the whole episode
    :return: Its actor and critic, called separately if that gives the same results
    """
    separable = has_sb3_forward(policy, RecurrentActorCriticPolicy)
    return (SeparableRecurrentActorCritic if separable else RecurrentActorCritic)(policy, max_sequence_length)
