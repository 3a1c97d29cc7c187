"""The picture of a run: loss, that of channels, evaluation loss and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average without the pull towards the first value."""
    average, norm, found = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        found.append(average / norm)
    return found


def plot_run(lines: Sequence[dict[str, Any]], path: Path, *, title: str = "") -> bool:
    """Draw the log lines of a run into a PNG.

    Returns:
        whether there was anything to draw.
    """
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    rates = [(line["step"], line["learning_rate"]) for line in lines if line.get("learning_rate") is not None]
    if not train and not held_out:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    if train:
        steps, losses = zip(*train, strict=True)
        crowded = len(train) > 20
        top.plot(steps, losses, color="tab:blue", alpha=0.35 if crowded else 1.0, marker="" if crowded else "o", markersize=3, label="loss")
        if crowded:
            top.plot(steps, smooth(losses), color="tab:blue", label="loss, smoothed")
    for name in sorted({key for line in lines for key in line if key.startswith("channel_loss/")}):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        top.plot(*zip(*points, strict=True), linewidth=1, linestyle="--", label=name.partition("/")[2])
    if held_out:
        steps, losses = zip(*held_out, strict=True)
        top.plot(steps, losses, color="tab:orange", marker="o", label="evaluation loss")
    top.set_ylabel("loss (nats per token)")
    top.set_title(title)
    top.grid(alpha=0.3)
    top.legend(loc="upper right")  # "best" searches, and warns where that is slow
    if rates:
        bottom.plot(*zip(*rates, strict=True), color="tab:green")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("optimizer step")
    bottom.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


def plot_rewards(lines: Sequence[dict[str, Any]], path: Path, *, title: str = "") -> bool:
    """Draw the rewards of a run into a PNG: their sum, each function, and the evaluations.

    Returns:
        whether there was anything to draw.
    """
    named = {key.removeprefix("reward/").removesuffix("/mean"): key for line in lines for key in line if _is_reward(key)}
    curves = {name: points for name, key in {"reward": "reward", **named}.items() if (points := _points(lines, key))}
    if not curves:
        return False
    if len(curves) == 2 and len({tuple(points) for points in curves.values()}) == 1:
        curves.pop("reward")  # the sum of one function is that function
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        crowded = len(points) > 20
        color = f"C{number % 10}"
        axes.plot(steps, values, color=color, alpha=0.3 if crowded else 1.0, marker="" if crowded else "o", markersize=3, label=name)
        if crowded:
            axes.plot(steps, smooth(values), color=color, label=f"{name}, smoothed")
    held_out = _points(lines, "eval_reward")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="black", marker="o", label="evaluation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("mean reward")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


def _is_reward(key: str) -> bool:
    return key.startswith("reward/") and key.endswith("/mean")


def _points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]
