r"""
The critic in units of the returns.

While an update lasts, the last layer of the critic puts out standardized values, :math:`(V - \mu) / \sigma`, and is fitted to
standardized returns; afterwards it puts out raw values again. So the rewards may have any scale, and the critic need
not learn by small steps what the mean of the returns is. Paper: van Hasselt et al. (2016), https://arxiv.org/abs/1602.07714
(PopArt), here with the statistics of whole batches.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.distributed.workers import Alone
from sb3_reinforce.monte_carlo.returns import ROUNDING

#: Share of the newest batch in the statistics, once there have been as many batches as its inverse
NEWEST = 0.1


class ReturnUnits(NamedTuple):
    """
    Running mean and variance of the returns, in which the newer batches count more.

    :param n_batches: Number of batches so far
    :param mean: Mean
    :param variance: Variance
    """

    n_batches: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def with_returns(self, returns: th.Tensor, workers: Alone) -> "ReturnUnits":
        """
        :param returns: The returns of another batch, shape ``(n_timesteps,)``
        :param workers: The workers, each with a part of the batch
        :return: The statistics with this batch
        """
        moments = workers.moments(returns.cpu().numpy())
        n_batches = self.n_batches + 1
        share = max(1.0 / n_batches, NEWEST)
        delta = float(moments.mean) - self.mean
        variance = (1.0 - share) * (self.variance + share * delta**2) + share * float(moments.deviation) / max(moments.n, 1.0)
        return ReturnUnits(n_batches, self.mean + share * delta, variance)

    @property
    def scale(self) -> float:
        """The deviation; where all returns are equal, their size."""
        deviation = math.sqrt(self.variance)
        return deviation if deviation > ROUNDING * abs(self.mean) else abs(self.mean) or 1.0


@contextmanager
def in_units(units: ReturnUnits | None, head: nn.Linear | None, batch: Batch) -> Iterator[Batch]:
    """
    Have the critic put out standardized values for a while. If the code inside fails, its last layer stays as it is then.

    :param units: Mean and scale of the returns; ``None``: the critic keeps raw units
    :param head: The last layer of the critic; ``None``: likewise
    :param batch: A batch
    :return: The batch with returns in the units of the critic
    """
    if units is None or head is None:
        yield batch
        return
    raw = [head.weight.detach().clone(), head.bias.detach().clone()]
    with th.no_grad():
        # A critic that has said nothing yet begins at the mean
        if head.weight.any() or head.bias.any():
            head.bias.sub_(units.mean).div_(units.scale)
            head.weight.div_(units.scale)
    standardized = [head.weight.detach().clone(), head.bias.detach().clone()]
    yield replace(batch, returns=(batch.returns - units.mean) / units.scale)
    with th.no_grad():
        if th.equal(head.weight, standardized[0]) and th.equal(head.bias, standardized[1]):  # nothing was learned
            head.weight.copy_(raw[0])
            head.bias.copy_(raw[1])
        else:
            head.bias.mul_(units.scale).add_(units.mean)
            head.weight.mul_(units.scale)


def say_nothing(head: nn.Linear | None) -> None:
    """
    Have a new critic give every state the value zero: before there is a return, nothing else is known.

    :param head: Its last layer
    """
    if head is not None:
        with th.no_grad():
            head.weight.zero_()
            head.bias.zero_()
