"""What has no natural gradient, and steps that are not made."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic import batch as batches
from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.distributed import ALONE, Alone, Group
from sb3_reinforce.update import natural_step
from sb3_reinforce.update.fisher import Fisher, NoDirectionError, scaled_step
from sb3_reinforce.update.kl import kl_divergence
from sb3_reinforce.update.natural_step import (
    Settings,
    check_advantages,
    check_gain,
    distributions_as_it_acts,
    divergences_from,
)
from tests.helpers import no_warnings
from tests.helpers.environments import Scripted, vec
from tests.update.natural import (
    ACTIONS,
    VECTOR,
    Watched,
    actor,
    batch_of,
    divergence,
    episodes,
    flat,
    make,
    make_policy,
    moved,
    take_step,
)


def assert_refused(model: REINFORCE, match: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^{match}.*\.$"):
        model.learn(32)
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    assert not any(model.policy.optimizer.state.values())


def assert_left_alone(model: REINFORCE, match: str) -> None:
    """The policy is; the critic goes on, and so does the run."""
    before = flat(actor(model.policy))
    with pytest.warns(UserWarning, match=rf"^{match}.*No natural step is made in such updates\.$") as caught:
        model.learn(100)
    assert th.equal(flat(actor(model.policy)), before)
    assert model._n_updates > 1 and sum("direction" in str(warning.message) for warning in caught) == 1
    assert model.logger.name_to_value["train/approx_kl"] == 0 == model.logger.name_to_value["train/grad_norm"]


NO_DIRECTION: list[tuple[dict[str, Any], float]] = [
    # The critic's errors are no advantages
    ({}, 0.0),
    ({"gae_lambda": 0.9, "complete_episodes": False}, 0.0),
    ({"baseline": None}, 0.0),
    ({"baseline": None, "normalize_advantage": False}, 0.0),
    ({"baseline": "leave_one_out", "reward_to_go": False, "n_episodes": 4}, 0.3),
    ({"baseline": "leave_one_out", "normalize_advantage": False, "n_episodes": 4}, 0.3),
    ({"baseline": "mean", "reward_to_go": False}, 1 / 3),
    ({"baseline": "mean", "reward_to_go": False, "normalize_advantage": False, "gamma": 0.9}, 0.7),
    ({"baseline": None, "reward_to_go": False, "gamma": 0.93}, 1e3 / 7),
]


@pytest.mark.parametrize("kwargs, reward", NO_DIRECTION, ids=str)
def test_equal_returns_give_no_direction(kwargs: dict[str, Any], reward: float) -> None:
    """Not even by rounding errors, which the step's length would not know from a gradient."""
    model = make(vec(Scripted((7,), VECTOR, reward=lambda _: reward)), **kwargs)
    assert_left_alone(model, "The natural gradient needs a direction")


def test_the_divergence_may_follow_a_schedule() -> None:
    """It falls to nothing at the end, which is no error."""
    model = make(episodes(ACTIONS["box"]), learn=40, target_kl=lambda progress: 1e-4 if progress == 1.0 else 0.0)
    model.learn(40, reset_num_timesteps=False)
    assert not moved(model).any()
    for one in (th.tensor(1e-4), np.array(1e-4), np.array([1e-4])):
        model = make(episodes(ACTIONS["box"]), learn=40, target_kl=lambda _, one=one: one)
        assert model.logger.name_to_value["train/target_kl"] == pytest.approx(1e-4)


@pytest.mark.parametrize("bad", [-0.01, float("nan"), float("inf"), None, np.array([0.1, 0.1]), np.array("a")])
def test_a_schedule_with_a_bad_value_is_refused(bad: Any) -> None:
    model = make(episodes(ACTIONS["box"]), target_kl=lambda progress: bad)
    before = flat(model.policy.parameters())
    with pytest.raises(ValueError, match="`target_kl` must be a finite number of at least 0"):
        model.learn(40)
    assert th.equal(flat(model.policy.parameters()), before) and model.num_timesteps == 0


def test_a_schedule_is_looked_at_to_its_end_before_anything_is_played() -> None:
    model = make(episodes(ACTIONS["box"]), target_kl=lambda progress: progress - 0.5)
    with pytest.raises(ValueError, match=r"`target_kl` must be a finite number of at least 0, got -0\.5"):
        model.learn(40)
    assert model.num_timesteps == 0


