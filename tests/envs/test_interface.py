"""The adapters are plain VecEnvs: seeds, options, attributes, pictures, wrappers, algorithms and bad input."""

import pickle
import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_reinforce.envs import EnvPoolVecEnv, GymnasiumVecEnv, make_vector_env
from tests.envs.play import same, without_time
from tests.envs.walks import DropsOptions, NativeWalks, PoolOfWalks, Walk, makers

if not hasattr(gym.vector, "AutoresetMode"):
    pytest.skip("There are no autoreset modes before Gymnasium 1.1", allow_module_level=True)

MODES = ["NextStep", "SameStep", "Disabled"]
N_ENVS = 4


class TimedWalk(TimeLimit):
    """A wrapper with a name of its own."""


def sync() -> GymnasiumVecEnv:
    return GymnasiumVecEnv(SyncVectorEnv([lambda: TimedWalk(Walk(), 50)] * N_ENVS))


def asynchronous() -> GymnasiumVecEnv:
    return GymnasiumVecEnv(AsyncVectorEnv([lambda: TimedWalk(Walk(), 50)] * N_ENVS))


@pytest.fixture(params=[sync, asynchronous], ids=["sync", "async"])
def env(request: pytest.FixtureRequest) -> Any:
    env = request.param()
    yield env
    env.close()


# Attributes and methods


def test_attributes_are_read_and_set_by_index(env: GymnasiumVecEnv) -> None:
    env.reset()
    assert env.get_attr("scale") == [1.0] * N_ENVS
    env.set_attr("scale", 3.0, indices=[1, 2])
    assert env.get_attr("scale") == [1.0, 3.0, 3.0, 1.0]
    assert env.get_attr("scale", indices=2) == [3.0]
    assert env.get_attr("scale", indices=np.int64(1)) == env.get_attr("scale", indices=-2) == [3.0]
    assert env.get_attr("scale", indices=iter([0, 1])) == [1.0, 3.0]
    env.set_attr("scale", [7, 8])
    assert env.get_attr("scale") == [[7, 8]] * N_ENVS
    with pytest.raises(IndexError):
        env.get_attr("scale", indices=N_ENVS)


def test_methods_are_called_only_where_they_are_wanted(env: GymnasiumVecEnv) -> None:
    env.reset()
    assert env.env_method("add", 3, b=10) == [13] * N_ENVS
    assert env.env_method("add", 3, indices=[3, 0]) == [3, 3]
    env.env_method("set_wrapper_attr", "scale", 5.0, indices=[2])
    assert env.get_attr("scale") == [1.0, 1.0, 5.0, 1.0]


def test_an_attribute_that_can_be_called_is_not_called(env: GymnasiumVecEnv) -> None:
    env.reset()
    add = env.get_attr("add", indices=1)[0]
    assert add(3, b=4) == 7
    assert len(env.step(np.ones(N_ENVS, int))[3]) == N_ENVS


def test_call_that_would_end_a_process_is_refused() -> None:
    env = asynchronous()
    env.reset()
    for name in ("reset", "step", "close"):
        with pytest.raises(ValueError, match=rf"takes any method except reset, step, close, got '{name}'"):
            env.env_method(name)
    assert len(env.step(np.ones(N_ENVS, int))[3]) == N_ENVS
    env.close()


def test_missing_attribute_does_no_harm(env: GymnasiumVecEnv) -> None:
    env.reset()
    assert env.has_attr("scale") and not env.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        env.get_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        env.env_method("no_such_thing")
    assert env.get_attr("scale") == [1.0] * N_ENVS
    assert len(env.step(np.ones(N_ENVS, int))[3]) == N_ENVS


def test_wrappers_are_found_by_index(env: GymnasiumVecEnv) -> None:
    assert env.env_is_wrapped(TimedWalk) == env.env_is_wrapped(TimeLimit) == [True] * N_ENVS
    assert env.env_is_wrapped(Monitor, indices=[1, 3]) == [False, False]
    assert env.env_is_wrapped(TimeLimit, indices=0) == [True]


def test_wrapper_of_a_vector_environment_is_found_in_all() -> None:
    env = GymnasiumVecEnv(DropsOptions(NativeWalks("SameStep", N_ENVS)))
    assert env.env_is_wrapped(DropsOptions) == [True] * N_ENVS  # type: ignore[arg-type]
    assert env.env_is_wrapped(Monitor) == [False] * N_ENVS


