"""How the processes of a job meet, part and tell each other of failures."""

import atexit
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch as th
import torch.distributed as dist

#: Key of the job's store under which the first worker to fail leaves its error
_FAILURE = "failure"
#: Key of the number of workers that have read this error
_READ = "read"
#: Time that the worker with the store gives the others to read the error, in seconds
_PATIENCE = 5.0
#: Time between two looks at the store while the workers meet, in seconds
_LOOK = 0.01


class WorkerLostError(RuntimeError):
    """
    Another worker of the job has failed or left.

    :param message: What is known about it
    """

    def __init__(self, message: str):
        super().__init__(message)


@dataclass
class _Job:
    """
    What this process knows about its job.

    :param store: The store through which the workers meet; ``None`` before the first meeting
    :param rank: This process's rank
    :param size: The number of workers
    :param n_groups: How many process groups have been joined
    :param generation: How often the group was left: the workers meet again under another name
    """

    store: "dist.Store | None" = None
    rank: int = 0
    size: int = 1
    n_groups: int = 0
    generation: int = 0


_job = _Job()


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
    :return: The device to use: with several workers on a machine with GPUs, one GPU for each worker
    """
    if n_launched() == 1 or str(device) not in ("auto", "cuda") or not th.cuda.is_available():
        return device
    return th.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % th.cuda.device_count())


def is_together() -> bool:
    """
    :return: Whether there is a process group
    """
    return dist.is_available() and dist.is_initialized()


def join_group(device: th.device) -> tuple[int, int]:
    """
    Join the other workers, through ``torch.distributed`` with gloo, and NCCL between GPUs. A process group that exists
    already (with another time-out, say) is used unchanged.

    :param device: Device of the model
    :return: Rank of this process, and the number of workers
    :raises ValueError: If there is a process group that cannot be used
    """
    if not dist.is_initialized():
        own_gpu = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= th.cuda.device_count()
        if own_gpu:
            th.cuda.set_device(device)
        if _job.store is None:
            store, _job.rank, _job.size = next(dist.rendezvous("env://"))
            with lost_workers_named():
                _job.store = dist.PrefixStore(f"sb3_reinforce/{_meet(store, _job.rank, _job.size)}", store)
            # Else gloo's threads may outlast the interpreter, and abort the process
            atexit.register(leave_group)
        with lost_workers_named():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if own_gpu else "gloo",
                # Never reuse a name: under it the store still has the addresses of a group that was left
                store=dist.PrefixStore(f"group/{_job.generation}/{_job.n_groups}", _job.store),
                rank=_job.rank,
                world_size=_job.size,
            )
        _job.n_groups += 1
    backend = dist.get_backend_config()
    if "gloo" not in backend:
        raise ValueError(f"The process group must have gloo for the CPU ('gloo' or 'cpu:gloo,cuda:nccl'), got {backend!r}.")
    return dist.get_rank(), dist.get_world_size()


def _meet(store: dist.Store, rank: int, size: int) -> str:
    """
    Agree on a name that no processes had before these. torchrun keeps its store when it starts workers again: what the
    former processes wrote, their addresses above all, must not be read by the current ones.

    Each process leaves a name of its own; the first one writes all of them down as a list, again whenever one changes, and
    all go on with the list that each of them has found itself in.

    :param store: The store through which the workers meet
    :param rank: This process's rank
    :param size: The number of workers
    :return: The name, the same for all workers
    :raises RuntimeError: If not all workers come within half an hour, the time-out of ``torch.distributed``
    """
    prefix, own, agreed = "sb3_reinforce/meeting", uuid.uuid4().hex, ""
    store.set(f"{prefix}/process/{rank}", own)
    members, name = "", ""
    deadline = time.monotonic() + dist.default_pg_timeout.total_seconds()
    while time.monotonic() < deadline:
        if rank == 0:
            found = " ".join(store.get(f"{prefix}/process/{each}").decode() for each in range(size))
            if found != members:
                members, name = found, uuid.uuid4().hex
                store.set(f"{prefix}/list", f"{name} {members}")
            elif store.add(f"{prefix}/agreed/{name}", 0) == size:
                store.set(f"{prefix}/complete/{name}", "")
        name, *listed = store.get(f"{prefix}/list").decode().split()
        if own in listed and name != agreed:
            store.add(f"{prefix}/agreed/{name}", 1)
            agreed = name
        if name == agreed and store.check([f"{prefix}/complete/{name}"]):
            return name
        time.sleep(_LOOK)
    raise RuntimeError(f"not all of the {size} workers have come")


def leave_group() -> None:
    """Close the connections, which wakes the workers that wait for this process."""
    _job.generation += 1
    if is_together():
        dist.destroy_process_group()


@contextmanager
def lost_workers_named() -> Iterator[None]:
    """
    Wraps code that waits for other workers.

    :raises WorkerLostError: If the connection to one of them is lost
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise WorkerLostError(
            "The connection to another worker was lost (its process was killed, it has left, its network is down, or it "
            f"took longer than the time-out): {reason}"
        ) from error


def fail(rank: int, size: int, error: BaseException) -> None:
    """
    If one worker fails, all do: the worker writes its error to the job's store, and leaves the group.

    :param rank: This worker
    :param size: The number of workers
    :param error: This worker's error
    :raises WorkerLostError: If another worker failed before it, with that worker's error
    """
    lost = isinstance(error, WorkerLostError)
    message = _first_failure(None if lost else f"Worker {rank} failed: {type(error).__name__}: {error}")
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = _messages()
    leave_group()
    if hosts_store and store is not None and not lost:
        # The message ends with this process: give the others some time to read it
        deadline = time.monotonic() + _PATIENCE
        while store.add(_READ, 0) < size - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
    if lost and message is not None:
        raise WorkerLostError(message) from error


def _messages() -> "dist.Store | None":
    """The store for messages that workers can read and write without waiting for the others."""
    try:
        store = _job.store if _job.store is not None else dist.distributed_c10d._get_default_store()
    except (RuntimeError, ValueError):
        return None
    # A process group that the user has initialized: torchrun keeps its store when it starts the workers again
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"sb3_reinforce_messages/{attempt}/{_job.generation}", store)


def _first_failure(own: str | None) -> str | None:
    """
    The message of the first worker that failed, through the job's store.

    :param own: The message to leave there if this worker is the first
    """
    store = _messages()
    try:
        if store is not None and store.check([_FAILURE]):
            message = store.get(_FAILURE).decode()
            store.add(_READ, 1)
            return message
        if store is not None and own is not None:
            store.set(_FAILURE, own)
    except RuntimeError:  # the store has ended with its process
        pass
    return own
