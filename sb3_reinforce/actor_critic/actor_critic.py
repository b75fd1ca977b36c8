"""
The two functions of a policy, the distribution of actions and the value, on batches of timesteps.

This is the only place that knows how to call a policy. Everything else gets an :class:`ActorCritic`; whether actor and
critic can be called separately is decided once, in :func:`make_actor_critic`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Distribution

from sb3_reinforce.actor_critic.batch import MAX_NUMBERS, Batch, drawn_batches, piece_size, slices, sub_sample
from sb3_reinforce.actor_critic.inspection import has_sb3_forward, passes_on_every_number, plain_head
from sb3_reinforce.actor_critic.numpy_sampler import NumpySampler, is_understood
from sb3_reinforce.actor_critic.parameters import Parameters, Split, group_parameters, reached_by, split_by_modules, trainable
from sb3_reinforce.actor_critic.sampler import PolicySampler
from sb3_reinforce.actor_critic.state import evaluation_mode, forget_graphs
from sb3_reinforce.distributed.workers import Alone

#: Values, log-probabilities, and entropies where they have an analytical form, shape ``(n_timesteps,)`` each
Evaluation = tuple[th.Tensor, th.Tensor, th.Tensor | None]


class NoNaturalStepError(ValueError):
    """
    A policy has no natural step.

    :param message: The reason
    """

    def __init__(self, message: str):
        super().__init__(message)


def _equal(a: th.Tensor, b: th.Tensor) -> bool:
    return th.allclose(a, b.to(a.dtype), equal_nan=True)


def _distributions_in(action_dist: object) -> object:
    """The distribution that an ``action_dist`` holds, or the list of them, which sb3-contrib calls ``distributions``."""
    return getattr(action_dist, "distributions", None) or getattr(action_dist, "distribution", None)


class ActorCritic:
    """
    Any policy: actor and critic come from ``evaluate_actions`` and ``forward``, as SB3 calls them.

    :param policy: The policy
    """

    #: Whether PyTorch differentiates the distributions twice, and in reasonable time
    has_second_derivative = True

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy

    # While a rollout is played

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        """
        :param env: The environments to act in
        :param rng: Source of randomness of the fast path (SB3's path draws from PyTorch's generator)
        :return: The fastest sampler that gives the policy's own distribution
        """
        return PolicySampler(self.policy)

    def fits(self, sampler: PolicySampler) -> bool:
        """
        :param sampler: A sampler that was made before
        :return: Whether it fits the policy as it is now
        """
        return sampler.policy is self.policy and not isinstance(sampler, NumpySampler)

    @property
    def reads_every_number(self) -> bool:
        """Whether it is known that NaN anywhere in an observation reaches the networks."""
        return False

    # On a batch

    def pieces(self, batch: Batch) -> Iterator[Batch]:
        """
        :param batch: A batch
        :return: Its pieces, of bounded size, in order
        """
        size = piece_size(self.policy.observation_space, self.policy.action_space)
        return (batch.part(rows) for rows in slices(len(batch), size))

    def evaluate(self, piece: Batch) -> Evaluation:
        """
        :param piece: A piece of a batch
        :return: Values, log-probabilities and entropies
        """
        values, log_probs, entropy = self.policy.evaluate_actions(piece.observations, piece.actions, **piece.extras)
        return values.flatten(), log_probs, entropy

    def act(self, piece: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param piece: A piece of a batch
        :return: Log-probabilities and entropies, without the work of the critic where the policy allows it
        """
        return self.evaluate(piece)[1:]

    def value(self, piece: Batch) -> th.Tensor:
        """
        :param piece: A piece of a batch
        :return: The values of its observations, shape ``(n_timesteps,)``
        """
        return self.policy(piece.observations, **piece.extras)[1].flatten()

    def log_probs(self, batch: Batch) -> th.Tensor:
        """
        :param batch: A batch
        :return: Log-probability of each action, without graph, shape ``(n_timesteps,)``
        """
        with th.no_grad():
            return th.cat([self.act(piece)[0] for piece in self.pieces(batch)])

    def values(self, batch: Batch) -> th.Tensor:
        """
        :param batch: A batch
        :return: Value of each observation, without graph, shape ``(n_timesteps,)``
        """
        with th.no_grad():
            return th.cat([self.value(piece) for piece in self.pieces(batch)])

    def last_values(self, batch: Batch, episode_ids: Sequence[int], observations: PyTorchObs) -> th.Tensor:
        """
        :param batch: A rollout
        :param episode_ids: Some of its episodes
        :param observations: The observation after the last timestep of each of these
        :return: Their values, without graph, shape ``(len(episode_ids),)``
        """
        nothing = th.zeros(len(episode_ids), device=self.policy.device)
        return self.values(Batch.of_observations(observations, nothing))

    def distributions(self, piece: Batch) -> list[Distribution]:
        """
        The distributions of the independent parts of an action. For a squashed Gaussian this is the Gaussian: a divergence
        does not change under an invertible function of the action.

        :param piece: A piece of a batch
        :return: The distributions, each over all timesteps of the piece
        :raises NoNaturalStepError: If the policy does not leave its distribution where SB3's does
        """
        # SB3's `get_distribution` may not call the methods of such a policy, whose `evaluate_actions` is trained
        policy = self.policy
        before = _distributions_in(policy.action_dist)
        log_probs = self.evaluate(piece)[1]
        found = _distributions_in(policy.action_dist)
        try:
            left = found is not before and _equal(policy.action_dist.log_prob(piece.actions), log_probs)
        except Exception:  # it may be the distribution of something else
            left = False
        if not left:
            raise NoNaturalStepError(
                "`natural_gradient=True` needs a policy that leaves the distribution of its `evaluate_actions` in "
                f"`policy.action_dist`, got {type(policy).__name__}."
            )
        return found if isinstance(found, list) else [found]  # type: ignore[list-item]

    # The critic's regression

    def value_head(self) -> th.nn.Linear | None:
        """
        :return: The last layer of the critic, if it is known to put out the value itself, and is trained
        """
        head, batch = plain_head(self.policy), self.drawn_batch()
        if head is None or batch is None:
            return None
        outputs: list[th.Tensor] = []
        hook = head.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            with evaluation_mode(self.policy), th.no_grad():
                evaluated = self.evaluate(batch)
                values = evaluated[0], self.value(batch)
        finally:
            hook.remove()
            forget_graphs(self.policy)
        found = len(outputs) == 2 and all(map(th.equal, values, (o.flatten() for o in outputs)))
        return head if found and self._is_critics(head, batch) and not self._acts_on(head, batch, evaluated[1]) else None

    def _is_critics(self, head: th.nn.Linear, batch: Batch | None = None) -> bool:
        """Whether the actor has no part of a layer, which would change the policy when its weights are in other units."""
        actor, _ = self.split(batch)
        return actor.isdisjoint(head.parameters())

    def _acts_on(self, head: th.nn.Linear, batch: Batch, log_probs: th.Tensor) -> bool:
        """Whether the actor reads the value, which would change the policy when it is in other units."""
        bias = head.bias.detach().clone()
        try:
            with evaluation_mode(self.policy), th.no_grad():
                head.bias.add_(1.0)
                return not th.equal(self.evaluate(batch)[1], log_probs)
        finally:
            with th.no_grad():
                head.bias.copy_(bias)
            forget_graphs(self.policy)

    def regression(self, batch: Batch) -> "Regression":
        """
        :param batch: A batch that the critic is fitted to
        :return: The critic as a function of its timesteps
        """
        return Regression(self, batch, lambda piece: self.evaluate(piece)[0])

    def minibatches(self, batch: Batch, batch_size: int, workers: Alone) -> Iterator[tuple[np.ndarray | slice, int]]:
        """
        :param batch: A batch
        :param batch_size: The largest size of a minibatch
        :param workers: The workers, each with a batch of its own
        :return: For each minibatch of one pass the rows of this worker, and the number of rows of all workers. If the rows
            are a slice of whole episodes, these stay whole in :meth:`pieces` and :meth:`evaluate`
        """
        return workers.minibatches(len(batch), batch_size)

    def sub_sample(self, batch: Batch, factor: int, workers: Alone) -> Batch:
        """
        :param batch: A batch
        :param factor: Number of timesteps from which one is taken
        :param workers: The workers, each with a batch of its own
        :return: One timestep out of each ``factor``
        """
        return batch.part(sub_sample(len(batch), factor, workers).to(batch.actions.device))

    # Parameters

    def split(self, batch: Batch | None = None) -> Split:
        """
        Which parameters the two outputs depend on, according to the graph of ``evaluate_actions``.

        :param batch: The batch to evaluate; ``None``: an observation that is drawn from the space
        :return: The parameters that reach the log-probabilities or the entropy, and those that reach the values. If the policy
            has no output for a drawn observation, all parameters belong to the actor until there is a batch
        """
        if batch is None:
            batch = self.drawn_batch()
            if batch is None:
                return set(self.policy.parameters()), set()
        actor: set[th.nn.Parameter] = set()
        value: set[th.nn.Parameter] = set()
        for piece in self.pieces(batch):  # some layers may serve only some observations
            reached = self._split(piece)
            actor, value = actor | reached[0], value | reached[1]
        return actor, value

    def _split(self, piece: Batch) -> Split:
        frozen = [parameter for parameter in self.policy.parameters() if not parameter.requires_grad]
        for parameter in frozen:  # it may be trained one day
            parameter.requires_grad_(True)
        try:
            with evaluation_mode(self.policy), th.enable_grad():
                values, log_probs, entropy = self.evaluate(piece)
                actor_output = log_probs.sum() if entropy is None else log_probs.sum() + entropy.sum()
                return reached_by(actor_output, self.policy), reached_by(values.sum(), self.policy)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            forget_graphs(self.policy)

    def actor_parameters(self, batch: Batch | None = None) -> list[th.nn.Parameter]:
        """
        :param batch: See :meth:`split`
        :return: The parameters that reach the log-probabilities or the entropy, none of them frozen
        """
        actor, _ = self.split(batch)
        return trainable(parameter for parameter in self.policy.parameters() if parameter in actor)

    def trainable(self, batch: Batch, workers: Alone, uses_critic: bool, moves_shared_layers: bool) -> Parameters:
        """
        The parameters to train. The optimizer's groups are divided accordingly, as the policy, the optimizer or the frozen
        parameters may have changed since the last update.

        :param batch: The batch of the update
        :param workers: The workers, as any worker's timesteps may reach a layer that the others' do not
        :param uses_critic: Whether the critic is trained
        :param moves_shared_layers: Whether the value loss may move the layers that the critic shares with the actor
        :return: The parameters
        """
        split = self._shared_split(batch, workers)
        actor, value = (trainable(parameters) for parameters in group_parameters(self.policy, split))
        if not uses_critic:
            return Parameters(actor, [], [])
        of_actor = set(actor)
        critic = [parameter for parameter in value if parameter not in of_actor]
        return Parameters(actor, value if moves_shared_layers else critic, critic)

    def _shared_split(self, batch: Batch, workers: Alone) -> Split:
        actor, value = workers.union(list(self.policy.parameters()), *self.split(batch))
        return actor, value

    def drawn_batch(self) -> Batch | None:
        """
        :return: A batch of one timestep; ``None`` if the policy has no output for it, as it may accept only what its
            environment really shows
        """
        for batch in drawn_batches(self.policy):
            try:
                with evaluation_mode(self.policy), th.no_grad():
                    self.evaluate(batch)
                return batch
            except Exception:  # the user's network may raise anything
                continue
        return None


