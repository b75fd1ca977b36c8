"""The mistakes that REINFORCE is usually written with: one test for each, that the wrong version of it does not pass."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from tests.helpers.plain import PLAIN

GAMMA = 0.5


class Scripted(gym.Env):
    """
    Plays its episodes one after the other, whatever the actions are.

    :param script: For each episode its rewards, and whether it ends in a truncation
    """

    def __init__(self, script: list[tuple[list[float], bool]]):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.script = script
        self.episode = -1

    def _observe(self) -> np.ndarray:
        return np.array([np.sin(3 * self.episode + self.t), np.cos(5 * self.t - self.episode)], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = (self.episode + 1) % len(self.script), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        rewards, cut = self.script[self.episode]
        reward, self.t = rewards[self.t], self.t + 1
        over = self.t == len(rewards)
        return self._observe(), reward, over and not cut, over and cut, {}


def make_model(*scripts: list[tuple[list[float], bool]], **arguments: Any) -> REINFORCE:
    """REINFORCE by plain gradient ascent at rate 1 in scripted environments, one for each script."""
    defaults: dict[str, Any] = {
        **PLAIN,
        "learning_rate": 1.0,
        "gamma": GAMMA,
        "baseline": None,
        "normalize_advantage": False,
        "max_grad_norm": 1e6,
        "n_critic_updates": 0,
        "policy_kwargs": {"net_arch": [], "optimizer_class": th.optim.SGD},
        "seed": 0,
        "device": "cpu",
    }
    env = DummyVecEnv([lambda script=script: Scripted(script) for script in scripts])
    model = REINFORCE("MlpPolicy", env, **{**defaults, **arguments})
    with th.no_grad():  # away from the uniform policy
        model.policy.action_net.weight.mul_(100.0)
        model.policy.value_net.weight.add_(1.0)
    return model


class Snapshot(BaseCallback):
    """Keeps the parameters that each rollout was played with."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[dict[str, th.Tensor]] = []

    def _on_rollout_start(self) -> None:
        self.parameters.append({name: tensor.clone() for name, tensor in self.model.policy.state_dict().items()})

    def _on_step(self) -> bool:
        return True


def update_once(model: REINFORCE) -> dict[str, th.Tensor]:
    """One update; gives the parameters before."""
    snapshot = Snapshot()
    model.learn(total_timesteps=1, callback=snapshot)
    assert len(snapshot.parameters) == 1
    return snapshot.parameters[0]


