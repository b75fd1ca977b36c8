"""A drop-in for users of RecurrentPPO: arguments, files, predictions and runs that are resumed."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import MaskableRecurrentREINFORCE, RecurrentREINFORCE
from tests.helpers.environments import vec
from tests.recurrent.recurrent import ACTIONS, Masked, Reads, assert_acted_as_updated, make, make_maskable, uneven, weights

FAST: dict[str, Any] = {"natural_gradient": False, "n_critic_updates": 1}


def reloaded(model: Any, **kwargs: Any) -> Any:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, device="cpu", **kwargs)


@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
@pytest.mark.parametrize(
    "network",
    [{"shared_lstm": True, "enable_critic_lstm": True}, {"shared_lstm": True, "share_features_extractor": False}],
    ids=str,
)
def test_networks_that_contradict_themselves_are_refused_as_by_sb3_contrib(kind: Any, network: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        kind("MlpLstmPolicy", uneven(), policy_kwargs={"enable_critic_lstm": False, **network})


@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
def test_rollouts_of_fixed_length_are_refused(kind: Any) -> None:
    env = uneven(kind=Masked)
    with pytest.raises(ValueError, match=r"`complete_episodes` must be True for a recurrent policy"):
        kind("MlpLstmPolicy", env, complete_episodes=False)
    model = make(env, kind=kind)
    model.complete_episodes = False
    with pytest.raises(ValueError, match="complete_episodes"):
        model.learn(1)
    model.complete_episodes = True
    with pytest.raises(ValueError, match="complete_episodes"):
        reloaded(model, env=env, complete_episodes=False)


@pytest.mark.parametrize("value", [0, -3, 2.5, "all", True, np.nan])
def test_a_bound_that_is_no_number_of_timesteps_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="`max_sequence_length` must be"):
        RecurrentREINFORCE("MlpLstmPolicy", uneven(), max_sequence_length=value)
    model = make(uneven())
    model.max_sequence_length = value
    with pytest.raises(ValueError, match="`max_sequence_length` must be"):
        model.learn(1)


def test_arguments_by_position_and_numbers_of_numpy_are_taken() -> None:
    model = RecurrentREINFORCE("MlpLstmPolicy", uneven(), 1e-2, 7, max_sequence_length=np.int64(3))  # type: ignore[arg-type]
    assert model.learning_rate == 1e-2 and model.n_steps == 7
    assert reloaded(model).max_sequence_length == 3
    assert reloaded(model, max_sequence_length=None).max_sequence_length is None
    with pytest.raises((TypeError, ValueError), match="max_sequence"):
        RecurrentREINFORCE("MlpLstmPolicy", uneven(), max_sequence=3)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstm"])
def test_policies_without_memory_are_refused(policy: str) -> None:
    with pytest.raises(ValueError):
        RecurrentREINFORCE(policy, uneven())


def test_the_classes_of_sb3_contrib_are_taken() -> None:
    model = make(uneven(), MlpLstmPolicy, **FAST)
    assert type(model.policy) is RecurrentActorCriticPolicy
    model.learn(20)


@pytest.mark.parametrize("network", [{}, {"shared_lstm": True, "enable_critic_lstm": False}, {"n_lstm_layers": 2}], ids=str)
def test_a_file_of_recurrent_ppo_gives_its_policy(network: dict[str, Any], tmp_path: Path) -> None:
    env = uneven(n_envs=2)
    theirs = RecurrentPPO(
        "MlpLstmPolicy", env, n_steps=8, batch_size=8, seed=1, gamma=0.9, policy_kwargs={"lstm_hidden_size": 6, **network}
    ).learn(20)
    theirs.save(tmp_path / "ppo")
    with pytest.warns(UserWarning):
        ours = RecurrentREINFORCE.load(tmp_path / "ppo", env=env, device="cpu", n_steps=8)
    assert ours.gamma == 0.9
    rng, states = np.random.default_rng(0), [None, None]
    for t in range(5):
        obs, starts = rng.normal(size=(2, 3)).astype(np.float32), np.array([t == 0, t in (0, 3)])
        found = []
        for i, model in enumerate((theirs, ours)):
            action, states[i] = model.predict(obs, states[i], starts, deterministic=True)  # type: ignore[call-overload]
            found.append(action)
        np.testing.assert_array_equal(*found)
        np.testing.assert_allclose(states[0][0], states[1][0])  # type: ignore[index]
    before = weights(ours)
    reads = Reads()
    ours.learn(20, callback=reads)
    assert not th.equal(before, weights(ours))
    other = make(env, network={"lstm_hidden_size": 6, "net_arch": None, **network})
    other.set_parameters(theirs.get_parameters(), exact_match=False)
    np.testing.assert_array_equal(
        other.policy.state_dict()["action_net.weight"], theirs.policy.state_dict()["action_net.weight"]
    )


def test_predictions_carry_the_state_and_forget_it_where_an_episode_starts() -> None:
    model = make(uneven())
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    _, first = model.predict(obs[0])
    assert first is not None and first[0].shape == (1, 1, 5)
    _, second = model.predict(obs[1], first)
    _, fresh = model.predict(obs[1])
    assert not np.allclose(second[0], fresh[0])  # type: ignore[index]
    _, forgotten = model.predict(obs[1], first, np.array([True]))
    np.testing.assert_allclose(forgotten[0], fresh[0], atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("actions", ["discrete", "multi_discrete", "multi_binary"])
def test_predictions_obey_masks_and_remember(actions: str) -> None:
    model = make_maskable(uneven(actions=ACTIONS[actions], kind=Masked))
    sizes = {"discrete": [3], "multi_discrete": [2, 3], "multi_binary": [2, 2, 2]}[actions]
    rng, state, unmasked = np.random.default_rng(0), None, None
    for t in range(40):
        obs = rng.normal(size=(2, 3)).astype(np.float32)
        masks = np.stack([np.concatenate([np.arange(n) != rng.integers(n) for n in sizes]) for _ in range(2)])
        starts = np.array([t == 0, t % 3 == 0])
        action, state = model.predict(obs, state, starts, t % 2 == 0, action_masks=masks)
        flat = action.reshape(2, -1)
        for i, first in enumerate(np.cumsum([0, *sizes[:-1]])):
            assert masks[[0, 1], first + flat[:, i]].all()
        _, unmasked = model.policy.predict(obs, unmasked, starts)
        np.testing.assert_allclose(state[0], unmasked[0], atol=1e-6)  # type: ignore[index]
    assert model.policy._masks_of_predict is None  # type: ignore[attr-defined]
    single, _ = model.predict(obs[0], None, None, True, action_masks=masks[0])
    assert single.shape == action.shape[1:]


class Recall(Masked):
    """Pays for the action that the first observation named; the others are not allowed at other times."""

    def __init__(self) -> None:
        super().__init__((4,), None, spaces.Discrete(3))
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def _observe(self) -> Any:
        return np.full(1, 2.0 * (self.n_resets % 2) - 1.0 if self.timestep == 0 else 0.0, np.float32)

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False]) if self.timestep == 3 else np.array([False, False, True])

    def step(self, action: Any) -> Any:
        assert self.action_masks()[action]
        self.reward = lambda timestep: float(timestep == 3 and action == self.n_resets % 2)
        return super().step(action)


def test_the_evaluation_of_sb3_contrib_carries_states_and_masks() -> None:
    env, evaluation = vec(*[Recall() for _ in range(8)]), vec(Recall(), Recall())
    network = {"lstm_hidden_size": 16, "net_arch": []}
    model = MaskableRecurrentREINFORCE("MlpLstmPolicy", env, n_steps=32, seed=0, device="cpu", policy_kwargs=network)
    callback = MaskableEvalCallback(evaluation, eval_freq=700, n_eval_episodes=10)
    model.learn(10_000, callback=callback)
    mean, _ = evaluate_masked(model, evaluation, n_eval_episodes=20)  # type: ignore[arg-type]
    assert mean == 1.0 == callback.best_mean_reward
    # Without a state and without a word about episodes, each call is the first of one
    obs = np.ones((2, 1), np.float32)
    first, second = (model.predict(obs, action_masks=np.ones((2, 3), bool))[1] for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])  # type: ignore[index]
    mean, _ = evaluate_masked(reloaded(model), evaluation, n_eval_episodes=20)
    assert mean == 1.0


@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
def test_a_run_that_is_resumed_is_one_run(kind: Any) -> None:
    found = []
    for cuts in ((60,), (15, 45), (1, 20, 39)):
        model = make(uneven(kind=Masked), kind=kind, n_steps=5, n_critic_updates=1)
        total = 0
        while model.num_timesteps < 60:
            model.learn(max(1, sum(cuts[: total + 1]) - model.num_timesteps), reset_num_timesteps=total == 0)
            total += 1
        found.append((model.num_timesteps, weights(model)))
    # The number of updates follows from the timesteps that are reached
    for n, other in found[1:]:
        if n == found[0][0]:
            th.testing.assert_close(other, found[0][1], rtol=0, atol=0)
    assert found[1][0] == found[0][0]


@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
def test_a_copy_learns_what_the_original_learns(kind: Any) -> None:
    model = make(uneven(kind=Masked), kind=kind, **FAST).learn(30)
    after = []
    for other in (reloaded(model), copy.deepcopy(model)):
        assert other.num_timesteps == model.num_timesteps
        th.testing.assert_close(weights(other), weights(model), rtol=0, atol=0)
        other.set_env(uneven(kind=Masked))
        other.set_random_seed(3)
        other.learn(30, reset_num_timesteps=False)
        after.append(weights(other))
    th.testing.assert_close(after[0], after[1], rtol=0, atol=0)
    pickle.loads(pickle.dumps(make(make_vec_env("CartPole-v1"), **FAST).learn(20))).predict(np.zeros(4, np.float32))


def test_normalized_observations_are_those_that_were_acted_on() -> None:
    env = VecNormalize(uneven(truncated=True))
    model = make(env, learning_rate=0.0, n_critic_updates=0, normalize_returns=False, natural_gradient=False)
    reads = Reads()
    model.learn(40, callback=reads)
    assert_acted_as_updated(model, reads)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_ordinary_tools_of_sb3_work(env_id: str, tmp_path: Path) -> None:
    env = make_vec_env(env_id, 2)
    model = make(env, n_steps=50, tensorboard_log=str(tmp_path), n_critic_updates=1)
    model.learn(400, callback=EvalCallback(make_vec_env(env_id), eval_freq=100, n_eval_episodes=1), progress_bar=False)
    evaluate_policy(model, env, n_eval_episodes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["RecurrentREINFORCE_1"]


def test_an_error_in_an_episode_leaves_no_memory_of_it() -> None:
    model = make(uneven(), learning_rate=0.0, n_critic_updates=0, normalize_returns=False, natural_gradient=False)
    with pytest.raises(ZeroDivisionError):
        model.learn(100, callback=lambda *_: bool(1.0 / (7 - model.num_timesteps // 3)))
    reads = Reads()
    model.learn(30, callback=reads)
    assert_acted_as_updated(model, reads)


def test_the_seed_decides_everything() -> None:
    for kind in (RecurrentREINFORCE, MaskableRecurrentREINFORCE):
        runs = [weights(make(uneven(kind=Masked), kind=kind, seed=seed).learn(40)) for seed in (5, 5, 6)]
        assert th.equal(runs[0], runs[1]) and not th.equal(runs[0], runs[2])
