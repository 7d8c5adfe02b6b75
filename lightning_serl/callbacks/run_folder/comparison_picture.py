"""Draws a comparison: accuracy before and after, and the lift with its interval, a line for each method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_serl.checkpoints.atomic_write import write_whole

_METHOD, _CONTROL, _BEFORE = "tab:blue", "tab:gray", "lightgray"


def draw_comparison(result: Mapping[str, Any], target: Path) -> bool:
    """Draw the first evaluation set of a comparison as a PNG; returns whether there was anything to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    name, one = next(iter(result["sets"].items()))
    rows = [row for row in one["rows"] if row.get("figures")]
    if not rows:
        return False
    panels = [("pass@1", "greedy pass@1, %")]
    panels += [("pass@k", f"pass@{one['k']}, %")] if one["k"] else []
    figure, axes = pyplot.subplots(
        1, len(panels) + 1, figsize=(4.2 * (len(panels) + 1), 1.4 + 0.34 * len(rows)), sharey=True
    )
    places = range(len(rows) - 1, -1, -1)
    for axis, (key, title) in zip(axes, panels, strict=False):
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlim(0, 100)
        for place, row in zip(places, rows, strict=True):
            if key in row["figures"]:
                _draw_both(axis, place, row["figures"][key], _colour(row))
    lift = axes[-1]
    lift.set_title("lift of greedy pass@1, points", fontsize=10, loc="left")
    lift.axvline(0, color="black", linewidth=0.8)
    for place, row in zip(places, rows, strict=True):
        _draw_point(lift, place, row["figures"]["pass@1"]["change"], _colour(row))
    axes[0].set_yticks(list(places), [row["method"] for row in rows], fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"{name}: {one['n']} held-out problems, 95 % intervals; before in light gray, controls in gray", fontsize=9
    )
    figure.tight_layout()
    write_whole(target, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None}))
    pyplot.close(figure)
    return True


def _colour(row: Mapping[str, Any]) -> str:
    return _CONTROL if row["control"] else _METHOD


def _draw_both(axis: Any, place: int, figure: Mapping[str, Any], colour: str) -> None:
    """A figure before and after."""
    ends = [100 * figure[when]["value"] for when in ("before", "after")]
    axis.plot(ends, [place, place], color=colour, linewidth=1, alpha=0.5)
    axis.plot(ends[0], place, "o", color=_BEFORE, markersize=5)
    _draw_point(axis, place, figure["after"], colour)


def _draw_point(axis: Any, place: int, value: Mapping[str, Any], colour: str) -> None:
    low, high = value["interval"]
    middle = 100 * value["value"]
    spread = [[max(0.0, middle - 100 * low)], [max(0.0, 100 * high - middle)]]
    axis.errorbar(middle, place, xerr=spread, fmt="o", color=colour, markersize=5, capsize=2, linewidth=1)
