"""Statistics over the arms of a comparison: each method before and after, its lift, and paired differences.

An arm is one run of one method with one run seed. All arms are measured on the same held-out problems, so that every
difference is taken problem by problem, and the scatter of the problems' difficulty cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_serl.evaluation.metrics import wilson

Values = NDArray[np.float64]
#: Figures per problem: whether the greedy answer is right, the share of right samples, whether the vote is right,
#: whether a sample is right, and how many different answers the samples hold.
FIGURES = ("pass@1", "mean@k", "maj@k", "pass@k", "distinct")
GOLD, RANDOM = "gold", "random"
_RESAMPLES = 2_000
_SEED = 20250520


@dataclass(frozen=True)
class Graded:
    """One evaluation of a set: ``figures`` holds (n,) float64 values over its labelled problems; ``k`` samples each."""

    figures: Mapping[str, Values]
    k: int

    @property
    def n(self) -> int:
        """Labelled problems."""
        return len(self.figures["pass@1"])


@dataclass(frozen=True)
class Arm:
    """What is known of one run.

    Attributes:
        method: Its method's name in the table.
        seed: Run seed.
        control: Whether the method is a control.
        state: ``done``, ``failed``, ``interrupted`` or ``waiting``.
        reason: One sentence on why it failed.
        before: First evaluation by set; empty if there was none.
        after: Evaluation of the last weights by set.
        rounds: Rounds played.
        tokens: Tokens written in them; ``None`` if unknown.
        seconds: Duration of the fit.
        health: Signs of health outside their bands at the end.
        learning_rate: The largest of its steps; ``None`` without a step.
    """

    method: str
    seed: int
    control: bool = False
    state: str = "done"
    reason: str = ""
    before: Mapping[str, Graded] = field(default_factory=dict)
    after: Mapping[str, Graded] = field(default_factory=dict)
    rounds: int = 0
    tokens: int | None = None
    seconds: float | None = None
    health: Sequence[str] = ()
    learning_rate: float | None = None


def read_graded(rows: Iterable[Mapping[str, Any]]) -> dict[str, Graded]:
    """The evaluations in rows of ``evaluation_items.jsonl`` by set; sets without a labelled problem are left out."""
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["label"] is not None:
            by_set.setdefault(row["set"], []).append(row)
    return {name: _graded(some) for name, some in by_set.items()}


def _graded(rows: Sequence[Mapping[str, Any]]) -> Graded:
    k = max(len(row["answers"]) for row in rows)
    greedy = any(row.get("greedy_right") is not None for row in rows)
    mean = _array(sum(row["right"]) / max(1, len(row["right"])) for row in rows)
    figures = {"pass@1": _array(bool(row.get("greedy_right")) for row in rows) if greedy else mean}
    if k:
        figures["mean@k"] = mean
        figures["maj@k"] = _array(bool(row["vote_right"]) for row in rows)
        figures["pass@k"] = _array(any(row["right"]) for row in rows)
        figures["distinct"] = _array(row["distinct"] for row in rows)
    return Graded(figures, k)


def _array(values: Iterable[float]) -> Values:
    return np.fromiter((float(value) for value in values), dtype=np.float64)


# -- intervals ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _counts(n: int, stream: int) -> NDArray[np.uint16]:
    """(R, n) how often each of n things is drawn in each resample; the same for every table of this size."""
    draws = np.random.default_rng([_SEED, stream]).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    return draws.astype(np.uint16)


def resampled(table: Values) -> Values:
    """(R,) means of a (runs, problems) table over resampled problems and, with several runs, resampled runs.

    Both are drawn with replacement and independently (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111). Tables of
    one shape share their resamples, so that differences and ratios of the results are paired.
    """
    runs, n = table.shape
    by_run = _counts(n, 0) @ table.T / n  # (R, runs)
    if runs == 1:
        return by_run[:, 0]
    return (by_run * _counts(runs, 1)).sum(axis=1) / runs


def interval(table: Values) -> list[float]:
    """The 95 % interval of the mean of a (runs, problems) table; see :func:`resampled`."""
    return _ends(resampled(table))


def _ends(means: Values) -> list[float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]


def share_interval(table: Values) -> list[float]:
    """The 95 % interval of a share; Wilson's where one run is right or wrong per problem, or all values are equal."""
    runs, n = table.shape
    flags = bool(np.isin(table, (0, 1)).all())
    if flags and (runs == 1 or table.min() == table.max()):
        return wilson(int(table.mean(axis=0).sum()), n)
    return interval(table)


# -- the comparison ----------------------------------------------------------------------------------------------------