def gradient_by_hand(model: REINFORCE, before: dict[str, th.Tensor], weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """The step of the actor, and what it has to be: one weighted log-probability after the other."""
    buffer, weight, bias = model.rollout_buffer, before["action_net.weight"].double(), before["action_net.bias"].double()
    expected = np.zeros((3, 2))
    for obs, action, w in zip(buffer.observations, buffer.actions.astype(int).ravel(), weights, strict=True):
        probabilities = th.softmax(weight @ th.as_tensor(obs).double() + bias, dim=0).numpy()
        expected += w * np.outer(np.eye(3)[action] - probabilities, obs)
    step = model.policy.action_net.weight.detach().double() - weight
    return step.numpy(), expected


EPISODES = [([1.0, 2.0, 4.0], True), ([8.0, -16.0], False), ([32.0], True), ([3.0, 5.0, 7.0, 11.0], False)]


def returns_by_hand(*episodes: list[float]) -> list[float]:
    return [
        sum(GAMMA ** (k - t) * rewards[k] for k in range(t, len(rewards))) for rewards in episodes for t in range(len(rewards))
    ]


@pytest.mark.parametrize("baseline", [None, "value"])
def test_the_next_episodes_return_does_not_leak_back_through_a_truncation(baseline):
    model = make_model(EPISODES, n_episodes=4, baseline=baseline, bootstrap_on_truncation=False)
    update_once(model)
    assert model.rollout_buffer.returns.tolist() == returns_by_hand(*[rewards for rewards, _ in EPISODES])


def test_a_truncated_episode_is_bootstrapped_with_its_own_last_observation():
    model = make_model(EPISODES, n_episodes=4, baseline="value")
    before = update_once(model)
    weight, bias = before["value_net.weight"].numpy().ravel(), before["value_net.bias"].numpy()
    expected = []
    env = Scripted(EPISODES)
    for rewards, cut in EPISODES:
        env.reset()
        env.t = len(rewards)
        value = float(weight @ env._observe() + bias[0])
        rewards = [*rewards[:-1], rewards[-1] + (GAMMA * value if cut else 0.0)]
        expected += returns_by_hand(rewards)
        assert abs(value) > 0.01
    assert model.rollout_buffer.returns == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("cut", [True, False], ids=["truncated", "terminated"])
def test_the_last_reward_counts_once(cut):
    model = make_model([([0.0, 0.0, 8.0], cut)], n_episodes=1)
    update_once(model)
    assert model.rollout_buffer.rewards.tolist() == [0.0, 0.0, 8.0]
    assert model.rollout_buffer.returns.tolist() == [2.0, 4.0, 8.0]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_advantage_is_divided_by_its_standard_deviation_and_not_by_its_variance(scale):
    episodes = [([scale * reward for reward in rewards], cut) for rewards, cut in EPISODES]
    model = make_model(episodes, n_episodes=4, normalize_advantage=True)
    before = update_once(model)
    returns = np.array(returns_by_hand(*[rewards for rewards, _ in EPISODES]))
    normalized = (returns - returns.mean()) / returns.std(ddof=1)
    assert np.allclose(*gradient_by_hand(model, before, normalized / len(returns)), atol=1e-4)


@pytest.mark.parametrize("average_over", ["timesteps", "episodes"])
def test_each_log_probability_meets_its_own_return_alone(average_over):
    model = make_model(EPISODES, n_episodes=4, average_over=average_over)
    before = update_once(model)
    returns = np.array(returns_by_hand(*[rewards for rewards, _ in EPISODES]))
    step, expected = gradient_by_hand(model, before, returns / (4 if average_over == "episodes" else 10))
    assert np.allclose(step, expected, atol=1e-4)
    # A loss broadcast to [n, n], and the mean of the log-probabilities times the sum of the returns, weight all alike
    for wrong in (np.full(10, returns.sum()), np.full(10, returns.mean())):
        assert not np.allclose(step, gradient_by_hand(model, before, wrong / 10)[1], atol=1e-2)


def test_log_probabilities_of_several_dimensions_are_one_number_per_timestep():
    class TwoActions(Scripted):
        def __init__(self) -> None:
            super().__init__(EPISODES)
            self.action_space = spaces.Box(-1, 1, (3,), np.float32)

    policy_kwargs = {"net_arch": [], "optimizer_class": th.optim.SGD}
    model = REINFORCE(
        "MlpPolicy",
        DummyVecEnv([TwoActions]),
        learning_rate=1.0,
        n_episodes=4,
        gamma=GAMMA,
        baseline=None,
        normalize_advantage=False,
        max_grad_norm=1e6,
        policy_kwargs=policy_kwargs,
        seed=0,
        **PLAIN,
    )
    before = update_once(model)
    weight = before["action_net.weight"].double().numpy()
    expected = np.zeros((3, 2))
    returns = returns_by_hand(*[rewards for rewards, _ in EPISODES])
    for obs, action, g in zip(model.rollout_buffer.observations, model.rollout_buffer.actions, returns, strict=True):
        expected += g / 10 * np.outer(action - weight @ obs, obs)  # unit standard deviation, no bias
    assert np.allclose(model.policy.action_net.weight.detach().numpy() - weight, expected, atol=1e-4)


def test_the_kl_divergence_is_measured_after_the_step():
    model = make_model(EPISODES, n_episodes=4, learning_rate=0.01)
    before = update_once(model)
    buffer = model.rollout_buffer
    obs, actions = th.as_tensor(buffer.observations), th.as_tensor(buffer.actions).flatten()
    with th.no_grad():
        log_after = model.policy.get_distribution(obs).log_prob(actions)
        model.policy.load_state_dict(before)
        log_before = model.policy.get_distribution(obs).log_prob(actions)
    ratio = (log_after - log_before).exp()
    expected = (ratio - 1 - ratio.log()).mean().item()
    assert expected > 1e-5
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(expected, rel=1e-2)


def test_the_critic_sees_the_recorded_timesteps_and_no_padding():
    short, long = [([1.0], False)], [([1.0] * 9, False)]
    seen: list[np.ndarray] = []
    model = make_model(short, long, n_episodes=1, baseline="value", n_critic_updates=2, batch_size=4)
    model.policy.value_net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().numpy().copy()))
    update_once(model)
    recorded = {tuple(obs) for obs in model.rollout_buffer.observations.tolist()}
    assert len(model.rollout_buffer.observations) == 10
    assert seen and {tuple(obs) for batch in seen for obs in batch.tolist()} == recorded
    # Each pass over the rollout covers it once: none of its timesteps is repeated to fill a minibatch
    passes = [len(batch) for batch in seen]
    assert sum(passes) % 10 == 0 and max(passes) <= 10
    returns = model.rollout_buffer.returns
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx(
        float(np.mean((returns - model.rollout_buffer.values) ** 2)), rel=1e-4
    )


