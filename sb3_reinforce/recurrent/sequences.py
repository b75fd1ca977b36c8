"""
The timesteps of a batch as sequences for an LSTM.

The rest of the package knows flat batches, episode by episode, and no padding.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import nn

from sb3_reinforce.actor_critic.batch import Batch

#: Hidden and cell states, shape ``(n_layers, n_sequences, hidden_size)`` each
States = tuple[th.Tensor, th.Tensor]


@dataclass(frozen=True)
class SequenceBatch(Batch):
    """
    A piece of a batch that consists of whole sequences.

    :param lengths: Number of timesteps of each sequence, shape ``(n_sequences,)``
    :param states: The states before the first timestep of each; ``None``: zero, as at the start of an episode
    """

    lengths: np.ndarray | None = None
    states: RNNStates | None = None

    @classmethod
    def of(cls, batch: Batch, lengths: np.ndarray, states: RNNStates | None = None) -> "SequenceBatch":
        """
        :param batch: Timesteps
        :param lengths: See above
        :param states: See above
        :return: The same timesteps as sequences
        """
        of_batch = {field.name: getattr(batch, field.name) for field in fields(Batch)}
        return cls(**of_batch, lengths=lengths, states=states)


class Blocks:
    """
    How sequences lie side by side when an LSTM runs through them. Sequences of similar lengths share a block, in which the
    shorter ones are padded: that takes a tenth of the time of PyTorch's packed sequences, which have no fused kernels. What
    the LSTM puts out for the padding is dropped, so that nothing depends on it.

    :param lengths: Number of timesteps of each sequence, all positive, shape ``(n_sequences,)``
    :param device: Device of the timesteps
    """

    def __init__(self, lengths: np.ndarray, device: th.device):
        self._starts = np.cumsum(lengths) - lengths
        self._lengths = lengths
        self._device = device
        self._blocks = list(_similar(lengths))
        timesteps, places, offset = [], [], 0
        for block in self._blocks:
            longest = int(lengths[block].max())
            place = np.arange(longest)[:, None]  # time goes first, as for PyTorch
            rows, inside = self._starts[block] + np.minimum(place, lengths[block] - 1), place < lengths[block]
            timesteps.append(th.from_numpy(rows).to(device))
            places.append((rows[inside], offset + np.flatnonzero(inside)))
            offset += rows.size
        self._timesteps = timesteps
        where = np.empty(int(lengths.sum()), int)
        for rows, place in places:
            where[rows] = place
        self._where = th.from_numpy(where).to(device)

    def run(self, lstm: nn.LSTM, inputs: th.Tensor, states: States | None) -> tuple[th.Tensor, States]:
        """
        :param lstm: An LSTM
        :param inputs: Its inputs, sequence by sequence, shape ``(n_timesteps, n_features)``
        :param states: The states before the first timestep of each sequence; ``None``: zero
        :return: The outputs, in the order of the inputs, shape ``(n_timesteps, hidden_size)``; and the states after the last
            timestep of each sequence, if all are of the same length
        """
        outputs, after = [], no_states(lstm, 1)
        for block, timesteps in zip(self._blocks, self._timesteps, strict=True):
            before = None if states is None else (states[0][:, block].contiguous(), states[1][:, block].contiguous())
            with differentiable(lstm):
                output, after = lstm(inputs[timesteps], before)
            outputs.append(output.flatten(0, 1))
        return th.cat(outputs)[self._where], after


def _similar(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of sequences that have at least as many timesteps as they need padding; equal lengths stay in order."""
    ranked = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(ranked):
        own = lengths[ranked[first:]]
        fits = own[0] * np.arange(1, len(own) + 1) <= 2 * np.cumsum(own)
        n = len(own) if fits.all() else int(fits.argmin())
        yield ranked[first : first + n]
        first += n


def differentiable(lstm: nn.LSTM) -> AbstractContextManager[None]:
    """
    :param lstm: An LSTM
    :return: In it, gradients can be computed: cuDNN's LSTM has none while dropout and the like are switched off
    """
    needed = th.is_grad_enabled() and not lstm.training and next(lstm.parameters()).is_cuda
    return th.backends.cudnn.flags(enabled=False) if needed else nullcontext()


def no_states(lstm: nn.LSTM, n_sequences: int) -> States:
    """
    :param lstm: An LSTM
    :param n_sequences: Number of sequences
    :return: Its states at the start of an episode
    """
    weight = next(lstm.parameters())
    zeros = th.zeros(lstm.num_layers, n_sequences, lstm.hidden_size, dtype=weight.dtype, device=weight.device)
    return zeros, zeros


def segments(lengths: np.ndarray, longest: int | None) -> np.ndarray:
    """
    :param lengths: Number of timesteps of each episode
    :param longest: The largest length of a segment; ``None``: no limit
    :return: Lengths of the segments into which the episodes are cut, episode by episode
    """
    if longest is None:
        return lengths
    counts = -(-lengths // longest)
    cut = np.full(int(counts.sum()), longest)
    ends = np.cumsum(counts) - 1
    cut[ends] = lengths - (counts - 1) * longest
    return cut


def runs(lengths: np.ndarray, most: int, padded: bool = False) -> Iterator[tuple[slice, slice]]:
    """
    :param lengths: Number of timesteps of each sequence
    :param most: The largest number of timesteps in a run, unless one sequence alone has more
    :param padded: Whether the sequences of a run count as if all were as long as its longest one
    :return: For each run of whole sequences the sequences, and their timesteps
    """
    first = begin = n_timesteps = longest = 0
    for i, length in enumerate(lengths.tolist()):
        size = max(longest, length) * (i + 1 - first) if padded else n_timesteps + length
        if i > first and size > most:
            yield slice(first, i), slice(begin, begin + n_timesteps)
            first, begin, n_timesteps, longest = i, begin + n_timesteps, 0, 0
        n_timesteps, longest = n_timesteps + length, max(longest, length)
    if len(lengths) > 0:
        yield slice(first, len(lengths)), slice(begin, begin + n_timesteps)


def rows_of(lengths: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """
    :param lengths: Number of timesteps of each episode
    :param chosen: Indices of some episodes
    :return: Their timesteps, one episode after the other
    """
    starts = np.cumsum(lengths) - lengths
    own = lengths[chosen]
    return np.arange(int(own.sum())) + np.repeat(starts[chosen] - (np.cumsum(own) - own), own)
