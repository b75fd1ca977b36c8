"""
Data-parallel training on ``torch.distributed``: several workers, each with environments of its own, learn one model.

``torchrun --nproc-per-node=4 train.py`` starts a script several times; ``learn`` finds the other workers through the variables
that torchrun sets. Every worker plays whole episodes. The workers exchange sums, and the counts that divide them, so that
an update is the same as that of a single process from all the workers' episodes.
"""

from sb3_reinforce.distributed.moments import Moments
from sb3_reinforce.distributed.process_group import WorkerLostError, is_together, local_device, n_launched
from sb3_reinforce.distributed.sharing import Report
from sb3_reinforce.distributed.workers import ALONE, Alone, Group

__all__ = [
    "ALONE",
    "Alone",
    "Group",
    "Moments",
    "Report",
    "WorkerLostError",
    "is_together",
    "local_device",
    "n_launched",
]
