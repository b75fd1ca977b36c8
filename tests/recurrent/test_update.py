"""The update of a policy with memory, against gradients that are written down a second time."""

from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn

from sb3_reinforce import REINFORCE, GradientMonitor, MaskableRecurrentREINFORCE, RecurrentREINFORCE
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.distributed import ALONE
from sb3_reinforce.recurrent import actor_critic as recurrent_actor_critic
from sb3_reinforce.recurrent.actor_critic import RecurrentActorCritic
from sb3_reinforce.recurrent.sequences import Blocks, runs, segments
from sb3_reinforce.update.critic import _minibatch_gradient
from sb3_reinforce.update.gradients import estimate_gradients
from tests.helpers.environments import Scripted, vec
from tests.helpers.plain import PLAIN
from tests.recurrent.recurrent import (
    ACTIONS,
    NETWORKS,
    VECTOR,
    Masked,
    by_hand,
    flat,
    in_float64,
    lstm_outputs,
    make,
    make_maskable,
    uneven,
    weights,
)

#: Timesteps through which the gradient goes back
LIMITS = [None, 1, 3, 100]


class OwnMethod(RecurrentActorCriticPolicy):
    def evaluate_actions(self, *args: Any) -> Any:
        return super().evaluate_actions(*args)


def played(model: RecurrentREINFORCE, n_steps: int = 12) -> RecurrentREINFORCE:
    """A rollout without an update."""
    model.n_steps = n_steps
    _, callback = model._setup_learn(1)
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps)
    return model


def exact_gradients(model: Any, weights: th.Tensor, limit: int | None, ent_coef: float) -> tuple[th.Tensor, th.Tensor]:
    """Of the actor's loss and of the value loss, with respect to all parameters, in float64."""
    policy, batch = in_float64(model.policy), model.batch()
    lengths = batch.episodes.lengths.tolist()
    logits, values = by_hand(policy, batch.observations, lengths, limit)
    masks = batch.extras.get("action_masks")
    if masks is not None:
        logits = logits.masked_fill(~masks.bool(), -1e9)
    log_probs = th.log_softmax(logits, dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(1)
    taken = log_probs[th.arange(len(batch)), batch.actions]
    loss = -(weights.double() * taken).sum() - ent_coef * entropy.mean()
    value_loss = 0.5 * ((values - batch.returns.double()) ** 2).mean()
    found = [
        th.autograd.grad(each, list(policy.parameters()), allow_unused=True, materialize_grads=True, retain_graph=True)
        for each in (loss, value_loss)
    ]
    return flat(found[0]), flat(found[1])


def found_gradients(model: Any, weights: th.Tensor, ent_coef: float) -> tuple[th.Tensor, th.Tensor, Any]:
    everything = list(model.policy.parameters())
    batch = model.batch()
    parameters = Parameters(everything, everything, everything)
    gradients = estimate_gradients(model.actor_critic, batch, weights, parameters, ent_coef, 0.5, len(batch))
    return flat(gradients.actor), flat(gradients.critic), gradients


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("limit", LIMITS)
def test_the_gradient_goes_back_through_the_episode_or_as_far_as_it_may(network: str, limit: int | None) -> None:
    model = played(make(uneven(), network=NETWORKS[network], max_sequence_length=limit, **PLAIN))
    weights = th.randn(len(model.batch()), generator=th.Generator().manual_seed(1)) / 10
    actor, critic = exact_gradients(model, weights, limit, 0.1)
    found = found_gradients(model, weights, 0.1)
    th.testing.assert_close(found[0], actor, rtol=1e-4, atol=2e-6)
    th.testing.assert_close(found[1], critic, rtol=1e-4, atol=2e-6)
    if limit in (1, 3):
        assert not th.allclose(actor, exact_gradients(model, weights, None, 0.1)[0], rtol=1e-2)
    policy_of_users_own = make(uneven(), OwnMethod, network=NETWORKS[network], max_sequence_length=limit, **PLAIN)
    assert type(policy_of_users_own.actor_critic) is RecurrentActorCritic
    policy_of_users_own.policy.load_state_dict(model.policy.state_dict())
    policy_of_users_own.rollout_buffer = model.rollout_buffer
    padded = found_gradients(policy_of_users_own, weights, 0.1)
    th.testing.assert_close(padded[0], actor, rtol=1e-4, atol=2e-6)
    th.testing.assert_close(padded[1], critic, rtol=1e-4, atol=2e-6)
    for name in ("policy_loss", "entropy_loss", "value_loss"):
        assert getattr(padded[2], name) == pytest.approx(getattr(found[2], name), rel=1e-5)
    th.testing.assert_close(padded[2].log_probs, found[2].log_probs)
    th.testing.assert_close(padded[2].values, found[2].values)


@pytest.mark.parametrize("limit", [None, 3])
def test_the_gradient_with_masks_is_exact(limit: int | None) -> None:
    model = played(make_maskable(uneven(kind=Masked), max_sequence_length=limit, **PLAIN))
    weights = th.randn(len(model.batch()), generator=th.Generator().manual_seed(1)) / 10
    actor, critic = exact_gradients(model, weights, limit, 0.1)
    found = found_gradients(model, weights, 0.1)
    th.testing.assert_close(found[0], actor, rtol=1e-4, atol=2e-6)
    th.testing.assert_close(found[1], critic, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", OwnMethod])
@pytest.mark.parametrize("limit", [None, 2])
def test_several_pieces_are_one(policy: Any, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = played(make(uneven(truncated=True), policy, max_sequence_length=limit, **PLAIN))
    weights = th.randn(len(model.batch()), generator=th.Generator().manual_seed(1))
    whole, buffer = found_gradients(model, weights, 0.1), model.rollout_buffer
    last = th.randn(3, 3)
    last_values = model.actor_critic.last_values(model.batch(), [0, 2, 5], last)
    for timesteps in (1, 4, 10):
        monkeypatch.setattr(recurrent_actor_critic, "MAX_NUMBERS", 16 * 5 * timesteps)
        pieces = list(model.actor_critic.pieces(model.batch()))
        assert len(pieces) > 2
        found = found_gradients(model, weights, 0.1)
        th.testing.assert_close(found[0], whole[0], rtol=1e-4, atol=1e-5)
        th.testing.assert_close(found[1], whole[1], rtol=1e-4, atol=1e-5)
        th.testing.assert_close(found[2].log_probs, whole[2].log_probs)
        th.testing.assert_close(model.actor_critic.last_values(model.batch(), [0, 2, 5], last), last_values)
        np.testing.assert_allclose(model.actor_critic.values(model.batch()), buffer.values, atol=1e-5)


def test_the_losses_are_means_over_the_timesteps_alone() -> None:
    """Very uneven episodes, whose padding would weigh far more than they do."""
    env = vec(Scripted((1, 1, 1, 1, 1, 1, 1, 1, 50), VECTOR), Scripted((2, 3), VECTOR))
    for policy in ("MlpLstmPolicy", OwnMethod):
        model = played(make(env, policy, **PLAIN), 9)
        ones = th.ones(len(model.batch())) / len(model.batch())
        _, _, gradients = found_gradients(model, ones, 0.0)
        double = in_float64(model.policy)
        logits, values = by_hand(double, model.batch().observations, model.batch().episodes.lengths.tolist())  # type: ignore[union-attr]
        log_probs = th.log_softmax(logits, 1)
        taken = log_probs[th.arange(len(ones)), model.batch().actions]
        assert gradients.policy_loss == pytest.approx(-taken.mean().item(), rel=1e-5)
        assert gradients.entropy_loss == pytest.approx((log_probs.exp() * log_probs).sum(1).mean().item(), rel=1e-5)
        assert gradients.value_loss == pytest.approx(((values - model.batch().returns) ** 2).mean().item(), rel=1e-5)


def test_padded_pieces_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long episode among many short ones, whose padding would be as long."""
    monkeypatch.setattr(recurrent_actor_critic, "MAX_NUMBERS", 16 * 5 * 60)
    model = played(make(vec(Scripted((1,) * 40 + (50,) + (1,) * 60, VECTOR)), OwnMethod, **PLAIN), 150)
    sizes: list[int] = []
    model.policy.value_net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    model.actor_critic.values(model.batch())
    assert max(sizes) <= 60 and sum(sizes) < 400 and len(sizes) < 10


# How sequences are arranged


def test_runs_divide_the_sequences_into_bounded_parts() -> None:
    rng = np.random.default_rng(0)
    for padded in (False, True):
        for _ in range(200):
            lengths = rng.integers(1, 12, rng.integers(1, 9))
            most = int(rng.integers(1, 30))
            parts = list(runs(lengths, most, padded))
            assert np.concatenate([np.arange(len(lengths))[own] for own, _ in parts]).tolist() == list(range(len(lengths)))
            rows = [np.arange(lengths.sum())[of_rows] for _, of_rows in parts]
            assert np.concatenate(rows).tolist() == list(range(lengths.sum()))
            for (own, _), found in zip(parts, rows, strict=True):
                n = len(lengths[own])
                assert len(found) == lengths[own].sum()
                assert n == 1 or (lengths[own].max() * n if padded else len(found)) <= most
    assert list(runs(np.zeros(0, int), 5)) == []


def test_segments_are_as_long_as_they_may_be() -> None:
    assert segments(np.array([7, 3, 1, 6]), 3).tolist() == [3, 3, 1, 3, 1, 3, 3]
    assert segments(np.array([7, 3]), None).tolist() == [7, 3]
    assert segments(np.array([2, 2]), 1).tolist() == [1, 1, 1, 1]


def test_blocks_give_the_outputs_in_the_order_of_the_inputs() -> None:
    rng = np.random.default_rng(0)
    lstm = nn.LSTM(2, 3, num_layers=2)
    for n_sequences in (1, 2, 7, 20):
        lengths = rng.integers(1, 30, n_sequences)
        inputs = th.as_tensor(rng.normal(size=(int(lengths.sum()), 2)).astype(np.float32))
        hidden, cell = (th.as_tensor(rng.normal(size=(2, n_sequences, 3)).astype(np.float32)) for _ in range(2))
        blocks = Blocks(lengths, th.device("cpu"))
        with th.no_grad():
            found, _ = blocks.run(lstm, inputs, (hidden, cell))
            expected = [
                lstm(part[:, None], (hidden[:, [i]], cell[:, [i]]))[0][:, 0]
                for i, part in enumerate(inputs.split(lengths.tolist()))
            ]
        th.testing.assert_close(found, th.cat(expected))


# Truncated backpropagation


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", OwnMethod])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_bound_of_the_sequences_changes_no_output(policy: Any, network: str) -> None:
    model = played(make(uneven(truncated=True), policy, network=NETWORKS[network], **PLAIN))
    batch, last = model.batch(), th.randn(2, 3)

    def outputs() -> list[th.Tensor]:
        of = model.actor_critic
        return [of.log_probs(batch), of.values(batch), of.last_values(batch, [1, 3], last)]

    expected = outputs()
    for limit in (1, 2, 4, 7, 1000):
        model.max_sequence_length = limit
        for found, whole in zip(outputs(), expected, strict=True):
            th.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


class Live:
    """The largest number of bytes that graphs hold for the backward pass."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> "Live":
        live = self

        class Kept:
            def __init__(self, tensor: th.Tensor):
                # An output of the graph itself would hold the graph
                self.tensor, self.size = tensor.detach(), tensor.numel() * tensor.element_size()
                live.now += self.size
                live.most = max(live.most, live.now)

            def __del__(self) -> None:
                live.now -= self.size

        self._hooks = th.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self._hooks.__exit__(*args)


@pytest.mark.parametrize("natural", [False, True])
def test_an_episode_of_ten_thousand_steps_takes_no_more_memory_than_a_short_one(
    natural: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent_actor_critic, "MAX_NUMBERS", 16 * 5 * 400)
    most = {}
    for length in (1_000, 10_000):
        env = vec(Scripted((length,), VECTOR, reward=lambda t: float(t % 7)))
        model = make(env, max_sequence_length=100, n_critic_updates=1, n_steps=1, horizon=20_000)
        model.natural_gradient = natural
        model.cg_max_steps = 2
        played(model, 1)
        assert model.batch().episodes.lengths.tolist() == [length]  # type: ignore[union-attr]
        with Live() as live:
            model.train()
        most[length] = live.most
    assert most[10_000] < 1.2 * most[1_000]


# The critic's passes


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", OwnMethod])
@pytest.mark.parametrize("limit", [None, 3])
def test_a_pass_of_one_minibatch_has_the_gradient_of_the_whole_batch(network: str, policy: Any, limit: int | None) -> None:
    model = played(make(uneven(), policy, network=NETWORKS[network], max_sequence_length=limit, **PLAIN))
    batch, of = model.batch(), model.actor_critic
    parameters = of.trainable(batch, ALONE, True, False).critic
    assert parameters
    _, critic = exact_gradients(model, th.zeros(len(batch)), limit, 0.0)
    sizes = [p.numel() for p in model.policy.parameters()]
    expected = dict(zip(model.policy.parameters(), critic.split(sizes), strict=True))
    regression = of.regression(batch)
    ((rows, n_total),) = of.minibatches(batch, len(batch), ALONE)
    assert n_total == len(batch)
    loss, gradients = _minibatch_gradient(regression, rows, n_total, parameters)
    assert float(loss) == pytest.approx(found_gradients(model, th.zeros(len(batch)), 0.0)[2].value_loss, rel=1e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        th.testing.assert_close(gradient.double().flatten(), 2.0 * expected[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", OwnMethod])
@pytest.mark.parametrize("batch_size", [1, 10, 30, 1000])
def test_each_pass_takes_each_episode_once_and_weighs_its_timesteps_alike(policy: Any, batch_size: int) -> None:
    model = played(make(uneven(), policy, **PLAIN))
    batch, of = model.batch(), model.actor_critic
    assert batch.episodes is not None
    orders = []
    for _ in range(3):
        minibatches = list(of.minibatches(batch, batch_size, ALONE))
        order = np.concatenate([rows for rows, _ in minibatches])
        assert sorted(order.tolist()) == list(range(len(batch.episodes)))
        for rows, n_total in minibatches:
            assert n_total == batch.episodes.lengths[rows].sum() > 0
            pieces = list(of.regression(batch).values_and_returns(th.as_tensor(rows)))
            returns = th.cat([part for _, part in pieces])
            starts = batch.episodes.starts
            expected = [batch.returns[starts[i] : starts[i] + batch.episodes.lengths[i]] for i in rows]
            th.testing.assert_close(returns, th.cat(expected))
            values = th.cat([part for part, _ in pieces]).detach()
            kept = th.as_tensor(model.rollout_buffer.values)
            th.testing.assert_close(
                values, th.cat([kept[starts[i] : starts[i] + batch.episodes.lengths[i]] for i in rows]), rtol=1e-4, atol=1e-5
            )
        orders.append(order.tolist())
        assert len(minibatches) == min(-(-len(batch) // batch_size), len(batch.episodes))
    assert batch_size == 1000 or len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("network", NETWORKS)
def test_the_passes_move_the_critic_and_nothing_else(network: str) -> None:
    model = played(make(uneven(), network=NETWORKS[network], vf_coef=0.0, n_critic_updates=3, **PLAIN))
    model.baseline, model.learning_rate = "value", 0.01
    frozen = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    batch = model.batch()
    actor, value = model.actor_critic.split()
    model.rollout_buffer.advantages = np.zeros_like(model.rollout_buffer.advantages)
    model.train()
    for name, parameter in model.policy.named_parameters():
        moved = not th.equal(parameter.detach(), frozen[name])
        assert moved == (parameter in value and parameter not in actor), name
    before = ((th.as_tensor(model.rollout_buffer.values) - batch.returns) ** 2).mean()
    assert ((model.actor_critic.values(batch) - batch.returns) ** 2).mean() < before


def test_a_frozen_memory_of_the_critic_is_still_run_through() -> None:
    """As wide as the observations, so that these would fit in the place of its outputs."""
    arguments = {**PLAIN, "batch_size": 10_000, "learning_rate": 0.01, "vf_coef": 0.0, "n_critic_updates": 20}
    model: Any = played(make(uneven(), network={"lstm_hidden_size": 3}, **arguments))
    for parameter in model.policy.lstm_critic.parameters():
        parameter.requires_grad_(False)
    batch, policy = model.batch(), in_float64(model.policy)
    latents = th.cat(
        [lstm_outputs(policy.lstm_critic, part) for part in batch.observations.split(batch.episodes.lengths.tolist())]
    )
    layers = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    optimizer = th.optim.Adam(layers, lr=0.01)

    def values() -> th.Tensor:
        return policy.value_net(policy.mlp_extractor.value_net(latents)).flatten()

    for _ in range(20):
        optimizer.zero_grad()
        ((values() - batch.returns) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(layers, 0.5)
        optimizer.step()
    model.train()
    th.testing.assert_close(model.actor_critic.values(batch).double(), values().detach(), rtol=1e-3, atol=1e-3)


def test_the_fisher_information_is_of_one_episode_out_of_so_many() -> None:
    model = played(make(uneven(), **PLAIN), 30)
    batch, of = model.batch(), model.actor_critic
    assert batch.episodes is not None
    some = of.sub_sample(batch, 3, ALONE)
    assert some.episodes is not None and len(some.episodes) == -(-len(batch.episodes) // 3)
    assert some.episodes.lengths.sum() == len(some)
    with th.no_grad():
        found = th.cat([of.act(piece)[0] for piece in of.pieces(some)])
    th.testing.assert_close(found, of.log_probs(batch)[some.rows], rtol=1e-5, atol=1e-5)
    assert len(of.sub_sample(batch, 10_000, ALONE).episodes) == 1  # type: ignore[arg-type]


# A memory that remembers nothing


class Passes(nn.LSTM):
    """Puts out what it gets."""

    def forward(self, inputs: th.Tensor, states: Any = None) -> Any:  # type: ignore[override]
        return inputs, states


class Forgetful(RecurrentActorCriticPolicy):
    """The recurrent policy that is SB3's policy without memory."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "lstm_hidden_size": 3})
        self.lstm_actor = Passes(3, 3)
        self.lstm_critic = Passes(3, 3)
        self.optimizer = self.optimizer_class(self.parameters(), lr=1e-3, **self.optimizer_kwargs)


class ForgetfulWithOwnMethod(Forgetful, OwnMethod):
    pass


UPDATES: dict[str, dict[str, Any]] = {
    "plain": {**PLAIN, "learning_rate": 0.1, "policy_kwargs": {"optimizer_class": th.optim.SGD}},
    "default": {"natural_gradient": False, "batch_size": 10_000},
    "natural": {"natural_gradient": True, "batch_size": 10_000},
    "episodes": {"average_over": "episodes", "baseline": "leave_one_out", "natural_gradient": False, "ent_coef": 0.1},
    "bootstrapped": {"gae_lambda": 0.9, "batch_size": 10_000, "natural_gradient": False, "target_kl": 0.1},
}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("policy", [Forgetful, ForgetfulWithOwnMethod])
def test_a_memory_that_remembers_nothing_gives_the_update_of_reinforce(update: str, policy: Any) -> None:
    if update == "natural" and policy is ForgetfulWithOwnMethod:
        pytest.skip("it has no natural step")
    found = []
    for kind, name in ((REINFORCE, "MlpPolicy"), (RecurrentREINFORCE, policy)):
        arguments = {"n_steps": 30, "seed": 0, "device": "cpu", **UPDATES[update]}
        arguments["policy_kwargs"] = {"net_arch": [4], **arguments.get("policy_kwargs", {})}
        model = kind(name, uneven(truncated=True), **arguments)  # type: ignore[arg-type]
        # So that both act in PyTorch
        model.policy.action_net.register_forward_hook(lambda *_: None)
        own = [p for key, p in model.policy.named_parameters() if "lstm" not in key]
        generator = th.Generator().manual_seed(1)
        with th.no_grad():
            for parameter in own:
                parameter.copy_(th.randn(parameter.shape, generator=generator) / 2)
        th.manual_seed(0)
        np.random.seed(0)
        model.learn(100)
        found.append((flat(own), model.rollout_buffer.actions, dict(model.logger.name_to_value)))
    (expected, actions, logged), (got, got_actions, got_logged) = found
    np.testing.assert_array_equal(actions, got_actions)
    # The products of the natural step are differences
    rtol = 2e-3 if update == "natural" else 1e-4
    th.testing.assert_close(got, expected, rtol=rtol, atol=rtol)
    for key in ("train/policy_loss", "train/entropy_loss", "train/value_loss", "train/explained_variance", "train/approx_kl"):
        if key in logged:
            assert got_logged[key] == pytest.approx(logged[key], rel=20 * rtol, abs=1e-5), key


# Dropout, the monitor, and the natural step as a whole

DROPOUT: dict[str, Any] = {"n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.5}}


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("limit", [None, 3])
def test_dropout_between_the_layers_is_trained_with_and_not_acted_with(natural: bool, limit: int | None) -> None:
    model = make(uneven(), network=DROPOUT, natural_gradient=natural, max_sequence_length=limit, n_steps=30)
    before = weights(model)
    model.learn(100)
    assert weights(model).isfinite().all() and not th.equal(before, weights(model))
    batch = model.batch()
    model.policy.set_training_mode(False)
    th.testing.assert_close(model.actor_critic.log_probs(batch), model.actor_critic.log_probs(batch), rtol=0, atol=0)
    model.policy.set_training_mode(True)
    assert not th.equal(model.actor_critic.log_probs(batch), model.actor_critic.log_probs(batch))


@pytest.mark.parametrize("kind", [RecurrentREINFORCE, MaskableRecurrentREINFORCE])
@pytest.mark.parametrize("limit", [None, 3])
def test_the_monitor_measures_the_gradient_of_the_update(kind: Any, limit: int | None) -> None:
    model = make(uneven(kind=Masked), kind=kind, ent_coef=0.0, natural_gradient=False, max_sequence_length=limit, n_steps=30)
    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True, max_groups=4)
    model.learn(60, callback=monitor)
    measured = monitor._records[-1]
    assert measured["gradient/norm"] == pytest.approx(model.logger.name_to_value["train/grad_norm"], rel=1e-4)
    assert measured["gradient/covariance_trace"] > 0.0 and "gradient/variance_ratio_none" in measured


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("factor", [1, 2])
def test_a_natural_step_goes_as_far_as_it_should(actions: str, factor: int) -> None:
    model = make(uneven(actions=ACTIONS[actions]), natural_gradient=True, target_kl=1e-4, n_steps=100)
    model.sub_sampling_factor = factor
    before = weights(model)
    model.learn(1)
    assert not th.equal(before, weights(model))
    assert model.logger.name_to_value["train/kl_divergence"] == pytest.approx(1e-4, rel=0.1)


def test_a_policy_with_methods_of_the_users_own_takes_the_step_of_the_optimizer() -> None:
    with pytest.raises(ValueError, match=r"natural_gradient=True.*sb3-contrib's own methods.*OwnMethod"):
        make(uneven(), OwnMethod, natural_gradient=True)
    model = make(uneven(), OwnMethod)
    before = weights(model)
    with pytest.warns(UserWarning, match="no natural steps"):
        model.learn(60)
    assert not th.equal(before, weights(model))
