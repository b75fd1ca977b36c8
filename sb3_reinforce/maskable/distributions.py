"""Categorical distributions over the actions that a mask allows."""

from collections.abc import Sequence

import torch as th
from torch.distributions import Categorical


class MaskedCategorical(Categorical):
    """
    A choice among allowed values. The others have a probability of exactly zero, and so has their gradient. Nothing that it
    puts out is infinite, however small a probability is.

    :param logits: Logits, shape ``(n_timesteps, n_values)``
    :param masks: Which values are allowed, at least one in each row, bool, of the same shape
    """

    def __init__(self, logits: th.Tensor, masks: th.Tensor):
        # Their check of probabilities refuses sums that differ from 1 by a rounding error
        super().__init__(logits=logits.masked_fill(~masks, -th.inf), validate_args=False)

    def entropy(self) -> th.Tensor:
        """
        :return: The entropy, shape ``(n_timesteps,)``
        """
        probs = self.probs
        return -(probs * self.logits.masked_fill(probs == 0, 0.0)).sum(-1)


def make_distributions(logits: th.Tensor, masks: th.Tensor | None, sizes: Sequence[int]) -> list[Categorical]:
    """
    :param logits: Outputs of the policy network, shape ``(n_timesteps, sum(sizes))``
    :param masks: Which values are allowed, of the same shape; ``None``: all of them
    :param sizes: Number of values of each dimension of an action
    :return: The distribution of each dimension
    """
    parts = logits.split(list(sizes), dim=1)
    if masks is None:
        return [Categorical(logits=part, validate_args=False) for part in parts]
    return list(map(MaskedCategorical, parts, masks.bool().split(list(sizes), dim=1)))


def evaluate(distributions: Sequence[Categorical], actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param distributions: The distribution of each dimension of an action
    :param actions: Actions, shape ``(n_timesteps,)`` or ``(n_timesteps, n_dimensions)``
    :return: Log-probabilities and entropies, shape ``(n_timesteps,)`` each
    """
    columns = actions.long().view(len(actions), -1).unbind(1)
    log_probs = [one.log_prob(column) for one, column in zip(distributions, columns, strict=True)]
    return th.stack(log_probs).sum(0), th.stack([one.entropy() for one in distributions]).sum(0)


def sample(distributions: Sequence[Categorical], space_shape: tuple[int, ...]) -> th.Tensor:
    """
    :param distributions: The distribution of each dimension of an action
    :param space_shape: Shape of an action
    :return: Actions, shape ``(n_timesteps, *space_shape)``
    """
    return th.stack([one.sample() for one in distributions], dim=1).reshape(-1, *space_shape)
