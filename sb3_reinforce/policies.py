"""The policies of REINFORCE: SB3's actor-critic policies, of which a baseline without a critic uses only the actor."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule

from sb3_reinforce.extractors import SmallCNN

MlpPolicy = ActorCriticPolicy
CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy


class SmallCnnPolicy(ActorCriticPolicy):
    """
    ``CnnPolicy`` for pictures that are too small for SB3's convolutions. It works with A2C and PPO too.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: The layers between features and outputs; ``None``: none, as in ``CnnPolicy``
    :param features_extractor_class: Features extractor to use
    :param kwargs: Further arguments of ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = SmallCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            [] if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )
