"""Curves of a run: its metrics over the optimizer steps, thinned out where there are too many points to draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from lightning_serl.report.folder import Row

#: Most points of one curve; more are averaged in equal parts, whose extremes are kept as a band.
MOST_POINTS = 400

#: A curve for the page: ``x``, ``y`` and, where points were averaged or an interval is known, ``lo`` and ``hi``.
Curve = dict[str, list[float]]


def number(value: Any) -> float | None:
    """A finite number as a float of six digits, else ``None``; the page's JSON cannot hold NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        return None
    return float(f"{value:.6g}")


def curve(rows: Sequence[Row], key: str, low: str | None = None, high: str | None = None) -> Curve | None:
    """One metric over ``step``, with the band between two others; ``None`` if no row has it."""
    points = [(number(row.get("step")), number(row.get(key)), row) for row in rows]
    found = [(x, y, row) for x, y, row in points if x is not None and y is not None]
    if not found:
        return None
    if low is not None and high is not None:
        ends = [(number(row.get(low)), number(row.get(high))) for _, _, row in found]
        out: dict[str, Any] = {"x": [x for x, _, _ in found], "y": [y for _, y, _ in found]}
        if any(a is not None for a, _ in ends):
            out |= {"lo": [a for a, _ in ends], "hi": [b for _, b in ends]}
        return out
    return thinned([x for x, _, _ in found], [y for _, y, _ in found])


def thinned(x: Sequence[float], y: Sequence[float]) -> Curve:
    """A curve of at most :data:`MOST_POINTS` points."""
    if len(x) <= MOST_POINTS:
        return {"x": list(x), "y": list(y)}
    out: Curve = {"x": [], "y": [], "lo": [], "hi": []}
    size = -(-len(x) // MOST_POINTS)
    for start in range(0, len(x), size):
        part = y[start : start + size]
        out["x"].append(x[min(len(x) - 1, start + size // 2)])
        out["y"].append(float(f"{sum(part) / len(part):.6g}"))
        out["lo"].append(min(part))
        out["hi"].append(max(part))
    return out


def curves(rows: Sequence[Row], keys: Iterable[str]) -> dict[str, Curve]:
    """The curves of those metrics that there are."""
    found = {key: curve(rows, key) for key in keys}
    return {key: one for key, one in found.items() if one is not None}
