"""The tables of a comparison, as Markdown and as cells for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_serl.evaluation.comparison import GOLD, RANDOM

# How much more a method may write than the random control before its row says so.
_MUCH_MORE = 1.3
NOTHING = "–"


def columns(k: int) -> list[str]:
    """Headings of the main table."""
    sampled = [f"mean@{k}", f"pass@{k}", "answers"] if k else []
    return ["method", "runs", "before", "after", "lift", "of gold", *sampled, "tokens", "seconds", "notes"]


def cells(row: Mapping[str, Any], k: int, random: Mapping[str, Any] | None) -> list[str]:
    """The cells of a row under :func:`columns`; shares in %, changes in points, 95 % intervals in brackets."""
    figures, share = row.get("figures", {}), row.get("share_of_gold")
    one = figures.get("pass@1")
    out = [row["method"], str(len(row.get("by_seed", ())))]
    if one is None:
        out += [NOTHING] * 4
    else:
        out += [_share(one["before"]), _share(one["after"]), points(one["change"])]
        out.append(NOTHING if share is None or row["method"] == GOLD else f"{_whole(share)} %")
    if k:
        out += [_from_to(figures.get(name)) for name in ("mean@k", "pass@k")]
        distinct = figures.get("distinct")
        both = [f"{distinct[when]['value']:.1f}" for when in ("before", "after")] if distinct else []
        out.append(" → ".join(both) or NOTHING)
    out.append(NOTHING if row["tokens"] is None else f"{row['tokens']:,.0f}")
    out.append(NOTHING if row["seconds"] is None else f"{row['seconds']:.0f}")
    return [*out, "; ".join(notes(row, random))]


def notes(row: Mapping[str, Any], random: Mapping[str, Any] | None) -> list[str]:
    """What the figures of a row do not say: failures, runs to come, signs of health, how it differs from the control.

    Tokens beyond those of ``random`` are named, and another learning rate than its: a method that trains at a hundredth
    of the others' rate has not been compared with them.
    """
    said = []
    for seed, fault in row["failed"].items():
        rounds = f"{fault['rounds']} round{'' if fault['rounds'] == 1 else 's'}"
        said.append(f"seed {seed} failed after {rounds}: {fault['reason']}")
    if row["open"]:
        said.append(f"to come: seed {', '.join(map(str, row['open']))}")
    if row["health"]:
        said.append(f"health: {', '.join(row['health'])}")
    tokens = random["tokens"] if random else None
    if tokens and row["tokens"] and row["tokens"] > _MUCH_MORE * tokens:
        said.append(f"writes {row['tokens'] / tokens:.1f} times the tokens of {RANDOM}")
    rate = random["learning_rate"] if random else None
    if rate and row["learning_rate"] and row["learning_rate"] != rate:
        said.append(f"trained at learning rate {row['learning_rate']:g}, {RANDOM} at {rate:g}")
    return said


def row_of_random(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the random control, whose tokens and learning rate those of the others are compared with."""
    return next((row for row in rows if row["method"] == RANDOM), None)


def markdown(result: Mapping[str, Any]) -> str:
    """The whole comparison: per evaluation set the main table, the paired differences, and the runs one by one."""
    parts = ["# Comparison of methods", result["about"]]
    for name, one in result["sets"].items():
        rows, k = one["rows"], one["k"]
        if name:
            parts.append(f"## {name}: {one['n']} held-out problems")
        random = row_of_random(rows)
        parts.append(_table(columns(k), [cells(row, k, random) for row in rows]))
        parts += _differences(rows) + _runs(rows)
    return "\n\n".join([*parts, _READING]) + "\n"


_READING = (
    "Before, after and lift are greedy pass@1 in percent and points; brackets are 95 % intervals over problems and, "
    "with several run seeds, over run seeds too. With one run seed they do not hold the scatter between runs. "
    "`of gold` is the share of the gold arm's lift, `answers` the number of different answers among the samples of a "
    "problem, `tokens` what a run wrote in its rounds, evaluations not counted."
)


def _differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of paired differences to the controls and to the first method."""
    first = next((row["method"] for row in rows if not row["control"]), None)
    others = [name for name in dict.fromkeys((RANDOM, GOLD, first)) if any(name in r.get("against", {}) for r in rows)]
    shown = [row for row in rows if row.get("against")]
    if not others or not shown:
        return []
    body = [[row["method"], *(points(row["against"].get(other)) for other in others)] for row in shown]
    return ["Paired differences of the lift, in points:", _table(["method", *(f"to {o}" for o in others)], body)]


def _runs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of single runs, where there are several run seeds."""
    seeds = list(dict.fromkeys(seed for row in rows for seed in row.get("by_seed", {})))
    if len(seeds) < 2:
        return []
    body = []
    for row in rows:
        runs = row.get("by_seed", {})
        pairs = [(runs[s]["before"], runs[s]["after"]) if s in runs else None for s in seeds]
        body.append([row["method"], *(NOTHING if p is None else f"{100 * p[0]:.1f} → {100 * p[1]:.1f}" for p in pairs)])
    return ["Each run, greedy pass@1:", _table(["method", *(f"seed {s}" for s in seeds)], body)]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(value: Mapping[str, Any] | None) -> str:
    """A change with its interval, in points."""
    if value is None:
        return NOTHING
    low, high = value["interval"]
    return f"{100 * value['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _share(value: Mapping[str, Any]) -> str:
    low, high = value["interval"]
    return f"{100 * value['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _whole(value: Mapping[str, Any]) -> str:
    low, high = value["interval"]
    return f"{100 * value['value']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def _from_to(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return NOTHING
    before, after = (100 * figure[when]["value"] for when in ("before", "after"))
    return f"{before:.1f} → {after:.1f}"
