"""By default the policy takes natural steps if it has them, and else those of its optimizer."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.distributions import AffineTransform, Laplace, Normal, StudentT, TransformedDistribution

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.update.natural_step import check_second_derivative
from tests.helpers import no_warnings
from tests.helpers.environments import Scripted, vec
from tests.helpers.policies import OneFunction
from tests.update.natural import ACTIONS, VECTOR, actor, episodes, flat


class Once(th.autograd.Function):
    """A hyperbolic tangent with a first derivative, but no second one."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient * (1.0 - ctx.saved_tensors[0].tanh() ** 2)


class OnceTanh(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return Once.apply(x)


class Unknown(DiagGaussianDistribution):
    """PyTorch does not know its divergence."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "Unknown":
        self.distribution = StudentT(5.0, mean_actions, log_std.exp())  # type: ignore[assignment]
        return self


class Gaussian(ActorCriticPolicy):
    """With a distribution of another class."""

    kind: type[DiagGaussianDistribution] = Unknown

    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = self.kind(self.action_space.shape[0])
        super()._build(lr_schedule)


class Pointed(DiagGaussianDistribution):
    """A divergence that PyTorch cannot differentiate twice where the distributions are equal: it says zero."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "Pointed":
        self.distribution = Laplace(mean_actions, self.scale(mean_actions, log_std))  # type: ignore[assignment]
        return self

    def scale(self, mean_actions: th.Tensor, log_std: th.Tensor) -> th.Tensor:
        return th.ones_like(mean_actions)


class Pointed2(Pointed):
    """Of which it finds the curvature along the deviation alone."""

    def scale(self, mean_actions: th.Tensor, log_std: th.Tensor) -> th.Tensor:
        return log_std.exp().expand_as(mean_actions)


class Transformed(DiagGaussianDistribution):
    """Whose divergence PyTorch knows only where the transforms are the same."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "Transformed":
        base = Normal(th.zeros_like(mean_actions), th.ones_like(mean_actions))
        self.distribution = TransformedDistribution(base, [AffineTransform(mean_actions, log_std.exp())])  # type: ignore
        return self

    def entropy(self) -> None:
        return None

    def mode(self) -> th.Tensor:
        return self.distribution.sample()


class Foreign(th.autograd.Function):
    """A hyperbolic tangent by NumPy: its derivative has no graph, and is not marked as having none."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x)
        return th.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        tanh = np.tanh(ctx.saved_tensors[0].detach().numpy())
        return th.from_numpy(gradient.detach().numpy() * (1.0 - tanh**2))


class ForeignTanh(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return Foreign.apply(5.0 * x)


class ForeignOutputs(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Sequential(self.action_net, ForeignTanh())  # type: ignore[assignment]


class OneNet(OneFunction):
    """One layer for logits and value."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Linear(self.mlp_extractor.latent_dim_pi, self.action_space.n + 1)
        self.mlp_extractor.value_net = self.value_net = nn.Identity()  # type: ignore[assignment]
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1.0), **self.optimizer_kwargs)

    def both(self, obs: th.Tensor) -> tuple[th.Tensor, Any]:
        outputs = self.action_net(self.mlp_extractor.forward_actor(self.extract_features(obs)))  # type: ignore[arg-type]
        return outputs[:, :1], self.action_dist.proba_distribution(outputs[:, 1:])  # type: ignore[call-arg]


class OwnEvaluation(ActorCriticPolicy):
    """Its actions have a distribution that it keeps for itself, and one of another size that it leaves where SB3 has it."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        latent, of_value = self.mlp_extractor(self.extract_features(obs))
        mean = self.action_net(latent)
        self.action_dist.proba_distribution(mean[:, :1].expand(-1, 3), self.log_std[:1].expand(3))  # type: ignore[call-arg]
        distribution = Normal(mean, self.log_std.exp())
        return self.value_net(of_value), distribution.log_prob(actions).sum(1), distribution.entropy().sum(1)


def with_kind(distribution: type[DiagGaussianDistribution]) -> type[ActorCriticPolicy]:
    return type(f"{distribution.__name__}Policy", (Gaussian,), {"kind": distribution})


WITHOUT: dict[str, tuple[Any, spaces.Space, dict[str, Any], str]] = {
    "layers": ("MlpPolicy", ACTIONS["discrete"], {"policy_kwargs": {"activation_fn": OnceTanh}}, "differentiated twice"),
    "divergence": (Gaussian, ACTIONS["box"], {}, "a KL divergence in `torch.distributions`, got StudentT"),
    "curvature of zero": (with_kind(Pointed), ACTIONS["box"], {}, "whose second derivative PyTorch finds"),
    "another curvature": (with_kind(Pointed2), ACTIONS["box"], {}, "whose second derivative PyTorch finds"),
    "divergence of equals": (with_kind(Transformed), ACTIONS["box"], {}, "KL"),
    "lost derivative": (ForeignOutputs, ACTIONS["box"], {}, "."),
    "one net": (OneNet, ACTIONS["discrete"], {}, "a critic with parameters of its own"),
    "own evaluation": (OwnEvaluation, ACTIONS["box"], {}, "leaves the distribution of its `evaluate_actions`"),
}


def weights(model: REINFORCE) -> th.Tensor:
    return flat(list(model.policy.parameters()))


def make(policy: Any, actions: spaces.Space, n_envs: int = 1, **kwargs: Any) -> REINFORCE:
    return REINFORCE(policy, episodes(actions, n_envs=n_envs), **{"n_steps": 32, "seed": 0, "device": "cpu", **kwargs})


@pytest.mark.parametrize("name", ACTIONS)
@no_warnings
def test_a_policy_takes_natural_steps_by_default(name: str) -> None:
    by_default = make("MlpPolicy", ACTIONS[name]).learn(100)
    natural = make("MlpPolicy", ACTIONS[name], natural_gradient=True).learn(100)
    assert by_default.natural_gradient is None
    assert th.equal(weights(by_default), weights(natural))
    assert by_default.logger.name_to_value["train/kl_divergence"] == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_policy_without_natural_steps_takes_those_of_its_optimizer(name: str) -> None:
    """As it does where they are asked for, to the last bit; there without a warning."""
    policy, actions, kwargs, reason = WITHOUT[name]
    by_default = make(policy, actions, **kwargs)
    with pytest.warns(UserWarning, match=f"no natural steps, and takes those of its optimizer.*{reason}") as caught:
        by_default.learn(100).learn(100, reset_num_timesteps=False)
    assert sum("of its optimizer" in str(warning.message) for warning in caught) == 1
    assert "train/kl_divergence" not in by_default.logger.name_to_value
    plain = make(policy, actions, natural_gradient=False, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.learn(100).learn(100, reset_num_timesteps=False)
    assert th.equal(weights(by_default), weights(plain))
    untrained = make(policy, actions, **kwargs)
    for (name, a), b in zip(plain.policy.named_parameters(), untrained.policy.parameters(), strict=True):
        assert "net" not in name or not th.equal(a, b), name
    with pytest.raises((ValueError, RuntimeError), match=reason):
        make(policy, actions, natural_gradient=True, **kwargs).learn(32)


def test_layers_that_pytorch_compiles_are_trained() -> None:
    """Their derivatives cannot be differentiated, which PyTorch says in words of its own."""
    model = make("MlpPolicy", ACTIONS["discrete"])
    model.policy.action_net = th.compile(model.policy.action_net, backend="aot_eager")  # type: ignore[assignment]
    before = weights(model)
    with pytest.warns(UserWarning, match="has no natural steps"):
        model.learn(32)
    assert not th.equal(weights(model), before)


@pytest.mark.parametrize(
    ("function", "refusal"), [("natural_step.natural_step", ""), ("automatic_step.check_second_derivative", None)]
)
def test_a_lack_of_memory_says_nothing_of_the_policy(
    function: str, refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise th.cuda.OutOfMemoryError("on purpose")

    monkeypatch.setattr(f"sb3_reinforce.update.{function}", fail)
    model = make("MlpPolicy", ACTIONS["discrete"])
    before = weights(model)
    with pytest.raises(th.cuda.OutOfMemoryError, match="on purpose"):
        model.learn(32)
    assert th.equal(weights(model), before) and model._natural_refusal == refusal


def test_gradients_that_are_clipped_on_their_way_make_no_fisher_information() -> None:
    model = make("MlpPolicy", ACTIONS["discrete"])
    for parameter in model.policy.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1.0, 1.0))
    with pytest.warns(UserWarning, match="has no natural steps.*second derivative"):
        model.learn(32)


@pytest.mark.parametrize("bias", [0.0, 5.0, 12.0])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("name", ACTIONS)
@no_warnings
def test_a_policy_that_is_nearly_certain_has_natural_steps(name: str, activation: type[nn.Module], bias: float) -> None:
    for seed in range(3):
        model = make("MlpPolicy", ACTIONS[name], seed=seed, policy_kwargs={"activation_fn": activation})
        with th.no_grad():
            model.policy.get_parameter("action_net.bias")[0] += bias
        model.policy_step.begin()


@pytest.mark.filterwarnings("ignore:The policy has no natural steps")
def test_the_value_loss_moves_shared_layers_where_the_optimizer_moves_them() -> None:
    image = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    of_actor = []
    for vf_coef in (0.0, 0.5):
        model = REINFORCE("CnnPolicy", episodes(ACTIONS["discrete"], image), n_steps=32, vf_coef=vf_coef, seed=0, device="cpu")
        model.policy.features_extractor.cnn[1] = OnceTanh()
        of_actor.append(flat(actor(model.learn(100).policy)))  # a new critic says nothing in the first update
    assert not th.equal(*of_actor)


def test_another_policy_may_have_what_the_former_one_had_not() -> None:
    policy, actions, kwargs, _ = WITHOUT["layers"]
    model = make(policy, actions, **kwargs)
    with pytest.warns(UserWarning, match="of its optimizer"):
        model.learn(32)
    model.policy = make("MlpPolicy", actions).policy
    assert "train/kl_divergence" in model.learn(32).logger.name_to_value


class Moody(nn.Module):
    """Layers that cannot be tried before the first update, and have no second derivative in it."""

    trained = False

    def forward(self, x: th.Tensor) -> th.Tensor:
        return Once.apply(x) if self.trained else x.tanh()


def test_a_policy_that_turns_out_to_have_no_natural_step_learns_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("MlpPolicy", ACTIONS["discrete"], policy_kwargs={"activation_fn": Moody})
    begin = model.policy_step.begin

    def begin_and_change() -> None:
        begin()
        Moody.trained = True

    model.policy_step.begin = begin_and_change  # type: ignore[method-assign]
    before = flat(actor(model.policy))
    monkeypatch.setattr(Moody, "trained", False)
    with pytest.warns(UserWarning, match="of its optimizer.*differentiated twice") as caught:
        model.learn(100)
    assert sum("of its optimizer" in str(warning.message) for warning in caught) == 1
    assert not th.equal(flat(actor(model.policy)), before)


@no_warnings
def test_a_task_that_is_solved_is_not_warned_of() -> None:
    """No batch of it has a direction."""
    env = vec(Scripted((7,), VECTOR, reward=lambda _: 1e3 / 7))
    model = REINFORCE("MlpPolicy", env, n_steps=32, device="cpu", baseline=None, reward_to_go=False, gamma=0.93)
    before = flat(actor(model.policy))
    model.learn(100)
    assert th.equal(flat(actor(model.policy)), before)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_entropy_has_a_bonus_where_it_has_a_bound(name: str) -> None:
    by_default = make("MlpPolicy", ACTIONS[name]).learn(100)
    given = make("MlpPolicy", ACTIONS[name], ent_coef=0.0 if name == "box" else 0.03).learn(100)
    assert by_default.ent_coef is None
    assert th.equal(weights(by_default), weights(given))
    if name != "box":
        without = make("MlpPolicy", ACTIONS[name], ent_coef=0.0).learn(100)
        assert not th.equal(weights(by_default), weights(without))


def test_what_is_decided_by_the_policy_is_saved_undecided(tmp_path: Path) -> None:
    model = make("MlpPolicy", ACTIONS["discrete"]).learn(32)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=episodes(ACTIONS["discrete"]))
    assert loaded.natural_gradient is None and loaded.ent_coef is None and loaded.n_steps == 32
    assert "train/kl_divergence" in loaded.learn(32).logger.name_to_value


@pytest.mark.parametrize("bad", [1, 0, "yes", 0.5])
def test_what_is_neither_yes_nor_no_nor_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"`natural_gradient` must be True, False or None, got {bad!r}\."):
        make("MlpPolicy", ACTIONS["discrete"], natural_gradient=bad)


class Complex(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 8)
        generator = th.Generator().manual_seed(0)
        self.weight = nn.Parameter(th.randn(3, 8, dtype=th.complex64, generator=generator))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return (observations.to(th.complex64) @ self.weight).abs()


@pytest.mark.filterwarnings("ignore:The policy has no natural steps")
@pytest.mark.parametrize("natural_gradient", [None, False])
def test_complex_parameters_are_trained(natural_gradient: bool | None) -> None:
    kwargs = {"features_extractor_class": Complex}
    model = make("MlpPolicy", ACTIONS["discrete"], natural_gradient=natural_gradient, policy_kwargs=kwargs)
    before = model.policy.get_parameter("features_extractor.weight").detach().clone()
    model.learn(100)
    assert not th.equal(model.policy.get_parameter("features_extractor.weight"), before)


@pytest.mark.parametrize(
    ("name", "scale", "bias", "seed"),
    [
        ("discrete", 1.0, 12.0, 3),
        ("discrete", 10.0, 12.0, 1),
        ("discrete", 10.0, 16.0, 0),  # with a curvature below zero, by rounding
        ("discrete", 30.0, 16.0, 5),
        ("multi_discrete", 100.0, 30.0, 1),
    ],
)
def test_a_policy_that_has_become_nearly_certain_keeps_its_natural_steps(
    name: str, scale: float, bias: float, seed: int
) -> None:
    th.manual_seed(seed)
    policy = ActorCriticPolicy(spaces.Box(-np.inf, np.inf, (5,), np.float32), ACTIONS[name], lambda _: 1e-3)
    with th.no_grad():
        for weights in policy.mlp_extractor.policy_net.parameters():
            weights.mul_(min(scale, 5.0))
        policy.action_net.weight.mul_(10.0 * scale)
        policy.action_net.bias[0] += bias
    check_second_derivative(make_actor_critic(policy))


@pytest.mark.parametrize("seed", range(5))
def test_gsde_which_leaves_out_a_derivative_on_purpose_has_natural_steps(seed: int) -> None:
    th.manual_seed(seed)
    policy = ActorCriticPolicy(VECTOR, ACTIONS["box"], lambda _: 1e-3, use_sde=True)
    check_second_derivative(make_actor_critic(policy))


def test_a_policy_with_kinks_that_has_become_nearly_certain_keeps_natural_steps() -> None:
    th.manual_seed(28)
    box, actions = spaces.Box(-np.inf, np.inf, (5,), np.float32), spaces.MultiDiscrete([3, 4])
    policy = ActorCriticPolicy(box, actions, lambda _: 1e-3, activation_fn=nn.ReLU)
    with th.no_grad():
        for weights in policy.mlp_extractor.policy_net.parameters():
            weights.mul_(5.0)
        policy.action_net.weight.mul_(300.0)
        policy.action_net.bias[0] += 53.7
    check_second_derivative(make_actor_critic(policy))


@pytest.mark.parametrize("seed", [2, 10, 13, 40, 50, 65])
def test_large_observations_do_not_cost_a_policy_with_kinks_its_natural_steps(seed: int) -> None:
    """Where it is nearly certain, rounding can even make the curvature negative."""
    th.manual_seed(seed)
    box = spaces.Box(-1e3, 1e3, (4,), np.float32)
    policy = ActorCriticPolicy(box, spaces.Discrete(2), lambda _: 1e-3, net_arch=[8], activation_fn=nn.ReLU)
    with th.no_grad():
        policy.action_net.weight.mul_(10.0)
        policy.action_net.bias[0] += seed % 30
    check_second_derivative(make_actor_critic(policy))
