"""What an algorithm sees is what SB3's DummyVecEnv shows of the same environments, to the number."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce.envs import EnvPoolVecEnv
from tests.envs.play import N_ENVS, SEED, adapted, check_same_play, dummy, live_play, same, without_time
from tests.envs.walks import (
    CopiesOptions,
    DropsOptions,
    NativeWalks,
    PoolOfWalks,
    RefusesMask,
    TakesMask,
    Walk,
    makers,
)

if not hasattr(gym.vector, "AutoresetMode"):
    pytest.skip("There are no autoreset modes before Gymnasium 1.1", allow_module_level=True)

MODES = ["NextStep", "SameStep", "Disabled"]


@pytest.mark.parametrize("space, with_infos", [("Box", True), ("Discrete", False), ("Dict", True)])
@pytest.mark.parametrize("mode", MODES)
def test_sync_shows_the_same_in_each_mode(mode: str, space: str, with_infos: bool) -> None:
    venv = SyncVectorEnv(makers(N_ENVS, space=space, with_infos=with_infos), autoreset_mode=mode)
    assert check_same_play(adapted(venv), dummy(space, with_infos=with_infos), 500) > 120


@pytest.mark.parametrize("space", ["Discrete", "Dict"])
@pytest.mark.parametrize("mode", MODES)
def test_async_shows_the_same_in_each_mode(mode: str, space: str) -> None:
    venv = AsyncVectorEnv(makers(N_ENVS, space=space, with_infos=True), autoreset_mode=mode)
    assert check_same_play(adapted(venv), dummy(space, with_infos=True), 200) > 50


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_async_without_shared_memory_shows_the_same(mode: str) -> None:
    venv = AsyncVectorEnv(makers(N_ENVS, space="Dict"), autoreset_mode=mode, shared_memory=False)
    assert check_same_play(adapted(venv), dummy("Dict"), 300) > 80


@pytest.mark.parametrize("mode", MODES)
def test_arrays_that_are_written_again_do_no_harm(mode: str) -> None:
    venv = SyncVectorEnv(makers(N_ENVS, space="Dict"), autoreset_mode=mode, copy=False)
    assert check_same_play(adapted(venv), dummy("Dict"), 300) > 80
    shared = AsyncVectorEnv(makers(N_ENVS, space="Box"), autoreset_mode=mode, copy=False)
    assert check_same_play(adapted(shared), dummy("Box"), 200) > 50


@pytest.mark.parametrize("space", ["Box", "Discrete", "Dict"])
@pytest.mark.parametrize("mode", MODES)
def test_native_environment_shows_the_same_in_each_mode(mode: str, space: str) -> None:
    env = adapted(NativeWalks(mode, N_ENVS, space))
    assert check_same_play(env, dummy(space), 500) > 120
    assert not env.has_dead_steps


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_native_environment_need_not_declare_its_mode(mode: str) -> None:
    env = adapted(NativeWalks(mode, N_ENVS, declared=False))
    assert check_same_play(env, dummy("Box"), 500) > 150
    assert not env.has_dead_steps


@pytest.mark.parametrize("space", ["Box", "Discrete", "Dict"])
def test_pool_that_returns_only_what_was_reset_shows_the_same(space: str) -> None:
    env = EnvPoolVecEnv(PoolOfWalks(N_ENVS, space, SEED))
    assert check_same_play(env, dummy(space), 500) > 120
    assert not env.has_dead_steps


@pytest.mark.parametrize("mode", MODES)
def test_sync_cartpole_shows_the_same(mode: str) -> None:
    venv = gym.make_vec("CartPole-v1", N_ENVS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    expected = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1")) for _ in range(N_ENVS)])
    expected.action_space.n = 2
    env = adapted(venv)
    expected.seed(SEED)
    rng = np.random.default_rng(0)
    assert same(env.reset(), expected.reset())
    for _ in range(700):
        actions = rng.integers(0, 2, N_ENVS)
        got, wanted = env.step(actions), expected.step(actions)
        assert all(same(a, b) for a, b in zip(got[:3], wanted[:3], strict=True))
        assert all(same(without_time(a), without_time(b)) for a, b in zip(got[3], wanted[3], strict=True))


def test_statistics_of_a_vector_wrapper_are_those_of_the_monitor() -> None:
    for mode in ("NextStep", "Disabled", "SameStep"):
        venv = gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv(makers(N_ENVS), autoreset_mode=mode))
        env, expected, rng = adapted(venv), dummy("Box"), np.random.default_rng(0)
        env.reset(), expected.reset()
        lengths = []
        for _ in range(300):
            actions = rng.integers(0, 3, N_ENVS)
            got, wanted = env.step(actions), expected.step(actions)
            for a, b in zip(got[3], wanted[3], strict=True):
                assert ("episode" in a) == ("episode" in b)
                if "episode" in b:
                    assert a["episode"]["l"] == b["episode"]["l"]
                    assert a["episode"]["r"] == pytest.approx(b["episode"]["r"], abs=1e-6)
                    lengths.append(a["episode"]["l"])
        assert len(lengths) > 80


def test_statistics_of_a_monitor_inside_are_kept() -> None:
    venv = SyncVectorEnv([lambda: Monitor(Walk(), info_keywords=()) for _ in range(N_ENVS)], autoreset_mode="SameStep")
    assert check_same_play(adapted(venv), dummy("Box"), 200) > 50


# Environments that cannot be reset alone


WITH_DEAD_STEPS: dict[str, Callable[[], VectorEnv]] = {
    "native": partial(NativeWalks, "NextStep", N_ENVS, with_mask=False),
    "native, undeclared": partial(NativeWalks, "NextStep", N_ENVS, with_mask=False, declared=False),
    "dropped": lambda: DropsOptions(SyncVectorEnv(makers(N_ENVS))),
    "taken by a wrapper": lambda: TakesMask(SyncVectorEnv(makers(N_ENVS))),
    "refused": lambda: RefusesMask(SyncVectorEnv(makers(N_ENVS))),
    "dropped, async": lambda: DropsOptions(AsyncVectorEnv(makers(N_ENVS))),
    "async without shared memory": lambda: AsyncVectorEnv(makers(N_ENVS), shared_memory=False),
}


@pytest.mark.parametrize("kind", WITH_DEAD_STEPS)
@pytest.mark.filterwarnings("ignore:This vector environment plays a dead step")
def test_dead_steps_are_marked_and_the_others_are_the_same(kind: str) -> None:
    env = adapted(WITH_DEAD_STEPS[kind]())
    got, wanted = live_play(env, 400), live_play(dummy("Box"), 400)
    assert env.has_dead_steps
    for of_env, expected in zip(got, wanted, strict=True):
        assert 250 < len(of_env) < 400
        for a, b in zip(of_env, expected, strict=False):
            assert all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind, still_dead", [("native", False), ("dropped", False), ("async without shared memory", True)])
def test_reset_of_all_leaves_no_dead_step_that_is_not_marked(kind: str, still_dead: bool) -> None:
    env, expected = adapted(WITH_DEAD_STEPS[kind]()), dummy("Box")
    env.warns_of_dead_steps = False
    env.reset()
    dones = np.zeros(N_ENVS, bool)
    while not dones.any():
        dones = env.step(np.ones(N_ENVS, int))[2]
    env.seed(SEED)
    assert same(env.reset(), expected.reset())
    rewards, infos = env.step(np.ones(N_ENVS, int))[1::2]
    # Without shared memory the processes do not know that they have been reset
    dead = dones if still_dead else np.zeros(N_ENVS, bool)
    assert ["dead_step" in info for info in infos] == dead.tolist()
    assert same(rewards, np.where(dead, 0.0, expected.step(np.ones(N_ENVS, int))[1]))
    env.close()


def test_no_environment_is_reset_in_order_to_find_out() -> None:
    for venv in (SyncVectorEnv(makers(N_ENVS)), DropsOptions(SyncVectorEnv(makers(N_ENVS)))):
        env = adapted(venv)
        env.reset()
        assert env.get_attr("n_resets") == [1] * N_ENVS
        assert "reset" not in vars(venv.unwrapped)


def test_copied_options_reset_single_environments() -> None:
    env = adapted(CopiesOptions(SyncVectorEnv(makers(N_ENVS))))
    assert check_same_play(env, dummy("Box"), 300) > 80
    assert not env.has_dead_steps


@pytest.mark.parametrize("copied", [dict, lambda options: {**options}, deepcopy, lambda options: dict(options.items())])
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_native_environment_may_copy_the_options_before_it_reads_the_mask(mode: str, copied: Any) -> None:
    class Copies(NativeWalks):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            options = copied(options or {})
            mask = options.pop("reset_mask", None)
            return super().reset(seed=seed, options=None if mask is None else {"reset_mask": mask})

    env = adapted(Copies(mode, N_ENVS))
    assert check_same_play(env, dummy("Box"), 100) > 20
    assert not env.has_dead_steps


def test_native_environment_that_only_keeps_its_options_is_not_reset_alone() -> None:
    class Keeps(NativeWalks):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            self.options = {**(options or {})}
            self.level = self.options.get("level")
            return super().reset(seed=seed)

    env = adapted(Keeps("NextStep", N_ENVS))
    env.reset()
    assert env.has_dead_steps


def test_returns_of_running_episodes_outlive_the_resets_of_others() -> None:
    wrapper = gym.wrappers.vector.NormalizeReward(SyncVectorEnv(makers(N_ENVS)), gamma=0.9)
    env, expected, rng = adapted(wrapper), dummy("Box"), np.random.default_rng(0)
    env.reset(), expected.reset()
    returns = np.zeros(N_ENVS)
    for _ in range(60):
        actions = rng.integers(0, 3, N_ENVS)
        env.step(actions)
        _, rewards, dones, _ = expected.step(actions)
        returns = returns * 0.9 + rewards
        assert np.allclose(wrapper.accumulated_reward[~dones], returns[~dones], atol=1e-5)
        returns[dones] = 0.0
    assert not env.has_dead_steps


def test_first_dead_step_warns_once_and_names_who_leaves_it_out() -> None:
    env = adapted(NativeWalks("NextStep", N_ENVS, with_mask=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset()
        while not env.step(np.ones(N_ENVS, int))[2].any():
            pass
    with pytest.warns(UserWarning, match="dead step after every episode.*REINFORCE"):
        env.step(np.ones(N_ENVS, int))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert any("dead_step" in info for _ in range(50) for info in env.step(np.ones(N_ENVS, int))[3])


def test_algorithm_that_leaves_dead_steps_out_is_not_warned() -> None:
    env = adapted(NativeWalks("NextStep", N_ENVS, with_mask=False))
    env.warns_of_dead_steps = False
    env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert any("dead_step" in info for _ in range(50) for info in env.step(np.ones(N_ENVS, int))[3])


def test_native_cartpole_has_a_dead_step_after_each_episode() -> None:
    env = adapted(gym.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point", max_episode_steps=15))
    env.warns_of_dead_steps = False
    env.reset()
    assert env.has_dead_steps
    ended, n_dead, was_cut = np.zeros(4, bool), 0, 0
    for _ in range(300):
        obs, rewards, dones, infos = env.step(np.random.default_rng(0).integers(0, 2, 4))
        assert [info.get("dead_step", False) for info in infos] == ended.tolist()
        assert (rewards[ended] == 0.0).all() and (rewards[~ended] == 1.0).all() and not dones[ended].any()
        assert (np.abs(obs[ended]) <= 0.05).all()
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == infos[i]["episode"]["l"] <= 15
            was_cut += infos[i]["TimeLimit.truncated"]
        ended, n_dead = dones, n_dead + int(ended.sum())
    assert n_dead > 20
