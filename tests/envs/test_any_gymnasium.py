"""What has to work with the oldest Gymnasium that the package allows, as with the newest."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from sb3_reinforce.envs import GymnasiumVecEnv, make_vector_env
from tests.envs.play import N_ENVS, adapted, dummy, live_play, same
from tests.envs.walks import makers

BOTH = pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])


@BOTH
@pytest.mark.parametrize("space", ["Box", "Discrete", "Dict"])
@pytest.mark.filterwarnings("ignore:This vector environment plays a dead step")
def test_default_mode_shows_the_same_except_for_dead_steps(vector_class: Any, space: str) -> None:
    env = adapted(vector_class(makers(N_ENVS, space=space)))
    got, wanted = live_play(env, 300), live_play(dummy(space), 300)
    assert env.has_dead_steps == (hasattr(gym.vector, "VectorWrapper") and not hasattr(gym.vector, "AutoresetMode"))
    for of_env, expected in zip(got, wanted, strict=True):
        assert len(of_env) > 180
        for a, b in zip(of_env, expected, strict=False):
            assert all(same(x, y) for x, y in zip(a, b, strict=True))


@BOTH
def test_attributes_are_read_and_set_by_index(vector_class: Any) -> None:
    env = GymnasiumVecEnv(vector_class(makers(N_ENVS)))
    env.reset()
    env.set_attr("scale", 3.0, indices=[1])
    assert env.get_attr("scale") == [1.0, 3.0, 1.0]
    assert env.env_method("add", 2, indices=[0, 2]) == [2, 2]
    assert env.has_attr("action_masks") and not env.has_attr("no_such_thing")
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * N_ENVS
    assert len(env.step(np.ones(N_ENVS, int))[3]) == N_ENVS
    env.close()


@BOTH
def test_infos_go_to_their_environments(vector_class: Any) -> None:
    env = GymnasiumVecEnv(vector_class(makers(N_ENVS, with_infos=True)))
    env.warns_of_dead_steps = False
    env.reset()
    assert [info["limit"] for info in env.reset_infos] == env.get_attr("limit")
    n_ended, clocks = 0, [0] * N_ENVS
    for _ in range(40):
        _, _, dones, infos = env.step(np.ones(N_ENVS, int))
        for i, info in enumerate(infos):
            clocks[i] = 0 if info.get("dead_step") else clocks[i] + 1
            assert info["limit"] if info.get("dead_step") else info["clock"] == clocks[i]
            if dones[i]:
                assert info["episode"]["l"] == clocks[i]
                n_ended, clocks[i] = n_ended + 1, 0
    assert n_ended > 10
    env.close()


def test_usual_environments_are_made() -> None:
    for mode in ("sync", "async"):
        env = make_vector_env("CartPole-v1", 2, seed=1, vectorization_mode=mode)
        assert env.reset().shape == (2, 4)
        assert len(env.step(np.ones(2, int))[3]) == 2
        env.close()
