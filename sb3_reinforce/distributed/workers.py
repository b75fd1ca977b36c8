"""The workers that train one model, from the view of one of them: a process alone, or one of a group."""

import io
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import explained_variance

from sb3_reinforce.distributed import process_group, ranks
from sb3_reinforce.distributed.moments import Moments
from sb3_reinforce.distributed.process_group import lost_workers_named
from sb3_reinforce.distributed.sharing import (
    Report,
    check_same,
    checksum,
    comparable_arguments,
    moments_of,
    normalizers,
    set_moments,
    set_statistics,
    statistics_of,
)

T = TypeVar("T")
Infos = Sequence[dict[str, Any]]

#: Sums of at most this many bytes go along a tree of workers, larger ones around a ring
MAX_TREE_BYTES = 2**18
#: Keeps equal numbers from being divided by zero. Anything larger would tell large rewards from small ones
TINY = th.finfo(th.float32).tiny
#: Numbers that distinguish models without a seed
_n_unseeded = count()


class Alone:
    """A process that trains its model alone. It has all the methods of a :class:`Group`, which do nothing here."""

    rank = 0
    size = 1

    def joined(self, device: th.device) -> "Alone":
        """
        :param device: Device of the model
        :return: The workers to learn with, which torchrun has started
        """
        return Group(*process_group.join_group(device)) if process_group.n_launched() > 1 else ALONE

    def fail(self, error: BaseException) -> None:
        """
        If one worker fails, all do.

        :param error: This worker's error
        :raises WorkerLostError: If another worker failed before it, with that worker's error
        """

    # Sums

    def gather(self, item: T) -> list[T]:
        """
        :param item: Anything that can be pickled
        :return: The items of all workers
        """
        return [item]

    def add_up(self, tensors: Sequence[th.Tensor]) -> None:
        """
        Sum tensors over the workers, in place. The sums are the same everywhere, to the last bit.

        :param tensors: Tensors of one type and on one device, of the same shapes on every worker
        """

    def add_up_with(self, tensors: Sequence[th.Tensor], numbers: Sequence[float]) -> list[float]:
        """
        :param tensors: See :meth:`add_up`
        :param numbers: Numbers that are summed in the same message
        :return: The sums of the numbers
        """
        return list(numbers)

    def union(self, items: Sequence[T], *subsets: set[T]) -> list[set[T]]:
        """
        :param items: Items that every worker has, in the same order
        :param subsets: This worker's subsets of them
        :return: The unions of the subsets of all workers
        """
        return list(subsets)

    def moments(self, numbers: np.ndarray) -> Moments:
        """
        :param numbers: Any array
        :return: The moments of all the workers' numbers, in double precision
        """
        flat = th.from_numpy(np.asarray(numbers, dtype=np.float64).ravel())
        count_and_sum = th.stack((th.tensor(float(len(flat)), dtype=th.float64), flat.sum()))
        self.add_up([count_and_sum])
        n, total = count_and_sum.tolist()
        deviation = (flat - total / max(n, 1.0)).square().sum().view(1)
        self.add_up([deviation])
        return Moments(n, np.asarray(total / max(n, 1.0)), deviation.numpy()[0])

    def mean(self, numbers: th.Tensor) -> float:
        """
        :param numbers: Numbers
        :return: Their mean
        """
        return float(numbers.mean())

    def normalized(self, numbers: th.Tensor) -> th.Tensor:
        """
        :param numbers: Numbers, shape ``(n,)``
        :return: The numbers minus their mean, divided by their standard deviation; a single number stays unchanged
        """
        return (numbers - numbers.mean()) / (numbers.std() + TINY) if len(numbers) > 1 else numbers

    def explained_variance(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """
        :param predictions: Predictions, shape ``(n,)``
        :param targets: The true values, shape ``(n,)``
        :return: The share of the variance of the targets that the predictions explain
        """
        return float(explained_variance(predictions.astype(np.float64), targets.astype(np.float64)))  # squares may be large

    def totals(self, n_timesteps: int, n_episodes: int) -> tuple[int, int]:
        """
        :param n_timesteps: Timesteps of this worker in the last rollout
        :param n_episodes: Episodes of this worker
        :return: Timesteps and episodes of all workers
        """
        return n_timesteps, n_episodes

    def minibatches(self, n_timesteps: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
        """
        One pass over all the workers' timesteps in random order, in minibatches of (almost) equal size. Their number is the
        same as in a single process.

        :param n_timesteps: Timesteps of this worker in the last rollout
        :param batch_size: The largest size of a minibatch of all workers together
        :return: For each minibatch the rows of this worker, and the number of rows of all workers
        """
        rows = np.random.permutation(n_timesteps)
        return ((part, len(part)) for part in np.array_split(rows, -(-n_timesteps // batch_size)))

    # Learning and rollouts

    def start(self, model: OnPolicyAlgorithm, total_timesteps: int) -> None:
        """
        Begin a call of ``learn``: every worker takes over the weights, the optimizer's state, the timesteps and the
        normalizers of rank 0, and gets a seed of its own for environments that have none yet.

        :param model: The model
        :param total_timesteps: Argument of ``learn``
        :raises ValueError: If the workers' arguments differ
        """

    def share_rollout(self, model: OnPolicyAlgorithm, callback: BaseCallback, report: Report) -> Report:
        """
        End a rollout: report it to the others, merge the normalizers' statistics, and make sure that all still have the same
        weights (different kinds of processors may round differently).

        :param model: The model
        :param callback: Its callback
        :param report: This worker's rollout
        :return: The joint report of all workers
        :raises ValueError: If the workers do not train the same parameters
        """
        return report

    def share_buffers(self, policy: ActorCriticPolicy) -> None:
        """
        Take over from rank 0 what a policy gathers while it trains, like the statistics of batch normalization.

        :param policy: The policy
        """

    # Callbacks and log

    def callbacks(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """
        :param callback: Argument of ``learn``
        :param progress_bar: Argument of ``learn``
        :return: The callbacks that this worker calls, and whether SB3 shows its progress bar
        """
        return callback, progress_bar

    def logged_at_once(self, infos: Infos, dones: np.ndarray | None) -> tuple[Infos, np.ndarray | None]:
        """
        :param infos: The infos of a step
        :param dones: Which episodes have ended with it
        :return: The part of them that is logged at once, before the end of the rollout
        """
        return infos, dones

    def postponed(self, callback: BaseCallback) -> BaseCallback:
        """
        :param callback: A callback
        :return: A callback whose rollouts do not end before :meth:`end_rollout`
        """
        return callback

    def end_rollout(self, callback: BaseCallback) -> None:
        """
        :param callback: A callback that waits for the end of its rollout
        """


class Group(Alone):
    """
    One of several workers that train a model together.

    :param rank: The index of this worker
    :param size: The number of workers
    """

    def __init__(self, rank: int, size: int):
        self.rank = rank
        self.size = size
        #: How often the weights were found to differ
        self.n_repairs = 0
        #: Recorded timesteps of each worker in the last rollout
        self.n_timesteps: list[int] = []
        self._n_episodes = 0
        self._n_seeds = 0
        self._normalizers: list[tuple[RunningMeanStd, Moments]] = []
        # From the present rollout's episodes, for the other workers
        self._infos: list[dict[str, Any]] = []

    def joined(self, device: th.device) -> Alone:
        # This process may have left the group, or the model may come from another process
        return self if process_group.is_together() else super().joined(device)

    def fail(self, error: BaseException) -> None:
        process_group.fail(self.rank, self.size, error)

    def gather(self, item: T) -> list[T]:
        items: list[Any] = [None] * self.size
        with lost_workers_named():
            dist.all_gather_object(items, item)
        return items

    def _from_rank_0(self, item: T) -> T:
        items = [item]
        with lost_workers_named():
            dist.broadcast_object_list(items, src=0)
        return items[0]

    def add_up(self, tensors: Sequence[th.Tensor]) -> None:
        if not tensors:
            return
        flat = th.cat([tensor.reshape(-1) for tensor in tensors])  # one message, whatever their number
        with lost_workers_named():
            if flat.is_cuda or flat.numel() * flat.element_size() > MAX_TREE_BYTES:
                dist.all_reduce(flat)
            else:
                self._add_up_along_tree(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def add_up_with(self, tensors: Sequence[th.Tensor], numbers: Sequence[float]) -> list[float]:
        totals = th.tensor(numbers)
        if tensors:
            totals = totals.to(tensors[0])
        self.add_up([*tensors, totals])
        return totals.tolist()

    def _add_up_along_tree(self, numbers: th.Tensor) -> None:
        """
        Sum along a binomial tree with rank 0 at its root, and pass the sum back down. For the few numbers of a small network
        over gloo, this takes a tenth of the time of ``all_reduce``, which is made for many.
        """
        received = th.empty_like(numbers)
        children, distance = [], 1
        while distance < self.size and self.rank % (2 * distance) == 0:
            if self.rank + distance < self.size:
                children.append(self.rank + distance)
                dist.recv(received, children[-1])
                numbers += received
            distance *= 2
        if self.rank > 0:
            dist.send(numbers, self.rank - distance)
            dist.recv(numbers, self.rank - distance)
        for child in reversed(children):
            dist.send(numbers, child)

    def union(self, items: Sequence[T], *subsets: set[T]) -> list[set[T]]:
        flags = th.tensor([[float(item in subset) for item in items] for subset in subsets])
        self.add_up([flags])
        return [{item for item, flag in zip(items, row, strict=True) if flag} for row in flags.tolist()]

    def mean(self, numbers: th.Tensor) -> float:
        return float(self.moments(numbers.cpu().numpy()).mean)

    def normalized(self, numbers: th.Tensor) -> th.Tensor:
        moments = self.moments(numbers.cpu().numpy())
        if moments.n <= 1:
            return numbers
        deviation = float(moments.deviation / (moments.n - 1)) ** 0.5
        return (numbers - float(moments.mean)) / (deviation + TINY)

    def explained_variance(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        residuals, all_targets = self.moments(targets - predictions), self.moments(targets)
        return float(1.0 - residuals.deviation / all_targets.deviation) if all_targets.deviation > 0 else np.nan

    def totals(self, n_timesteps: int, n_episodes: int) -> tuple[int, int]:
        return sum(self.n_timesteps), self._n_episodes

    def minibatches(self, n_timesteps: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
        n_total, offset = sum(self.n_timesteps), sum(self.n_timesteps[: self.rank])
        n_parts = -(-n_total // batch_size)
        rows = np.random.permutation(n_timesteps)
        # The rows are dealt out in turn, starting with the part after the last one of the worker before
        for i in range(n_parts):
            yield rows[(i - offset) % n_parts :: n_parts], n_total // n_parts + (i < n_total % n_parts)

    def start(self, model: OnPolicyAlgorithm, total_timesteps: int) -> None:
        self._infos.clear()
        check_same(self.gather({**comparable_arguments(model), "total_timesteps": total_timesteps}))
        self._share_state(model)
        found = normalizers(model.env)
        for each, statistics in zip(found, self._from_rank_0([statistics_of(each) for each in found]), strict=True):
            set_statistics(each, statistics)
        self._normalizers = [(each, moments_of(each)) for each in found]
        self._seed_environments(model)
        if self.rank > 0:
            model.set_logger(Logger(folder=None, output_formats=[]))

    def _seed_environments(self, model: OnPolicyAlgorithm) -> None:
        if not any(self.gather(model.env is not getattr(model, "_seeded_env", None))):
            return
        seed = self.seed(model.seed)
        model._seeded_env = model.env  # type: ignore[attr-defined]
        if self.rank > 0:
            model.set_random_seed(seed)
            model._last_obs = None  # the present episodes have another seed

    def seed(self, seed: int | None) -> int | None:
        """
        A seed for each worker, so that no two workers play the same episodes.

        :param seed: The user's seed
        :return: For rank 0 the user's seed; for the others a seed that is derived from it and the rank (without one, from
            PyTorch's seed on rank 0)
        """
        self._n_seeds += 1
        base = self._from_rank_0(th.initial_seed() + next(_n_unseeded) if seed is None else seed)
        if self.rank == 0:
            return seed
        sequence = np.random.SeedSequence((base, self.rank, self._n_seeds))
        return int(sequence.generate_state(1)[0]) % 2**31

    def _share_state(self, model: OnPolicyAlgorithm) -> None:
        file = io.BytesIO()
        if self.rank == 0:
            optimizer = model.policy.optimizer
            counts = model.num_timesteps, model._n_updates, model._return_units  # type: ignore[attr-defined]
            th.save((model.policy.state_dict(), optimizer.state_dict(), *counts), file)
        content = self._from_rank_0(file.getvalue())
        if self.rank > 0:
            policy, optimizer_state, *counts = th.load(io.BytesIO(content), map_location=model.device, weights_only=False)
            model.num_timesteps, model._n_updates, model._return_units = counts  # type: ignore[attr-defined]
            model.policy.load_state_dict(policy)
            model.policy.optimizer.load_state_dict(optimizer_state)

    def share_rollout(self, model: OnPolicyAlgorithm, callback: BaseCallback, report: Report) -> Report:
        report = report._replace(infos=tuple(self._infos))
        self._infos.clear()
        increments = [moments_of(normalizer).since(before) for normalizer, before in self._normalizers]
        trained = {name: parameter.requires_grad for name, parameter in model.policy.named_parameters()}
        gathered = self.gather((report, increments, trained, checksum(model.policy)))
        check_same([{f"requires_grad of {name}": flag for name, flag in flags.items()} for _, _, flags, _ in gathered])
        for i, (normalizer, total) in enumerate(self._normalizers):
            for _, others, _, _ in gathered:
                total |= others[i]
            set_moments(normalizer, total)
            # Not `total`, which has other rounding errors: a run that is taken up here has the normalizer alone
            self._normalizers[i] = (normalizer, moments_of(normalizer))
        if len({number for _, _, _, number in gathered}) > 1:
            self.n_repairs += 1
            self._share_state(model)
        reports = [each for each, _, _, _ in gathered]
        together = Report.of_all(reports)
        self.n_timesteps, self._n_episodes = [each.n_timesteps for each in reports], together.n_episodes
        ranks.count_again(callback, model.num_timesteps - report.n_played + together.n_played)
        return together

    def share_buffers(self, policy: ActorCriticPolicy) -> None:
        with lost_workers_named():
            for buffer in policy.buffers():
                dist.broadcast(buffer, src=0)

    def callbacks(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        return ranks.callbacks_of(self.rank, callback, progress_bar), False

    def logged_at_once(self, infos: Infos, dones: np.ndarray | None) -> tuple[Infos, np.ndarray | None]:
        # Nothing yet: at the end of the rollout the infos of all workers are logged in turn
        for info, done in zip(infos, dones, strict=True):  # type: ignore[arg-type]
            kept: dict[str, Any] = {
                key: info[key] for key in ("episode", "is_success") if key in info and (done or key == "episode")
            }
            self._infos += [kept] if kept else []
        return [], None

    def postponed(self, callback: BaseCallback) -> BaseCallback:
        return ranks.WithoutRolloutEnd(callback)  # type: ignore[return-value]

    def end_rollout(self, callback: BaseCallback) -> None:
        callback.on_rollout_end()


#: A process that trains its model alone
ALONE = Alone()