def test_native_environment_has_one_attribute_for_all() -> None:
    native = NativeWalks("SameStep", N_ENVS)
    env = GymnasiumVecEnv(DropsOptions(native))
    assert env.get_attr("difficulty", indices=[0, 2]) == [1, 1]
    env.set_attr("difficulty", 4)
    assert native.difficulty == 4
    assert env.get_attr("observation_space") == [native.single_observation_space] * N_ENVS
    assert env.has_attr("difficulty") and not env.has_attr("no_such_thing")
    with pytest.raises(ValueError, match="one attribute 'difficulty' for all of its 4 environments"):
        env.set_attr("difficulty", 5, indices=[1])


@pytest.mark.parametrize("make", [sync, asynchronous, lambda: GymnasiumVecEnv(NativeWalks("SameStep", N_ENVS))])
def test_action_masks_are_those_of_each_environment(make: Any) -> None:
    env = make()
    expected = DummyVecEnv([Walk] * N_ENVS)
    env.seed(3), expected.seed(3)
    env.reset(), expected.reset()
    assert is_masking_supported(env)
    for _ in range(20):
        assert same(get_action_masks(env), get_action_masks(expected))
        assert same(env.action_masks_of_all(), get_action_masks(expected))
        env.step(np.ones(N_ENVS, int)), expected.step(np.ones(N_ENVS, int))
    assert same(env.env_method("action_masks", indices=[2])[0], get_action_masks(expected)[2])
    env.close()


def test_in_a_dead_step_all_actions_are_allowed() -> None:
    class Parts(NativeWalks):
        def action_masks(self) -> Any:
            return [(mask, [False, False]) for mask in super().action_masks()]

    for kind in (NativeWalks, Parts):
        env = GymnasiumVecEnv(kind("NextStep", N_ENVS, with_mask=False))
        env.warns_of_dead_steps = False
        env.reset()
        dones, n_ended = np.zeros(N_ENVS, bool), 0
        for _ in range(20):
            masks = env.env_method("action_masks")
            for i, mask in enumerate(masks):
                parts = mask if kind is Parts else [mask]
                assert all(np.all(part) for part in parts) or not dones[i]
                assert np.shape(parts[0]) == (3,)
            assert all(same(a[0], b[0]) for a, b in zip(masks, env.action_masks_of_all(), strict=True))
            assert same(env.env_method("action_masks", indices=[2])[0][0], masks[2][0])
            dones = env.step(np.ones(N_ENVS, int))[2]
            n_ended += int(dones.sum())
        assert n_ended > 5


def test_masks_are_not_supported_where_there_are_none() -> None:
    env = make_vector_env("CartPole-v1", 2, vectorization_mode="async")
    assert not is_masking_supported(env)
    assert env.reset().shape == (2, 4)
    env.close()


# Seeds and options


@pytest.mark.parametrize("make", [sync, asynchronous, lambda: GymnasiumVecEnv(NativeWalks("NextStep", N_ENVS))])
def test_seeds_count_on_and_are_used_once(make: Any) -> None:
    env, expected = make(), DummyVecEnv([Walk] * N_ENVS)
    assert list(env.seed(11)) == list(expected.seed(11)) == [11, 12, 13, 14]
    assert same(env.reset(), expected.reset())
    assert same(env.reset(), expected.reset())
    env.seed(11)
    first = env.reset()
    assert same(first[1], DummyVecEnv([Walk]).env_method("reset", seed=12)[0][0])
    assert not same(env.reset(), first)
    env.close()


def test_seed_of_none_is_a_random_one_that_numpy_draws() -> None:
    env = sync()
    np.random.seed(4)
    first = list(env.seed())
    np.random.seed(4)
    assert list(env.seed()) == first == list(range(first[0] or 0, (first[0] or 0) + N_ENVS))  # type: ignore[arg-type]


