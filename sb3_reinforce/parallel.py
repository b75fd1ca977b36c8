"""What a worker of a data-parallel job does besides learning: it meets the others, and shares its rollouts with them."""

import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import distributed
from sb3_reinforce.distributed import Report
from sb3_reinforce.policies import forget_graphs
from sb3_reinforce.rollout_locals import RolloutCallbacks

SelfDataParallelAlgorithm = TypeVar("SelfDataParallelAlgorithm", bound="DataParallelAlgorithm")


class DataParallelAlgorithm(OnPolicyAlgorithm):
    """
    An on-policy algorithm that one process learns alone, or several together (:mod:`sb3_reinforce.distributed`).

    A subclass calls :meth:`_join_workers` when learning begins, :meth:`_take_over_from_rank_0` when it knows its
    environments, and :meth:`_share_rollout` at the end of each rollout.
    """

    #: At the start of the rollout; set by what collects it
    _n_timesteps_before: int

    def _setup_model(self) -> None:
        self._workers = distributed.ALONE
        self._seeded_env: VecEnv | None = None  # among several workers, the environments that were given seeds of their own
        self._new_infos: list[dict[str, Any]] = []  # of the present rollout's episodes, for the other workers
        super()._setup_model()

    def _join_workers(self) -> None:
        if not (self._workers.alone or distributed.is_together()):  # the group has been left, or the model has come here
            self._workers = distributed.ALONE
        if self._workers.alone:
            self._workers = distributed.join(self.device)

    def _take_over_from_rank_0(self, total_timesteps: int) -> None:
        if self._workers.alone:
            return
        arguments = {**distributed.comparable_arguments(self), "total_timesteps": total_timesteps}
        self._workers.start(self, arguments)
        if any(self._workers.gather(self.env is not self._seeded_env)):
            seed = self._workers.seed(self.seed)
            self._seeded_env = self.env
            if self._workers.rank > 0:
                self.set_random_seed(seed)
                self._last_obs = None  # what was reset before has another seed
        if self._workers.rank > 0:
            self.set_logger(Logger(folder=None, output_formats=[]))

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if not self._workers.alone:
            callback, progress_bar = self._workers.callback(callback, progress_bar), False
        callbacks = callback if isinstance(callback, list) else [] if callback is None else [callback]
        children = [child if isinstance(child, BaseCallback) else ConvertCallback(child) for child in callbacks]
        return super()._init_callback(RolloutCallbacks(children), progress_bar)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        if self._workers.alone:
            super()._update_info_buffer(infos, dones)
            return
        # Until the end of the rollout, when those of all workers take their places in turn
        for info, done in zip(infos, dones, strict=True):  # type: ignore[arg-type]
            kept: dict[str, Any] = {
                key: info[key] for key in ("episode", "is_success") if key in info and (done or key == "episode")
            }
            self._new_infos += [kept] if kept else []

    def _share_rollout(
        self,
        callback: BaseCallback,
        goes_on: bool,
        n_timesteps: int = 0,
        n_episodes: int = 0,
        cut: bool = False,
        cuts_expected: bool = False,
    ) -> Report:
        """
        The end of this worker's rollout, and of those of all others: count and log what was played together.

        :param callback: The callback
        :param goes_on: ``False``: it has stopped this worker
        :param n_timesteps: Recorded timesteps
        :param n_episodes: Recorded episodes
        :param cut: Whether an episode was cut at the horizon
        :param cuts_expected: Whether that was to be expected
        :return: The sums over all workers
        """
        n_played = self.num_timesteps - self._n_timesteps_before
        report = self._workers.share_rollout(
            self, Report(goes_on, n_played, n_timesteps, n_episodes, cut, cuts_expected, tuple(self._new_infos))
        )
        self.num_timesteps = self._n_timesteps_before + report.n_played
        self._new_infos.clear()
        if not self._workers.alone:
            super()._update_info_buffer(list(report.infos), np.ones(len(report.infos), dtype=bool))
            distributed.count_again(callback, self.num_timesteps)
        if not report.goes_on:
            # The environments stand in the middle of episodes that are never used: start afresh next time
            self._last_obs = None
            return report
        self._n_rollout_episodes, self._n_rollout_timesteps = report.n_episodes, report.n_timesteps
        self.logger.record("rollout/n_episodes", report.n_episodes)
        self.logger.record("rollout/n_steps", report.n_timesteps)
        self.logger.record("rollout/discarded_fraction", 1.0 - report.n_timesteps / report.n_played)
        return report

    def learn(
        self: SelfDataParallelAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "OnPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDataParallelAlgorithm:
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except BaseException as error:
            # The environments may stand anywhere: the next call starts from fresh episodes
            self._last_obs = None
            forget_graphs(self.policy)  # which an update leaves that does not come to its end
            workers, self._workers = self._workers, distributed.ALONE
            workers.fail(error)
            raise

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        with self._workers.whole_file(path) as file:
            super().save(file, exclude, include)

    def _excluded_save_params(self) -> list[str]:
        own = ["_workers", "_seeded_env", "_new_infos", "_n_timesteps_before", "_n_rollout_timesteps", "_n_rollout_episodes"]
        return [*super()._excluded_save_params(), *own]