def test_a_divergence_set_by_hand_or_of_numpy_counts() -> None:
    model = make(episodes(ACTIONS["box"]), target_kl=np.float32(0.01))
    model.target_kl = 1e-5
    model.learn(40)
    with th.no_grad():
        assert divergence(model) == pytest.approx(1e-5, rel=0.05)
    assert model.logger.name_to_value["train/target_kl"] == 1e-5


def with_advantages(advantages: th.Tensor, returns: th.Tensor) -> Batch:
    batch = Batch.of_observations(th.zeros(len(returns), 3), th.zeros(len(returns)))
    return dataclasses.replace(batch, advantages=advantages, returns=returns)


def test_small_differences_are_a_direction() -> None:
    returns = 1000.0 + 0.01 * th.arange(5)
    check_advantages(with_advantages(returns - 1000.0, returns), True, ALONE)
    with pytest.raises(ValueError, match="must differ"):
        check_advantages(with_advantages(th.full((5,), 0.3), returns), True, ALONE)
    check_advantages(with_advantages(th.full((5,), 0.3), returns), False, ALONE)


@pytest.mark.parametrize("ent_coef", [1e-8, 0.1])
def test_an_entropy_bonus_alone_makes_no_step(ent_coef: float) -> None:
    model = make(vec(Scripted((7,), VECTOR, reward=lambda _: 1e3 / 7)), ent_coef=ent_coef, **NO_DIRECTION[-1][0])
    assert_left_alone(model, "The natural gradient needs a direction")


def test_a_single_action_gives_no_direction() -> None:
    assert_left_alone(make(episodes(spaces.Discrete(1)), baseline=None), "The natural gradient needs a ")


def test_the_policy_moves_again_when_there_is_something_to_learn() -> None:
    scale = [0.0]
    model = make(vec(Scripted((7, 5), VECTOR, reward=lambda timestep: scale[0] * timestep)), baseline=None)
    with pytest.warns(UserWarning, match="needs a direction"):
        model.learn(32)
    assert not moved(model).any()
    scale[0] = 1.0
    model.learn(32, reset_num_timesteps=False)
    assert moved(model).any()


def certain(logit: float, **kwargs: Any) -> Watched:
    """A model that is all but sure to do the wrong thing: to second order hardly anything moves it, so that steps are huge."""
    env = vec(Scripted((7,), VECTOR, reward=lambda _: -1.0))
    model = make(env, baseline=None, normalize_advantage=False, target_kl=0.02, policy_kwargs={"net_arch": []}, **kwargs)
    with th.no_grad():
        model.policy.get_parameter("action_net.bias")[:] = th.tensor([0.0, logit])
    return model


def worst_divergence(model: REINFORCE, before: ActorCriticPolicy) -> float:
    """The largest divergence of any timestep of the last rollout."""
    batch = Batch.of_observations(th.as_tensor(model.rollout_buffer.observations), th.as_tensor(model.rollout_buffer.actions))
    old = distributions_as_it_acts(make_actor_critic(before), batch)
    return float(divergences_from(old, make_actor_critic(model.policy), batch).max())


@pytest.mark.parametrize("logit", [7.5, 9.0, 12.0])
@pytest.mark.parametrize("target_kl", [1e-5, 0.02])
@pytest.mark.filterwarnings("error:.*KL divergence.*:UserWarning")
def test_a_step_that_goes_too_far_for_a_timestep_is_shortened(logit: float, target_kl: float) -> None:
    """At full length it would make a policy that is nearly sure of one action sure of the other."""
    model = certain(logit)
    model.target_kl = target_kl
    before = copy.deepcopy(model.policy)
    model.learn(1)
    most = max(natural_step.WORST * target_kl, natural_step.LEAST_WORST)
    assert 0 < worst_divergence(model, before) <= most
    # By no more than it takes
    assert worst_divergence(model, before) > 0.01 * most
    assert model.logger.name_to_value["train/kl_divergence"] > 0


@pytest.mark.parametrize("name", ACTIONS)
def test_one_timestep_alone_shortens_no_step_of_a_gaussian(name: str) -> None:
    """Whose mean comes back from wherever it went, while an action that is never drawn does not."""
    policy = make_policy(name, net_arch=[])
    observations = th.cat([0.1 * th.randn(999, 3, generator=th.Generator().manual_seed(0)), th.full((1, 3), 300.0)])
    with th.no_grad():
        policy.get_parameter("action_net.weight").zero_()
    actions = policy(observations)[0]
    before = flat(actor(policy))
    gradient = [
        th.ones_like(p) if "weight" in n else th.zeros_like(p) for n, p in policy.named_parameters() if p in set(actor(policy))
    ]
    asked = make_actor_critic(policy), Batch.of_observations(observations, actions)
    old = distributions_as_it_acts(*asked)
    take_step(policy, gradient, actor(policy), observations, actions, th.ones(1000), Settings(0.02, 50, 0.1, 1))
    assert not th.equal(flat(actor(policy)), before)
    worst = float(divergences_from(old, *asked).max())
    assert (worst > 50 * 0.02) == (name == "box")


