"""
Data-parallel training on ``torch.distributed``: several workers, each with environments of its own, learn one model.

``torchrun --nproc-per-node=4 train.py`` starts a script several times; ``learn`` finds the other workers through the variables
that torchrun sets. Every worker plays whole episodes. What travels are sums, and the counts that they are divided by, so that
an update is the one that a single process would have made of all the workers' episodes.
"""

import atexit
import copy
import io
import os
import pathlib
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    LogEveryNTimesteps,
    ProgressBarCallback,
)
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_reinforce.checks import constructor_arguments

T = TypeVar("T")

#: Sums of at most so many bytes go along a tree of workers, larger ones around a ring
MAX_TREE_BYTES = 2**18
#: Key of the job's store under which the first worker to fail leaves its error
_FAILURE = "failure"
#: Key of the number of workers that have read it
_READ = "read"
#: SB3's callbacks that write, print or evaluate: once per job is enough
_RANK_0_CALLBACKS = (EvalCallback, CheckpointCallback, ProgressBarCallback, LogEveryNTimesteps)
#: Arguments of which each worker may have its own
_OWN_ARGUMENTS = {"n_steps", "seed", "verbose", "stats_window_size", "tensorboard_log"}


class WorkerLostError(RuntimeError):
    """
    Another worker of the job has failed, or has gone.

    :param message: What is known of it
    """

    def __init__(self, message: str):
        super().__init__(message)


