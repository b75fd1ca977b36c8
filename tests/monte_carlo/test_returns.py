"""The returns, the recorders and the order of the buffer against references that walk from timestep to timestep."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.monte_carlo.returns import (
    Episodes,
    discounted_sums,
    generalized_advantages,
    returns_to_go,
    whole_episode_returns,
)
from sb3_reinforce.rollout.recorder import CompleteEpisodes, FixedLength, Recorder

NUMBERS = st.floats(-100, 100)
FACTORS = st.sampled_from([0.0, 1.0, 0.5, 0.9, 0.99]) | st.floats(0, 1)


@st.composite
def some_episodes(draw: st.DrawFn) -> Episodes:
    """Episodes of any lengths in a few environments, environment by environment."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    env_ids = sorted(draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))))
    first = draw(st.lists(st.integers(0, 20), min_size=len(lengths), max_size=len(lengths)))
    return Episodes(np.array(lengths), np.array(env_ids), np.array(first))


@st.composite
def episodes_and(draw: st.DrawFn, *per: str) -> tuple[Any, ...]:
    """Episodes, and an array of numbers for each ``"timestep"`` or ``"episode"``."""
    episodes = draw(some_episodes())
    sizes = {"timestep": episodes.n_timesteps, "episode": len(episodes.lengths)}
    arrays = [np.array(draw(st.lists(NUMBERS, min_size=sizes[name], max_size=sizes[name]))) for name in per]
    return (episodes, *arrays)


def parts(array: np.ndarray, lengths: np.ndarray) -> list[list[float]]:
    """The pieces of a flat array, one per episode."""
    rest = array.tolist()
    pieces = []
    for length in lengths:
        pieces.append(rest[:length])
        rest = rest[length:]
    return pieces


def naive_returns(rewards: list[float], gamma: float, last_value: float) -> list[float]:
    """Backwards through one episode."""
    returns, following = [], last_value
    for reward in reversed(rewards):
        following = reward + gamma * following
        returns.append(following)
    return returns[::-1]


def close(array: np.ndarray, reference: list[float]) -> bool:
    return array.shape == (len(reference),) and np.allclose(array, reference, rtol=1e-9, atol=1e-7)


# How flat arrays divide


@given(some_episodes())
def test_episodes_know_the_place_of_every_timestep(episodes):
    ids, timesteps, starts, ends = [], [], [], []
    for i, (length, first) in enumerate(zip(episodes.lengths, episodes.first_timesteps, strict=True)):
        starts.append(len(ids))
        for t in range(length):
            ids.append(i)
            timesteps.append(first + t)
        ends.append(len(ids) - 1)
    assert episodes.n_timesteps == len(ids)
    assert episodes.episode_ids.tolist() == ids
    assert episodes.timesteps.tolist() == timesteps
    assert episodes.starts.tolist() == starts
    assert episodes.ends.tolist() == ends


# Returns


@given(episodes_and("timestep"), FACTORS)
def test_discounted_sums_are_those_of_a_loop(data, discount):
    episodes, x = data
    expected = [y for part in parts(x, episodes.lengths) for y in naive_returns(part, discount, 0.0)]
    before = x.copy()
    assert close(discounted_sums(x, discount, episodes.lengths), expected)
    assert (x == before).all(), "the argument was changed"


@given(episodes_and("timestep", "episode"), FACTORS)
def test_returns_to_go_are_those_of_a_loop_with_the_value_behind_the_end(data, gamma):
    episodes, rewards, last_values = data
    pieces = parts(rewards, episodes.lengths)
    expected = [g for part, value in zip(pieces, last_values, strict=True) for g in naive_returns(part, gamma, value)]
    before = rewards.copy()
    assert close(returns_to_go(rewards, gamma, episodes, last_values), expected)
    assert (rewards == before).all(), "the argument was changed"
    without = [g for part in pieces for g in naive_returns(part, gamma, 0.0)]
    assert close(returns_to_go(rewards, gamma, episodes), without)


@given(episodes_and("timestep"), FACTORS, st.data())
def test_no_return_leaks_across_the_end_of_an_episode(data, gamma, drawn):
    episodes, rewards = data
    changed = drawn.draw(st.integers(0, len(episodes.lengths) - 1))
    other_rewards = np.where(episodes.episode_ids == changed, rewards + 1e6, rewards)
    elsewhere = episodes.episode_ids != changed
    before, after = (returns_to_go(array, gamma, episodes) for array in (rewards, other_rewards))
    assert (before[elsewhere] == after[elsewhere]).all()
    assert (before[~elsewhere] != after[~elsewhere]).all()