def test_each_environment_gets_its_options_once(env: GymnasiumVecEnv) -> None:
    env.set_options({"level": 3})
    env.reset()
    assert env.get_attr("last_options") == [{"level": 3}] * N_ENVS
    env.reset()
    assert env.get_attr("last_options") == [None] * N_ENVS
    env.set_options([{"level": i // 2} for i in range(N_ENVS)])
    env.seed(5)
    obs = env.reset()
    assert env.get_attr("last_options") == [{"level": 0}, {"level": 0}, {"level": 1}, {"level": 1}]
    expected = DummyVecEnv([Walk] * N_ENVS)
    expected.seed(5)
    assert same(obs, expected.reset())


def test_different_options_need_environments_that_can_be_reset_alone() -> None:
    env = GymnasiumVecEnv(NativeWalks("SameStep", N_ENVS))
    env.set_options([{"level": i} for i in range(N_ENVS)])
    with pytest.raises(ValueError, match="the same options for all of its 4 environments, got 4 different ones"):
        env.reset()


# Infos


def test_running_environments_share_an_empty_info() -> None:
    env = GymnasiumVecEnv(NativeWalks("NextStep", N_ENVS))
    env.reset()
    for _ in range(50):
        _, _, dones, infos = env.step(np.ones(N_ENVS, int))
        running = [info for info, done in zip(infos, dones, strict=True) if not done]
        assert all(info is running[0] and info == {} for info in running)
        ended = [info for info, done in zip(infos, dones, strict=True) if done]
        assert len({id(info) for info in ended}) == len(ended)
        infos[0]["noted"] = True  # is forgotten with the step


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_last_observation_stays_as_it_was(mode: str) -> None:
    native = NativeWalks(mode, N_ENVS)
    env = GymnasiumVecEnv(native)
    kept, copies = [], []
    env.reset()
    for _ in range(60):
        obs, _, dones, infos = env.step(np.ones(N_ENVS, int))
        new = [infos[i]["terminal_observation"] for i in np.flatnonzero(dones)] + [obs]
        assert not any(np.shares_memory(array, native.obs) for array in new)
        kept += new
        copies += [array.copy() for array in new]
    assert len(kept) > 80 and all(same(a, b) for a, b in zip(kept, copies, strict=True))


class Batched(NativeWalks):
    """Leaves everything in arrays over all environments, without masks."""

    def step(self, actions: np.ndarray) -> Any:
        obs, rewards, terminated, truncated, infos = super().step(actions)
        n = self.num_envs
        new = {"final_info": {"score": np.arange(n), "deep": {"x": np.arange(n) + 0.5}}} if infos else {}
        final = {"final_observation": infos["final_obs"]} if infos else {}
        return obs, rewards, terminated, truncated, {**final, **new, "lives": np.arange(n) * 2, "version": "v3"}


def test_arrays_without_masks_are_read_too() -> None:
    env = GymnasiumVecEnv(Batched("SameStep", N_ENVS, "Dict"))
    expected = DummyVecEnv([partial(Walk, "Dict")] * N_ENVS)
    env.seed(2), expected.seed(2)
    env.reset(), expected.reset()
    n_ended = 0
    for _ in range(60):
        (*_, dones, infos), (*_, wanted) = env.step(np.ones(N_ENVS, int)), expected.step(np.ones(N_ENVS, int))
        for i, info in enumerate(infos):
            if dones[i]:
                assert same(info["terminal_observation"], wanted[i]["terminal_observation"])
                assert (info["score"], info["deep"]) == (i, {"x": i + 0.5})
                assert env.reset_infos[i] == {"lives": 2 * i, "version": "v3"}
            else:
                assert info == {"lives": 2 * i, "version": "v3"}
        n_ended += int(dones.sum())
    assert n_ended > 20


def test_episodes_are_those_of_the_monitor_inside_where_there_is_one() -> None:
    class Lives(gym.Wrapper):
        """Ends an episode at every second step, and goes on with the same one of the monitor inside."""

        def reset(self, **kwargs: Any) -> Any:
            if self.unwrapped.clock and not self.is_over:  # type: ignore[attr-defined]
                return self.unwrapped._observe(), {}  # type: ignore[attr-defined]
            return super().reset(**kwargs)

        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            self.is_over = terminated or truncated
            return obs, reward, terminated or self.unwrapped.clock % 2 == 0, truncated, info  # type: ignore[attr-defined]

    vector_envs = [SyncVectorEnv([lambda: Lives(Monitor(Walk()))] * N_ENVS, autoreset_mode=mode) for mode in MODES]
    for venv in (*vector_envs, AsyncVectorEnv([lambda: Lives(Monitor(Walk()))] * N_ENVS)):
        env, expected = GymnasiumVecEnv(venv), DummyVecEnv([lambda: Lives(Monitor(Walk()))] * N_ENVS)
        env.seed(0), expected.seed(0)
        env.reset(), expected.reset()
        lengths = []
        for _ in range(60):
            (*_, infos), (*_, wanted) = env.step(np.ones(N_ENVS, int)), expected.step(np.ones(N_ENVS, int))
            for a, b in zip(infos, wanted, strict=True):
                assert ("episode" in a) == ("episode" in b)
                lengths += [(a["episode"]["l"], b["episode"]["l"])] if "episode" in b else []
        assert lengths and all(a == b for a, b in lengths) and max(lengths)[0] > 2
        env.close()


def test_list_of_infos_is_read_too() -> None:
    for mode in ("NextStep", "SameStep"):
        inner = SyncVectorEnv(makers(N_ENVS, with_infos=True), autoreset_mode=mode)
        env = GymnasiumVecEnv(gym.wrappers.vector.DictInfoToList(inner))
        env.seed(1)
        env.reset()
        assert [info["limit"] for info in env.reset_infos] == env.get_attr("limit")
        _, _, dones, infos = env.step(np.ones(N_ENVS, int))
        assert [info["clock"] for info in infos] == [1] * N_ENVS
        assert ["terminal_observation" in info for info in infos] == dones.tolist()


def test_same_step_without_a_last_observation_says_so() -> None:
    class Forgetful(NativeWalks):
        def step(self, actions: np.ndarray) -> Any:
            return (*super().step(actions)[:4], {})

    env = GymnasiumVecEnv(Forgetful("SameStep", N_ENVS))
    env.reset()
    with pytest.raises(ValueError, match="`final_obs`, got none for environment"):
        for _ in range(50):
            env.step(np.ones(N_ENVS, int))


# Pictures, closing and copies


@pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])
def test_pictures_of_all_environments_are_tiled(vector_class: type[VectorEnv]) -> None:
    env = GymnasiumVecEnv(vector_class(makers(N_ENVS, render_mode="rgb_array")))  # type: ignore[call-arg]
    expected = DummyVecEnv([partial(Walk, render_mode="rgb_array")] * N_ENVS)
    env.seed(0), expected.seed(0)
    env.reset(), expected.reset()
    env.step(np.ones(N_ENVS, int)), expected.step(np.ones(N_ENVS, int))
    assert env.render_mode == "rgb_array" and env.metadata["render_fps"] == 7
    assert same(env.render(), expected.render()) and env.render().shape == (8, 12, 3)
    assert len(env.get_images()) == N_ENVS
    env.close()


def test_no_picture_without_a_render_mode() -> None:
    env = sync()
    with pytest.warns(UserWarning, match="no `render_mode`"):
        assert env.render() is None
    with pytest.warns(UserWarning, match="only with `rgb_array`"):
        assert env.get_images() == [None] * N_ENVS


def test_native_pictures_are_tiled_too() -> None:
    native = NativeWalks("SameStep", N_ENVS)
    native.render_mode = "rgb_array"
    native.render = lambda: [walk.render() for walk in native.walks]  # type: ignore[assignment, method-assign]
    env = GymnasiumVecEnv(native)
    env.reset()
    assert env.render("rgb_array").shape == (8, 12, 3)  # type: ignore[union-attr]


def test_closing_closes_the_vector_environment() -> None:
    native = NativeWalks("SameStep", N_ENVS)
    env = GymnasiumVecEnv(native)
    env.close()
    env.close()
    assert native.was_closed


def test_pickled_copy_plays_on() -> None:
    env = make_vector_env(Walk, N_ENVS, seed=3)
    env.reset()
    for _ in range(5):
        env.step(np.ones(N_ENVS, int))
    copied = pickle.loads(pickle.dumps(env))
    for _ in range(20):
        got, wanted = copied.step(np.ones(N_ENVS, int)), env.step(np.ones(N_ENVS, int))
        assert all(same(a, b) for a, b in zip(got[:3], wanted[:3], strict=True))
        assert all(same(without_time(a), without_time(b)) for a, b in zip(got[3], wanted[3], strict=True))


# Wrappers and algorithms of SB3


def both(**kwargs: Any) -> tuple[VecEnv, VecEnv]:
    venv = SyncVectorEnv(makers(N_ENVS, **kwargs))
    return GymnasiumVecEnv(venv), DummyVecEnv([partial(Walk, **kwargs)] * N_ENVS)


@pytest.mark.parametrize("wrapper", [VecNormalize, partial(VecFrameStack, n_stack=3), VecMonitor])
def test_works_in_the_wrappers_of_sb3(wrapper: Any) -> None:
    env, expected = (wrapper(venv) for venv in both())
    env.seed(0), expected.seed(0)
    assert same(env.reset(), expected.reset())
    n_ended = 0
    for _ in range(100):
        got, wanted = env.step(np.ones(N_ENVS, int)), expected.step(np.ones(N_ENVS, int))
        assert all(same(a, b) for a, b in zip(got[:3], wanted[:3], strict=True))
        for i in np.flatnonzero(got[2]):
            assert same(got[3][i]["terminal_observation"], wanted[3][i]["terminal_observation"])
            n_ended += 1
    assert n_ended > 30


def test_evaluation_sees_the_same_returns() -> None:
    env, expected = both()
    model = A2C("MlpPolicy", expected, seed=0, device="cpu")
    results = []
    for venv in (VecMonitor(env), VecMonitor(expected)):
        venv.seed(9)
        results.append(evaluate_policy(model, venv, 8, return_episode_rewards=True))
    assert results[0] == results[1] and len(results[0][0]) == 8


@pytest.mark.parametrize("algorithm", [A2C, partial(DQN, learning_starts=20, buffer_size=500), MaskablePPO])
def test_algorithms_learn_from_it_what_they_learn_from_dummy_vec_env(algorithm: Any) -> None:
    kwargs: dict[str, Any] = {"n_steps": 16, "batch_size": 32} if algorithm is MaskablePPO else {}
    models = []
    for env in (GymnasiumVecEnv(SyncVectorEnv(makers(N_ENVS))), DummyVecEnv([lambda: Monitor(Walk())] * N_ENVS)):
        models.append(algorithm("MlpPolicy", env, seed=0, device="cpu", **kwargs).learn(200))
    a, b = (model.policy.state_dict() for model in models)
    assert all((a[key] == b[key]).all() for key in a)
    infos = [[(info["r"], info["l"]) for info in model.ep_info_buffer] for model in models]
    assert infos[0] == infos[1] and len(infos[0]) > 20


# Actions and types


def test_actions_are_cast_where_a_native_environment_needs_it() -> None:
    class Picky(NativeWalks):
        def step(self, actions: np.ndarray) -> Any:
            assert actions.dtype == np.int64
            return super().step(actions)

    env = GymnasiumVecEnv(Picky("SameStep", N_ENVS))
    env.reset()
    for actions in ([1, 0, 2, 1], np.ones(N_ENVS), np.ones(N_ENVS, np.uint64)):
        env.step(actions)  # type: ignore[arg-type]


def test_flags_may_be_integers() -> None:
    class Integers(NativeWalks):
        def step(self, actions: np.ndarray) -> Any:
            obs, rewards, terminated, truncated, infos = super().step(actions)
            return obs, rewards.astype(np.float16), terminated.astype(int), truncated.astype(np.uint8), infos

    env = GymnasiumVecEnv(Integers("SameStep", N_ENVS))
    env.seed(0)
    env.reset()
    seen = set()
    for _ in range(100):
        _, rewards, dones, infos = env.step(np.ones(N_ENVS, int))
        assert rewards.dtype == np.float32 and dones.dtype == bool
        seen |= {info["TimeLimit.truncated"] for info in infos if info}
    assert seen == {True, False}


def test_tensors_are_taken_as_arrays() -> None:
    import torch as th

    class Tensors(NativeWalks):
        def reset(self, **kwargs: Any) -> Any:
            obs, infos = super().reset(**kwargs)
            return th.as_tensor(obs), infos

        def step(self, actions: np.ndarray) -> Any:
            *arrays, infos = super().step(actions)
            return (*(th.as_tensor(array) for array in arrays), {key: th.as_tensor(value) for key, value in infos.items()})

    for mode in ("SameStep", "NextStep"):
        env, expected = GymnasiumVecEnv(Tensors(mode, N_ENVS)), GymnasiumVecEnv(NativeWalks(mode, N_ENVS))
        env.seed(0), expected.seed(0)
        assert same(env.reset(), expected.reset())
        for _ in range(50):
            got, wanted = env.step(np.ones(N_ENVS, int)), expected.step(np.ones(N_ENVS, int))
            assert all(type(a) is np.ndarray and same(a, b) for a, b in zip(got[:3], wanted[:3], strict=True))


# Making them


def test_dead_steps_are_known_through_the_wrappers_of_sb3() -> None:
    env = VecNormalize(GymnasiumVecEnv(NativeWalks("NextStep", N_ENVS, with_mask=False)))
    assert not env.has_dead_steps
    env.reset()
    assert env.has_dead_steps and env.warns_of_dead_steps


def test_usual_environments_are_made() -> None:
    native = make_vector_env("CartPole-v1", 3, seed=1)
    assert type(native.get_attr("unwrapped")[0]).__name__ == "CartPoleVectorEnv"
    env = make_vector_env("CartPole-v1", 3, seed=1, vectorization_mode="sync", env_kwargs={"max_episode_steps": 5})
    expected = DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=5)] * 3)
    expected.seed(1)
    assert same(env.reset(), expected.reset())
    for _ in range(4):
        env.step(np.zeros(3, int))
    infos = env.step(np.zeros(3, int))[3]
    assert all(info["TimeLimit.truncated"] for info in infos)
    wrapped = make_vector_env("CartPole-v1", 2, wrappers=[Monitor])
    assert wrapped.env_is_wrapped(Monitor) == [True, True]
    assert make_vector_env("Acrobot-v1").num_envs == 1
    assert make_vector_env(gym.spec("Acrobot-v1"), 2).num_envs == 2


