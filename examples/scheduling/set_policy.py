"""A policy that scores each choice with the same small network, so that it does not matter in which order they are listed."""

from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn


class Scores(BaseFeaturesExtractor):
    """
    One score for each choice, from its own features and from what all choices are like on average.

    :param observation_space: The features of the choices, one choice after the other
    :param n_choices: Number of choices
    :param width: Number of units of a layer
    """

    def __init__(self, observation_space: spaces.Box, n_choices: int, width: int = 32):
        super().__init__(observation_space, features_dim=n_choices)
        n_features = observation_space.shape[0] // n_choices
        self.shape = (n_choices, n_features)
        self.embed = nn.Sequential(nn.Linear(n_features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.score = nn.Sequential(nn.Linear(2 * width, width), nn.Tanh(), nn.Linear(width, 1))
        with th.no_grad():
            self.score[-1].weight *= 0.01  # all choices are about equally likely at first

    def forward(self, observations: th.Tensor) -> th.Tensor:
        embedded = self.embed(observations.unflatten(1, self.shape))
        average = embedded.mean(dim=1, keepdim=True).expand_as(embedded)
        return self.score(th.cat([embedded, average], dim=2)).squeeze(2)


class SetPolicy(MaskableActorCriticPolicy):
    """
    The scores are the logits of the choices. The critic has a network of its own and adds up its scores.

    It is made for a flat observation with the same number of features for each choice.
    """

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Discrete, lr_schedule: Schedule, **kwargs: Any):
        extractor = {"n_choices": int(action_space.n), **kwargs.pop("features_extractor_kwargs", {})}
        given = {"net_arch": [], "ortho_init": False, "share_features_extractor": False, **kwargs}
        given |= {"features_extractor_class": Scores, "features_extractor_kwargs": extractor}
        super().__init__(observation_space, action_space, lr_schedule, **given)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # a linear layer would mix the choices
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