class SeparableActorCritic(ActorCritic):
    """
    A policy with SB3's own methods: its actor and its critic can be called separately.

    :param policy: The policy
    """

    def sampler(self, env: VecEnv, rng: np.random.Generator) -> PolicySampler:
        return NumpySampler(self.policy, env.num_envs, rng) if is_understood(self.policy) else PolicySampler(self.policy)

    def fits(self, sampler: PolicySampler) -> bool:
        if not isinstance(sampler, NumpySampler):
            return super().fits(sampler)
        # Layers may have been exchanged or hooked in the meantime
        return sampler.policy is self.policy and is_understood(self.policy) and sampler.has_layers_of(self.policy)

    @property
    def reads_every_number(self) -> bool:
        return passes_on_every_number(self.policy)

    def act(self, piece: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        distribution = self.policy.get_distribution(piece.observations)
        return distribution.log_prob(piece.actions), distribution.entropy()

    def value(self, piece: Batch) -> th.Tensor:
        return self.policy.predict_values(piece.observations).flatten()

    def distributions(self, piece: Batch) -> list[Distribution]:
        found = self.policy.get_distribution(piece.observations).distribution
        return found if isinstance(found, list) else [found]

    def value_head(self) -> th.nn.Linear | None:
        head = plain_head(self.policy)
        return head if head is not None and self._is_critics(head) else None

    def regression(self, batch: Batch) -> "Regression":
        policy = self.policy
        observations = batch.observations
        arrays = observations.values() if isinstance(observations, dict) else [observations]
        # One-hot vectors can be far larger than the numbers that they encode
        expands = policy.features_dim * len(batch) > max(MAX_NUMBERS, sum(array.numel() for array in arrays))
        if expands or not policy.share_features_extractor:
            return Regression(self, batch, self.value)
        with th.no_grad():
            features = [policy.extract_features(piece.observations) for piece in self.pieces(batch)]
        return Regression(self, batch, self.value, th.cat(features))  # type: ignore[arg-type]

    def split(self, batch: Batch | None = None) -> Split:
        return split_by_modules(self.policy)

    def _shared_split(self, batch: Batch, workers: Alone) -> Split:
        return self.split()  # the modules determine it, equally in every worker


class Regression:
    """
    The critic as a function of the timesteps that it is fitted to, of which each pass recomputes as little as possible.

    :param actor_critic: The policy
    :param batch: The timesteps
    :param value: Gives the values of a piece
    :param latents: Features of the observations from an extractor that the critic shares with the actor, if they are kept,
        shape ``(n_timesteps, features_dim)``
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        batch: Batch,
        value: Callable[[Batch], th.Tensor],
        latents: th.Tensor | None = None,
    ):
        self.actor_critic = actor_critic
        self.batch = batch
        self.value = value
        self.latents = latents

    def values_and_returns(self, rows: th.Tensor | slice) -> Iterator[tuple[th.Tensor, th.Tensor]]:
        """
        :param rows: Some of the timesteps
        :return: Values with their graph, and their target returns, in pieces of bounded size
        """
        policy, returns = self.actor_critic.policy, self.batch.returns[rows]
        if self.latents is not None:
            yield policy.value_net(policy.mlp_extractor.forward_critic(self.latents[rows])).flatten(), returns
            return
        for piece in self.actor_critic.pieces(self.batch.part(rows)):
            yield self.value(piece), piece.returns


def make_actor_critic(policy: ActorCriticPolicy) -> ActorCritic:
    """
    :param policy: A policy
    :return: Its actor and critic, called separately if that gives the same results
    """
    return SeparableActorCritic(policy) if has_sb3_forward(policy) else ActorCritic(policy)