@given(st.lists(NUMBERS, min_size=1, max_size=30), FACTORS)
def test_the_returns_of_float32_rewards_are_float64(rewards, gamma):
    single = np.array(rewards, dtype=np.float32)
    episodes = Episodes(np.array([len(single)]), np.zeros(1, dtype=int), np.zeros(1, dtype=int))
    result = returns_to_go(single, gamma, episodes)
    assert result.dtype == np.float64
    assert close(result, naive_returns(single.astype(np.float64).tolist(), gamma, 0.0))


@given(episodes_and("timestep"), FACTORS)
def test_the_return_of_the_whole_episode_stands_at_each_of_its_timesteps(data, gamma):
    episodes, rewards = data
    expected = [naive_returns(part, gamma, 0.0)[0] for part in parts(rewards, episodes.lengths) for _ in part]
    assert close(whole_episode_returns(returns_to_go(rewards, gamma, episodes), episodes), expected)


@given(episodes_and("timestep", "timestep", "episode"), FACTORS, FACTORS)
def test_generalized_advantages_are_those_of_a_loop(data, gamma, gae_lambda):
    episodes, rewards, values, last_values = data
    expected = []
    for reward, value, last in zip(
        parts(rewards, episodes.lengths), parts(values, episodes.lengths), last_values, strict=True
    ):
        following, advantage, backwards = last, 0.0, []
        for r, v in zip(reversed(reward), reversed(value), strict=True):
            advantage = r + gamma * following - v + gamma * gae_lambda * advantage
            following = v
            backwards.append(advantage)
        expected += backwards[::-1]
    assert close(generalized_advantages(rewards, values, gamma, gae_lambda, episodes, last_values), expected)


@given(episodes_and("timestep", "timestep", "episode"), FACTORS)
def test_generalized_advantages_at_lambda_1_are_returns_minus_values(data, gamma):
    episodes, rewards, values, last_values = data
    advantages = generalized_advantages(rewards, values, gamma, 1.0, episodes, last_values)
    assert close(advantages, (returns_to_go(rewards, gamma, episodes, last_values) - values).tolist())


def test_a_long_episode_is_summed_to_its_last_reward():
    rewards = np.zeros(5000)
    rewards[-1] = 1.0
    episodes = Episodes(np.array([5000]), np.zeros(1, dtype=int), np.zeros(1, dtype=int))
    assert returns_to_go(rewards, 1.0, episodes).tolist() == [1.0] * 5000


# Recorders: played step by step, against a loop over one environment after the other


@st.composite
def lives(draw: st.DrawFn, longest: int = 12) -> list[list[tuple[int, bool]]]:
    """For each of a few environments the lengths of its episodes, and whether they are truncated; enough of them."""
    episode = st.tuples(st.integers(1, longest), st.booleans())
    return draw(st.lists(st.lists(episode, min_size=30, max_size=30), min_size=1, max_size=4))


class Play:
    """Steps environments whose episodes are given in advance; an observation says the environment and the step."""

    def __init__(self, lives: list[list[tuple[int, bool]]], offset: int = 0):
        self.n_envs = len(lives)
        self.now = 0
        self.ends: list[dict[int, bool]] = []
        for life in lives:
            ends, step = {}, -offset
            for length, truncated in life:
                step += length
                ends[step] = truncated
            self.ends.append(ends)

    def observation(self, env_id: int, step: int, final: bool = False) -> np.ndarray:
        return np.array([env_id, step, int(final)], dtype=np.float32)

    def observations(self) -> np.ndarray:
        return np.stack([self.observation(env_id, self.now) for env_id in range(self.n_envs)])

    def step(self) -> tuple[np.ndarray, list[dict[str, Any]], np.ndarray]:
        self.now += 1
        dones, infos = np.zeros(self.n_envs, dtype=bool), []
        for env_id, ends in enumerate(self.ends):
            dones[env_id] = self.now in ends
            info: dict[str, Any] = {"TimeLimit.truncated": ends.get(self.now, False)}
            if dones[env_id]:
                info["terminal_observation"] = self.observation(env_id, self.now, final=True)
            infos.append(info)
        return dones, infos, self.observations()


