"""Which rank calls which callback, and how callbacks count the timesteps of all workers."""

import copy
from typing import Any

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
from stable_baselines3.common.type_aliases import MaybeCallback

#: SB3's callbacks that write, print or evaluate, for which once per job is enough
_RANK_0_CALLBACKS = (EvalCallback, CheckpointCallback, ProgressBarCallback, LogEveryNTimesteps)


def callbacks_of(rank: int, callback: MaybeCallback, progress_bar: bool) -> list[BaseCallback]:
    """
    The part of the callbacks that a worker calls. A callback chooses its ranks by an attribute ``ranks``, a collection
    of integers. Without one, SB3's evaluation, checkpoints, progress bar and logging are called on rank 0, everything else
    on every rank.

    :param rank: The worker
    :param callback: Argument of ``learn``
    :param progress_bar: Argument of ``learn``
    :return: The worker's callbacks
    """
    callbacks: list[Any] = callback if isinstance(callback, list) else [callback] if callback is not None else []
    if progress_bar:
        callbacks = [*callbacks, GlobalProgressBar()]
    chosen = [_choose(rank, child) for child in callbacks]
    return [child if isinstance(child, BaseCallback) else ConvertCallback(child) for child in chosen if child is not None]


def _choose(rank: int, callback: Any) -> Any:
    ranks = getattr(callback, "ranks", None)
    if ranks is not None:
        return callback if rank in ranks else None
    if isinstance(callback, _RANK_0_CALLBACKS):
        return callback if rank == 0 else None
    if isinstance(callback, CallbackList):
        children = [_choose(rank, child) for child in callback.callbacks]
        if all(child is before for child, before in zip(children, callback.callbacks, strict=True)):
            return callback
        chosen = copy.copy(callback)
        chosen.callbacks = [child for child in children if child is not None]
        return chosen
    if isinstance(callback, EventCallback) and callback.callback is not None:
        child = _choose(rank, callback.callback)
        if child is None or child is callback.callback:
            return None if child is None else callback
        event = copy.copy(callback)
        event.callback = child
        child.parent = event
        return event
    return callback


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
        """Does nothing yet."""


def count_again(callback: BaseCallback, num_timesteps: int) -> None:
    """
    :param callback: A callback, which has counted its own worker's timesteps
    :param num_timesteps: The number of timesteps of all workers
    """
    callback.num_timesteps = num_timesteps
    child = getattr(callback, "callback", None)
    for each in [*getattr(callback, "callbacks", []), *([child] if isinstance(child, BaseCallback) else [])]:
        count_again(each, num_timesteps)


class GlobalProgressBar(ProgressBarCallback):
    """SB3's progress bar for several workers: it advances after each rollout, when the steps of all workers are counted."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.pbar.update(self.model.num_timesteps - self.model._num_timesteps_at_start - self.pbar.n)
