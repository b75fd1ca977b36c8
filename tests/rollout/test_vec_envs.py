"""Vectorized environments of any kind and size: what each contributes, what is thrown away, and what never ends."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout import limits
from tests.helpers.environments import Declared, Scripted, vec

SMALL = {"net_arch": [8]}


def make(env: Any, **kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", env, **{"learning_rate": 1e-2, "seed": 0, "device": "cpu", "policy_kwargs": SMALL, **kwargs})


class Rollouts(BaseCallback):
    """Copies what each rollout was."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[dict[str, Any]] = []
        self.n_steps = 0

    def _on_step(self) -> bool:
        self.n_steps += 1
        return True

    def _on_rollout_end(self) -> None:
        buffer, logged = self.model.rollout_buffer, self.model.logger.name_to_value  # type: ignore[attr-defined]
        self.rollouts.append(
            {
                "lengths": buffer.episodes.lengths.tolist(),
                "env_ids": buffer.episodes.env_ids.tolist(),
                "timesteps": buffer.timesteps.copy(),
                "observations": buffer.observations.copy(),
                "rewards": buffer.rewards.copy(),
                "episode_starts": buffer.episode_starts.copy(),
                "logged": {key: logged[f"rollout/{key}"] for key in ("n_episodes", "n_steps", "discarded_fraction")},
                "num_timesteps": self.num_timesteps,
            }
        )


def expected_episodes(scripts: Sequence[Sequence[int]], n_steps: int, n_episodes: int | None) -> list[list[int]]:
    """The rule in its plainest form: play on until the quota is there and the episode is over."""
    result = []
    for script in scripts:
        played: list[int] = []
        while (sum(played) < n_steps) if n_episodes is None else (len(played) < n_episodes):
            played.append(script[len(played) % len(script)])
        result.append(played)
    return result


# Quotas


@pytest.mark.parametrize(
    "quota", [{"n_steps": 1}, {"n_steps": 4}, {"n_steps": 10}, {"n_episodes": 1}, {"n_episodes": 3}], ids=str
)
@pytest.mark.parametrize("scripts", [[(3,)], [(1,)], [(3,), (5,)], [(2, 6), (4, 1), (7,)], [(1,), (20,)], [(2,)] * 5], ids=str)
def test_every_environment_records_its_quota_and_ends_its_episode(
    scripts: list[tuple[int, ...]], quota: dict[str, int]
) -> None:
    env = vec(*(Scripted(script) for script in scripts))
    callback = Rollouts()
    model = make(env, **quota).learn(1, callback)
    (rollout,) = callback.rollouts
    expected = expected_episodes(scripts, quota.get("n_steps", 0), quota.get("n_episodes"))
    assert rollout["lengths"] == [length for played in expected for length in played]
    assert rollout["env_ids"] == [env_id for env_id, played in enumerate(expected) for _ in played]
    recorded, longest = sum(map(sum, expected)), max(map(sum, expected))
    # All of it was recorded from the start of an episode on, in order
    np.testing.assert_array_equal(rollout["observations"][:, 1], rollout["timesteps"])
    np.testing.assert_array_equal(rollout["episode_starts"], rollout["timesteps"] == 0)
    assert callback.n_steps == longest
    assert model.num_timesteps == longest * len(scripts)
    assert rollout["logged"]["n_episodes"] == sum(map(len, expected))
    assert rollout["logged"]["n_steps"] == recorded == len(rollout["rewards"])
    assert rollout["logged"]["discarded_fraction"] == pytest.approx(1 - recorded / (longest * len(scripts)))


def test_n_steps_is_ignored_where_n_episodes_is_given() -> None:
    callback = Rollouts()
    make(Scripted((3,)), n_steps=50, n_episodes=2).learn(1, callback)
    assert callback.rollouts[0]["lengths"] == [3, 3]


