"""While it acts, a policy with memory is the policy that the update trains."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import MaskableRecurrentREINFORCE, RecurrentREINFORCE
from sb3_reinforce.recurrent.actor_critic import RecurrentActorCritic, SeparableRecurrentActorCritic
from sb3_reinforce.recurrent.policies import MaskableRecurrentActorCriticPolicy
from sb3_reinforce.recurrent.sampler import RecurrentActorSampler, RecurrentNumpySampler, RecurrentPolicySampler
from tests.helpers.environments import Scripted, vec
from tests.recurrent.recurrent import (
    ACTIONS,
    IMAGE,
    NETWORKS,
    VECTOR,
    Masked,
    Reads,
    assert_acted_as_updated,
    make,
    make_maskable,
    stir,
    uneven,
)


class OwnForward(RecurrentActorCriticPolicy):
    """With a method of the user's own, which nothing but the policy's methods may replace."""

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        features = super().extract_features(obs, features_extractor)
        return features + 0.1 if isinstance(features, th.Tensor) else tuple(part + 0.1 for part in features)


class OwnMaskedForward(MaskableRecurrentActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs, features_extractor) + 0.1


class OwnExtractor(BaseFeaturesExtractor):
    """An extractor that the fast way does not know."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 4)
        self.layer = th.nn.Linear(get_flattened_obs_dim(observation_space), 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.relu(self.layer(observations))


OWN_EXTRACTOR = {"features_extractor_class": OwnExtractor}


def learned(model: RecurrentREINFORCE, every: int = 1, n: int = 40) -> Reads:
    """Several rollouts from the same weights: the second begins where the first has left the states."""
    reads = Reads(every)
    model.learning_rate = 0.0
    model.learn(n, callback=reads)
    assert model._n_updates > 0
    return reads


PLAIN: dict[str, Any] = {"natural_gradient": False, "normalize_returns": False, "n_critic_updates": 0}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("way", ["numpy", "torch", "own forward"])
def test_the_update_sees_the_log_probabilities_and_values_that_it_acted_with(network: str, way: str) -> None:
    policy: Any = OwnForward if way == "own forward" else "MlpLstmPolicy"
    kwargs = {**NETWORKS[network], **(OWN_EXTRACTOR if way == "torch" else {})}
    model = make(uneven(n_envs=3), policy, network=kwargs, **PLAIN)
    reads = learned(model)
    sampler = {"numpy": RecurrentNumpySampler, "torch": RecurrentActorSampler, "own forward": RecurrentPolicySampler}[way]
    assert type(model._player._sampler) is sampler
    assert_acted_as_updated(model, reads)


@pytest.mark.parametrize("way", ["numpy", "torch"])
@pytest.mark.parametrize("every", [2, 5])
def test_values_that_are_read_now_and_then_count_what_was_not_read(way: str, every: int) -> None:
    model = make(uneven(n_envs=2), network=OWN_EXTRACTOR if way == "torch" else None, **PLAIN)
    assert_acted_as_updated(model, learned(model, every))


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("way", ["numpy", "torch"])
def test_every_action_space_is_acted_in_as_it_is_learned(actions: str, way: str) -> None:
    network = OWN_EXTRACTOR if way == "torch" else None
    model = make(uneven(actions=ACTIONS[actions]), network=network, **PLAIN)
    assert_acted_as_updated(model, learned(model))


@pytest.mark.parametrize("way", ["numpy", "torch", "squashed"])
def test_state_dependent_exploration_is_acted_on_as_it_is_learned(way: str) -> None:
    network: dict[str, Any] = {"squash_output": True} if way == "squashed" else OWN_EXTRACTOR if way == "torch" else {}
    model = make(uneven(actions=ACTIONS["box"]), network=network, use_sde=True, sde_sample_freq=3, **PLAIN)
    assert_acted_as_updated(model, learned(model))


@pytest.mark.parametrize("observations", ["discrete", "multi_discrete", "multi_binary", "image", "dict", "own images"])
def test_every_observation_space_is_acted_on_as_it_is_learned(observations: str) -> None:
    found: dict[str, tuple[str, spaces.Space, dict[str, Any]]] = {
        "discrete": ("MlpLstmPolicy", spaces.Discrete(5), {}),
        "multi_discrete": ("MlpLstmPolicy", spaces.MultiDiscrete([3, 4]), {}),
        "multi_binary": ("MlpLstmPolicy", spaces.MultiBinary(4), {}),
        "image": ("CnnLstmPolicy", IMAGE, {"features_extractor_kwargs": {"features_dim": 6}}),
        "own images": (
            "CnnLstmPolicy",
            IMAGE,
            {"features_extractor_kwargs": {"features_dim": 6}, "share_features_extractor": False},
        ),
        "dict": ("MultiInputLstmPolicy", spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}), {}),
    }
    policy, space, network = found[observations]
    model = make(uneven(space, n_envs=2, truncated=True), policy, network=network, **PLAIN)
    assert_acted_as_updated(model, learned(model, n=30))


