"""Facts about a policy that can be read from its modules and methods."""

from collections.abc import Collection, Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from torch import nn

_FORWARD_METHODS = (
    "forward",
    "extract_features",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
    "_process_sequence",  # of recurrent policies
)


def has_sb3_forward(policy: ActorCriticPolicy, base: type[BasePolicy] = ActorCriticPolicy) -> bool:
    """
    Whether the actor and the critic of a policy can be called separately with the results of ``policy.forward``.
    SB3's ``get_distribution`` and ``predict_values`` do not call a policy's own ``extract_features``, nor the ``forward``
    of its own ``mlp_extractor``, so this holds for SB3's own methods and MLP only.

    :param policy: The policy
    :param base: The class whose methods these are, SB3's or one of sb3-contrib's
    :return: False if any of these parts is the user's own
    """
    untouched = all(
        getattr(type(policy), name, None) is getattr(base, name, None) and name not in vars(policy)
        for name in _FORWARD_METHODS
    )
    if not untouched:  # it may have no `mlp_extractor` either
        return False
    mlp = policy.mlp_extractor
    return type(mlp) is MlpExtractor and not {"forward", "forward_actor", "forward_critic"} & vars(mlp).keys()


def has_own_forward(module: nn.Module) -> bool:
    """
    :param module: A module, looked at without its submodules
    :return: Whether its forward pass differs from its class's, because of a patch or hooks
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def plain_head(policy: ActorCriticPolicy) -> nn.Linear | None:
    """
    :param policy: A policy
    :return: Its ``value_net``, if that is a linear layer with one output and a bias that is trained, and nothing more
    """
    head = getattr(policy, "value_net", None)
    if type(head) is not nn.Linear or head.out_features != 1 or head.bias is None or has_own_forward(head):
        return None
    return head if head.weight.requires_grad and head.bias.requires_grad else None


def alternates(layers: Sequence[nn.Module], activations: Collection[type[nn.Module]]) -> bool:
    """
    :param layers: Layers
    :param activations: Classes of activations
    :return: Whether the layers are linear ones of float32, each except perhaps the last followed by one of the activations
    """
    return all(type(layer) is nn.Linear and layer.weight.dtype == th.float32 for layer in layers[::2]) and all(
        type(layer) in activations for layer in layers[1::2]
    )


def passes_on_every_number(policy: ActorCriticPolicy) -> bool:
    """
    :param policy: A policy with SB3's own methods
    :return: Whether it is known that NaN anywhere in an observation reaches the networks: SB3's own features extractors pass
        on everything. A user's own extractor may replace or ignore a part of it, such as a missing measurement
    """
    extractors = {type(module) for module in (policy.pi_features_extractor, policy.vf_features_extractor)}
    own_parts = [
        part
        for module in (policy.pi_features_extractor, policy.vf_features_extractor)
        if isinstance(module, CombinedExtractor)
        for part in module.extractors.values()
        if type(part) not in (nn.Flatten, NatureCNN)
    ]
    return extractors <= {FlattenExtractor, NatureCNN, CombinedExtractor} and not own_parts
