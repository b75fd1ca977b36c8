"""The Fisher information by differences against the exact one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch as th
from gymnasium import spaces

from sb3_reinforce import MaskableRecurrentREINFORCE, RecurrentREINFORCE
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.distributed import ALONE, Alone, Group
from sb3_reinforce.recurrent import actor_critic as recurrent_actor_critic
from sb3_reinforce.update.fisher import Fisher, FisherOfDifferences, make_fisher
from tests.recurrent.recurrent import ACTIONS, NETWORKS, Masked, by_hand, flat, in_float64, make, uneven
from tests.recurrent.test_update import DROPOUT, played
from tests.update.natural import head_fisher


def actor_of(model: Any) -> list[th.nn.Parameter]:
    return model.actor_critic.actor_parameters()


def exact_fisher(model: Any, limit: int | None = None) -> th.Tensor:
    """By the Jacobian of the outputs, row by row."""
    policy, batch = in_float64(model.policy), model.batch()
    own = {id(p) for p in actor_of(model)}
    pairs = zip(model.policy.parameters(), policy.parameters(), strict=True)
    parameters = [double for p, double in pairs if id(p) in own]
    outputs, _ = by_hand(policy, batch.observations, batch.episodes.lengths.tolist(), limit)
    masks = batch.extras.get("action_masks")
    if masks is not None:
        outputs = outputs.masked_fill(~masks.bool(), -1e9)
    space = policy.action_space
    if isinstance(space, spaces.Box):
        outputs = th.cat([outputs, policy.log_std.expand_as(outputs)], dim=1)
    if isinstance(space, spaces.MultiBinary) and masks is not None:  # with masks, two logits for each
        space = spaces.MultiDiscrete([2] * space.n)
    every = th.eye(outputs.numel(), dtype=th.float64).view(-1, *outputs.shape)
    found = th.autograd.grad(outputs, parameters, every, is_grads_batched=True, allow_unused=True, materialize_grads=True)
    jacobian = th.cat([part.flatten(1) for part in found], dim=1).view(*outputs.shape, -1)
    rows = zip(jacobian, outputs.detach(), strict=True)
    return th.stack([J.T @ head_fisher(space, row) @ J for J, row in rows]).mean(0)


def vectors(n: int, size: int) -> list[th.Tensor]:
    generator = th.Generator().manual_seed(0)
    # Of the lengths that the solver really asks for
    return [scale * th.randn(size, generator=generator) for scale in (1.0, 1e6, 1e-4)][:n]


def assert_products(fisher: Fisher, exact: th.Tensor, rtol: float = 1e-3) -> None:
    for vector in vectors(3, len(exact)):
        found, expected = fisher(vector).double(), exact @ vector.double()
        assert th.linalg.vector_norm(found - expected) < rtol * th.linalg.vector_norm(expected)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "pieces"])
def test_the_products_are_those_of_the_exact_matrix(
    actions: str, masked: bool, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if masked and actions == "box":
        pytest.skip("there are no masks")
    kind = MaskableRecurrentREINFORCE if masked else RecurrentREINFORCE
    model = played(make(uneven(actions=ACTIONS[actions], kind=Masked, n_envs=2), kind=kind))
    if in_pieces:
        monkeypatch.setattr(recurrent_actor_critic, "MAX_NUMBERS", 16 * 5 * 6)
    assert (len(list(model.actor_critic.pieces(model.batch()))) > 2) == in_pieces
    before = flat(list(model.policy.parameters()))
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    assert type(fisher) is FisherOfDifferences and fisher.n_timesteps == len(model.batch())
    assert_products(fisher, exact_fisher(model))
    assert th.equal(before, flat(list(model.policy.parameters())))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("limit", [None, 2])
def test_every_network_has_the_exact_products(network: str, limit: int | None) -> None:
    model = played(make(uneven(n_envs=2), network=NETWORKS[network], max_sequence_length=limit))
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    assert_products(fisher, exact_fisher(model, limit))


@pytest.mark.parametrize("squash", [False, True])
def test_state_dependent_exploration_has_the_products_of_the_second_derivative(squash: bool) -> None:
    model = played(make(uneven(actions=ACTIONS["box"]), network={"squash_output": squash}, use_sde=True))
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    with th.backends.mkldnn.flags(enabled=False):  # its LSTM has no second derivative
        exact = Fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
        for vector in vectors(3, sum(p.numel() for p in fisher.parameters)):
            expected, found = exact(vector), fisher(vector)
            assert th.linalg.vector_norm(found - expected) < 1e-3 * th.linalg.vector_norm(expected)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_products_are_exact_however_far_the_outputs_move(scale: float) -> None:
    model = played(make(uneven()))
    with th.no_grad():
        model.policy.lstm_actor.weight_ih_l0.mul_(scale)
        model.policy.action_net.weight.mul_(1.0 if scale > 1.0 else 10.0)
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    assert_products(fisher, exact_fisher(model), 5e-3)


def test_a_direction_without_effect_has_no_product_and_spoils_no_other() -> None:
    model = played(make(uneven()))
    with th.no_grad():
        for layer in model.policy.mlp_extractor.policy_net[::2]:  # type: ignore[index]
            layer.bias[0] = -1e3
            layer.weight[0] = 0.0
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    nothing = [th.zeros_like(p) for p in fisher.parameters]
    index = next(i for i, p in enumerate(fisher.parameters) if p is model.policy.mlp_extractor.policy_net[0].weight)  # type: ignore[index, union-attr]
    nothing[index][0] = 1.0
    exact = exact_fisher(model)
    for _ in range(3):
        assert fisher(flat(nothing).float()).abs().max() < 1e-6
    assert_products(fisher, exact)
    assert not fisher(th.zeros(len(exact))).any()


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "pieces"])
def test_with_dropout_all_products_belong_to_one_symmetric_matrix(in_pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = played(make(uneven(), network=DROPOUT))
    if in_pieces:
        monkeypatch.setattr(recurrent_actor_critic, "MAX_NUMBERS", 16 * 2 * 5 * 10)
    model.policy.set_training_mode(True)
    state = th.get_rng_state()
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    u, v, _ = vectors(3, sum(p.numel() for p in fisher.parameters))
    v = v / 1e6
    of_u, of_v = fisher(u), fisher(v)
    assert abs(u @ of_v - v @ of_u) < 2e-3 * th.sqrt((u @ of_u) * (v @ of_v))
    th.testing.assert_close(fisher(u), of_u, rtol=1e-2, atol=1e-4)
    th.testing.assert_close(fisher(u + v), of_u + of_v, rtol=1e-2, atol=1e-4)
    th.set_rng_state(state)


def test_frozen_parameters_are_left_out() -> None:
    model = played(make(uneven()))
    model.policy.lstm_actor.weight_hh_l0.requires_grad_(False)
    fisher = make_fisher(model.actor_critic, model.batch(), actor_of(model), ALONE)
    assert all(p is not model.policy.lstm_actor.weight_hh_l0 for p in fisher.parameters)
    assert_products(fisher, exact_fisher(model))


def test_the_episodes_of_several_workers_add_up() -> None:
    model = played(make(uneven()))
    batch, of = model.batch(), model.actor_critic
    assert batch.episodes is not None
    cut = int(batch.episodes.starts[4])
    parts: list[Batch] = [batch.part(slice(0, cut)), batch.part(slice(cut, len(batch)))]
    parameters = actor_of(model)

    class WithAnother(Group):
        """The other worker's sums are computed here."""

        def add_up(self, tensors: Sequence[th.Tensor]) -> None:
            (total,) = tensors
            if total.numel() == 1:  # the divergence of the points, of which a part is enough
                total *= len(batch) / cut
            elif total.numel() == len(parameters) + 1:
                total += th.cat([th.tensor([float(len(batch) - cut)]), th.ones(len(parameters))])
            else:
                total += (len(batch) - cut) * other(self.vector / self.vector.norm())

    workers: Any = WithAnother(0, 2)
    other = FisherOfDifferences(of, parts[1], parameters, ALONE)
    fisher = FisherOfDifferences(of, parts[0], parameters, workers)
    exact = exact_fisher(model)
    assert fisher.n_timesteps == len(batch)
    for vector in vectors(2, len(exact)):
        workers.vector = vector
        expected = exact @ vector.double()
        assert th.linalg.vector_norm(fisher(vector) - expected) < 1e-3 * th.linalg.vector_norm(expected)


def test_a_worker_without_an_episode_of_the_sample_adds_nothing() -> None:
    model = played(make(uneven()))
    batch, parameters = model.batch(), actor_of(model)
    assert batch.episodes is not None
    sizes = []
    for rank in (0, 1):

        class Pair(Alone):
            """Two workers with the same batch."""

            def gather(self, item: Any) -> list[Any]:
                return [item, item]

            def add_up(self, tensors: Sequence[th.Tensor]) -> None:
                (total,) = tensors
                if total.numel() == len(parameters) + 1 and total[0] == 0:
                    total += th.tensor([9.0, *[1.0] * len(parameters)])

        workers = Pair()
        workers.rank = rank
        some = model.actor_critic.sub_sample(batch, 10_000, workers)
        sizes.append(len(some))
        if len(some) == 0:
            fisher = make_fisher(model.actor_critic, some, parameters, workers, keep=True)
            assert not fisher(th.ones(sum(p.numel() for p in parameters))).any()
    assert min(sizes) == 0 and max(sizes) in batch.episodes.lengths