def compare(arms: Sequence[Arm]) -> dict[str, Any]:
    """What the arms amount to, for each evaluation set, as plain numbers for a JSON file.

    ``sets`` has for each set ``n``, ``k`` and ``rows``, one for each method in the order of the arms. A row holds
    ``figures`` with ``before``, ``after`` and ``change`` (each ``value`` and ``interval``), ``share_of_gold``,
    ``against`` (paired differences of the change of pass@1 to those of the other methods), ``by_seed``, ``failed`` with
    a reason by seed, ``tokens`` and ``seconds`` (means over the runs that are done). A run that failed counts with the
    policy that it left, if that was measured. A method without a measured run has a row without figures.
    """
    names = list(dict.fromkeys(name for arm in arms for name in (*arm.before, *arm.after)))
    methods = list(dict.fromkeys(arm.method for arm in arms))
    sets = {}
    for name in names:
        lifts = {method: _changes(arms, method, name, "pass@1") for method in methods}
        measured = next(found for arm in arms for found in (arm.after.get(name), arm.before.get(name)) if found)
        rows = [_row([arm for arm in arms if arm.method == method], name, lifts) for method in methods]
        sets[name] = {"n": measured.n, "k": measured.k, "rows": rows}
    without = [_facts([arm for arm in arms if arm.method == method]) for method in methods]
    return {"sets": sets} if sets else {"sets": {"": {"n": 0, "k": 0, "rows": without}}}


def _pairs(arms: Sequence[Arm], method: str, name: str, figure: str) -> dict[int, tuple[Values, Values]]:
    """The (n,) values of a figure before and after, by run seed, of the runs that have ended and have both."""
    return {
        arm.seed: (arm.before[name].figures[figure], arm.after[name].figures[figure])
        for arm in arms
        if arm.method == method and arm.state in ("done", "failed") and figure in _figures(arm, name)
    }


def _figures(arm: Arm, name: str) -> set[str]:
    both = arm.before.get(name), arm.after.get(name)
    return set() if None in both else set(both[0].figures) & set(both[1].figures)  # type: ignore[union-attr]


def _changes(arms: Sequence[Arm], method: str, name: str, figure: str) -> dict[int, Values]:
    return {seed: after - before for seed, (before, after) in _pairs(arms, method, name, figure).items()}


def _facts(arms: Sequence[Arm]) -> dict[str, Any]:
    """What a row says of its runs apart from what was measured."""
    done = [arm for arm in arms if arm.state == "done"]
    return {
        "method": arms[0].method,
        "control": arms[0].control,
        "done": [arm.seed for arm in done],
        "open": [arm.seed for arm in arms if arm.state in ("waiting", "interrupted")],
        "failed": {
            str(arm.seed): {"reason": arm.reason, "rounds": arm.rounds} for arm in arms if arm.state == "failed"
        },
        "tokens": _mean([arm.tokens for arm in done]),
        "seconds": _mean([arm.seconds for arm in done]),
        "health": sorted({sign for arm in done for sign in arm.health}),
        "learning_rate": max((arm.learning_rate for arm in done if arm.learning_rate is not None), default=None),
    }


def _row(arms: Sequence[Arm], name: str, lifts: Mapping[str, Mapping[int, Values]]) -> dict[str, Any]:
    method = arms[0].method
    row = _facts(arms)
    figures = {}
    for figure in FIGURES:
        pairs = list(_pairs(arms, method, name, figure).values())
        if pairs:
            before, after = (np.stack(values) for values in zip(*pairs, strict=True))
            ends = interval if figure == "distinct" else share_interval
            figures[figure] = {"before": _value(before, ends), "after": _value(after, ends)}
            figures[figure]["change"] = _value(after - before, interval)
    row["figures"] = figures
    pairs_by_seed = _pairs(arms, method, name, "pass@1")
    row["by_seed"] = {
        str(seed): {"before": float(b.mean()), "after": float(a.mean())} for seed, (b, a) in pairs_by_seed.items()
    }
    row["share_of_gold"] = _share(lifts[method], lifts.get(GOLD, {}))
    row["against"] = {
        other: _value(np.stack([lifts[method][seed] - theirs[seed] for seed in common]), interval)
        for other, theirs in lifts.items()
        if other != method and (common := sorted(set(lifts[method]) & set(theirs)))
    }
    return row


def _value(table: Values, ends: Any) -> dict[str, Any]:
    return {"value": float(table.mean()), "interval": ends(table)}


def _share(mine: Mapping[int, Values], gold: Mapping[int, Values]) -> dict[str, Any] | None:
    """The share of the gold arm's lift, over the run seeds of both; ``None`` where gold did not surely lift."""
    common = sorted(set(mine) & set(gold))
    if not common:
        return None
    table, reference = (np.stack([lifts[seed] for seed in common]) for lifts in (mine, gold))
    draws = resampled(reference)
    if _ends(draws)[0] <= 0:
        return None
    lifted = draws > 0  # nearly all
    ratios = resampled(table)[lifted] / draws[lifted]
    return {"value": float(table.mean() / reference.mean()), "interval": _ends(ratios)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