#: env_id, start, stop, first timestep, final observation, unfinished
Row = tuple[int, int, int, int, list[float] | None, bool]


def naive_complete(
    lives: list[list[tuple[int, bool]]], n_steps: int, n_episodes: int | None, horizons: list[int]
) -> tuple[list[Row], list[int]]:
    rows: list[Row] = []
    cut = []
    for env_id, life in enumerate(lives):
        step, played = 0, 0
        for length, truncated in life:
            if (played >= n_episodes) if n_episodes is not None else (step >= n_steps):
                break
            if length > horizons[env_id]:
                stop = step + horizons[env_id]
                rows.append((env_id, step, stop, 0, [env_id, stop, 0], False))
                cut.append(env_id)
                break
            rows.append((env_id, step, step + length, 0, [env_id, step + length, 1] if truncated else None, False))
            step, played = step + length, played + 1
    return rows, cut


def play(recorder: Recorder, env: Play, buffer: EpisodeRolloutBuffer | None = None) -> list[list[int]]:
    """Run a recorder to its end; gives the steps that each environment recorded."""
    recorded: list[list[int]] = [[] for _ in range(env.n_envs)]
    if buffer is not None:
        buffer.reset()
    for _ in range(10_000):
        if recorder.finished:
            return recorded
        obs, recording = env.observations(), recorder.recording
        for env_id in recording:
            recorded[env_id].append(env.now)
        dones, infos, new_obs = env.step()
        if buffer is not None:
            steps = obs[:, 1]
            shown: Any = {"a": obs, "b": 2 * obs} if isinstance(buffer, EpisodeDictRolloutBuffer) else obs
            buffer.add(shown, steps % 3, 100 * obs[:, 0] + steps, steps == 0, recording=recording)
        recorder.advance(dones, infos, new_obs)
    raise AssertionError("the rollout never ends")


def rows_of(recorder: Recorder) -> list[Row]:
    _, recorded = recorder.result()
    return [
        (
            e.env_id,
            e.start,
            e.stop,
            e.first_timestep,
            None if e.final_observation is None else list(e.final_observation),
            e.unfinished,
        )
        for e in recorded
    ]


@given(lives(), st.integers(1, 30), st.none() | st.integers(1, 5), st.lists(st.integers(1, 15), min_size=4, max_size=4))
def test_every_environment_records_until_its_quota_and_its_episode_are_complete(lives, n_steps, n_episodes, horizons):
    horizons = horizons[: len(lives)]
    recorder = CompleteEpisodes(len(lives), n_steps, n_episodes, horizons)
    recorded = play(recorder, Play(lives))
    expected, cut = naive_complete(lives, n_steps, n_episodes, horizons)
    assert rows_of(recorder) == expected
    assert sorted(recorder.cut) == cut
    for env_id, steps in enumerate(recorded):
        assert steps == [t for row in expected if row[0] == env_id for t in range(row[1], row[2])]
    episodes, _ = recorder.result()
    assert episodes.lengths.tolist() == [row[2] - row[1] for row in expected]
    assert episodes.env_ids.tolist() == [row[0] for row in expected]
    assert not episodes.first_timesteps.any()


@given(lives(), st.integers(1, 30), st.integers(0, 3), st.data())
def test_what_an_environment_records_depends_on_no_other_environment(lives, n_steps, which, data):
    which = min(which, len(lives) - 1)
    alone = CompleteEpisodes(1, n_steps, None, [10])
    play(alone, Play([lives[which]]))
    together = CompleteEpisodes(len(lives), n_steps, None, [10] * len(lives))
    play(together, Play(lives))
    assert [row[1:4] for row in rows_of(together) if row[0] == which] == [row[1:4] for row in rows_of(alone)]


@given(lives(), st.integers(1, 30))
def test_an_environment_plays_at_the_timestep_that_the_recorder_says(lives, n_steps):
    recorder, env = CompleteEpisodes(len(lives), n_steps, None, [100] * len(lives)), Play(lives)
    since = [0] * len(lives)
    while not recorder.finished:
        for env_id in recorder.recording:
            assert recorder.timestep(env_id) == since[env_id]
        dones, infos, new_obs = env.step()
        recorder.advance(dones, infos, new_obs)
        since = [0 if done else t + 1 for done, t in zip(dones, since, strict=True)]