class Moments(NamedTuple):
    """
    Number, mean and sum of squared deviations of a set of numbers.

    :param n: How many
    :param mean: Their mean
    :param deviation: Sum of the squared deviations from it
    """

    n: float
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def root_mean_square(self) -> float:
        """Root of the mean of their squares."""
        return float(np.sqrt(np.square(self.mean) + self.deviation / max(self.n, 1.0)))

    def __or__(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub and LeVeque, 1983)."""
        count = self.n + other.n
        if count == 0:
            return self
        delta = other.mean - self.mean
        share = other.n / count
        return Moments(count, self.mean + delta * share, self.deviation + other.deviation + np.square(delta) * self.n * share)

    def since(self, before: "Moments") -> "Moments":
        """
        :param before: The moments of a part of the set
        :return: Those of the rest
        """
        count = self.n - before.n
        if count <= 0:
            return Moments(0.0, np.zeros_like(self.mean), np.zeros_like(self.deviation))
        delta = (self.mean - before.mean) * self.n / count
        rest = self.deviation - before.deviation - np.square(delta) * before.n * count / self.n
        return Moments(count, before.mean + delta, np.maximum(rest, 0.0))


class Report(NamedTuple):
    """
    What a worker tells the others of its rollout.

    :param goes_on: ``False``: a callback has stopped it
    :param n_played: Steps of its environments
    :param n_timesteps: Recorded timesteps
    :param n_episodes: Recorded episodes
    :param cut: Whether an episode was cut at the horizon
    :param cuts_expected: Whether that was to be expected
    :param infos: The ``info`` of the finished ones, as far as it is logged
    """

    goes_on: bool
    n_played: int
    n_timesteps: int = 0
    n_episodes: int = 0
    cut: bool = False
    cuts_expected: bool = False
    infos: tuple[dict[str, Any], ...] = ()


class Workers:
    """
    The workers that train one model together, as one of them sees them. A process on its own is its only worker: everything
    here then returns at once.

    :param rank: Which of them this process is
    :param size: How many there are
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank = rank
        self.size = size
        self._normalizers: list[tuple[RunningMeanStd, Moments]] = []
        self._n_seeds = 0
        #: How often the weights were found to differ
        self.n_repairs = 0
        #: Recorded timesteps of each worker in the last rollout
        self.n_timesteps: list[int] = []

    @property
    def alone(self) -> bool:
        """Whether there is no other worker."""
        return self.size == 1

    def gather(self, item: T) -> list[T]:
        """
        :param item: Anything that can be pickled
        :return: That of each worker
        """
        if self.alone:
            return [item]
        items: list[Any] = [None] * self.size
        with _lost_workers_named():
            dist.all_gather_object(items, item)
        return items

    def add_up(self, tensors: Sequence[th.Tensor]) -> None:
        """
        Sum tensors over the workers, in place; to the last bit the same everywhere.

        :param tensors: Tensors of one type and on one device, of the same shapes on every worker
        """
        if self.alone or not tensors:
            return
        flat = th.cat([tensor.reshape(-1) for tensor in tensors])  # one message, whatever their number
        with _lost_workers_named():
            if flat.is_cuda or flat.numel() * flat.element_size() > MAX_TREE_BYTES:
                dist.all_reduce(flat)
            else:
                self._add_up_along_tree(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def _add_up_along_tree(self, numbers: th.Tensor) -> None:
        """
        Sum along a binomial tree with rank 0 at its root, and pass the sum back down. For the few numbers of a small network
        over gloo a tenth of the time of ``all_reduce``, which is made for many.
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

    def moments(self, numbers: np.ndarray) -> "Moments":
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

    def union(self, items: Sequence[T], *subsets: set[T]) -> list[set[T]]:
        """
        :param items: What every worker has, in the same order
        :param subsets: This worker's subsets of it
        :return: The unions of the subsets of all workers
        """
        if self.alone:
            return list(subsets)
        flags = th.tensor([[float(item in subset) for item in items] for subset in subsets])
        self.add_up([flags])
        return [{item for item, flag in zip(items, row, strict=True) if flag} for row in flags.tolist()]

    def start(self, model: OnPolicyAlgorithm, arguments: dict[str, Any]) -> None:
        """
        Begin a call of ``learn``: every worker takes over the weights, the optimizer's state, the timesteps and the
        normalizers of rank 0.

        :param model: The model
        :param arguments: Arguments that must be the same for all workers, by their names
        :raises ValueError: If they are not
        """
        if self.alone:
            return
        _check_same(self.gather(arguments))
        self._share_state(model)
        normalizers = _normalizers(model.env)
        of_rank_0 = self._from_rank_0([_moments(normalizer) for normalizer in normalizers])
        self._normalizers = list(zip(normalizers, of_rank_0, strict=True))
        for normalizer, moments in self._normalizers:
            _set_moments(normalizer, moments)

    def _share_state(self, model: OnPolicyAlgorithm) -> None:
        file = io.BytesIO()
        if self.rank == 0:
            optimizer = model.policy.optimizer
            th.save((model.policy.state_dict(), optimizer.state_dict(), model.num_timesteps, model._n_updates), file)
        content = self._from_rank_0(file.getvalue())
        if self.rank > 0:
            policy, optimizer_state, model.num_timesteps, model._n_updates = th.load(
                io.BytesIO(content), map_location=model.device, weights_only=False
            )
            model.policy.load_state_dict(policy)
            model.policy.optimizer.load_state_dict(optimizer_state)

    def share_buffers(self, policy: ActorCriticPolicy) -> None:
        """
        What a policy gathers by itself while it trains, like the statistics of batch normalization, is taken over from rank 0.

        :param policy: The policy
        """
        if self.alone:
            return
        with _lost_workers_named():
            for buffer in policy.buffers():
                dist.broadcast(buffer, src=0)

    def seed(self, seed: int | None) -> int | None:
        """
        A seed for each worker, so that no two play the same episodes.

        :param seed: The user's seed
        :return: For rank 0 that one; for the others one that is derived from it and the rank (without one, from the seed that
            PyTorch has on rank 0)
        """
        if self.alone:
            return seed
        self._n_seeds += 1
        base = self._from_rank_0(th.initial_seed() + next(_n_unseeded) if seed is None else seed)
        if self.rank == 0:
            return seed
        sequence = np.random.SeedSequence((base, self.rank, self._n_seeds))
        return int(sequence.generate_state(1)[0]) % 2**31

    def share_rollout(self, model: OnPolicyAlgorithm, report: Report) -> Report:
        """
        The end of a rollout: tell the others of it, merge the normalizers' statistics, and make sure that all still have the
        same weights (processors of another kind may round differently).

        :param model: The model
        :param report: This worker's rollout
        :return: What the workers have played together; the rollout goes on if all of them do
        :raises ValueError: If the workers do not train the same parameters
        """
        if self.alone:
            return report
        increments = [_moments(normalizer).since(before) for normalizer, before in self._normalizers]
        trained = {name: parameter.requires_grad for name, parameter in model.policy.named_parameters()}
        gathered = self.gather((report, increments, trained, _checksum(model.policy)))
        _check_same([{f"requires_grad of {name}": flag for name, flag in flags.items()} for _, _, flags, _ in gathered])
        for i, (normalizer, total) in enumerate(self._normalizers):
            for _, others, _, _ in gathered:
                total |= others[i]
            _set_moments(normalizer, total)
            self._normalizers[i] = (normalizer, total)
        if len({checksum for _, _, _, checksum in gathered}) > 1:
            self.n_repairs += 1
            self._share_state(model)
        reports = [each for each, _, _, _ in gathered]
        self.n_timesteps = [each.n_timesteps for each in reports]
        # In turn, so that a window over the last ones has some of each worker
        in_turn = chain.from_iterable(zip_longest(*(each.infos for each in reports)))
        return Report(
            all(each.goes_on for each in reports),
            sum(each.n_played for each in reports),
            sum(each.n_timesteps for each in reports),
            sum(each.n_episodes for each in reports),
            any(each.cut for each in reports),
            any(each.cuts_expected for each in reports),
            tuple(info for info in in_turn if info is not None),
        )

    def minibatches(self, n_timesteps: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
        """
        One pass over all the workers' timesteps in random order, in minibatches of (almost) equal size, as many as one
        process would need.

        :param n_timesteps: Timesteps of this worker in the last rollout
        :param batch_size: The largest size of a minibatch of all workers together
        :return: For each minibatch the rows of it that are this worker's, and the number of all its rows
        """
        counts = [n_timesteps] if self.alone else self.n_timesteps
        n_total, offset = sum(counts), sum(counts[: self.rank])
        n_parts = -(-n_total // batch_size)
        rows = np.random.permutation(n_timesteps)
        if self.alone:
            yield from ((part, len(part)) for part in np.array_split(rows, n_parts))
            return
        # Dealt out in turn, going on with the part at which the worker before has ended
        for i in range(n_parts):
            yield rows[(i - offset) % n_parts :: n_parts], n_total // n_parts + (i < n_total % n_parts)

    def callback(self, callback: MaybeCallback, progress_bar: bool) -> MaybeCallback:
        """
        The part of the callbacks that this worker calls. A callback chooses its ranks by an attribute ``ranks``, a collection
        of integers. Without one, SB3's evaluation, checkpoints, progress bar and logging are called on rank 0, everything else
        on every rank.

        :param callback: Argument of ``learn``
        :param progress_bar: Argument of ``learn``
        :return: A callback
        """
        callbacks = callback if isinstance(callback, list) else [callback] if callback is not None else []
        if progress_bar:
            callbacks = [*callbacks, GlobalProgressBar()]
        chosen = [self._choose(child) for child in callbacks]
        return [child if isinstance(child, BaseCallback) else ConvertCallback(child) for child in chosen if child is not None]

    def _choose(self, callback: Any) -> Any:
        ranks = getattr(callback, "ranks", None)
        if ranks is not None:
            return callback if self.rank in ranks else None
        if isinstance(callback, _RANK_0_CALLBACKS):
            return callback if self.rank == 0 else None
        if isinstance(callback, CallbackList):
            children = [self._choose(child) for child in callback.callbacks]
            if all(child is before for child, before in zip(children, callback.callbacks, strict=True)):
                return callback
            chosen = copy.copy(callback)
            chosen.callbacks = [child for child in children if child is not None]
            return chosen
        if isinstance(callback, EventCallback) and callback.callback is not None:
            child = self._choose(callback.callback)
            if child is None or child is callback.callback:
                return None if child is None else callback
            event = copy.copy(callback)
            event.callback = child
            child.parent = event
            return event
        return callback

    def _from_rank_0(self, item: T) -> T:
        items = [item]
        with _lost_workers_named():
            dist.broadcast_object_list(items, src=0)
        return items[0]

    @contextmanager
    def whole_file(self, path: str | pathlib.Path | io.BufferedIOBase) -> Iterator[str | pathlib.Path | io.BufferedIOBase]:
        """
        A script that several workers run saves to one path several times at once: each writes a file of its own, which then
        takes the place as a whole.

        :param path: Where a model is to be saved
        :return: Where to write it meanwhile
        """
        if self.alone or isinstance(path, io.BufferedIOBase):
            yield path
            return
        target = pathlib.Path(path)
        target = target if target.suffix else target.with_suffix(".zip")
        own = target.with_name(f".{target.name}.{self.rank}.tmp")
        try:
            yield own
            own.replace(target)
        finally:
            own.unlink(missing_ok=True)

    def fail(self, error: BaseException) -> None:
        """
        If one worker fails, all do: it leaves its error in the job's store and closes its connections, which wakes those that
        wait for it.

        :param error: What this worker has failed with
        :raises WorkerLostError: If another worker failed before it, with that worker's error
        """
        if self.alone:
            return
        lost = isinstance(error, WorkerLostError)
        message = _first_failure(None if lost else f"Worker {self.rank} failed: {type(error).__name__}: {error}")
        hosts_store = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _store()
        _leave()
        if hosts_store and store is not None and not lost:
            # The message goes with this process: leave the others some time to read it
            deadline = time.monotonic() + 5.0
            while store.add(_READ, 0) < self.size - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
        if lost and message is not None:
            raise WorkerLostError(message) from error


#: A process on its own
ALONE = Workers()


class WithoutRolloutEnd:
    """
    A callback whose rollouts do not end yet, because the other workers' have not.

    :param callback: The callback
    """

    def __init__(self, callback: BaseCallback):
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def on_rollout_end(self) -> None:
        """Nothing yet."""


def count_again(callback: BaseCallback, num_timesteps: int) -> None:
    """
    :param callback: A callback, which counts the timesteps itself
    :param num_timesteps: Their number with those of the other workers
    """
    callback.num_timesteps = num_timesteps
    child = getattr(callback, "callback", None)
    for each in [*getattr(callback, "callbacks", []), *([child] if isinstance(child, BaseCallback) else [])]:
        count_again(each, num_timesteps)


class GlobalProgressBar(ProgressBarCallback):
    """SB3's progress bar for several workers: it moves with the rollouts, when their steps are counted together."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.pbar.update(self.model.num_timesteps - self.model._num_timesteps_at_start - self.pbar.n)


def n_launched() -> int:
    """
    :return: How many workers torchrun has started (or ``torch.distributed`` has joined); 1 without it
    """
    if is_together():
        return dist.get_world_size()
    if not dist.is_available() or not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 1
    return int(os.environ["WORLD_SIZE"])


def local_device(device: th.device | str) -> th.device | str:
    """
    :param device: Argument of the constructor
    :return: Among several workers on a machine with GPUs, one GPU for each
    """
    if n_launched() == 1 or str(device) not in ("auto", "cuda") or not th.cuda.is_available():
        return device
    return th.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % th.cuda.device_count())


