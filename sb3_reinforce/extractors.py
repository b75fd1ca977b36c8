"""Features extractors for what SB3's own cannot read."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class SmallCNN(BaseFeaturesExtractor):
    """
    One convolution and one linear layer, for pictures that are too small for SB3's ``NatureCNN``, such as MinAtar's of 10 x 10
    pixels, whose authors use these layers (Young and Tian, 2019, "MinAtar: An Atari-Inspired Testbed for Thorough and
    Reproducible Reinforcement Learning Experiments").

    :param observation_space: Pictures. SB3 puts the channels of ``uint8`` pictures from 0 to 255 first; all others have them
        last, as Gymnasium's environments do
    :param features_dim: Number of features extracted
    :param n_filters: Number of filters of the convolution, each of 3 x 3 pixels
    :param channels_first: Whether the channels come first; ``None``: for pictures that SB3 knows to be pictures
    :raises ValueError: If the observations are no pictures of at least 3 x 3 pixels
    """

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int = 128,
        n_filters: int = 16,
        channels_first: bool | None = None,
    ) -> None:
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 3:
            raise ValueError(f"`SmallCNN` reads pictures, with a `Box` space of three dimensions, got {observation_space}.")
        super().__init__(observation_space, features_dim)
        self.channels_first = is_image_space(observation_space) if channels_first is None else channels_first
        height, width, n_channels = np.roll(observation_space.shape, -1 if self.channels_first else 0).tolist()
        if min(height, width) < 3:
            order = "first" if self.channels_first else "last"
            raise ValueError(
                f"`SmallCNN` reads pictures of at least 3 x 3 pixels, got {height} x {width} with the channels {order}."
            )
        self.layers = nn.Sequential(
            nn.Conv2d(n_channels, n_filters, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(n_filters * (height - 2) * (width - 2), features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Pictures, shape ``(n, channels, height, width)`` or ``(n, height, width, channels)``
        :return: Their features, shape ``(n, features_dim)``
        """
        return self.layers(observations if self.channels_first else observations.permute(0, 3, 1, 2))
