"""A run that is taken up from a file ends with the weights of the run that was never interrupted, to the last bit."""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_reinforce import REINFORCE, Baseline, MaskableRecurrentREINFORCE, MaskableREINFORCE, RecurrentREINFORCE
from sb3_reinforce.actor_critic.actor_critic import NoNaturalStepError
from sb3_reinforce.monte_carlo.baselines import EpisodeReturns
from tests.helpers import ROOT, slow
from tests.helpers.environments import Seeded, vec

N_STEPS = 600
BOX, BINARY = spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2)
DICT = spaces.Dict({"vector": spaces.Box(-1, 1, (2,), np.float32), "kind": spaces.Discrete(3)})
LSTM = {"lstm_hidden_size": 4, "net_arch": [4]}


def seeded(n_envs: int = 1, **kwargs: Any) -> Callable[[], VecEnv]:
    return lambda: vec(*[Seeded(**kwargs) for _ in range(n_envs)])


def normalized(n_envs: int, **kwargs: Any) -> Callable[[], VecEnv]:
    return lambda: VecNormalize(seeded(n_envs, **kwargs)())


class Dropping(ActorCriticPolicy):
    """Acts with SB3's own calls, and draws from PyTorch's generator also in the update."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))


def made(env: Callable[[], VecEnv], kind: type[REINFORCE] = REINFORCE, **kwargs: Any) -> Any:
    return env, kind, {"policy": "MlpPolicy", "n_steps": 100, **kwargs}


RUNS = {
    "defaults": made(seeded()),
    "three environments": made(seeded(3), n_steps=30),
    "processes": made(lambda: SubprocVecEnv([Seeded, Seeded], "fork"), n_steps=30),
    "normalized": made(normalized(2), n_steps=40),
    "normalized dictionaries": made(
        lambda: VecNormalize(seeded(2, observation_space=DICT)(), norm_obs_keys=["vector"]), policy="MultiInputPolicy"
    ),
    "schedules": made(
        seeded(2),
        learning_rate=lambda left: 0.01 * left,
        critic_learning_rate=lambda left: 0.02 * left,
        natural_gradient=False,
    ),
    "schedule of the divergence": made(seeded(), target_kl=lambda left: 0.001 + 0.05 * left),
    "schedule of the entropy bonus": made(seeded(), ent_coef=lambda left: 0.2 * left - 0.1),
    "episodes": made(seeded(2), n_episodes=4, baseline="leave_one_out"),
    "cut episodes": made(seeded(2), n_episodes=4, baseline="leave_one_out", horizon=7),
    "groups": made(seeded(4), n_episodes=1, group_size=2, baseline="mean"),
    "Gaussian": made(normalized(2, action_space=BOX), n_steps=40),
    "gSDE": made(seeded(2, action_space=BOX), use_sde=True, sde_sample_freq=4, natural_gradient=False),
    "binary": made(seeded(2, action_space=BINARY), n_steps=30),
    "dropout": made(seeded(2), policy=Dropping, natural_gradient=False),
    "masks": made(seeded(3), MaskableREINFORCE, n_steps=30),
    "memory": made(seeded(3), RecurrentREINFORCE, policy="MlpLstmPolicy", policy_kwargs=LSTM, n_steps=30),
    "masks and memory": made(
        normalized(2), MaskableRecurrentREINFORCE, policy="MlpLstmPolicy", policy_kwargs=LSTM, n_steps=40
    ),
    "vector environment": made(lambda: gym.make_vec("CartPole-v1", 2), n_steps=30),  # type: ignore[arg-type,return-value]
}


class SaveAt(BaseCallback):
    """Saves the model at some steps, and remembers at which timestep their rollout began."""

    def __init__(self, *steps: int):
        super().__init__()
        self.steps = steps
        self.files: list[io.BytesIO] = []
        self.began_at: list[int] = []

    def _on_rollout_start(self) -> None:
        self.start = self.model.num_timesteps

    def _save(self) -> None:
        file = io.BytesIO()
        self.model.save(file)
        self.files.append(file)
        self.began_at.append(self.start)

    def _on_step(self) -> bool:
        if self.n_calls in self.steps:
            self._save()
        return True


class SaveAtRolloutEnds(SaveAt):
    """Saves the model whenever a rollout is played and weighed, and its update is still to come."""

    def _on_rollout_end(self) -> None:
        self._save()


class StopAt(BaseCallback):
    """Ends the run at a step, in one of the ways in which runs end."""

    def __init__(self, step: int, way: str):
        super().__init__()
        self.step, self.way = step, way

    def _on_step(self) -> bool:
        if self.n_calls == self.step and self.way != "stop":
            raise {"Ctrl-C": KeyboardInterrupt, "exception": ZeroDivisionError}[self.way]
        return self.n_calls < self.step


def loaded(file: Any, env: Callable[[], VecEnv], kind: type[REINFORCE] = REINFORCE, **kwargs: Any) -> REINFORCE:
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return kind.load(file, env=env(), device="cpu", **kwargs)


def taken_up(file: Any, env: Callable[[], VecEnv], kind: type[REINFORCE] = REINFORCE, total: int = N_STEPS) -> REINFORCE:
    model = loaded(file, env, kind)
    return model.learn(total - model.num_timesteps, reset_num_timesteps=False)


def state(model: REINFORCE) -> list[Any]:
    optimizer = model.policy.optimizer.state_dict()["state"]
    found = [*model.policy.state_dict().values(), *[value for each in optimizer.values() for value in each.values()]]
    if model.get_vec_normalize_env() is not None:
        statistics = model.get_vec_normalize_env()
        of_observations = statistics.obs_rms if isinstance(statistics.obs_rms, dict) else {"": statistics.obs_rms}
        for each in (*of_observations.values(), statistics.ret_rms):
            found += [np.copy(each.mean), np.copy(each.var), each.count]
    return [np.asarray(each) for each in found] + [model.num_timesteps, model._n_updates]


def assert_equal(model: REINFORCE, other: REINFORCE) -> None:
    for a, b in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_taken_up_exactly_in_the_midst_of_any_rollout(name: str) -> None:
    env, kind, kwargs = RUNS[name]
    model, saves = kind(**kwargs, env=env(), seed=7, device="cpu"), SaveAt(3, 61, 128)
    model.learn(N_STEPS, callback=saves)
    assert model._n_updates >= 3
    for file, began_at in zip(saves.files, saves.began_at, strict=True):
        assert loaded(file, env, kind).num_timesteps == began_at
        assert_equal(taken_up(file, env, kind), model)
    assert len(set(saves.began_at)) > 1


@pytest.mark.parametrize("way", ["stop", "Ctrl-C", "exception"])
def test_a_run_that_was_ended_is_taken_up_exactly(way: str, tmp_path: Path) -> None:
    env = normalized(2)
    whole = REINFORCE("MlpPolicy", env(), seed=7, n_steps=40).learn(N_STEPS)
    model = REINFORCE("MlpPolicy", env(), seed=7, n_steps=40)
    try:
        model.learn(N_STEPS, callback=StopAt(130, way))
    except (KeyboardInterrupt, ZeroDivisionError):
        pass
    model.save(tmp_path / "model")
    assert_equal(taken_up(tmp_path / "model", env), whole)


def test_a_run_is_taken_up_exactly_at_its_end_whatever_is_drawn_meanwhile(tmp_path: Path) -> None:
    env = normalized(2)
    whole = REINFORCE("MlpPolicy", env(), seed=7, n_steps=40).learn(N_STEPS)
    model = REINFORCE("MlpPolicy", env(), seed=7, n_steps=40).learn(N_STEPS // 2)
    random.random(), np.random.random(), th.rand(1)
    evaluate_policy(model, VecNormalize(seeded()(), training=False), deterministic=False)
    model.save(tmp_path / "model")
    assert_equal(taken_up(tmp_path / "model", env), whole)


def test_a_run_is_taken_up_exactly_after_the_last_update_of_its_callbacks(tmp_path: Path) -> None:
    """When `on_training_end` is called, the last rollout is past, but `learn` is not."""

    class SaveAtTheEnd(SaveAt):
        def _on_training_end(self) -> None:
            self._save()

    whole = REINFORCE("MlpPolicy", seeded()(), seed=7, n_steps=40).learn(N_STEPS)
    saves = SaveAtTheEnd()
    model = REINFORCE("MlpPolicy", seeded()(), seed=7, n_steps=40).learn(N_STEPS // 2, callback=saves)
    assert loaded(saves.files[0], seeded()).num_timesteps == model.num_timesteps
    assert_equal(taken_up(saves.files[0], seeded()), whole)


def test_a_run_that_has_come_to_its_end_is_taken_up_with_nothing_left_to_do() -> None:
    model, file = REINFORCE("MlpPolicy", normalized(2)(), seed=7, n_steps=40).learn(N_STEPS), io.BytesIO()
    model.save(file)
    assert model.num_timesteps > N_STEPS
    assert_equal(taken_up(file, normalized(2)), model)


def test_a_run_is_taken_up_again_and_again() -> None:
    model, saves = REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_steps=40), SaveAt(70)
    model.learn(N_STEPS, callback=saves)
    file = saves.files[0]
    for _ in range(2):
        again, saves = loaded(file, seeded(2)), SaveAt(50)
        again.learn(N_STEPS - again.num_timesteps, reset_num_timesteps=False, callback=saves)
        file = saves.files[0]
        assert_equal(again, model)


def test_saving_changes_nothing() -> None:
    model = REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_steps=40).learn(N_STEPS, callback=SaveAt(1, 50, 77))
    assert_equal(model, REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_steps=40).learn(N_STEPS))
    assert not {"_rollout_start", "sb3_reinforce_version"} & set(vars(model))


def test_the_log_goes_on_with_the_episodes_of_before() -> None:
    model, saves = REINFORCE("MlpPolicy", seeded()(), seed=7, n_steps=40), SaveAt(70)
    model.learn(N_STEPS, callback=saves)
    again = taken_up(saves.files[0], seeded())
    assert [info["l"] for info in again.ep_info_buffer] == [info["l"] for info in model.ep_info_buffer]


def test_a_loaded_model_that_is_saved_before_it_learns_keeps_its_place(tmp_path: Path) -> None:
    model, saves = REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_steps=40), SaveAt(70)
    model.learn(N_STEPS, callback=saves)
    again = loaded(saves.files[0], seeded(2))
    again.save(tmp_path / "first")
    again.learn(0, reset_num_timesteps=False).save(tmp_path / "second")

    class SaveAtTheStart(SaveAt):
        def _on_training_start(self) -> None:
            self.start = 0
            self._save()

    at_start = SaveAtTheStart()
    again.learn(1, reset_num_timesteps=False, callback=at_start)
    for file in (tmp_path / "first", tmp_path / "second", at_start.files[0]):
        assert_equal(taken_up(file, seeded(2)), model)


class Interrupted(REINFORCE):
    """Ctrl-C after the step of the third update, while it is logged."""

    def _record_update(self, *args: Any) -> None:
        super()._record_update(*args)
        if self._n_updates == 3:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_while_it_logged_is_taken_up_after_the_update(tmp_path: Path) -> None:
    whole = REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_steps=40).learn(N_STEPS)
    model = Interrupted("MlpPolicy", seeded(2)(), seed=7, n_steps=40)
    with pytest.raises(KeyboardInterrupt):
        model.learn(N_STEPS)
    model.save(tmp_path / "model")
    assert_equal(taken_up(tmp_path / "model", seeded(2)), whole)


def test_a_cut_that_nobody_expected_is_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as no episode was cut, the baseline of an episode may use later ones of the same environment."""
    monkeypatch.setattr("sb3_reinforce.rollout.limits.DEFAULT_HORIZON", 7)
    saves = SaveAtRolloutEnds()
    model = REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_episodes=4, baseline="leave_one_out")
    with pytest.warns(UserWarning, match="An episode was cut"):
        model.learn(N_STEPS // 2, callback=saves)
        for file in saves.files[:2]:
            assert_equal(taken_up(file, seeded(2), total=N_STEPS // 2), model)


class Remembering(Baseline):
    """A mean of the returns of all rollouts so far."""

    def __init__(self) -> None:
        self.mean = 0.0

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        baseline = np.full(len(episodes.returns), self.mean)
        self.mean += 0.1 * (float(episodes.returns.mean()) - self.mean)
        return baseline


def test_a_baseline_that_remembers_returns_does_not_see_those_of_a_rollout_twice() -> None:
    model, saves = REINFORCE("MlpPolicy", seeded(2)(), seed=7, n_steps=40, baseline=Remembering()), SaveAtRolloutEnds()
    model.learn(N_STEPS // 2, callback=saves)
    for file in saves.files[:2]:
        again = taken_up(file, seeded(2), total=N_STEPS // 2)
        assert_equal(again, model)
        assert again.baseline.mean == model.baseline.mean != 0.0  # type: ignore[union-attr]


def test_a_baseline_that_cannot_be_copied_can_be_learned_with() -> None:
    class Locked(Remembering):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    model = REINFORCE("MlpPolicy", seeded()(), n_steps=20, baseline=Locked()).learn(20)
    assert model.baseline.mean != 0.0  # type: ignore[union-attr]


@pytest.mark.parametrize(("natural_gradient", "refused_at_first"), [(None, False), (None, True), (True, False)])
def test_a_run_goes_on_with_the_kind_of_step_that_it_began_with(
    natural_gradient: bool | None, refused_at_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a policy seems to have natural steps may depend on its weights, as with layers that are not smooth."""
    refuses = [refused_at_first]

    def check(actor_critic: Any) -> None:
        if refuses[0]:
            raise NoNaturalStepError("No.")

    for module in ("natural_step", "automatic_step"):
        monkeypatch.setattr(f"sb3_reinforce.update.{module}.check_second_derivative", check)
    arguments: dict[str, Any] = {"seed": 7, "n_steps": 40, "natural_gradient": natural_gradient, "device": "cpu"}
    model, saves = REINFORCE("MlpPolicy", seeded(2)(), **arguments), SaveAt(70)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.learn(N_STEPS, callback=saves)
        half = REINFORCE("MlpPolicy", seeded(2)(), **arguments).learn(N_STEPS // 2)
        refuses[0] = not refuses[0]
        assert_equal(half.learn(N_STEPS - half.num_timesteps, reset_num_timesteps=False), model)
        assert_equal(taken_up(saves.files[0], seeded(2)), model)


def test_other_environments_are_saved_with_their_own_statistics(tmp_path: Path) -> None:
    model = REINFORCE("MlpPolicy", normalized(2)(), seed=7, n_steps=40).learn(200)
    other = normalized(2)()
    assert isinstance(other, VecNormalize)
    other.obs_rms.mean = np.full(3, 5.0)
    model.set_env(other)
    model.save(tmp_path / "model")
    model.learn(100, reset_num_timesteps=False)
    assert_equal(loaded(tmp_path / "model", normalized(2)).learn(100, reset_num_timesteps=False), model)


# Seeds


def seeds_of(model: REINFORCE) -> list[list[int | None]]:
    return [env.unwrapped.seeds for env in model.env.envs]  # type: ignore[union-attr]


def test_each_rollout_of_each_environment_has_a_seed_of_its_own() -> None:
    model = REINFORCE("MlpPolicy", seeded(3)(), seed=7, n_steps=20).learn(N_STEPS)
    given = [[seed for seed in seeds if seed is not None] for seeds in seeds_of(model)]
    assert [len(seeds) for seeds in given] == [model._n_updates] * 3
    assert len({seed for seeds in given for seed in seeds}) == 3 * model._n_updates
    other = REINFORCE("MlpPolicy", seeded(3)(), seed=8, n_steps=20).learn(N_STEPS)
    assert not {seed for seeds in given for seed in seeds} & {seed for seeds in seeds_of(other) for seed in seeds} - {None}


def test_without_a_seed_nothing_is_seeded_and_the_run_goes_on(tmp_path: Path) -> None:
    model = REINFORCE("MlpPolicy", seeded(2)(), n_steps=20).learn(N_STEPS)
    assert {seed for seeds in seeds_of(model) for seed in seeds} == {None}
    model.save(tmp_path / "model")
    ends = []
    for _ in range(2):
        np.random.seed(None)
        th.seed()
        again = loaded(tmp_path / "model", seeded(2)).learn(N_STEPS, reset_num_timesteps=False)
        assert again.num_timesteps >= 2 * N_STEPS
        ends.append(np.concatenate([np.ravel(each) for each in state(again)[:4]]))
    assert (ends[0] != ends[1]).any()


@pytest.mark.parametrize("seed", [None, 7])
def test_a_seed_that_is_set_by_hand_is_that_of_the_run(seed: int | None) -> None:
    model, saves = REINFORCE("MlpPolicy", seeded(2)(), seed=seed, n_steps=40), SaveAt(70)
    if seed is None:
        model.seed = 8
    else:
        model.set_random_seed(8)
    model.learn(N_STEPS, callback=saves)
    assert_equal(taken_up(saves.files[0], seeded(2)), model)
    given = [{each for each in seeds if each is not None} for seeds in seeds_of(model)]
    other = REINFORCE("MlpPolicy", seeded(2)(), seed=8, n_steps=40).learn(N_STEPS)
    assert given[0] >= {each for each in seeds_of(other)[0] if each is not None} != set()


def test_a_single_environment_is_reset_once_more_per_rollout_unless_that_is_switched_off() -> None:
    def n_resets(**kwargs: Any) -> tuple[int, int, int]:
        model = REINFORCE("MlpPolicy", seeded()(), n_steps=20, **kwargs).learn(N_STEPS)
        env = model.env.envs[0]  # type: ignore[union-attr]
        assert isinstance(env, Monitor)
        return len(env.unwrapped.seeds), len(env.episode_lengths), model._n_updates

    for kwargs, n_more in (({"seed": 7}, 1), ({"seed": 7, "seed_rollouts": False}, 0), ({}, 0)):
        n, n_episodes, n_updates = n_resets(**kwargs)
        assert n == 1 + n_episodes + n_more * (n_updates - 1)


def test_an_environment_that_must_not_be_reset_early_is_not() -> None:
    def env() -> VecEnv:
        return DummyVecEnv([lambda: Monitor(Seeded(), allow_early_resets=False)])

    model = REINFORCE("MlpPolicy", env(), seed=7, n_steps=20).learn(N_STEPS)
    assert len(model.env.envs[0].unwrapped.seeds) == 1 + len(model.env.envs[0].episode_lengths)  # type: ignore[union-attr]


def test_a_switch_must_be_true_or_false() -> None:
    with pytest.raises(ValueError, match=r"`seed_rollouts` must be True or False, got 'yes'\."):
        REINFORCE("MlpPolicy", seeded()(), seed_rollouts="yes")  # type: ignore[arg-type]


# What is no continuation


def a_file() -> io.BytesIO:
    saves = SaveAt(100)
    REINFORCE("MlpPolicy", normalized(2)(), seed=7, n_steps=40).learn(N_STEPS // 2, callback=saves)
    return saves.files[0]


def test_a_new_run_and_another_seed_begin_anew() -> None:
    file = a_file()
    model = loaded(file, normalized(2))
    model.learn(200)
    assert model.get_vec_normalize_env().obs_rms.count < 300  # type: ignore[union-attr]
    ends = [loaded(file, normalized(2), seed=seed).learn(200, reset_num_timesteps=False) for seed in (7, 8)]
    assert_equal(ends[0], loaded(file, normalized(2)).learn(200, reset_num_timesteps=False))
    assert (state(ends[0])[2] != state(ends[1])[2]).any()
    by_hand = loaded(file, normalized(2))
    by_hand.set_random_seed(8)
    assert_equal(by_hand.learn(200, reset_num_timesteps=False), ends[1])


def test_statistics_that_are_switched_off_are_left_alone() -> None:
    env = normalized(2)()
    assert isinstance(env, VecNormalize)
    env.training, env.obs_rms.mean = False, np.full(3, 0.25)
    taken_up(a_file(), lambda: env, total=400)
    np.testing.assert_array_equal(env.obs_rms.mean, np.full(3, 0.25))


def test_it_is_said_if_the_run_cannot_go_on_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    file = a_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        taken_up(file, normalized(2), total=400)
    monkeypatch.setattr(th, "__version__", "99.0")
    with pytest.warns(
        UserWarning, match=r"was never interrupted, as the file was saved with torch .* instead of 99\.0"
    ) as caught:
        taken_up(file, normalized(2), total=400)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=r"environments 2 instead of 1, statistics of VecNormalize 2 instead of 0\.$"):
        monkeypatch.undo()
        taken_up(file, seeded(), total=400)


def test_load_says_it_if_it_can_know_and_learn_does_not_repeat_it() -> None:
    file = a_file()
    with pytest.warns(UserWarning, match=r"was never interrupted, as the file was saved with environments 2 inst") as caught:
        model = loaded(file, seeded(1))
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(1, reset_num_timesteps=False)
        file.seek(0)
        model = REINFORCE.load(file)  # nothing is learned without environments
    other = normalized(2)()
    model.set_env(VecNormalize(other))
    with pytest.warns(UserWarning, match="statistics of VecNormalize 2 instead of 4"):
        model.learn(1, reset_num_timesteps=False)


def test_it_is_said_if_the_environments_cannot_be_seeded() -> None:
    def env() -> VecEnv:
        return DummyVecEnv([lambda: Monitor(Seeded(), allow_early_resets=False)])

    saves = SaveAt(70)
    REINFORCE("MlpPolicy", env(), seed=7, n_steps=40).learn(N_STEPS // 2, callback=saves)
    with pytest.warns(UserWarning, match=r"was never interrupted, as its environments cannot be reset with seeds\.$"):
        taken_up(saves.files[0], env)


# Killed


SCRIPT = """
import sys
from pathlib import Path
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from sb3_reinforce import REINFORCE

th.set_num_threads(1)
folder, total = Path(sys.argv[1]), 10_000
env = VecNormalize(make_vec_env("CartPole-v1", 2))
saved = sorted(folder.glob("c_*_steps.zip"), key=lambda path: int(path.name.split("_")[1]))
model = REINFORCE.load(saved[-1], env=env) if saved else REINFORCE("MlpPolicy", env, seed=7, n_steps=256)
print("begun at", model.num_timesteps, flush=True)
checkpoints = CheckpointCallback(300, folder, "c")
model.learn(total - model.num_timesteps, checkpoints, reset_num_timesteps=False)
model.save(folder / "end")
"""


def run_until_killed(folder: Path, seconds: float | None) -> bool:
    """Whether it has come to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None and process.stdout.readline().startswith("begun at")
    if seconds is not None:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == 0


def killed_and_taken_up(folder: Path, n_kills: int) -> int:
    """How often it was really killed."""
    rng = random.Random(0)
    n_killed = 0
    while not run_until_killed(folder, rng.uniform(0.2, 1.5) if n_killed < n_kills else None):
        n_killed += 1
    return n_killed


@pytest.mark.parametrize("n_kills", [1, slow(10)])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(n_kills: int, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert run_until_killed(tmp_path / "whole", None)
    assert killed_and_taken_up(tmp_path / "killed", n_kills) >= min(n_kills, 2)
    whole, killed = (
        REINFORCE.load(tmp_path / name / "end", env=VecNormalize(make_vec_env("CartPole-v1", 2)))
        for name in ("whole", "killed")
    )
    assert_equal(whole, killed)
