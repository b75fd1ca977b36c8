"""The state of a policy besides the values of its parameters, and how to leave it unchanged."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryFile
from typing import IO, Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Distribution

#: Copies of more bytes than this go into a temporary file: with 60,000 discrete observations they would take a sixth of all
#: memory
MAX_COPIED = 24 * 2**20


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Switch off dropout and the like for a while, as when the policy acts.

    :param policy: The policy, which is in its own mode again afterwards, errors or not
    """
    was_training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(was_training)


@contextmanager
def left_unchanged(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Evaluate a policy as it acts (with the running averages of batch normalization, without dropout: an episode's gradient
    must not depend on the others, and nothing may be drawn or averaged), and undo the side effects of the evaluation.

    :param policy: The policy
    """
    training = [module for module in policy.modules() if module.training]
    # The distribution is kept by the policy, and a graph attached to it could not be copied
    distribution = getattr(policy, "action_dist", None)
    state = dict(vars(distribution)) if distribution is not None else {}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        if distribution is not None:
            vars(distribution).clear()
            vars(distribution).update(state)


@contextmanager
def kept_buffers(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Keep the statistics of batch normalization: a product with the Fisher information must not count the batch again.

    :param policy: The policy
    """
    buffers = [(buffer, buffer.clone()) for buffer in policy.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def forget_graphs(policy: ActorCriticPolicy) -> None:
    """
    SB3's distributions keep their last parameters. With a graph attached they could be neither copied nor pickled.

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


def detached(distribution: Distribution) -> Distribution:
    """
    :param distribution: A distribution
    :return: A copy without graph (with dropout, a second forward pass would give another distribution)
    """
    constant = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, th.Tensor):
            setattr(constant, name, value.detach())
        elif isinstance(value, Distribution):
            setattr(constant, name, detached(value))
    return constant


@contextmanager
def all_or_nothing(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Restore the weights and the state of the optimizer if the update inside fails.

    :param policy: The policy
    """
    state = policy.optimizer.state
    before = {parameter: dict(values) for parameter, values in state.items()}
    of_optimizer = [value for values in before.values() for value in values.values() if isinstance(value, th.Tensor)]
    try:
        with restored_on_error([*policy.parameters(), *policy.buffers(), *of_optimizer]):
            yield
    except BaseException:
        state.clear()
        state.update(before)
        raise


@contextmanager
def restored_on_error(tensors: Sequence[th.Tensor]) -> Iterator[None]:
    """
    Restore the present values of tensors if the code inside fails.

    :param tensors: The tensors
    """
    large = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == "cpu") > MAX_COPIED
    with TemporaryFile() if large else nullcontext() as file:
        kept = [_write(tensor, file) for tensor in tensors]
        try:
            yield
        except BaseException:
            if file is not None:
                file.seek(0)
            with th.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(_read(tensor, file) if before is None else before)
            raise


def _write(tensor: th.Tensor, file: IO[bytes] | None) -> th.Tensor | None:
    """Return a copy, or write it to the file."""
    if file is None or tensor.device.type != "cpu":
        return tensor.detach().clone()
    file.write(tensor.detach().contiguous().view(-1).view(th.uint8).numpy().data)
    return None


def _read(tensor: th.Tensor, file: IO[bytes] | None) -> th.Tensor:
    assert file is not None
    content = bytearray(file.read(tensor.numel() * tensor.element_size()))
    return th.frombuffer(content, dtype=tensor.dtype).view(tensor.shape) if content else tensor