# Bad input


class Strange(gym.Env):
    """An environment with spaces that are given."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space


BOX = spaces.Box(0, 1, (2,))


@pytest.mark.parametrize(
    "observation_space, action_space, message",
    [
        (spaces.Tuple((BOX, BOX)), spaces.Discrete(2), "does not support the observation space Tuple.*expected Box"),
        (spaces.Dict(a=spaces.Dict(b=BOX)), spaces.Discrete(2), "does not support the observation space Dict.*expected Box"),
        (spaces.Text(5), spaces.Discrete(2), "does not support the observation space Text"),
        (BOX, spaces.Dict(a=BOX), "does not support the action space Dict.*expected Box"),
        (BOX, spaces.Tuple((BOX,)), "does not support the action space Tuple"),
    ],
)
def test_spaces_that_sb3_does_not_support_are_refused(observation_space: Any, action_space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumVecEnv(SyncVectorEnv([lambda: Strange(observation_space, action_space)] * 2))


@pytest.mark.parametrize("other", [None, 3, "CartPole-v1", gym.make("CartPole-v1"), DummyVecEnv([Walk])])
def test_what_is_no_vector_environment_is_refused(other: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected a gymnasium.vector.VectorEnv, got"):
        GymnasiumVecEnv(other)
    with pytest.raises(ValueError, match=r'Expected environments of envpool.make.*env_type="gymnasium".*, got'):
        EnvPoolVecEnv(other)


@pytest.mark.parametrize("n_envs", [0, -1, 1.5, True, "2", None])
def test_number_of_environments_is_checked(n_envs: Any) -> None:
    with pytest.raises(ValueError, match=r"`n_envs` must be an integer of at least 1, got"):
        make_vector_env("CartPole-v1", n_envs)


def test_vector_environment_of_none_is_refused() -> None:
    native = NativeWalks("SameStep", 1)
    native.num_envs = 0
    with pytest.raises(ValueError, match="at least one environment, got 0"):
        GymnasiumVecEnv(native)


def test_other_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`vectorization_mode` must be one of.*got 'threads'"):
        make_vector_env("CartPole-v1", 2, vectorization_mode="threads")
    with pytest.raises(ValueError, match=r"`wrappers` must be a sequence of functions.*got only <class.*Monitor"):
        make_vector_env("CartPole-v1", 2, wrappers=Monitor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected an id and neither `wrappers` nor `vector_kwargs`"):
        make_vector_env("CartPole-v1", 2, vectorization_mode="vector_entry_point", wrappers=[Monitor])


def test_autoreset_mode_that_is_none_is_refused() -> None:
    native = NativeWalks("SameStep", N_ENVS)
    native.metadata = {"autoreset_mode": "sometimes"}
    with pytest.raises(ValueError, match="must be an AutoresetMode of Gymnasium, got 'sometimes'"):
        GymnasiumVecEnv(native)


def test_mode_of_another_environment_is_not_taken() -> None:
    class Undeclared(NativeWalks):
        metadata = VectorEnv.metadata  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__("NextStep", N_ENVS)
            del self.metadata

    VectorEnv.metadata["autoreset_mode"] = gym.vector.AutoresetMode.SAME_STEP  # as ale_py's vector environment does
    try:
        env = GymnasiumVecEnv(Undeclared())
        env.reset()
        assert any(env.step(np.ones(N_ENVS, int))[2].any() for _ in range(20))
    finally:
        del VectorEnv.metadata["autoreset_mode"]


def test_disabled_autoreset_without_single_resets_is_refused_when_it_matters() -> None:
    env = GymnasiumVecEnv(NativeWalks("Disabled", N_ENVS, with_mask=False))
    env.reset()
    with pytest.raises(ValueError, match=r"AutoresetMode.DISABLED must be able to reset single environments"):
        for _ in range(50):
            env.step(np.ones(N_ENVS, int))
    alone = GymnasiumVecEnv(NativeWalks("Disabled", 1, with_mask=False))
    alone.reset()
    assert sum(alone.step(np.ones(1, int))[2][0] for _ in range(50)) > 3


def test_observations_of_another_shape_are_refused() -> None:
    class Flat(NativeWalks):
        def reset(self, **kwargs: Any) -> Any:
            return np.zeros((N_ENVS, 2), np.float32), {}

    with pytest.raises(ValueError, match=r"observations of shape \(4, 2\), expected \(4, 3\)"):
        GymnasiumVecEnv(Flat("SameStep", N_ENVS)).reset()


@pytest.mark.parametrize("column", [1, 2, 3])
@pytest.mark.parametrize("n_envs", [1, N_ENVS])
def test_rewards_and_flags_of_another_shape_are_refused(n_envs: int, column: int) -> None:
    class Columns(NativeWalks):
        def step(self, actions: np.ndarray) -> Any:
            result = list(super().step(actions))
            result[column] = result[column][:, None]
            return result

    env = GymnasiumVecEnv(Columns("SameStep", n_envs))
    env.reset()
    with pytest.raises(ValueError, match=rf"returned rewards of shape .*\({n_envs}, 1\).*, expected \({n_envs},\)"):
        env.step(np.ones(n_envs, int))


def test_error_of_an_environment_at_the_first_reset_is_the_one_that_is_raised() -> None:
    class Broken(Walk):
        def reset(self, **kwargs: Any) -> Any:
            raise ValueError("no such level")

    with pytest.raises(ValueError, match="no such level"):
        GymnasiumVecEnv(SyncVectorEnv([Broken] * 2)).reset()


@pytest.mark.parametrize(
    "change, message", [({"batch_size": 2}, "batch_size=4, got 2"), ({"max_num_players": 2}, "1 player, got 2")]
)
def test_pools_that_step_apart_or_have_players_are_refused(change: dict[str, int], message: str) -> None:
    pool = PoolOfWalks(N_ENVS)
    pool.config.update(change)
    with pytest.raises(ValueError, match=message):
        EnvPoolVecEnv(pool)


def test_pool_says_that_its_seed_is_set_already() -> None:
    env = EnvPoolVecEnv(PoolOfWalks(N_ENVS, seed=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(env.seed(3)) == list(env.seed()) == [None] * N_ENVS
    with pytest.warns(UserWarning, match=r"set by `envpool.make.*got 8, they have 3"):
        env.seed(8)
