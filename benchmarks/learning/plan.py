"""Which algorithm runs on which environment, how long and how often."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, unfinished

RESULTS = ROOT / "benchmarks" / "results"
ALGOS = ("reinforce", "reinforce_mc", "ppo", "ppo_cleanrl", "a2c", "trpo", "trpo_narrow")
CLASSIC = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "LunarLander-v3": 500_000,
    "LunarLanderContinuous-v3": 500_000,
    "MountainCarContinuous-v0": 100_000,
    "Pendulum-v1": 300_000,
}
MUJOCO = {
    "InvertedPendulum-v5": 300_000,
    "InvertedDoublePendulum-v5": 1_000_000,
    "Reacher-v5": 1_000_000,
    "Swimmer-v5": 1_000_000,
    "Hopper-v5": 1_000_000,
    "Walker2d-v5": 1_000_000,
    "HalfCheetah-v5": 1_000_000,
    "Pusher-v5": 1_000_000,
    "Ant-v5": 1_000_000,
    "Humanoid-v5": 1_000_000,
}
#: Run only where `--envs` asks for them
FURTHER_CLASSIC = {"MountainCar-v0": 300_000, "BipedalWalker-v3": 1_000_000}
MINATAR = {"MinAtar/Asterix-v1": 2_000_000, "MinAtar/Breakout-v1": 2_000_000, "MinAtar/SpaceInvaders-v1": 2_000_000}
ATARI = {"PongNoFrameskip-v4": 1_000_000}
#: REINFORCE and SB3's PPO alone, on the same pictures with the same convolutions
PICTURES = MINATAR | ATARI
DELAYED_REWARDS = dict.fromkeys(("DelayedLunarLander-v3", "DelayedHopper-v5", "DelayedHalfCheetah-v5"), 500_000)
FURTHER = FURTHER_CLASSIC | PICTURES | DELAYED_REWARDS
#: In the order of the tables
BUDGETS = CLASSIC | FURTHER_CLASSIC | MUJOCO | FURTHER
DELAYED = "Delayed"
OURS = "reinforce"
#: Pure Monte Carlo is in the plan for MuJoCo alone
MONTE_CARLO = "reinforce_mc"
#: The opponent that counts, where RL Zoo's entry of an algorithm does not learn
INSTEAD = {("ppo", "Hopper-v5"): "ppo_cleanrl", ("trpo", "Ant-v5"): "trpo_narrow"}
#: Entries that have a place on one task alone, that of the one they stand in for
STAND_INS = frozenset(INSTEAD.values())
#: Where seeds differ most
SCATTERED = ("LunarLander-v3", "Hopper-v5")
#: Tasks that came later: the others have fewer seeds there, and A2C none
LATER = ("Pusher-v5", "Ant-v5", "Humanoid-v5")
#: ``solve``: every how many steps a deterministic evaluation of ten episodes is made, and the mean return that is to be
#: reached three times in a row
SOLVE = {"CartPole-v1": (1_000, 475.0), "LunarLander-v3": (10_000, 200.0)}
SOLVE_EPISODES, SOLVE_IN_A_ROW = 10, 3
SOLVERS = ("reinforce", "ppo")
#: ``speed``: this many steps of a run
SPEED_STEPS = 10_000
SPEED_SEEDS = [0, 1, 2]
#: ``long``: runs of this length besides, of REINFORCE alone, to be read beside published ones of ten million steps
LONG = dict.fromkeys(("Walker2d-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"), 3_000_000)
LONG_SEEDS = [0, 1, 2]


@dataclass(frozen=True)
class Run:
    """One algorithm on one environment with one seed: what there is to do, and where its results lie."""

    algo: str
    env_id: str
    seed: int
    budget: int
    folder: Path
    #: ``learning``, ``long``, ``solve`` or ``speed``: what is measured
    kind: str = "learning"

    @property
    def path(self) -> Path:
        folder = self.folder if self.kind == "learning" else self.folder / self.kind
        return folder / self.env_id / f"{self.algo}-{self.seed}.csv"

    @property
    def partial(self) -> Path:
        return unfinished(self.path)

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def __str__(self) -> str:
        return f"{self.algo} on {self.env_id}, seed {self.seed}"


def seeds_of(algo: str, env_id: str) -> int:
    """
    :param algo: An algorithm
    :param env_id: An environment
    :return: How many seeds it gets
    """
    if algo == OURS and env_id in SCATTERED:
        return 20
    if env_id in CLASSIC or (algo == OURS and env_id in MUJOCO):
        return 10
    if env_id in PICTURES or algo == "a2c" or algo in STAND_INS or (env_id in LATER and algo != MONTE_CARLO):
        return 3
    return 5


def algos_of(env_id: str) -> list[str]:
    """
    :param env_id: An environment
    :return: The algorithms that are in its plan
    """
    left_out = set(STAND_INS) - {INSTEAD.get((algo, env_id)) for algo in ALGOS}
    if env_id in CLASSIC | FURTHER_CLASSIC | PICTURES:
        left_out.add(MONTE_CARLO)
    if env_id in PICTURES:
        left_out |= {"a2c", "trpo"}
    if env_id in LATER:
        left_out.add("a2c")
    return [algo for algo in ALGOS if algo not in left_out]


def counted(algo: str, env_id: str, runs: Container[tuple[str, str]]) -> tuple[str, str]:
    """
    :param algo: An algorithm
    :param env_id: An environment
    :param runs: The pairs of an environment and an algorithm that have runs
    :return: The pair to compare with: that of the opponent that counts, if it has runs
    """
    instead = env_id, INSTEAD.get((algo, env_id), algo)
    return instead if instead in runs else (env_id, algo)


def plan(
    algos: list[str] | None,
    env_ids: list[str],
    seeds: list[int] | None,
    folder: Path,
    factor: float = 1.0,
    kind: str = "learning",
) -> list[Run]:
    """
    :param algos: Algorithms; ``None``: all, on the classic tasks but pure Monte Carlo
    :param env_ids: Environments
    :param seeds: Seeds; ``None``: as many as each gets
    :param folder: Where the results go
    :param factor: What budgets are multiplied with
    :param kind: What is measured
    :return: The runs, one seed after the other, so that one that is stopped leaves complete sweeps
    """
    budgets = BUDGETS
    if kind == "long":
        budgets, seeds = LONG, LONG_SEEDS if seeds is None else seeds
    runs = [
        Run(algo, env_id, seed, max(int(budgets[env_id] * factor), 1), folder, kind)
        for seed in (range(20) if seeds is None else seeds)
        for env_id in env_ids
        for algo in algos or algos_of(env_id)
        if seeds is not None or seed < seeds_of(algo, env_id)
    ]
    return list(dict.fromkeys(runs))  # nothing twice
