"""Masks with several workers, started by torchrun as a user would."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ROOT
from tests.maskable.environments import SPACES, masks_of


@pytest.mark.slow
def test_workers_learn_one_policy_under_the_masks_of_their_own_environments(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.run(
        [*command, "-m", "tests.maskable.job", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    first, second = (pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in range(2))
    for name, space in SPACES.items():
        np.testing.assert_array_equal(first[name][0], second[name][0])
        for _, observations, masks in (first[name], second[name]):
            np.testing.assert_array_equal(masks, masks_of(space, observations))
    for outcome in (first, second):
        assert "must have a method `action_masks()`" in outcome["error"]