@pytest.mark.parametrize("actions", ["discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("way", ["numpy", "torch", "own forward"])
@pytest.mark.parametrize("network", ["two LSTMs", "shared LSTM"])
def test_masks_and_memory_are_acted_on_as_they_are_learned(actions: str, way: str, network: str) -> None:
    policy: Any = OwnMaskedForward if way == "own forward" else "MlpLstmPolicy"
    kwargs = {**NETWORKS[network], **(OWN_EXTRACTOR if way == "torch" else {})}
    model = make_maskable(uneven(actions=ACTIONS[actions], kind=Masked), policy, network=kwargs, **PLAIN)
    reads = learned(model)
    assert_acted_as_updated(model, reads)
    masks, taken = model.rollout_buffer.action_masks, model.rollout_buffer.actions.astype(int)  # type: ignore[attr-defined]
    sizes = {"discrete": [3], "multi_discrete": [2, 3], "multi_binary": [2, 2, 2]}[actions]
    for i, start in enumerate(np.cumsum([0, *sizes[:-1]])):
        assert masks[np.arange(len(taken)), start + taken[:, i]].all()
    assert not masks.all()


class Forgets(MaskableRecurrentActorCriticPolicy):
    """A policy of the user's own that does not pass the masks on, neither when it acts nor when it learns."""

    def forward(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        return super().forward(obs, *args, **kwargs)

    def evaluate_actions(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        return super().evaluate_actions(obs, *args, **kwargs)


def test_a_policy_of_ones_own_that_forgets_the_masks_is_an_error() -> None:
    model = make_maskable(uneven(kind=Masked), Forgets, n_steps=100, **PLAIN)
    with pytest.raises(
        ValueError, match=r"Forgets must be allowed by `action_masks`, got .* in environment \d at timestep \d+"
    ):
        model.learn(200)


def test_without_masking_all_actions_are_drawn() -> None:
    model = make_maskable(uneven(n_envs=2, kind=Masked), learning_rate=0.0, **PLAIN)
    reads = Reads()
    model.learn(60, callback=reads, use_masking=False)
    assert_acted_as_updated(model, reads)
    taken = model.rollout_buffer.actions.astype(int).ravel()
    timesteps = model.rollout_buffer.timesteps  # type: ignore[attr-defined]
    assert len(taken) > 10 and model.rollout_buffer.action_masks.all() and timesteps.max() > 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["numpy", "torch"])
def test_actions_are_drawn_with_the_probabilities_that_are_learned(way: str) -> None:
    """The first observation of an episode decides, which only the states know at its end."""

    class Cue(Scripted):
        def _observe(self) -> Any:
            return np.full(1, float(self.n_resets % 2) if self.timestep == 0 else 0.5, np.float32)

    env = vec(*[Cue((4,)) for _ in range(8)])
    for each in env.envs:
        each.unwrapped.observation_space = spaces.Box(-1, 1, (1,), np.float32)  # type: ignore[attr-defined]
    env = DummyVecEnv([lambda each=each: each for each in env.envs])  # type: ignore[misc]
    network = {"features_extractor_class": type("Own", (FlattenExtractor,), {})} if way == "torch" else {}
    model = make(env, network={**network, "net_arch": []}, n_steps=4, seed_rollouts=False, **PLAIN)
    stir(model.policy, 1.5, seed=3)
    model.learning_rate = 0.0
    taken, expected = [], []

    class Counts(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            batch = model.batch()
            last = np.cumsum(batch.episodes.lengths) - 1  # type: ignore[union-attr]
            with th.no_grad():
                (piece,) = model.actor_critic.pieces(batch)
                (distribution,) = model.actor_critic.distributions(piece)
            taken.append(batch.actions.numpy()[last])
            expected.append(distribution.probs.numpy()[last, 1])

    model.learn(8 * 4 * 60, callback=Counts())
    p, drawn = np.concatenate(expected), np.concatenate(taken)
    for cue in (p > np.median(p), p <= np.median(p)):
        assert abs(drawn[cue].mean() - p[cue].mean()) < 4.5 * np.sqrt(p[cue].mean() * (1 - p[cue].mean()) / cue.sum())
    assert np.ptp(p) > 0.1, "the states make no difference"


def test_a_fast_step_is_a_step_of_the_policy() -> None:
    for actions in ("discrete", "multi_discrete", "box", "multi_binary"):
        for network in ({}, {"n_lstm_layers": 3}, {"lstm_kwargs": {"bias": False}, "activation_fn": th.nn.SiLU}):
            policy = make(uneven(actions=ACTIONS[actions]), network=network).policy
            sampler = RecurrentNumpySampler(policy, 4, np.random.default_rng(0))
            sampler.start_rollout()
            states = None
            rng = np.random.default_rng(1)
            for t in range(7):
                obs = rng.normal(size=(4, 3)).astype(np.float32)
                starts = np.array([t == 0, t in (0, 3), t == 0, True])
                sampler.sample(obs, lambda env_id, starts=starts: 0 if starts[env_id] else 5)  # type: ignore[misc]
                outputs = np.array(sampler._layers[-1][2])
                hidden = np.zeros((policy.lstm_actor.num_layers, 4, 5), np.float32)
                states = states or (th.from_numpy(hidden), th.from_numpy(hidden))
                with th.no_grad():
                    _, states = policy.get_distribution(th.from_numpy(obs), states, th.from_numpy(starts).float())
                    latent = policy.mlp_extractor.forward_actor(states[0][-1])
                    np.testing.assert_allclose(outputs, policy.action_net(latent).numpy(), atol=1e-5)


def test_environments_that_have_their_quota_do_not_disturb_the_others() -> None:
    """One plays many short episodes while the other is in its long one."""
    env = vec(Scripted((2, 3), VECTOR), Scripted((37,), VECTOR))
    model = make(env, n_steps=5, **PLAIN)
    assert_acted_as_updated(model, learned(model, n=100))
    assert model.batch().episodes.lengths.tolist()[-1] == 37  # type: ignore[union-attr]


@pytest.mark.parametrize("way", ["numpy", "torch"])
def test_episodes_that_are_cut_at_a_horizon_are_acted_on_as_they_are_learned(way: str) -> None:
    env = vec(Scripted((None,), VECTOR), Scripted((4, 30), VECTOR))
    model = make(env, network=OWN_EXTRACTOR if way == "torch" else None, n_steps=10, horizon=7, **PLAIN)
    with pytest.warns(UserWarning, match="An episode was cut.*an LSTM does not have"):
        reads = learned(model, n=60)
    assert_acted_as_updated(model, reads)
    assert model.batch().episodes.lengths.max() == 7  # type: ignore[union-attr]


# What a rollout's end is worth


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("way", ["numpy", "torch", "own forward"])
def test_the_value_after_a_truncation_is_that_of_the_critic_which_remembers_the_episode(network: str, way: str) -> None:
    policy: Any = OwnForward if way == "own forward" else "MlpLstmPolicy"
    env = uneven(truncated=True, n_envs=2)
    kwargs = {**NETWORKS[network], **(OWN_EXTRACTOR if way == "torch" else {})}
    model = make(env, policy, network=kwargs, gamma=0.9, **PLAIN)
    last: dict[int, list[np.ndarray]] = {0: [], 1: []}

    class Keeps(BaseCallback):
        def _on_step(self) -> bool:
            for env_id, info in enumerate(self.locals["infos"]):
                if "terminal_observation" in info:
                    last[env_id].append(info["terminal_observation"])
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
            batch = model.batch()
            assert batch.episodes is not None
            for i, (length, env_id) in enumerate(zip(batch.episodes.lengths, batch.episodes.env_ids, strict=True)):
                first = int(batch.episodes.starts[i])
                rows = slice(first, first + int(length))
                ended = th.as_tensor(last[env_id].pop(0))[None]
                observations = th.cat([th.as_tensor(buffer.observations[rows]), ended])
                states = (th.zeros(model.policy.lstm_hidden_state_shape),) * 2
                with th.no_grad():
                    starts = th.zeros(len(observations))
                    actions = th.zeros(len(observations))
                    both = RNNStates(states, states)
                    values = model.policy.evaluate_actions(observations, actions, both, starts)[0].flatten()  # type: ignore[call-arg, arg-type]
                expected = 0.9 ** np.arange(length, 0, -1) * float(values[-1])
                for t in range(int(length)):
                    expected[t] += sum(0.9 ** (k - t) * buffer.rewards[rows][k] for k in range(t, int(length)))
                np.testing.assert_allclose(buffer.returns[rows], expected, atol=2e-5)
                np.testing.assert_allclose(buffer.values[rows], values[:-1], atol=1e-5)
            for found in last.values():
                found.clear()

    model.learn(30, callback=Keeps())


def test_after_a_rollout_callbacks_read_the_values_of_the_next_observations() -> None:
    values = []
    for network in (None, OWN_EXTRACTOR):
        env = vec(Scripted((5, 3), VECTOR, truncated=True), Scripted((4,), VECTOR))
        model = make(env, network=network, **PLAIN)
        reads = learned(model, n=30)
        for found in reads.last_values:
            # Every environment whose rollout ended with its episode stands at the start of one
            assert found.shape == (2,) and np.isfinite(found).all()
        with th.no_grad():
            zero = (th.zeros(model.policy.lstm_hidden_state_shape).repeat(1, 2, 1),) * 2
            fresh = model.policy.predict_values(th.as_tensor(model._last_obs), zero, th.ones(2))  # type: ignore[call-arg]
        stands = np.array([model._player._sampler._timestep(i) == 0 for i in range(2)])  # type: ignore[union-attr]
        np.testing.assert_allclose(reads.last_values[-1][stands], fresh.flatten().numpy()[stands], atol=1e-5)
        values.append(stands)
    assert np.any(values)


class ReadsAgain(BaseCallback):
    """Reads the values whenever it can, also when learning ends."""

    def _on_step(self) -> bool:
        self.locals["values"]
        return True

    def _on_rollout_end(self) -> None:
        self.ends = [self.locals["values"].clone() for _ in range(2)]

    def _on_training_end(self) -> None:
        self.ends.append(self.locals["values"].clone())


@pytest.mark.parametrize("network", [None, OWN_EXTRACTOR], ids=["numpy", "torch"])
def test_the_values_after_a_rollout_can_be_read_again(network: Any) -> None:
    model = make(uneven(), network=network, learning_rate=0.0, **PLAIN)
    callbacks = [ReadsAgain(), ReadsAgain()]
    model.learn(30, callback=callbacks)
    for found in callbacks:
        for other in found.ends:
            th.testing.assert_close(found.ends[0], other)
    sampler = model._player._sampler
    obs = th.as_tensor(model._last_obs)
    with th.no_grad():
        first, second = (sampler.next_values(obs).clone() for _ in range(2))  # type: ignore[union-attr]
    th.testing.assert_close(first, second)


# Callbacks that change something in the middle of a rollout


class Changes(BaseCallback):
    """Does something once, in the middle of an episode."""

    def __init__(self, change: Callable[[Any], None], step: int = 4):
        super().__init__()
        self.change = change
        self.step = step

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.change(self.model)
        return True


def copied(model: Any) -> None:
    model.policy = copy.deepcopy(model.policy)


def hooked(model: Any) -> None:
    model.policy.action_net.register_forward_hook(lambda *_: None)


def hooked_lstm(model: Any) -> None:
    model.policy.lstm_actor.register_forward_hook(lambda *_: None)


def new_layer(model: Any) -> None:
    model.policy.action_net = copy.deepcopy(model.policy.action_net)


def new_lstm(model: Any) -> None:
    model.policy.lstm_actor = copy.deepcopy(model.policy.lstm_actor)


def new_weight(model: Any) -> None:
    lstm = model.policy.lstm_actor
    lstm.weight_hh_l0 = th.nn.Parameter(lstm.weight_hh_l0.detach().clone())


def patched(model: Any) -> None:
    policy = model.policy
    own = policy.extract_features
    policy.extract_features = lambda *args: own(*args)


@pytest.mark.parametrize("change", [copied, hooked, hooked_lstm, new_layer, new_lstm, new_weight, patched])
@pytest.mark.parametrize("way", ["numpy", "torch"])
@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
def test_a_callback_that_replaces_a_part_in_an_episode_leaves_its_memory(
    change: Callable[[Any], None], way: str, kind: type[RecurrentREINFORCE]
) -> None:
    network = OWN_EXTRACTOR if way == "torch" else None
    model = make(uneven(kind=Masked), kind=kind, network=network, learning_rate=0.0, **PLAIN)
    reads = Reads()
    model.learn(1, callback=[Changes(change), reads])
    assert_acted_as_updated(model, reads)


def test_weights_that_a_callback_writes_in_place_are_acted_with() -> None:
    model = make(uneven(), learning_rate=0.0, **PLAIN)
    reads = Reads()

    def forbid(model: Any) -> None:
        with th.no_grad():
            model.policy.lstm_actor.weight_ih_l0.mul_(0.5)
            model.policy.action_net.bias.copy_(th.tensor([-1e3, 1e3, -1e3]))

    model.learn(1, callback=[Changes(forbid), reads])
    later = model.rollout_buffer.timesteps > 4  # type: ignore[attr-defined]
    assert (model.rollout_buffer.actions[later] == 1).all() and later.any()


@pytest.mark.parametrize("way", ["numpy", "torch"])
def test_a_policy_with_a_memory_of_another_size_begins_anew(way: str) -> None:
    network = OWN_EXTRACTOR if way == "torch" else {}
    model = make(uneven(), network=network, **PLAIN)
    other = make(uneven(), network={**network, "lstm_hidden_size": 8}, **PLAIN).policy

    def exchange(model: Any) -> None:
        model.policy = other

    model.learn(30, callback=[Reads(), Changes(exchange)])
    assert model.policy is other


@pytest.mark.parametrize("network", [None, OWN_EXTRACTOR], ids=["numpy", "torch"])
def test_another_number_of_environments_begins_with_new_states(network: Any) -> None:
    model = make(uneven(n_envs=3), network=network, **PLAIN)
    learned(model, n=30)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    other = RecurrentREINFORCE.load(file, env=uneven(n_envs=2), device="cpu")
    assert_acted_as_updated(other, learned(other, n=30))
    # A sampler that replaces one of the other number takes over nothing
    former, sampler = model._player._sampler, other._player._sampler
    sampler.go_on_from(former)  # type: ignore[union-attr]
    assert sampler.memory().pi[0].shape == (1, 2, 5) == sampler._critic._states[0].shape  # type: ignore[union-attr]


# What an error says, and what a copy holds


@pytest.mark.parametrize("way", ["numpy", "torch", "own forward", "image"])
@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
def test_weights_that_are_not_finite_are_a_named_error(way: str, kind: type[RecurrentREINFORCE]) -> None:
    own = OwnForward if kind is RecurrentREINFORCE else OwnMaskedForward
    policy: Any = {"own forward": own, "image": "CnnLstmPolicy"}.get(way, "MlpLstmPolicy")
    space = IMAGE if way == "image" else VECTOR
    model = make(uneven(space, kind=Masked), policy, kind, network=OWN_EXTRACTOR if way == "torch" else None, **PLAIN)

    def poison(model: Any) -> None:
        with th.no_grad():
            model.policy.action_net.weight[0, 0] = np.nan

    with pytest.raises(
        ValueError, match=r"(output of the policy|action) must be finite, got nan in environment 0 at timestep 4"
    ):
        model.learn(30, callback=Changes(poison))


@pytest.mark.parametrize("network", [None, OWN_EXTRACTOR], ids=["numpy", "torch"])
def test_a_copy_in_any_state_can_be_pickled_and_holds_no_rollout(network: Any) -> None:
    model = make(make_vec_env("CartPole-v1", 2), network=network, n_steps=12, **PLAIN)
    model.learn(1)
    memory = pickle.loads(pickle.dumps(model._player._sampler))
    assert memory._critic._missed == [] != model._player._sampler._critic._missed  # type: ignore[union-attr]
    with th.no_grad():
        model.policy.action_net.weight.fill_(np.nan)
    with pytest.raises(ValueError):
        model.learn(1)
    pickle.loads(pickle.dumps(model))

    class Pickles(BaseCallback):
        def _on_rollout_start(self) -> None:
            pickle.loads(pickle.dumps(self.model))

        def _on_step(self) -> bool:
            pickle.loads(pickle.dumps(self.model))
            return True

    make(make_vec_env("CartPole-v1", 2), network=network, **PLAIN).learn(1, callback=Pickles())


def test_the_ways_to_call_a_policy_are_told_apart() -> None:
    assert type(make(uneven()).actor_critic) is SeparableRecurrentActorCritic
    assert type(make(uneven(), OwnForward).actor_critic) is RecurrentActorCritic