def test_a_step_that_would_be_too_long_at_any_length_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural_step, "divergences_from", lambda *_: th.tensor([1.0, math.nan]))
    model = certain(7.5)
    before = flat(actor(model.policy))
    with pytest.warns(UserWarning, match="would have moved the policy too far.* was left out") as caught:
        model.learn(100)
    assert model._n_updates > 1 and sum("was left out" in str(warning.message) for warning in caught) == 1
    assert th.equal(flat(actor(model.policy)), before)
    assert model.logger.name_to_value["train/kl_divergence"] == 0 == model.logger.name_to_value["train/approx_kl"]


class Bandit(gym.Env):
    """Two arms, of which the first pays one more, and noise."""

    observation_space = VECTOR
    action_space = spaces.Discrete(2)

    def __init__(self, spread: float):
        self.spread, self.rng, self.t = spread, np.random.default_rng(0), 0

    def observe(self) -> np.ndarray:
        return (0.5 + self.spread * self.rng.normal(size=3)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observe(), float(action == 0) + self.rng.normal(), self.t == 8, False, {}


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_solved_bandit_stays_solved(spread: float, seed: int) -> None:
    """A batch that holds the better arm alone has a gradient that is noise, or, where all is equal, rounding."""
    model = make(vec(Bandit(spread)), seed=seed, n_steps=128).learn(8_000)
    observations = th.as_tensor(np.stack([Bandit(spread).observe() for _ in range(50)]))
    with th.no_grad():
        assert model.policy.get_distribution(observations).distribution.probs[:, 0].mean() > 0.9
    assert max(float(parameter.detach().abs().max()) for parameter in actor(model.policy)) < 1e4


def test_a_gradient_of_rounding_errors_is_no_direction() -> None:
    """The weights of a batch with a single action and observation sum to zero."""
    policy = make_policy("discrete")
    with th.no_grad():
        policy.action_net.bias[:] = th.tensor([9.0, 0.0, 0.0])
    observations, actions = th.full((64, 3), 0.3), th.zeros(64, dtype=th.long)
    weights = th.linspace(-1.0, 1.0, 64).roll(17) / 64 + 1e-9
    gradient = th.autograd.grad(-(weights * policy.evaluate_actions(observations, actions)[1]).sum(), actor(policy))
    assert any(part.any() for part in gradient)
    before = flat(actor(policy))
    with pytest.raises(NoDirectionError, match="rounding error"):
        take_step(policy, gradient, actor(policy), observations, actions, weights, Settings(0.01, 15, 0.1, 1))
    assert th.equal(flat(actor(policy)), before)


@pytest.mark.parametrize("name", ["discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("logit", [0.0, 3.0, 18.0, 60.0])
def test_the_divergence_of_sure_actions_is_finite(name: str, logit: float) -> None:
    """And where no probability rounds to 0 or 1, it is PyTorch's."""
    policy = make_policy(name)
    outputs = th.tensor([[logit, 0.2, -0.1, 0.4, 0.3][: policy.action_net.out_features]])
    distributions = []
    for scale in (1.0, 1.05):
        one = policy.action_dist.proba_distribution(scale * outputs).distribution
        distributions.append(one if isinstance(one, list) else [one])
    total = sum(float(kl_divergence(old, new).sum()) for old, new in zip(*distributions, strict=True))
    assert 0.0 < total < 1.0
    if logit <= 3.0:
        expected = sum(float(th.distributions.kl_divergence(old, new).sum()) for old, new in zip(*distributions, strict=True))
        assert total == pytest.approx(expected, rel=1e-5)


def test_divergences_of_masked_actions_and_of_independent_ones() -> None:
    masked = [th.distributions.Categorical(logits=th.tensor([x, 0.0, -math.inf], requires_grad=True)) for x in (0.3, 0.8)]
    p, q = (th.softmax(th.tensor([x, 0.0]), dim=0) for x in (0.3, 0.8))
    divergence = kl_divergence(*masked)
    th.testing.assert_close(divergence, (p * (p / q).log()).sum())
    assert masked[1].logits.isfinite().tolist() == [True, True, False]
    bits = [th.distributions.Bernoulli(logits=th.tensor([[0.1, 20.0, -math.inf], [x, 0.0, math.inf]])) for x in (0.2, 0.9)]
    independent = [th.distributions.Independent(one, 1) for one in bits]
    th.testing.assert_close(kl_divergence(*independent), kl_divergence(*bits).sum(dim=1))
    apart = [th.distributions.Independent(one, 0) for one in bits]
    th.testing.assert_close(kl_divergence(*apart), kl_divergence(*bits))
    assert kl_divergence(*independent).isfinite().all() and kl_divergence(*independent)[1] > 0


class Masked(ActorCriticPolicy):
    """The last action cannot be taken."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi).masked_fill(th.tensor([False, False, True]), -math.inf)
        return self.action_dist.proba_distribution(logits)


def test_actions_may_be_masked_by_infinite_logits() -> None:
    model = make(episodes(ACTIONS["discrete"]), Masked, learn=100, target_kl=1e-3)
    assert moved(model).any() and model.logger.name_to_value["train/kl_divergence"] == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize("share, refused", [(1e-8, True), (-1.0, True), (math.nan, True), (1e-6, False), (0.1, False)])
def test_a_gain_is_compared_with_what_it_could_be(share: float, refused: bool) -> None:
    """100 timesteps, of weights of 3, along a step with a mean square of 2 * 0.02."""
    gain = share * 100 * 3.0 * 0.2
    weights = 3.0 * th.ones(100)
    if refused:
        with pytest.raises(NoDirectionError, match="rounding error"):
            check_gain(gain, weights, 0.02, ALONE)
    else:
        check_gain(gain, weights, 0.02, ALONE)
    check_gain(0.0, weights, 0.0, ALONE)


@pytest.mark.parametrize(("of_other", "shortened"), [(0.0, False), (1.0, True)])
def test_all_workers_shorten_a_step_that_goes_too_far_for_one(of_other: float, shortened: bool) -> None:
    steps = []
    for workers in (Alone(), Two(of_other)):
        policy = make_policy("box", net_arch=[])
        observations, actions = batch_of(policy)
        before = flat(actor(policy))
        gradient = [th.ones_like(parameter) for parameter in actor(policy)]
        take_step(policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(0.01, 50, 0.1, 1), workers)
        steps.append(flat(actor(policy)) - before)
    fraction = float(steps[1].norm() / steps[0].norm())
    assert fraction == pytest.approx(0.9 * math.sqrt(0.5) if shortened else 1.0, rel=1e-4)


class Two(Group):
    """Two workers, of which the other has no timesteps, but says how far it has gone: at first, and half as far then."""

    def __init__(self, divergence: float):
        super().__init__(0, 2)
        self.divergence = divergence

    def add_up(self, tensors: Sequence[th.Tensor]) -> None:
        pass

    def gather(self, item: Any) -> list[Any]:
        if not isinstance(item, float):
            return [item, 0]
        divergence, self.divergence = self.divergence, self.divergence / 2
        return [item, divergence]


def test_a_policy_out_of_all_bounds_is_infinitely_far() -> None:
    """PyTorch refuses a deviation of zero."""
    policy = make_policy("box")
    observations, actions = batch_of(policy)
    asked = make_actor_critic(policy), Batch.of_observations(observations, actions)
    before = distributions_as_it_acts(*asked)
    assert (divergences_from(before, *asked) == 0.0).all()
    with th.no_grad():
        policy.log_std[:] = -1e4
    assert (divergences_from(before, *asked) == math.inf).all()
    th.distributions.Distribution.set_default_validate_args(False)  # as `torch.compile` does
    assert (divergences_from(before, *asked) == math.inf).all()


@pytest.mark.parametrize("name", ACTIONS)
def test_the_divergence_of_an_action_is_the_sum_over_its_parts(name: str) -> None:
    policy = make_policy(name)
    observations, actions = batch_of(policy)
    asked = make_actor_critic(policy), Batch.of_observations(observations, actions)
    before = distributions_as_it_acts(*asked)
    with th.no_grad():
        policy.action_net.bias += th.linspace(-0.3, 0.4, len(policy.action_net.bias))
    divergences = divergences_from(before, *asked)
    assert divergences.shape == (len(observations),) and (divergences > 0).all()
    after = distributions_as_it_acts(*asked)
    total = sum(
        float(kl_divergence(*pair).sum()) for pairs in zip(before, after, strict=True) for pair in zip(*pairs, strict=True)
    )
    assert float(divergences.sum()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("target_kl", [1e-4, 0.02, 0.3])
@pytest.mark.parametrize("name", ACTIONS)
@no_warnings
def test_steps_of_about_the_target_are_not_warned_of(name: str, target_kl: float) -> None:
    model = make(episodes(ACTIONS[name], n_envs=2), target_kl=target_kl).learn(100)
    assert 0 < model.logger.name_to_value["train/kl_divergence"] < 5 * target_kl


@pytest.mark.parametrize("squash", [False, True])
@no_warnings
def test_steps_with_gsde_are_not_warned_of(squash: bool) -> None:
    """Whose log-probabilities make a noisy estimate of the divergence: a few matrices are the noise of all timesteps."""
    kwargs = {"squash_output": squash}
    model = make(episodes(ACTIONS["box"]), use_sde=True, cg_damping=1.0, normalize_advantage=False, policy_kwargs=kwargs)
    for _ in range(10):
        model.learn(32)
        assert 0 < model.logger.name_to_value["train/kl_divergence"] < 5 * 0.01


@no_warnings
def test_what_dropout_and_the_critic_move_is_not_warned_of() -> None:
    kwargs = {"features_extractor_class": Dropping, "optimizer_class": th.optim.SGD}
    model = make(episodes(ACTIONS["discrete"]), target_kl=lambda _: 0.0, learning_rate=0.1, policy_kwargs=kwargs).learn(100)
    assert model.logger.name_to_value["train/kl_divergence"] == 0.0
    assert model.logger.name_to_value["train/approx_kl"] > 0.0


@pytest.mark.parametrize("sub_sampling_factor", [1, 3])
@pytest.mark.parametrize("name", ACTIONS)
def test_the_divergence_that_is_logged_is_that_of_the_step(
    name: str, sub_sampling_factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_TIMESTEPS", 7)
    model = make(episodes(ACTIONS[name], n_envs=2), learn=1, target_kl=0.3, sub_sampling_factor=sub_sampling_factor)
    with th.no_grad():
        assert model.logger.name_to_value["train/kl_divergence"] == pytest.approx(divergence(model), rel=1e-3)


class Dropping(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(observations)


class Attentive(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 8)
        self.embed = nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        tokens = self.embed(observations.unsqueeze(-1))
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1)


def test_attention_has_a_second_derivative() -> None:
    model = make(episodes(ACTIONS["discrete"]), learn=40, policy_kwargs={"features_extractor_class": Attentive})
    assert moved(model).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused(bad: float) -> None:
    policy = make_policy("box")
    observations, actions = batch_of(policy)
    before = flat(list(policy.parameters()))
    gradient = [th.ones_like(p) for p in actor(policy)]
    gradient[0].view(-1)[0] = bad
    with pytest.raises(ValueError, match="gradient of the policy must be finite"):
        take_step(policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(0.01, 15, 0.1, 1))
    gradient = [th.zeros_like(p) for p in actor(policy)]
    with pytest.raises(ValueError, match="policy gradient of zero"):
        take_step(policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(0.01, 15, 0.1, 1))
    assert th.equal(flat(list(policy.parameters())), before)


def test_a_divergence_below_zero_is_rounding() -> None:
    """No reason to end a run: a policy that has become deterministic has such directions."""
    with pytest.raises(NoDirectionError, match="a larger `cg_damping`"):
        scaled_step(th.diag(th.tensor([1.0, -1e-6])).mv, th.tensor([0.0, 1.0]), 0.01)
    with pytest.raises(ValueError, match="needs a finite direction") as refused:
        scaled_step(th.diag(th.tensor([1.0, 1.0])).mv, th.tensor([math.nan, 1.0]), 0.01)
    assert not isinstance(refused.value, NoDirectionError)


@pytest.mark.parametrize("direction", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [0.0, 1.0]])
def test_a_direction_without_divergence_is_refused(direction: list[float]) -> None:
    with pytest.raises(ValueError, match="needs a finite direction"):
        scaled_step(th.diag(th.tensor([1.0, 0.0])).mv, th.tensor(direction), 0.01)


def test_a_solution_that_is_not_finite_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fisher, "__call__", lambda self, vector: math.nan * vector)
    assert_refused(make(episodes(ACTIONS["box"])), "The natural gradient needs a finite direction")