def join(device: th.device) -> Workers:
    """
    Join the other workers, by ``torch.distributed`` with gloo, and NCCL between GPUs. A process group that exists
    already (one with another time-out, say) is used as it is.

    :param device: Device of the model
    :return: All workers; this process alone if torchrun has not started it
    :raises ValueError: If there is a process group that cannot be used
    """
    if n_launched() == 1:
        return ALONE
    if not dist.is_initialized():
        own_gpu = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= th.cuda.device_count()
        if own_gpu:
            th.cuda.set_device(device)
        if "store" not in _job:
            _job["store"], _job["rank"], _job["size"] = next(dist.rendezvous("env://"))
            # Else gloo's threads may meet the end of the interpreter, and abort the process
            atexit.register(_leave)
        with _lost_workers_named():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if own_gpu else "gloo",
                # Never a name again, under which the store has the addresses of a group that was left
                store=dist.PrefixStore(f"sb3_reinforce/group/{_generation[0]}/{_n_groups[0]}", _job["store"]),
                rank=_job["rank"],
                world_size=_job["size"],
            )
        _n_groups[0] += 1
    backend = dist.get_backend_config()
    if "gloo" not in backend:
        raise ValueError(f"The process group must have gloo for the CPU ('gloo' or 'cpu:gloo,cuda:nccl'), got {backend!r}.")
    return Workers(dist.get_rank(), dist.get_world_size())


