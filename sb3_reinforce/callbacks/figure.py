"""The figure of a :class:`sb3_reinforce.GradientMonitor`."""

import math
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(records: list[dict[str, float]], path: str | os.PathLike[str]) -> None:
    """
    Draw measurements, as PNG.

    :param records: The measurements
    :param path: The file to write
    :raises ImportError: If matplotlib is not installed
    :raises ValueError: If there is nothing to draw
    """
    from matplotlib.figure import Figure

    if not records:
        raise ValueError("`GradientMonitor.plot` needs at least one measurement, got none: no update was measured yet.")
    # A separate figure, without pyplot, does not change the user's backend and figures
    panels = [_plot_sizes, _plot_noise_scale, _plot_cosine]
    if any("gradient/variance_ratio_" in key for record in records for key in record):
        panels.append(_plot_ratios)
    figure = Figure(figsize=(5.2 * 2, 3.6 * math.ceil(len(panels) / 2)), layout="constrained")
    axes = figure.subplots(math.ceil(len(panels) / 2), 2).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_xlabel("update")
        panel(axis, records)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.savefig(path, format="png", dpi=150)


def _series(records: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    found = [(record["train/n_updates"], record[key]) for record in records if key in record]
    return [x for x, _ in found], [y for _, y in found]


def _plot_sizes(axis: "Axes", records: list[dict[str, float]]) -> None:
    axis.plot(*_series(records, "gradient/norm"), color="#0b3c6f", marker="o", markersize=3, label="norm of the gradient")
    updates, traces = _series(records, "gradient/covariance_trace")
    axis.plot(updates, np.sqrt(traces), color="#c0392b", marker="o", markersize=3, label="its standard deviation")
    axis.set_ylim(bottom=0)
    axis.set_title("Gradient and noise", fontsize=11)
    axis.legend(frameon=False, fontsize=9)


def _plot_noise_scale(axis: "Axes", records: list[dict[str, float]]) -> None:
    from matplotlib.ticker import LogLocator

    scale = _series(records, "gradient/noise_scale_episodes")
    axis.plot(*scale, color="#c0392b", marker="o", markersize=3, label="gradient noise scale")
    axis.plot(*_series(records, "rollout/n_episodes"), color="0.45", linestyle=(0, (5, 3)), label="episodes in the batch")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel("episodes")
    axis.set_title("Episodes per update", fontsize=11)
    axis.legend(frameon=False, fontsize=9)


def _plot_cosine(axis: "Axes", records: list[dict[str, float]]) -> None:
    axis.axhline(0.0, color="0.6", linewidth=1)
    axis.plot(*_series(records, "gradient/cosine"), color="#2e6fab", marker="o", markersize=3)
    axis.set_ylim(-1.05, 1.05)
    axis.set_title("Cosine between the halves of a batch", fontsize=11)


def _plot_ratios(axis: "Axes", records: list[dict[str, float]]) -> None:
    prefix = "gradient/variance_ratio_"
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith(prefix) and value > 0.0:
                values.setdefault(key.removeprefix(prefix), []).append(math.log(value))
    means = sorted(((math.exp(float(np.mean(logs))), name) for name, logs in values.items()), reverse=True)
    axis.set_xscale("log")
    for i, (mean, name) in enumerate(means):
        better = mean < 1.0
        # Less variance is better only if the expectation is the same
        other_returns = name.endswith(("_whole_episode", "_reward_to_go"))
        colour = "0.6" if other_returns else "#2e6fab" if better else "#c0392b"
        axis.plot([1.0, mean], [i, i], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(mean, i, "o", color=colour, markersize=6)
        axis.annotate(
            f"{mean:.2f}",
            (mean, i),
            xytext=(-7 if better else 7, 0),
            textcoords="offset points",
            ha="right" if better else "left",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(means)), [name for _, name in means], fontsize=8)
    axis.axvline(1.0, color="0.35", linewidth=1.2)
    axis.margins(x=0.18)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="minor", labelsize=7, rotation=45)
    axis.set_xlabel("geometric mean over the updates (grey: other returns)")
    axis.set_title("Variance relative to the present baseline", fontsize=11)
