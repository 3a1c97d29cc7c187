"""The picture of a run: loss, evaluation loss and learning rate over the steps."""

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
