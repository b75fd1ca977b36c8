"""
Learn to visit random cities by a short tour, and compare it with the nearest neighbour, with 2-opt and with a solver.

    python examples/scheduling/train_tour.py --cities 20 --steps 100000 --out output

For the solver: pip install -r examples/scheduling/requirements.txt
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from attempts import best_of, play
from sb3_contrib import MaskablePPO
from set_policy import SetPolicy
from stable_baselines3.common.env_util import make_vec_env
from tour import Tour, length_of, nearest_neighbour, two_opt

from sb3_reinforce import MaskableREINFORCE

matplotlib.use("Agg")  # write files, open no window

try:
    from ortools.constraint_solver import pywrapcp, routing_enums_pb2
except ImportError:
    pywrapcp = None

MISSING = "For the solver: pip install 'ortools>=9.9,<9.13' 'tensorboard<2.21'"
FIRST_TEST_SEED = 1_000_000  # of the instances that are kept for the test


def solve(cities: np.ndarray, seconds: float) -> list[int]:
    """
    :param cities: Where they lie
    :param seconds: How long OR-Tools' search may take
    :return: Its tour
    """
    distances = (1e6 * np.linalg.norm(cities[:, None] - cities, axis=2)).astype(int)  # it reckons with integers
    manager = pywrapcp.RoutingIndexManager(len(cities), 1, 0)
    routing = pywrapcp.RoutingModel(manager)
    transit = routing.RegisterTransitMatrix(distances.tolist())
    routing.SetArcCostEvaluatorOfAllVehicles(transit)
    parameters = pywrapcp.DefaultRoutingSearchParameters()
    parameters.local_search_metaheuristic = routing_enums_pb2.LocalSearchMetaheuristic.GUIDED_LOCAL_SEARCH
    parameters.time_limit.FromMilliseconds(int(1000 * seconds))
    solution = routing.SolveWithParameters(parameters)
    tour, at = [], routing.Start(0)
    while not routing.IsEnd(at):
        tour.append(manager.IndexToNode(at))
        at = solution.Value(routing.NextVar(at))
    return tour


def draw(cities: np.ndarray, tours: dict[str, list[int]], path: Path) -> None:
    """
    :param cities: Where they lie
    :param tours: Tours, with a name each
    :param path: The PNG to write
    """
    figure, axes = plt.subplots(1, len(tours), figsize=(4.2 * len(tours), 4.5), layout="constrained", squeeze=False)
    for ax, (name, tour) in zip(axes[0], tours.items(), strict=True):
        closed = cities[[*tour, tour[0]]]
        ax.plot(*closed.T, color="#2e6fab", linewidth=1.5)
        ax.plot(*cities.T, "o", color="#0b3c6f", markersize=5)
        ax.plot(*cities[0], "s", color="#c0392b", markersize=8)
        ax.set_title(f"{name}: {length_of(cities, tour):.2f}", loc="left")
        ax.set(aspect="equal", xticks=[], yticks=[], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def train(algorithm: str, args: argparse.Namespace) -> Any:
    """
    :param algorithm: ``"MaskableREINFORCE"`` or ``"MaskablePPO"``
    :param args: The arguments of the command line
    :return: A trained model
    """
    env = make_vec_env(Tour, args.envs, args.seed, env_kwargs={"n_cities": args.cities})
    common = {"gamma": 1.0, "seed": args.seed, "device": "cpu"}
    model: Any
    if algorithm == "MaskablePPO":
        # About the same number of episodes for an update
        model = MaskablePPO(SetPolicy, env, n_steps=args.cities, batch_size=256, **common)
    else:
        # Groups of environments attempt the same instance, and each attempt is judged beside the others of its group
        groups = {"n_episodes": 1, "group_size": args.group_size, "baseline": "leave_one_out"}
        model = MaskableREINFORCE(SetPolicy, env, **groups, sub_sampling_factor=4, **common)
    start = time.perf_counter()
    model.learn(args.steps, progress_bar=args.progress_bar)
    print(f"{algorithm}: {model.num_timesteps:,} steps in {time.perf_counter() - start:.0f} s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cities", type=int, default=20, help="number of cities")
    parser.add_argument("--steps", type=int, default=100_000, help="timesteps of the training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--envs", type=int, default=32, help="number of environments, a multiple of --group-size")
    parser.add_argument("--group-size", type=int, default=8, help="number of attempts at an instance in an update")
    parser.add_argument("--instances", type=int, default=50, help="number of instances to test on")
    parser.add_argument("--attempts", type=int, default=16, help="number of tours to choose the best of")
    parser.add_argument("--solver-seconds", type=float, default=1.0, help="time of the solver for an instance; 0: no solver")
    parser.add_argument("--no-ppo", dest="ppo", action="store_false", help="do not train MaskablePPO too")
    parser.add_argument("--no-progress-bar", dest="progress_bar", action="store_false", help="show no progress bar")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for the model and the map")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # such small networks gain nothing from more
    if pywrapcp is None:
        print(MISSING)

    # Train
    models = {"MaskableREINFORCE": train("MaskableREINFORCE", args)}
    models["MaskableREINFORCE"].save(args.out / "tour.zip")
    if args.ppo:
        models["MaskablePPO"] = train("MaskablePPO", args)

    # Test
    rngs = [np.random.default_rng(FIRST_TEST_SEED + index) for index in range(args.instances)]
    instances = [rng.random((args.cities, 2)) for rng in rngs]
    found: dict[str, list[list[int]]] = {
        "any order": [[0, *(1 + rng.permutation(args.cities - 1))] for rng in rngs],
        "nearest neighbour": [nearest_neighbour(cities) for cities in instances],
    }
    for name, model in models.items():
        singles = [Tour(cities=cities) for cities in instances]
        play(model, singles, deterministic=True)
        found[name] = [env.tour for env in singles]
        envs = [Tour(cities=cities) for cities in instances for _ in range(args.attempts)]
        found[f"{name}, best of {args.attempts}"] = [env.tour for env in best_of(envs, play(model, envs), args.attempts)]
    for name, tours in list(found.items()):
        found[f"{name}, then 2-opt"] = [two_opt(cities, tour) for cities, tour in zip(instances, tours, strict=True)]
    if pywrapcp is not None and args.solver_seconds > 0:
        found["solver"] = [solve(cities, args.solver_seconds) for cities in instances]
    lengths = {
        name: [length_of(cities, tour) for cities, tour in zip(instances, tours, strict=True)] for name, tours in found.items()
    }
    shortest = np.min(list(lengths.values()), axis=0)
    print(f"\n{'':50}{'length':>9}   above the shortest of these")
    for name, each in lengths.items():
        print(f"{name:50}{np.mean(each):9.3f}{np.mean(each / shortest) - 1:9.1%}")

    # Draw
    shown = ["nearest neighbour", "nearest neighbour, then 2-opt", f"MaskableREINFORCE, best of {args.attempts}"]
    draw(instances[0], {name: found[name][0] for name in shown}, args.out / "tour.png")
    print(f"Map: {args.out / 'tour.png'}")


if __name__ == "__main__":
    main()
