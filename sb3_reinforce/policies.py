"""The policies of REINFORCE: SB3's actor-critic policies, of which a baseline without a critic uses the actor alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

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
    mlp = policy.mlp_extractor
    return untouched and type(mlp) is MlpExtractor and not {"forward", "forward_actor", "forward_critic"} & vars(mlp).keys()


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


def split_parameters(policy: ActorCriticPolicy) -> tuple[set[th.nn.Parameter], set[th.nn.Parameter]]:
    """
    Which parameters the two outputs of a policy depend on. For a policy with methods of its own they are read off the graph
    of ``evaluate_actions``.

    :param policy: The policy
    :return: The parameters that reach the log-probabilities or the entropy, and those that reach the values
    """
    if has_sb3_forward(policy):
        actor_modules = [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]
        value_modules = [policy.vf_features_extractor, policy.mlp_extractor.value_net, policy.value_net]
        actor, value = ({p for m in modules for p in m.parameters()} for modules in (actor_modules, value_modules))
        return actor | {p for p in policy.parameters() if p not in value}, value
    observation, action = dummy_batch(policy)
    frozen = [parameter for parameter in policy.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # it may be trained one day
        parameter.requires_grad_(True)
    with evaluation_mode(policy), th.enable_grad():
        values, log_prob, entropy = policy.evaluate_actions(observation, action)
        actor_output = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
        actor, value = _reached_by(actor_output, policy), _reached_by(values.sum(), policy)
    for parameter in frozen:
        parameter.requires_grad_(False)
    with th.no_grad():  # leaves no graph behind in the policy's distribution
        policy.evaluate_actions(observation, action)
    return actor, value


def _reached_by(output: th.Tensor, policy: ActorCriticPolicy) -> set[th.nn.Parameter]:
    parameters = list(policy.parameters())
    if not output.requires_grad:
        return set()
    gradients = th.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
    return {parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def group_parameters(policy: ActorCriticPolicy) -> tuple[list[th.nn.Parameter], list[th.nn.Parameter]]:
    """
    Divide the parameter groups of the policy's optimizer into those of the actor (with what it shares with the critic) and
    those of the critic alone, which are marked ``critic=True``. There are two groups whether or not the rates differ, so that
    the state of one such optimizer loads into another. Adam and AdamW take their fused form.

    :param policy: The policy, its optimizer not used yet
    :return: The parameters that reach the log-probabilities or the entropy, and those that reach the values
    """
    actor, value = split_parameters(policy)
    optimizer = policy.optimizer
    groups = []
    for critic in (False, True):
        for group in optimizer.param_groups:
            parameters = [p for p in group["params"] if (p in value and p not in actor) == critic]
            groups.append({**group, "params": parameters, "critic": critic})
    optimizer.param_groups = groups
    # Fused Adam: 1.3 to 1.6 times as fast on a small MLP
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
        for group in groups:
            if group["fused"] is None and not any(group[extra] for extra in ("foreach", "capturable", "differentiable")):
                group["fused"] = True
    return [p for p in policy.parameters() if p in actor], [p for p in policy.parameters() if p in value]


def dummy_batch(policy: ActorCriticPolicy) -> tuple[PyTorchObs, th.Tensor]:
    """
    :param policy: A policy
    :return: An observation and an action, as ``evaluate_actions`` takes them: zeros, or where the policy is undefined at an
        observation of zeros (it may divide by its length), one that is drawn
    """

    def zeros(space: spaces.Space) -> np.ndarray:
        return np.zeros(space.shape, space.dtype)  # type: ignore[arg-type]

    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    if isinstance(policy.action_space, spaces.Discrete):
        action = th.zeros(1, dtype=th.long, device=policy.device)
    else:
        action = th.zeros(1, get_action_dim(policy.action_space), device=policy.device)
    origin = {key: zeros(part) for key, part in space.spaces.items()} if isinstance(space, spaces.Dict) else zeros(space)
    observations = [_as_batch(obs, policy) for obs in (origin, space.sample())]
    for observation in observations:
        try:
            with evaluation_mode(policy), th.no_grad():
                policy.evaluate_actions(observation, action)
        except ValueError:  # PyTorch's, of NaN
            continue
        return observation, action
    return observations[0], action


def _as_batch(obs: np.ndarray | dict[str, np.ndarray], policy: ActorCriticPolicy) -> PyTorchObs:
    if isinstance(obs, dict):
        return obs_as_tensor({key: np.asarray(part)[None] for key, part in obs.items()}, policy.device)
    return obs_as_tensor(np.asarray(obs)[None], policy.device)