@given(lives(), st.integers(1, 20), st.integers(1, 4))
def test_fixed_lengths_cut_the_episodes_wherever_they_are_and_go_on_with_them(lives, n_steps, n_rollouts):
    env, reached = Play(lives), [0] * len(lives)
    for rollout in range(n_rollouts):
        recorder = FixedLength(len(lives), n_steps, reached)
        recorded = play(recorder, env)
        begin = rollout * n_steps
        assert recorded == [list(range(begin, begin + n_steps))] * len(lives)
        expected: list[Row] = []
        for env_id, ends in enumerate(env.ends):
            start = begin
            for step in range(begin + 1, begin + n_steps + 1):
                if step not in ends and step < begin + n_steps:
                    continue
                played_since = max((end for end in ends if end <= start), default=0)
                if step in ends:
                    final = [env_id, step, 1] if ends[step] else None
                else:
                    final = [env_id, step, 0]
                expected.append((env_id, start - begin, step - begin, start - played_since, final, step not in ends))
                start = step
        assert rows_of(recorder) == expected
        reached = recorder.next_timesteps


# The buffer


@pytest.mark.parametrize("is_dict", [False, True], ids=["array", "dict"])
@given(lives=lives(), n_steps=st.integers(1, 30), first_size=st.integers(1, 4))
def test_the_buffer_holds_the_recorded_timesteps_episode_by_episode(is_dict, lives, n_steps, first_size):
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    space = spaces.Dict({"a": box, "b": box}) if is_dict else box
    buffer_class = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
    buffer = buffer_class(first_size, space, spaces.Discrete(3), "cpu", n_envs=len(lives), gamma=0.9)
    for longer in (0, 1):  # a second rollout through the same buffer
        recorder = CompleteEpisodes(len(lives), n_steps + longer, None, [10] * len(lives))
        recorded = play(recorder, Play(lives), buffer)
        buffer.finish(recorder.result()[0])
        expected = [(env_id, step) for env_id, steps in enumerate(recorded) for step in steps]
        env_ids, steps = np.array(expected).T
        observations = np.stack([env_ids, steps, np.zeros_like(steps)], axis=1)
        if isinstance(buffer, EpisodeDictRolloutBuffer):
            assert (buffer.observations["a"] == observations).all() and (buffer.observations["b"] == 2 * observations).all()
        else:
            assert (buffer.observations == observations).all()
        assert buffer.rewards.tolist() == (100 * env_ids + steps).tolist()
        assert buffer.actions.ravel().tolist() == (steps % 3).tolist()
        assert buffer.episode_starts.tolist() == (steps == 0).tolist()
        assert buffer.size() == len(expected)

        n_timesteps = 0
        for batch in buffer.get(batch_size=7):
            n_timesteps += len(batch.returns)
        assert n_timesteps == len(expected), "the minibatches cover the rollout once"


@given(lives=lives(), gamma=FACTORS, gae_lambda=FACTORS)
def test_the_buffers_returns_and_advantages_are_those_of_its_episodes(lives, gamma, gae_lambda):
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    buffer = EpisodeRolloutBuffer(8, box, spaces.Discrete(3), "cpu", gae_lambda, gamma, len(lives))
    recorder = CompleteEpisodes(len(lives), 10, None, [8] * len(lives))
    play(recorder, Play(lives), buffer)
    episodes, recorded = recorder.result()
    buffer.finish(episodes)
    buffer.rewards, buffer.values = np.sin(buffer.rewards), np.cos(buffer.rewards)
    goes_on = np.array([row.final_observation is not None for row in recorded])
    last_values = np.arange(len(recorded)) + 1.0
    buffer.compute_returns_and_advantage(last_values, dones=~goes_on)
    advantages = generalized_advantages(buffer.rewards, buffer.values, gamma, gae_lambda, episodes, last_values * goes_on)
    assert np.allclose(buffer.advantages, advantages, atol=1e-4)
    assert np.allclose(buffer.returns, advantages + buffer.values, atol=1e-4)


def test_a_buffer_that_was_not_told_its_episodes_gives_no_minibatches():
    buffer = EpisodeRolloutBuffer(4, spaces.Discrete(3), spaces.Discrete(3), "cpu")
    buffer.reset()
    with pytest.raises(AssertionError, match="no finished rollout"):
        next(buffer.get())
