"""Curves of a run as inline SVG: light, the same in every theme, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 420, 170
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 14, 26
MOST_POINTS = 600


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a `logging.jsonl`; a last line that is still being written is left out."""
    if not file.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of one key, in order, where both are finite numbers."""
    points = [(_finite(row.get("step")), _finite(row.get(key))) for row in rows]
    return [(x, y) for x, y in points if x is not None and y is not None]


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def curve(title: str, points: Sequence[tuple[float, float]], *, empty: str) -> str:
    """Draw one curve with its last value; without points, a frame that says so."""
    caption = html.escape(title)
    if not points:
        return f'<figure class="curve"><figcaption>{caption}</figcaption><div class="curve-empty">{html.escape(empty)}</div></figure>'
    shown = _thin(points)
    lowest, highest = _span([y for _, y in shown])
    first, last = _span([x for x, _ in shown])
    across = (WIDTH - LEFT - RIGHT) / (last - first)
    down = (HEIGHT - TOP - BOTTOM) / (highest - lowest)
    places = [(LEFT + (x - first) * across, HEIGHT - BOTTOM - (y - lowest) * down) for x, y in shown]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    end_x, end_y = places[-1]
    return (
        f'<figure class="curve"><figcaption>{caption}<b>{_short(points[-1][1])}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{caption}">{_axes(lowest, highest, first, last)}'
        f'<polyline class="line" points="{path}"/><circle class="dot" cx="{end_x:.1f}" cy="{end_y:.1f}" r="3.5"/></svg></figure>'
    )


def _axes(lowest: float, highest: float, first: float, last: float) -> str:
    parts: list[str] = []
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_mark(lowest + share * (highest - lowest), highest - lowest)}</text>'
        )
    for x, value, anchor in ((LEFT, first, "start"), (WIDTH - RIGHT, last, "end")):
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_short(value)}</text>')
    return "".join(parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    lowest, highest = min(values), max(values)
    if lowest < highest:
        return lowest, highest
    half = abs(lowest) / 2 or 0.5
    return lowest - half, highest + half


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return points
    stride = -(-len(points) // MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def _mark(value: float, span: float) -> str:
    # As many digits as tell the marks of one axis apart.
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    digits = 0 if span >= 20 else 2 - math.floor(math.log10(span))
    return f"{value:.{digits}f}" if digits <= 6 else f"{value:.4g}"