def test_the_numbers_of_the_logger_are_those_of_the_rollout_that_was_updated_on() -> None:
    env = vec(Scripted((2,)), Scripted((9,)))
    callback = Rollouts()
    model = make(env, n_episodes=1).learn(18, callback, log_interval=None)  # type: ignore[arg-type]
    assert callback.rollouts[0]["logged"] == {"n_episodes": 2, "n_steps": 11, "discarded_fraction": pytest.approx(7 / 18)}
    assert model.logger.name_to_value["rollout/discarded_fraction"] == pytest.approx(7 / 18)


def test_discarded_steps_count_as_timesteps_and_not_in_the_statistics_of_episodes() -> None:
    # While the long episode is played, the first environment ends four more that nobody learns from
    model = make(vec(Scripted((2,)), Scripted((9,))), n_episodes=1).learn(18)
    assert model.num_timesteps == 18
    assert model.ep_info_buffer is not None
    assert [info["l"] for info in model.ep_info_buffer] == [2, 9]


class Succeeding(Scripted):
    """Says at each step whether it was a success."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"is_success": self.length == 9}


def test_discarded_episodes_are_no_successes_either() -> None:
    model = make(vec(Succeeding((2,)), Succeeding((9,))), n_episodes=1).learn(18)
    assert model.ep_success_buffer is not None
    assert list(model.ep_success_buffer) == [False, True]


def test_no_statistics_are_lost_between_rollouts() -> None:
    model = make(vec(Scripted((2,)), Scripted((3,))), n_episodes=2).learn(36)
    assert model.ep_info_buffer is not None
    assert sorted(info["l"] for info in model.ep_info_buffer) == [2] * 6 + [3] * 6


def test_training_goes_on_until_the_budget_of_timesteps_is_reached() -> None:
    callback = Rollouts()
    model = make(vec(Scripted((2,)), Scripted((9,))), n_episodes=1).learn(40, callback)
    assert [rollout["num_timesteps"] for rollout in callback.rollouts] == [18, 36, 54]
    assert model.num_timesteps == 54


# Fresh episodes


def test_every_rollout_begins_at_the_start_of_an_episode_in_every_environment() -> None:
    callback = Rollouts()
    make(vec(Scripted((2, 5)), Scripted((9, 3))), n_steps=4).learn(100, callback)
    assert len(callback.rollouts) > 3
    for rollout in callback.rollouts:
        np.testing.assert_array_equal(rollout["observations"][:, 1], rollout["timesteps"])


def resets(model: REINFORCE) -> list[int]:
    assert model.env is not None
    return model.env.get_attr("n_resets")


def test_environments_without_seeds_are_reset_only_where_one_stands_within_an_episode() -> None:
    # Equal lengths: all stand at the start of an episode after every rollout; one reset at the beginning, one per episode
    assert resets(make(vec(Scripted((3,)), Scripted((3,))), n_episodes=1, seed_rollouts=False).learn(12)) == [3, 3]
    # 2 and 5: at the end of the first rollout the first environment is in the middle of its third episode
    assert resets(make(vec(Scripted((2,)), Scripted((5,))), n_episodes=1, seed_rollouts=False).learn(10)) == [3, 2]
    model = make(vec(Scripted((2,)), Scripted((5,))), n_episodes=1, seed_rollouts=False).learn(20)
    assert resets(model) == [3 + 1 + 2, 2 + 1 + 1]


def test_one_environment_without_seeds_is_never_reset_by_force() -> None:
    model = make(Scripted((3, 5)), n_steps=4, seed_rollouts=False).learn(32)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 8
    assert resets(model) == [9]


def test_learning_on_without_a_reset_of_the_counters_starts_from_fresh_episodes() -> None:
    env = vec(Scripted((2,)), Scripted((5,)))
    callback = Rollouts()
    model = make(env, n_episodes=1).learn(10)
    model.learn(10, callback, reset_num_timesteps=False)
    assert callback.rollouts[0]["lengths"] == [2, 5]
    np.testing.assert_array_equal(callback.rollouts[0]["observations"][:, 1], callback.rollouts[0]["timesteps"])


def test_a_monitor_that_forbids_early_resets_is_refused_with_several_environments_only() -> None:
    def strict() -> gym.Env:
        return Monitor(Scripted((3,)), allow_early_resets=False)

    with pytest.raises(ValueError, match=r"`Monitor\(allow_early_resets=False\)`.*several environments.*2 environments"):
        make(DummyVecEnv([strict, strict])).learn(10)
    assert make(DummyVecEnv([strict]), n_steps=4).learn(12).num_timesteps == 12
    assert make(DummyVecEnv([strict, strict]), n_steps=4, complete_episodes=False).learn(16).num_timesteps == 16


# Fixed-length rollouts


@pytest.mark.parametrize("n_envs", [1, 3])
def test_fixed_length_rollouts_throw_nothing_away_and_go_on_with_running_episodes(n_envs: int) -> None:
    env = vec(*(Scripted((5,)) for _ in range(n_envs)))
    callback = Rollouts()
    model = make(env, n_steps=4, complete_episodes=False).learn(12 * n_envs, callback)
    assert [rollout["lengths"] for rollout in callback.rollouts] == [[4] * n_envs, [1, 3] * n_envs, [2, 2] * n_envs]
    for rollout in callback.rollouts:
        assert rollout["logged"]["discarded_fraction"] == 0.0
        np.testing.assert_array_equal(rollout["observations"][:, 1], rollout["timesteps"])
    assert resets(model) == [3] * n_envs


# Environments that never end


def horizon_warnings(learn: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn()
    return [str(warning.message) for warning in caught if "horizon" in str(warning.message)]


@pytest.mark.parametrize("quota", [{"n_steps": 4}, {"n_steps": 20}, {"n_episodes": 1}, {"n_episodes": 3}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_an_environment_that_never_ends_is_cut_at_the_horizon_once_per_update(n_envs: int, quota: dict[str, int]) -> None:
    env = vec(*(Scripted((None,)) for _ in range(n_envs)))
    model, callback = make(env, horizon=7, **quota), Rollouts()
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    found = horizon_warnings(lambda: model.learn(21 * n_envs, callback))
    assert [rollout["lengths"] for rollout in callback.rollouts] == [[7] * n_envs] * 3
    for rollout in callback.rollouts:
        np.testing.assert_array_equal(rollout["observations"][:, 1], rollout["timesteps"])
    assert any(not th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    assert len(found) == 1
    assert "`horizon`" in found[0] and "`complete_episodes=False`" in found[0] and "7" in found[0]


def test_a_model_warns_of_the_horizon_once_in_its_life() -> None:
    model = make(Scripted((None,)), horizon=7)
    assert len(horizon_warnings(lambda: model.learn(14))) == 1
    assert horizon_warnings(lambda: model.learn(14)) == []
    assert horizon_warnings(lambda: model.learn(14, reset_num_timesteps=False)) == []
    assert len(horizon_warnings(lambda: make(Scripted((None,)), horizon=7).learn(14))) == 1


def test_without_any_limit_the_horizon_is_ten_thousand() -> None:
    assert limits.DEFAULT_HORIZON == 10_000


def test_the_default_horizon_ends_what_declares_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEFAULT_HORIZON", 9)
    callback = Rollouts()
    model = make(vec(Scripted((None,)), Scripted((2,))), n_episodes=2)
    assert len(horizon_warnings(lambda: model.learn(18, callback))) == 1
    assert callback.rollouts[0]["lengths"] == [9, 2, 2]


def test_the_environments_own_limit_is_the_horizon_and_no_matter_for_a_warning() -> None:
    callback = Rollouts()
    model = make(TimeLimit(Scripted((None,)), 6), n_steps=8)
    assert horizon_warnings(lambda: model.learn(24, callback)) == []
    assert callback.rollouts[0]["lengths"] == [6, 6]


def test_a_limit_that_is_declared_and_not_kept_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEFAULT_HORIZON", 9)
    callback = Rollouts()
    model = make(Declared(5), n_steps=8)
    assert len(horizon_warnings(lambda: model.learn(18, callback))) == 1
    assert [rollout["lengths"] for rollout in callback.rollouts] == [[9], [9]]


def test_each_environment_has_the_limit_of_its_wrapper() -> None:
    callback = Rollouts()
    env = vec(TimeLimit(Scripted((None,)), 4), TimeLimit(Scripted((None,)), 6))
    make(env, n_episodes=1).learn(1, callback)
    assert callback.rollouts[0]["lengths"] == [4, 6]


def test_a_horizon_below_the_length_of_the_episodes_cuts_them_and_ends_the_update() -> None:
    callback = Rollouts()
    with pytest.warns(UserWarning, match="`horizon`"):
        make(vec(Scripted((2, 9)), Scripted((3,))), n_episodes=4, horizon=5).learn(1, callback)
    # After its cut the first environment is done, with two episodes instead of four
    assert callback.rollouts[0]["lengths"] == [2, 5, 3, 3, 3, 3]


def normalized(*envs: gym.Env) -> VecEnv:
    return VecNormalize(vec(*envs))


def monitored_as_vector(*envs: gym.Env) -> VecEnv:
    return VecMonitor(DummyVecEnv([lambda env=env: env for env in envs]))  # type: ignore[misc]


def in_processes(*envs: gym.Env) -> VecEnv:
    return SubprocVecEnv([partial(Monitor, env) for env in envs])


@pytest.mark.parametrize("make_env", [vec, normalized, monitored_as_vector, in_processes])
def test_a_cut_episode_counts_in_the_log_with_what_it_has_come_to(make_env: Callable[..., VecEnv]) -> None:
    """Were it left out, the mean return would be that of the short episodes."""
    env = make_env(*(Scripted((2, 9), reward=lambda timestep: 10.0 * timestep) for _ in range(2)))
    model = make(env, n_episodes=4, horizon=5)
    with pytest.warns(UserWarning, match="`horizon`"):
        model.learn(1)
    env.close()
    assert [(info["r"], info["l"]) for info in model.ep_info_buffer or []] == 2 * [RETURNS[2]] + 2 * [RETURNS[5]]
    assert all(0 <= info["t"] < 100 for info in model.ep_info_buffer or [])


#: By length, of episodes with a reward of ten times the timestep: return and length
RETURNS = {length: (10.0 * sum(range(length)), length) for length in (2, 5)}


class Shaped(gym.Wrapper):
    """Has, as the monitor within it has, an attribute ``rewards``, and says in each info whether all is well."""

    rewards: ClassVar[dict[str, float]] = {"alive": 1.0}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, -float(reward), terminated, truncated, {**info, "is_success": terminated, "height": 7.0}


@pytest.mark.parametrize("venv_class", [DummyVecEnv, SubprocVecEnv])
def test_a_cut_episode_is_the_monitors_and_no_success(venv_class: Callable[..., VecEnv]) -> None:
    env = venv_class([lambda: Shaped(Monitor(Scripted((2, 9)), info_keywords=()))])
    model = make(env, n_episodes=2, horizon=5)
    with pytest.warns(UserWarning, match="`horizon`"):
        model.learn(1)
    env.close()
    assert list(model.ep_success_buffer or []) == [True, False]
    counted = [(info["r"], info["l"]) for info in model.ep_info_buffer or []]
    # From another process only what must be the monitor's is taken
    assert counted == ([(2.0, 2), (5.0, 5)] if venv_class is DummyVecEnv else [(2.0, 2)])


def test_a_cut_episode_has_the_keywords_of_the_monitor() -> None:
    env = DummyVecEnv([lambda: Monitor(Shaped(Scripted((None,))), info_keywords=("height",))])
    model = make(env, n_episodes=1, horizon=5)
    with pytest.warns(UserWarning, match="`horizon`"):
        model.learn(1)
    assert [info["height"] for info in model.ep_info_buffer or []] == [7.0]


def test_a_cut_episode_without_a_monitor_or_within_one_that_counts_otherwise_is_not_in_the_log() -> None:
    class SkipsEveryOther(gym.Wrapper):
        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            self.env.step(action)
            return self.env.step(action)

    for wrap in (lambda env: env, lambda env: SkipsEveryOther(Monitor(env))):
        model = make(DummyVecEnv([lambda wrap=wrap: wrap(Scripted((None,)))]), horizon=5)  # type: ignore[misc]
        with pytest.warns(UserWarning, match="`horizon`"):
            model.learn(1)
        assert len(model.ep_info_buffer or []) == 0


def test_a_horizon_that_the_episodes_just_reach_cuts_nothing() -> None:
    callback = Rollouts()
    model = make(Scripted((5,)), n_steps=8, horizon=5)
    assert horizon_warnings(lambda: model.learn(10, callback)) == []
    assert callback.rollouts[0]["lengths"] == [5, 5]


@pytest.mark.parametrize("baseline, last_value", [("value", 3.0), (None, 0.0), ("mean", 0.0)])
def test_an_episode_cut_at_the_horizon_counts_as_truncated(baseline: str | None, last_value: float) -> None:
    model = make(Scripted((None,)), horizon=3, gamma=0.5, baseline=baseline)
    with th.no_grad():  # a critic that says 3 everywhere
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(3.0)
    with pytest.warns(UserWarning, match="horizon"):
        model.learn(3)
    last = 1 + 0.5 * last_value
    np.testing.assert_allclose(model.rollout_buffer.returns, [1 + 0.5 * (1 + 0.5 * last), 1 + 0.5 * last, last], rtol=1e-6)


def test_a_fixed_length_rollout_needs_no_horizon() -> None:
    model, callback = make(Scripted((None,)), n_steps=6, complete_episodes=False, horizon=2), Rollouts()
    assert horizon_warnings(lambda: model.learn(12, callback)) == []
    assert [rollout["lengths"] for rollout in callback.rollouts] == [[6], [6]]
    np.testing.assert_array_equal(callback.rollouts[1]["timesteps"], range(6, 12))


# SB3's vectorized environments


def cartpole(wrapper: Callable[[VecEnv], VecEnv] = lambda env: env, n_envs: int = 2, **kwargs: Any) -> VecEnv:
    return wrapper(make_vec_env("CartPole-v1", n_envs, seed=1, **kwargs))


def test_processes_give_the_same_weights_as_one_process() -> None:
    def weights(env: VecEnv) -> list[th.Tensor]:
        try:
            return list(make(env, n_steps=32).learn(200).policy.parameters())
        finally:
            env.close()

    in_one = weights(cartpole(vec_env_cls=DummyVecEnv))
    in_two = weights(cartpole(vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "forkserver"}))
    assert all(th.equal(a, b) for a, b in zip(in_one, in_two, strict=True))


def test_processes_declare_their_limits_and_keep_the_quotas() -> None:
    makers = [lambda: Monitor(TimeLimit(Scripted((None,)), 4)), lambda: Monitor(TimeLimit(Scripted((None,)), 6))]
    env = SubprocVecEnv(makers, start_method="forkserver")
    try:
        callback = Rollouts()
        model = make(env, n_episodes=2)
        assert horizon_warnings(lambda: model.learn(1, callback)) == []
        assert callback.rollouts[0]["lengths"] == [4, 4, 6, 6]
        assert callback.rollouts[0]["logged"]["discarded_fraction"] == pytest.approx(1 / 6)
    finally:
        env.close()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_normalized_environments_are_learnt_from_as_they_are_normalized(n_envs: int) -> None:
    env = VecNormalize(vec(*(Scripted((4, 6), reward=lambda t: 100.0 * t) for _ in range(n_envs))), gamma=0.9)
    callback = Rollouts()
    model = make(env, n_steps=10, gamma=0.9).learn(100, callback)
    assert model.get_vec_normalize_env() is env
    for rollout in callback.rollouts:
        assert np.abs(rollout["rewards"]).max() <= env.clip_reward
        assert np.abs(rollout["observations"]).max() <= env.clip_obs
    # The statistics of episodes stay those of the true rewards
    assert model.ep_info_buffer is not None
    assert {info["r"] for info in model.ep_info_buffer} == {600.0, 1500.0}


def test_the_last_observation_of_a_truncated_episode_is_normalized_too() -> None:
    env = VecNormalize(vec(Scripted((50,), truncated=True)), norm_reward=False)
    model = make(env, n_episodes=1, gamma=0.5)
    seen: list[np.ndarray] = []
    model.policy.features_extractor.register_forward_hook(lambda module, args, output: seen.append(output.numpy().copy()))
    model.learn(50)
    # Raw, the timestep in the last observation is 50; normalized, it lies within a few standard deviations of the mean
    assert len(seen) > 50
    assert 0.5 < max(np.abs(obs).max() for obs in seen) < 10.0


def test_stacked_frames_hold_nothing_of_the_episode_before() -> None:
    env = VecFrameStack(vec(Scripted((3, 4)), Scripted((5,))), n_stack=3)
    callback = Rollouts()
    make(env, n_steps=6).learn(60, callback)
    for rollout in callback.rollouts:
        assert rollout["observations"].shape[1] == 6
        np.testing.assert_array_equal(rollout["observations"][:, 5], rollout["timesteps"])
        np.testing.assert_array_equal(rollout["observations"][:, 3], np.maximum(rollout["timesteps"] - 1, 0))
        first = rollout["timesteps"] == 0
        assert (rollout["observations"][first, :4] == 0).all()


def test_stacked_images_are_learnt_from() -> None:
    envs = [lambda: Monitor(FakeImageEnv(screen_height=36, screen_width=36)) for _ in range(2)]
    env = VecFrameStack(DummyVecEnv(envs), n_stack=4)
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    model = REINFORCE("CnnPolicy", env, n_steps=10, policy_kwargs=kwargs, device="cpu").learn(40)
    assert model.rollout_buffer.observations.shape == (20, 4, 36, 36)


def test_a_monitor_of_the_whole_vector_gives_the_statistics_of_recorded_episodes() -> None:
    env = VecMonitor(DummyVecEnv([lambda: Scripted((2,)), lambda: Scripted((9,))]))
    model = make(env, n_episodes=1).learn(18)
    assert model.ep_info_buffer is not None
    assert [info["l"] for info in model.ep_info_buffer] == [2, 9]


def test_without_a_monitor_there_are_no_statistics_and_no_complaint() -> None:
    model = make(DummyVecEnv([lambda: Scripted((2,)), lambda: Scripted((9,))]), n_episodes=1).learn(36)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 0


@pytest.mark.parametrize("n_envs", [1, 2, 5, 16])
def test_a_vector_may_have_any_size(n_envs: int) -> None:
    model = make(cartpole(n_envs=n_envs), n_steps=8).learn(8 * n_envs)
    assert model.rollout_buffer.n_envs == n_envs
    assert np.bincount(model.rollout_buffer.episodes.env_ids, minlength=n_envs).min() >= 1


def test_all_wrappers_work_together() -> None:
    def wrapped(env: VecEnv) -> VecEnv:
        return VecFrameStack(VecNormalize(VecMonitor(env)), n_stack=2)

    model = make(cartpole(wrapped, n_envs=3), n_steps=16).learn(300)
    assert model.num_timesteps >= 300
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_rollout_outgrows_the_memory_that_was_set_aside_for_it() -> None:
    callback = Rollouts()
    env = vec(Scripted((50,), spaces.Box(-1, 1, (3,))), Scripted((7,), spaces.Box(-1, 1, (3,))))
    make(env, n_steps=1).learn(1, callback)
    assert callback.rollouts[0]["lengths"] == [50, 7]
    np.testing.assert_array_equal(callback.rollouts[0]["rewards"], np.ones(57))
