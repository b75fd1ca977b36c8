"""
Data-parallel training on ``torch.distributed``: several workers, each with environments of its own, learn one model.

``torchrun --nproc-per-node=4 train.py`` starts a script several times; ``learn`` finds the other workers through the variables
that torchrun sets. Every worker plays whole episodes. What travels are sums, and the counts that they are divided by, so that
an update is the one that a single process would have made of all the workers' episodes.
"""

import atexit
import io
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

T = TypeVar("T")

#: Sums of at most so many bytes go along a tree of workers, larger ones around a ring
MAX_TREE_BYTES = 2**18
#: Key of the job's store under which the first worker to fail leaves its error
_FAILURE = "sb3_reinforce/failure"
#: SB3's callbacks that write, print or evaluate: once per job is enough
_RANK_0_CALLBACKS = (EvalCallback, CheckpointCallback, ProgressBarCallback, LogEveryNTimesteps)
#: Arguments of which each worker may have its own
_OWN_ARGUMENTS = {"n_steps", "n_episodes", "seed", "verbose", "_stats_window_size", "tensorboard_log"}


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
    :param infos: The ``info`` of the finished ones, as far as it is logged
    """

    goes_on: bool
    n_played: int
    n_timesteps: int = 0
    n_episodes: int = 0
    cut: bool = False
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
        self._n_timesteps: list[int] = []

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

    def start(self, model: OnPolicyAlgorithm, total_timesteps: int) -> None:
        """
        Begin a call of ``learn``: every worker takes over the weights, the optimizer's state, the timesteps and the
        normalizers of rank 0.

        :param model: The model
        :param total_timesteps: Argument of ``learn``
        :raises ValueError: If the workers' arguments differ where they must not
        """
        if self.alone:
            return
        _check_same_arguments(self.gather({**_comparable_arguments(model), "total_timesteps": total_timesteps}))
        normalizers = _normalizers(model.env)
        state: dict[str, Any] = {
            "policy": model.policy.state_dict(),
            "optimizer": model.policy.optimizer.state_dict(),
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "normalizers": [_moments(normalizer) for normalizer in normalizers],
        }
        state = self._from_rank_0(state)
        if self.rank > 0:
            model.policy.load_state_dict(state["policy"])
            model.policy.optimizer.load_state_dict(state["optimizer"])
            model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
        self._normalizers = list(zip(normalizers, state["normalizers"], strict=True))
        for normalizer, moments in self._normalizers:
            _set_moments(normalizer, moments)

    def seed(self, seed: int | None) -> int | None:
        """
        A seed for each worker, so that no two play the same episodes.

        :param seed: The user's seed
        :return: For rank 0 that one; for the others one that is derived from it and the rank (without one, from a number
            that rank 0 draws)
        """
        if self.alone:
            return seed
        base = self._from_rank_0(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)
        if self.rank == 0:
            return seed
        return int(np.random.SeedSequence((base, self.rank)).generate_state(1)[0]) % 2**31

    def share_rollout(self, model: OnPolicyAlgorithm, report: Report) -> Report:
        """
        The end of a rollout: tell the others of it, merge the normalizers' statistics, and make sure that all still have the
        same weights (other processors round differently, and batch normalization has statistics of each worker's own).

        :param model: The model
        :param report: This worker's rollout
        :return: What the workers have played together, this worker's episodes left out; the rollout goes on if all of them do
        """
        if self.alone:
            return report
        increments = [_moments(normalizer).since(before) for normalizer, before in self._normalizers]
        gathered = self.gather((report, increments, _checksum(model.policy)))
        for i, (normalizer, total) in enumerate(self._normalizers):
            for _, others, _ in gathered:
                total |= others[i]
            _set_moments(normalizer, total)
            self._normalizers[i] = (normalizer, total)
        if len({checksum for _, _, checksum in gathered}) > 1:
            model.policy.load_state_dict(self._from_rank_0(model.policy.state_dict()))
        self._n_timesteps = [each.n_timesteps for each, _, _ in gathered]
        reports = [each for each, _, _ in gathered]
        return Report(
            all(each.goes_on for each in reports),
            sum(each.n_played for each in reports),
            sum(each.n_timesteps for each in reports),
            sum(each.n_episodes for each in reports),
            any(each.cut for each in reports),
            tuple(info for rank, each in enumerate(reports) if rank != self.rank for info in each.infos),
        )

    def minibatches(self, n_timesteps: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
        """
        One pass over all the workers' timesteps in random order, in minibatches of (almost) equal size, as many as one
        process would need.

        :param n_timesteps: Timesteps of this worker in the last rollout
        :param batch_size: The largest size of a minibatch of all workers together
        :return: For each minibatch the rows of it that are this worker's, and the number of all its rows
        """
        counts = [n_timesteps] if self.alone else self._n_timesteps
        n_parts = -(-sum(counts) // batch_size)
        parts = np.array_split(np.random.permutation(n_timesteps), n_parts)
        for i, rows in enumerate(parts):
            yield rows, sum(count // n_parts + (i < count % n_parts) for count in counts)

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
        if type(callback) is CallbackList:
            children = [self._choose(child) for child in callback.callbacks]
            return CallbackList([child for child in children if child is not None])
        if isinstance(callback, EventCallback) and callback.callback is not None:
            callback.callback = self._choose(callback.callback)
            return None if callback.callback is None else callback
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
        _leave()
        if lost and message is not None:
            raise WorkerLostError(message) from error


#: A process on its own
ALONE = Workers()


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
    if dist.is_available() and dist.is_initialized():
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
    """
    if n_launched() == 1:
        return ALONE
    if not dist.is_initialized():
        own_gpu = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= th.cuda.device_count()
        if own_gpu:
            th.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo")
        # Else gloo's threads may meet the end of the interpreter, and abort the process
        atexit.register(_leave)
    backend = dist.get_backend_config()
    if "gloo" not in backend:
        raise ValueError(f"The process group must have gloo for the CPU ('gloo' or 'cpu:gloo,cuda:nccl'), got {backend!r}.")
    return Workers(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _lost_workers_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerLostError(
            "The connection to another worker was lost: its process was killed, it has left, or its network is down."
        ) from error


def _first_failure(own: str | None) -> str | None:
    """
    The message of the first worker that failed, by way of the job's store.

    :param own: What to leave there if this worker is the first
    """
    try:
        store = dist.distributed_c10d._get_default_store()
        if store.check([_FAILURE]):
            return store.get(_FAILURE).decode()
        if own is not None:
            store.set(_FAILURE, own)
    except (RuntimeError, ValueError):  # the store went with its process, or the group has been left
        pass
    return own


def _comparable_arguments(model: OnPolicyAlgorithm) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in vars(model).items()
        if not name.startswith("_") and name not in _OWN_ARGUMENTS and isinstance(value, bool | int | float | str | None)
    }
    for changing in ("num_timesteps", "start_time", "n_envs"):
        plain.pop(changing, None)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.policy.named_parameters()}
    return {**plain, "observation_space": str(model.observation_space), "policy": str(shapes)}


def _check_same_arguments(gathered: list[dict[str, Any]]) -> None:
    first = gathered[0]
    for rank, arguments in enumerate(gathered):
        for name in first.keys() | arguments.keys():
            if first.get(name) != arguments.get(name):
                raise ValueError(
                    f"`{name}` must be the same for all workers, got {first.get(name)!r} on rank 0 "
                    f"and {arguments.get(name)!r} on rank {rank}."
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