#: The store at which the workers of this job meet, this process's rank and their number
_job: dict[str, Any] = {}
#: Models without a seed are told apart by their number
_n_unseeded = count()
#: How many process groups have been joined
_n_groups = [0]
#: How often the workers have parted after a failure: they meet again under another name
_generation = [0]


def is_together() -> bool:
    """
    :return: Whether there is a process group
    """
    return dist.is_available() and dist.is_initialized()


def _store() -> "dist.Store | None":
    """Where the workers leave messages that do not need everybody's presence."""
    try:
        store = _job["store"] if "store" in _job else dist.distributed_c10d._get_default_store()
    except (RuntimeError, ValueError):
        return None
    return dist.PrefixStore(f"sb3_reinforce/messages/{_generation[0]}", store)


def _leave() -> None:
    _generation[0] += 1
    if is_together():
        dist.destroy_process_group()


@contextmanager
def _lost_workers_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise WorkerLostError(
            "The connection to another worker was lost (its process was killed, it has left, its network is down, or it "
            f"took longer than the time-out): {reason}"
        ) from error


def _first_failure(own: str | None) -> str | None:
    """
    The message of the first worker that failed, by way of the job's store.

    :param own: What to leave there if this worker is the first
    """
    store = _store()
    try:
        if store is not None and store.check([_FAILURE]):
            message = store.get(_FAILURE).decode()
            store.add(_READ, 1)
            return message
        if store is not None and own is not None:
            store.set(_FAILURE, own)
    except RuntimeError:  # the store went with its process
        pass
    return own


