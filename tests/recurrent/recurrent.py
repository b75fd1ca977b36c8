"""What the tests of policies with memory share: environments, models, and an LSTM that is written down a second time."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE, MaskableRecurrentREINFORCE, RecurrentREINFORCE
from sb3_reinforce.actor_critic.state import forget_graphs
from tests.helpers.environments import Scripted, vec

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
#: A small LSTM
SMALL: dict[str, Any] = {"lstm_hidden_size": 5, "net_arch": [4]}
#: The three kinds of critics, features of their own, and several layers
NETWORKS: dict[str, dict[str, Any]] = {
    "two LSTMs": {},
    "shared LSTM": {"shared_lstm": True, "enable_critic_lstm": False},
    "critic without LSTM": {"enable_critic_lstm": False},
    "two layers": {"n_lstm_layers": 2},
    "own features": {"share_features_extractor": False},
    "without biases": {"lstm_kwargs": {"bias": False}},
}


class Masked(Scripted):
    """Forbids at each timestep another action of each dimension, or none."""

    def action_masks(self) -> np.ndarray:
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            sizes = [int(space.n)]
        else:
            sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [2] * space.n  # type: ignore[attr-defined]
        return np.concatenate(
            [np.arange(size) != (self.timestep + self.n_resets + i) % (size + 1) for i, size in enumerate(sizes)]
        )


def uneven(
    observations: spaces.Space = VECTOR,
    actions: spaces.Space = ACTIONS["discrete"],
    n_envs: int = 3,
    kind: type[Scripted] = Scripted,
    truncated: bool = False,
) -> DummyVecEnv:
    """Environments whose episodes have other lengths than those of the others."""
    return vec(
        *[
            kind((5 + i, 1, 9 - 2 * i, 2), observations, actions, truncated, reward=lambda t: math.cos(3.0 * t))
            for i in range(n_envs)
        ]
    )


def make(
    env: Any,
    policy: Any = "MlpLstmPolicy",
    kind: type[RecurrentREINFORCE] = RecurrentREINFORCE,
    network: dict[str, Any] | None = None,
    **kwargs: Any,
) -> RecurrentREINFORCE:
    """A small model whose outputs really depend on its memory."""
    arguments: dict[str, Any] = {"n_steps": 12, "seed": 0, "device": "cpu", "policy_kwargs": {**SMALL, **(network or {})}}
    model = kind(policy, env, **{**arguments, **kwargs})
    stir(model.policy)
    return model


def make_maskable(env: Any, policy: Any = "MlpLstmPolicy", **kwargs: Any) -> MaskableRecurrentREINFORCE:
    model = make(env, policy, MaskableRecurrentREINFORCE, **kwargs)
    assert isinstance(model, MaskableRecurrentREINFORCE)
    return model


def stir(policy: nn.Module, scale: float = 0.5, seed: int = 0) -> None:
    """Weights so large that what is left of the past is seen in the outputs."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * th.randn(parameter.shape, generator=generator))


def flat(tensors: Sequence[th.Tensor]) -> th.Tensor:
    return th.cat([tensor.detach().double().flatten() for tensor in tensors])


def weights(model: REINFORCE) -> th.Tensor:
    return flat(list(model.policy.parameters()))


class Reads(BaseCallback):
    """Keeps what callbacks of RecurrentPPO read while it acts, and where each number belongs in the rollout."""

    def __init__(self, every: int = 1):
        super().__init__()
        self.every = every
        self.steps: dict[tuple[int, int], tuple[float, float]] = {}
        self.last_values: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        self.steps = {}
        self.n_steps = 0

    def _on_step(self) -> bool:
        if self.n_steps % self.every == 0:
            values, log_probs = self.locals["values"], self.locals["log_probs"]
            for env_id, (value, log_prob) in enumerate(zip(values.flatten().tolist(), log_probs.tolist(), strict=True)):
                self.steps[env_id, self.n_steps] = value, log_prob
        self.n_steps += 1
        return True

    def _on_rollout_end(self) -> None:
        self.last_values.append(self.locals["values"].flatten().numpy().copy())


def assert_acted_as_updated(model: REINFORCE, reads: Reads) -> None:
    """What the callback read of the recorded timesteps is what the update computes for them."""
    batch = model.batch()
    with th.no_grad():
        evaluated = [model.actor_critic.evaluate(piece)[:2] for piece in model.actor_critic.pieces(batch)]
        log_probs, values = model.actor_critic.log_probs(batch), model.actor_critic.values(batch)
    assert batch.episodes is not None
    env_ids = batch.episodes.env_ids[batch.episodes.episode_ids]
    place = np.concatenate([np.arange(n) for n in np.bincount(env_ids)])
    read = np.array([reads.steps[env_id, i] for env_id, i in zip(env_ids, place, strict=True) if (env_id, i) in reads.steps])
    rows = [row for row, key in enumerate(zip(env_ids, place, strict=True)) if key in reads.steps]
    assert len(rows) > 5
    for found in (log_probs, th.cat([each[1] for each in evaluated])):
        np.testing.assert_allclose(found.numpy()[rows], read[:, 1], atol=1e-5)
    for found in (values, th.cat([each[0] for each in evaluated])):
        np.testing.assert_allclose(found.numpy()[rows], read[:, 0], atol=1e-5)


def lstm_outputs(lstm: nn.LSTM, inputs: th.Tensor, forget_after: int | None = None) -> th.Tensor:
    """
    The outputs of one sequence in float64, by the equations of the LSTM (Hochreiter and Schmidhuber, 1997).

    :param inputs: Shape ``(n_timesteps, n_features)``
    :param forget_after: The gradient does not go back beyond each of this many timesteps
    """
    x = inputs.double()
    for layer in lstm.all_weights:
        w_input, w_state, *biases = [weight.double() for weight in layer]
        hidden = cell = th.zeros(lstm.hidden_size, dtype=th.float64)
        outputs = []
        for t, row in enumerate(x):
            if forget_after is not None and t % forget_after == 0:
                hidden, cell = hidden.detach(), cell.detach()
            i, f, g, o = (w_input @ row + w_state @ hidden + sum(biases)).chunk(4)
            cell = th.sigmoid(f) * cell + th.sigmoid(i) * th.tanh(g)
            hidden = th.sigmoid(o) * th.tanh(cell)
            outputs.append(hidden)
        x = th.stack(outputs)
    return x


def in_float64(policy: Any) -> Any:
    forget_graphs(policy)
    return copy.deepcopy(policy).double()


def by_hand(
    policy: Any, observations: th.Tensor, lengths: Sequence[int], forget_after: int | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """The outputs of ``action_net`` and the values of a float64 policy on flat observations, episode by episode."""
    outputs, values = [], []
    for episode in observations.double().split(list(lengths)):
        latent = lstm_outputs(policy.lstm_actor, episode, forget_after)
        outputs.append(policy.action_net(policy.mlp_extractor.policy_net(latent)))
        if policy.lstm_critic is not None:
            of_critic = lstm_outputs(policy.lstm_critic, episode, forget_after)
        else:
            of_critic = latent.detach() if policy.shared_lstm else policy.critic(episode)
        values.append(policy.value_net(policy.mlp_extractor.value_net(of_critic)).flatten())
    return th.cat(outputs), th.cat(values)
