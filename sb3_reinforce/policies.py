"""The policies of REINFORCE: SB3's actor-critic policies, of which a baseline without a critic uses the actor alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.distributions import Distribution

MlpPolicy = ActorCriticPolicy
CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy

_FORWARD_METHODS = (
    "forward",
    "extract_features",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
)


def has_sb3_forward(policy: ActorCriticPolicy) -> bool:
    """
    Whether the actor and the critic of a policy can be called one by one with the results of ``policy.forward``.
    SB3's ``get_distribution`` and ``predict_values`` pass by a policy's own ``extract_features`` and by the ``forward``
    of its own ``mlp_extractor``, so this holds for SB3's own methods and MLP only.

    :param policy: The policy
    :return: False if anything in between is the user's own
    """
    untouched = all(
        getattr(type(policy), name) is getattr(ActorCriticPolicy, name) and name not in vars(policy)
        for name in _FORWARD_METHODS
    )
    if not untouched:  # it may have no `mlp_extractor` either
        return False
    mlp = policy.mlp_extractor
    return type(mlp) is MlpExtractor and not {"forward", "forward_actor", "forward_critic"} & vars(mlp).keys()


def has_own_forward(module: th.nn.Module) -> bool:
    """
    :param module: A module, looked at without its submodules
    :return: Whether its forward pass is not (only) its class's: patched, or with hooks
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Without dropout and the like for a while, as when it acts.

    :param policy: The policy, which is back in its own mode afterwards, errors or not
    """
    was_training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(was_training)


def reads_every_number(policy: ActorCriticPolicy) -> bool:
    """
    :param policy: The policy
    :return: Whether it is known that NaN anywhere in an observation reaches the networks: SB3's own features extractors hand
        on all that they get. A user's own one may replace or ignore a part of it, such as a missing measurement
    """
    if not has_sb3_forward(policy):
        return False
    extractors = {type(module) for module in (policy.pi_features_extractor, policy.vf_features_extractor)}
    own_parts = [
        part
        for module in (policy.pi_features_extractor, policy.vf_features_extractor)
        if isinstance(module, CombinedExtractor)
        for part in module.extractors.values()
        if type(part) not in (nn.Flatten, NatureCNN)
    ]
    return extractors <= {FlattenExtractor, NatureCNN, CombinedExtractor} and not own_parts


def split_parameters(
    policy: ActorCriticPolicy, observations: PyTorchObs | None = None, actions: th.Tensor | None = None
) -> tuple[set[th.nn.Parameter], set[th.nn.Parameter]]:
    """
    Which parameters the two outputs of a policy depend on. For a policy with methods of its own they are read off the graph
    of ``evaluate_actions``.

    :param policy: The policy
    :param observations: Observations to call such a policy with; ``None``: one that is drawn from the space
    :param actions: Their actions
    :return: The parameters that reach the log-probabilities or the entropy, and those that reach the values. A policy that
        takes no observation but those of its environment is not divided before there is one: all is then the actor's
    """
    if has_sb3_forward(policy):
        actor_modules = [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]
        value_modules = [policy.vf_features_extractor, policy.mlp_extractor.value_net, policy.value_net]
        actor, value = ({p for m in modules for p in m.parameters()} for modules in (actor_modules, value_modules))
        return actor | {p for p in policy.parameters() if p not in value}, value
    if observations is None or actions is None:
        sample = drawn_batch(policy)
        if sample is None:
            return set(policy.parameters()), set()
        observations, actions = sample
    frozen = [parameter for parameter in policy.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # it may be trained one day
        parameter.requires_grad_(True)
    try:
        with evaluation_mode(policy), th.enable_grad():
            values, log_prob, entropy = policy.evaluate_actions(observations, actions)
            actor_output = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
            actor, value = _reached_by(actor_output, policy), _reached_by(values.sum(), policy)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        forget_graphs(policy)
    return actor, value


def _reached_by(output: th.Tensor, policy: ActorCriticPolicy) -> set[th.nn.Parameter]:
    """By the graph alone: a third of the time of the gradients."""
    reached, seen, nodes = set(), set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(getattr(node, "variable", None))
        nodes += [following for following, _ in node.next_functions]
    return {parameter for parameter in policy.parameters() if parameter in reached}


def forget_graphs(policy: ActorCriticPolicy) -> None:
    """
    SB3's distributions keep what they were made of last. With a graph behind it, it could be neither copied nor pickled.

    :param policy: The policy
    """
    distribution = getattr(policy, "action_dist", None)
    if distribution is not None:
        for name, value in vars(distribution).items():
            setattr(distribution, name, _without_graph(value))


def _without_graph(value: Any) -> Any:
    if isinstance(value, th.Tensor):
        return value.detach() if value.grad_fn is not None else value
    if isinstance(value, Distribution):
        return detached(value)
    return [_without_graph(part) for part in value] if isinstance(value, list) else value


def detached(law: Distribution) -> Distribution:
    """
    :param law: A distribution
    :return: A copy without graph; a second forward pass would be another distribution where there is dropout
    """
    constant = copy.copy(law)
    for name, value in vars(law).items():
        if isinstance(value, th.Tensor):
            setattr(constant, name, value.detach())
        elif isinstance(value, Distribution):
            setattr(constant, name, detached(value))
    return constant


def group_parameters(
    policy: ActorCriticPolicy, split: tuple[set[th.nn.Parameter], set[th.nn.Parameter]] | None = None
) -> tuple[list[th.nn.Parameter], list[th.nn.Parameter]]:
    """
    Divide the parameter groups of the policy's optimizer into those of the actor (with what it shares with the critic) and
    those of the critic alone, which are marked ``critic=True`` and learn at the critic's rate. There are two groups whether
    or not the rates differ, so that the state of one such optimizer loads into another. Groups that are divided already
    are left alone, so this may be called before each update: the user may have replaced the policy, a layer, the optimizer, or
    added a group.

    :param policy: The policy
    :param split: See :func:`split_parameters`, by default of the policy as it is
    :return: The parameters that reach the log-probabilities or the entropy, and those that reach the values
    """
    actor, value = split_parameters(policy) if split is None else split
    groups = policy.optimizer.param_groups

    def is_critics(parameter: th.nn.Parameter) -> bool:
        return parameter in value and parameter not in actor

    if not all("critic" in group and all(is_critics(p) == group["critic"] for p in group["params"]) for group in groups):
        policy.optimizer.param_groups = [
            {**group, "params": parameters, "critic": critic}
            for critic in (False, True)
            for group in groups
            # One that was divided before stays a single one if it can; else there are two of it, one of them perhaps empty
            if (parameters := [p for p in group["params"] if is_critics(p) == critic]) or group.get("critic", critic) == critic
        ]
    return [p for p in policy.parameters() if p in actor], [p for p in policy.parameters() if p in value]


def use_fused_adam(optimizer: th.optim.Optimizer) -> None:
    """
    Adam and AdamW in their fused form: 1.3 to 1.6 times as fast on a small MLP.

    :param optimizer: An optimizer, not used yet
    """
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
        for group in optimizer.param_groups:
            if group["fused"] is None and not any(group[extra] for extra in ("foreach", "capturable", "differentiable")):
                group["fused"] = True


def drawn_batch(policy: ActorCriticPolicy) -> tuple[PyTorchObs, th.Tensor] | None:
    """
    An observation and an action to find out with what a policy with methods of its own depends on. The observation is drawn
    from the space, the same each time, as of zeros a network may have no output (a sequence of length zero, a length to divide
    by); but zeros are the second choice, as a space without bounds may hold numbers that overflow.

    :param policy: A policy
    :return: A batch of one, as ``evaluate_actions`` takes it; ``None`` if the policy has no output for it, as it may have
        none but for what its environment really shows
    """
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    if isinstance(policy.action_space, spaces.Discrete):
        action = th.zeros(1, dtype=th.long, device=policy.device)
    else:
        action = th.zeros(1, get_action_dim(policy.action_space), device=policy.device)
    for draw in (space.sample, partial(create_empty_array, space, fn=np.zeros)):
        try:
            observation = policy.obs_to_tensor(draw())[0]  # type: ignore[arg-type]
            with evaluation_mode(policy), th.no_grad():
                policy.evaluate_actions(observation, action)
            return observation, action
        except Exception:  # the user's network may raise anything
            continue
    return None
