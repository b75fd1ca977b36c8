"""Settings for all tests: one PyTorch thread per worker, and properties checked on the same examples each time."""

from collections.abc import Iterator

import pytest
import torch as th
from hypothesis import settings

th.set_num_threads(1)

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def checks_of_distributions() -> Iterator[None]:
    """``torch.compile`` switches PyTorch's checks of distributions off, for good: no test leaves that to those after it."""
    validates = th.distributions.Distribution._validate_args
    yield
    th.distributions.Distribution.set_default_validate_args(validates)