@pytest.mark.parametrize("quota", [{"n_steps": 3}, {"n_episodes": 1}], ids=["steps", "episodes"])
def test_an_episode_that_is_in_flight_when_others_finish_is_kept_to_its_end(quota):
    short, long = [([1.0, 1.0, 1.0], False)], [([2.0] * 17, False)]
    model = make_model(short, long, **quota)
    update_once(model)
    assert model.rollout_buffer.episodes.lengths.tolist() == [3, 17]
    assert model.rollout_buffer.rewards.tolist() == [1.0] * 3 + [2.0] * 17


def test_the_critic_is_fitted_after_its_values_were_subtracted():
    model = make_model(EPISODES, n_episodes=4, baseline="value", n_critic_updates=50, learning_rate=0.01)
    before = update_once(model)
    buffer = model.rollout_buffer
    weight, bias = before["value_net.weight"].numpy().ravel(), before["value_net.bias"].numpy()
    values = buffer.observations @ weight + bias
    assert buffer.values == pytest.approx(values, abs=1e-5)
    assert buffer.advantages == pytest.approx(buffer.returns - values, abs=1e-4)
    step, expected = gradient_by_hand(model, before, 0.01 * (buffer.returns - values) / 10)
    assert np.allclose(step, expected, atol=1e-4)
    assert not th.allclose(model.policy.value_net.weight, before["value_net.weight"], atol=1e-2), "the critic was not fitted"


@pytest.mark.parametrize("n_envs", [1, 2])
def test_no_partial_episode_counts_as_whole_at_the_end_of_training(n_envs):
    lengths = [5, 3, 7]
    scripts = [[([1.0] * length, False) for length in lengths]] * n_envs

    class Collect(Snapshot):
        recorded: list[tuple[list[int], float]]

        def _on_training_start(self) -> None:
            self.recorded = []

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            self.recorded.append((buffer.episodes.lengths.tolist(), float(buffer.returns.max())))

    model = make_model(*scripts, n_steps=1, gamma=1.0, seed_rollouts=False)
    callback = Collect()
    # The budget is spent in the middle of an episode, which is played to its end
    model.learn(total_timesteps=7 * n_envs, callback=callback)
    assert callback.recorded[0] == ([5] * n_envs, 5.0)
    assert callback.recorded[1] == ([3] * n_envs, 3.0)
    assert len(callback.recorded) == 2 and model.num_timesteps == 8 * n_envs


def test_a_rollout_that_a_callback_stops_is_not_learned_from_and_not_gone_on_with():
    class StopsInMidEpisode(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 4

    model = make_model([([1.0, 1.0, 1.0, 1.0, 1.0], False), ([2.0, 2.0], False)], n_episodes=1, gamma=1.0)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(total_timesteps=100, callback=StopsInMidEpisode())
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    assert model.num_timesteps == 4
    model.learn(total_timesteps=1, reset_num_timesteps=False)
    assert model.num_timesteps == 6
    assert model.rollout_buffer.rewards.tolist() == [2.0, 2.0], "the next rollout is the whole of the next episode"
