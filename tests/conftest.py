"""Settings for all tests: one PyTorch thread per worker, and properties checked on the same examples each time."""

import torch as th
from hypothesis import settings

th.set_num_threads(1)

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")