def comparable_arguments(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    :param model: A model
    :return: The arguments of its constructor that must be the same for all workers, as far as they can be compared, and what
        its policy is made of
    """
    names = constructor_arguments(type(model)) - _OWN_ARGUMENTS
    found = {name: getattr(model, name, None) for name in sorted(names)}
    return {
        **{name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)},
        "device": model.device.type,
        "observation_space": str(model.observation_space),
        "optimizer_class": type(model.policy.optimizer).__name__,
        "policy": str({name: tuple(parameter.shape) for name, parameter in model.policy.named_parameters()}),
    }


def _check_same(gathered: list[dict[str, Any]]) -> None:
    first = gathered[0]
    for rank, items in enumerate(gathered):
        for name in first.keys() | items.keys():
            if first.get(name) != items.get(name):
                raise ValueError(
                    f"`{name}` must be the same for all workers, got {first.get(name)!r} on rank 0 "
                    f"and {items.get(name)!r} on rank {rank}."
                )


def _normalizers(env: VecEnv | None) -> list[RunningMeanStd]:
    found: list[RunningMeanStd] = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            observations = getattr(env, "obs_rms", None)
            found += observations.values() if isinstance(observations, dict) else [observations] if observations else []
            found.append(env.ret_rms)
        env = env.venv
    return found


def _moments(normalizer: RunningMeanStd) -> Moments:
    return Moments(normalizer.count, normalizer.mean, normalizer.var * normalizer.count)


def _set_moments(normalizer: RunningMeanStd, moments: Moments) -> None:
    normalizer.count, normalizer.mean = moments.n, moments.mean
    normalizer.var = moments.deviation / moments.n


def _checksum(policy: ActorCriticPolicy) -> int:
    result = 0
    for tensor in (*policy.parameters(), *policy.buffers()):
        result = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(th.uint8).numpy().data, result)
    return result
