"""Everything that the page shows of one run, as values for JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from lightning_serl.report.folder import Row, RunFolder
from lightning_serl.report.problems import BINS, OUTCOMES, Story, reason_table
from lightning_serl.report.series import Curve, curve, curves, number
from lightning_serl.report.signs import BANDS, Sign

#: Metrics that the page draws over the optimizer steps.
DRAWN = (
    "reward", "reward_std", "frac_reward_zero_std", "loss", "kl", "entropy", "grad_norm", "learning_rate",
    "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    "serl/vote/agreement_mean", "serl/vote/no_answer_frac", "serl/vote/unique_answers",
    "serl/filter/accepted_rate", "serl/filter/yield", "serl/pool/size", "serl/pool/queue", "serl/pool/unique_4grams",
    "serl/pool/words_mean", "serl/pool/nearest_mean", "serl/pool/exemplar_age", "serl/round/groups",
    "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
    "sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/max", "serl/sampling/effective_sample_size",
    "serl/rollout/policy_version_lag", "time/step",
)  # fmt: skip
_FIGURES = ("pass@1", "mean@k", "maj@k", "pass@k", "agreement", "vote_accuracy", "no_answer")
_CONTROLS = ("RandomReward", "FormatReward")
# Most columns of a figure by rounds; neighbouring rounds are added up beyond.
_MOST_COLUMNS = 120
# Signs of single optimizer steps; the others are averaged over groups.
_OF_STEPS = ("kl_slope", "entropy_ratio", "same_vote_share")


def content_of(run: RunFolder, story: Story, state: str) -> dict[str, Any]:
    """The figures of one run; ``state`` says how it ended, or that it has not."""
    parts = sorted({key for row in run.metrics for key in row if key.startswith("time/") and key != "time/step"})
    return {
        "name": run.name,
        "folder": str(run.root),
        "state": state,
        "about": _about(run, story),
        "control": _is_control(run),
        "method": _method(run),
        "seed": run.option("seed_everything"),
        "steps": max((int(n) for row in run.metrics if (n := number(row.get("step"))) is not None), default=0),
        "rounds": len(story.rounds),
        "sets": _sets(run),
        "curves": _curves(run, parts),
        "health": _health(run, story),
        "rolled_back": [{k: number(row.get(k)) for k in ("step", "to_step", "change")} for row in story.rolled_back],
        "counts": _counts(story),
        "by_round": _by_round(story),
        "reasons": reason_table(story),
        "times": _times(run, parts),
        "memory": run.summary.get("memory") if isinstance(run.summary.get("memory"), dict) else None,
        "seconds": number(run.summary.get("seconds")),
        "unreadable": run.unreadable,
        "dtype": run.option("model.dtype"),
    }


def _curves(run: RunFolder, parts: list[str]) -> dict[str, Curve]:
    found = curves(run.metrics, (*DRAWN, *parts))
    accepted = "serl/filter/accepted_rate"
    # of a round that wrote nothing there is no share, though its row says 0
    if (one := curve([row for row in run.metrics if row.get("serl/filter/proposed") != 0], accepted)) is not None:
        found[accepted] = one
    return found


def reward_name(run: RunFolder) -> str:
    """The reward as the user would name it."""
    given = run.option("data.reward")
    if isinstance(given, dict):
        given = given.get("class_path")
    return "default (labels where seeds have them, else the vote)" if given is None else str(given).rpartition(".")[2]


def _is_control(run: RunFolder) -> bool:
    arm = _arm(run)
    if "control" in arm:
        return bool(arm["control"])
    return reward_name(run) in _CONTROLS or run.option("model.optimizer.init_args.lr") == 0


def _method(run: RunFolder) -> str:
    return str(_arm(run).get("method") or reward_name(run).partition(" (")[0])


def _arm(run: RunFolder) -> Row:
    """What ``compare`` notes of one of its runs."""
    try:
        found = json.loads((run.root / "arm.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _about(run: RunFolder, story: Story) -> list[list[str]]:
    """The facts at the top, as pairs of a name and a value."""
    option = run.option
    lora = option("model.lora")
    trained = f"adapter, rank {lora.get('r')}" if isinstance(lora, dict) and lora.get("r") else "all weights"
    prompts, samples = option("data.round.prompts_per_round"), option("data.round.samples_per_prompt")
    source = option("data.source")
    rate = next((r for row in run.metrics if (r := number(row.get("learning_rate"))) is not None), None)
    engine = option("data.engine")
    rows = [
        ("model", option("model.model_name_or_path")),
        ("trained", trained if run.options else None),
        ("reward", reward_name(run) if run.options else None),
        ("objective", option("model.objective.name")),
        ("problems from", source.get("class_path", "").rpartition(".")[2] if isinstance(source, dict) else source),
        ("seeds", option("data.seeds")),
        ("a round", f"{prompts} problems x {samples} answers" if prompts and samples else None),
        ("longest answer", f"{option('data.max_tokens')} tokens" if option("data.max_tokens") else None),
        ("learning rate", None if rate is None else f"{rate:g} (first step)"),
        ("KL coefficient", option("model.objective.beta")),
        ("engine", engine.get("class_path", "").rpartition(".")[2] if isinstance(engine, dict) else engine),
        ("run seed", option("seed_everything")),
        ("rounds in the ledger", len(story.rounds) or None),
    ]
    return [[name, str(value)[:300]] for name, value in rows if value is not None]


def _sets(run: RunFolder) -> list[dict[str, Any]]:
    """Every evaluation set with its figures over the steps, intervals included where they are known."""
    names = dict.fromkeys(
        key.split("/", 1)[1].rpartition("/")[0] for row in run.metrics for key in row if key.startswith("val/")
    )
    out = [_set(run, name) for name in names]
    out += [one for name in run.evaluation if name not in names and (one := _only_evaluated(run, name))]
    return [one for one in out if one["figures"]]


def _set(run: RunFolder, name: str) -> dict[str, Any]:
    prefix = f"val/{name}"
    rows = [row for row in run.metrics if f"{prefix}/n" in row]
    found = run.evaluation.get(name)
    last: Row = found if isinstance(found, dict) else {}
    known = {}
    for figure in _FIGURES:
        rows_of = [dict(row) for row in rows]
        # runs before intervals were recorded have those of the last evaluation
        ends = last.get("intervals", {}).get(figure) if rows_of else None
        key = f"{prefix}/{figure}"
        if ends and f"{key}_low" not in rows_of[-1] and rows_of[-1].get(key) == last.get(figure):
            rows_of[-1] |= {f"{key}_low": ends[0], f"{key}_high": ends[1]}
        if (drawn := curve(rows_of, key, f"{key}_low", f"{key}_high")) is not None:
            known[figure] = drawn
    facts = rows[-1] if rows else {}
    return {
        "name": name,
        "n": facts.get(f"{prefix}/n"),
        "k": facts.get(f"{prefix}/k"),
        "labelled": facts.get(f"{prefix}/labelled"),
        "figures": known,
        "pass_at": [_pass_at(row, prefix) for row in (rows[0], rows[-1])] if rows else [],
    }


def _pass_at(row: Row, prefix: str) -> dict[str, Any]:
    """pass@k over k at one evaluation."""
    k, found = row.get(f"{prefix}/k"), {}
    for key, value in row.items():
        size = key.removeprefix(f"{prefix}/pass@")
        if key.startswith(f"{prefix}/pass@") and size.isdecimal() and size != "1":
            found[int(size)] = number(value)
    if isinstance(k, int) and k > 0:
        found[1], found[k] = number(row.get(f"{prefix}/mean@k")), number(row.get(f"{prefix}/pass@k"))
    pairs = sorted((size, value) for size, value in found.items() if value is not None)
    return {"step": row.get("step"), "x": [size for size, _ in pairs], "y": [value for _, value in pairs]}


def _only_evaluated(run: RunFolder, name: str) -> dict[str, Any] | None:
    """A set of ``validate`` or ``test``, which leave no metrics."""
    facts = run.evaluation[name]
    if not isinstance(facts, dict):
        return None
    known: dict[str, Curve] = {}
    for figure in _FIGURES:
        if (value := number(facts.get(figure))) is not None:
            known[figure] = {"x": [0], "y": [value]}
            if ends := facts.get("intervals", {}).get(figure):
                known[figure] |= {"lo": [number(ends[0]) or 0.0], "hi": [number(ends[1]) or 0.0]}
    at = {int(k): number(v) for k, v in facts.get("pass_at", {}).items() if str(k).isdecimal()}
    pairs = sorted((size, value) for size, value in at.items() if value is not None)
    both = [{"step": None, "x": [s for s, _ in pairs], "y": [v for _, v in pairs]}]
    return {"name": name, **{k: facts.get(k) for k in ("n", "k", "labelled")}, "figures": known, "pass_at": both}


def _health(run: RunFolder, story: Story) -> list[dict[str, Any]]:
    """Every sign that was measured, with its band and the warnings that the run logged."""
    out = []
    rounds = sorted(story.answered)
    for name, band in BANDS.items():
        key = f"serl/health/{name}"
        rows = [row for row in run.metrics if number(row.get(key)) is not None]
        if not rows or (drawn := curve(rows, key)) is None:
            continue
        sign, warnings, crossed = Sign(name), [], []
        for place, row in enumerate(rows):
            value = number(row[key])
            groups = story.answered[rounds[place]] if name not in _OF_STEPS and place < len(rounds) else 1
            said = None if value is None else sign.enter(value, groups)
            if said is not None:
                warnings.append({"step": row.get("step"), "text": said.partition(":")[0]})
                crossed.append(row.get("step"))
        high = sign.upper
        out.append(
            {
                "name": name,
                "low": band.low,
                "high": None if high is None else number(high),
                "advice": band.advice,
                "curve": drawn,
                "warnings": warnings,
                "outside": sign.outside is not None,
                "last": number(rows[-1][key]),
            }
        )
    return out


def _counts(story: Story) -> dict[str, int]:
    found = Counter(p.outcome for p in story.problems.values())
    return {"proposed": len(story.problems), **{name: found[name] for name in OUTCOMES}}


def _by_round(story: Story) -> dict[str, Any]:
    """Outcomes and difficulty by the round of the proposal or vote, rounds added up where there are too many."""
    numbers = sorted(story.rounds)
    size = max(1, -(-len(numbers) // _MOST_COLUMNS))
    place = {number_: index // size for index, number_ in enumerate(numbers)}
    columns = -(-len(numbers) // size)
    outcomes = {name: [0] * columns for name in OUTCOMES}
    for problem in story.problems.values():
        if problem.round in place:
            outcomes[problem.outcome][place[problem.round]] += 1
    histogram = [[0] * BINS for _ in range(columns)]
    for number_, bins in story.histogram.items():
        column = histogram[place[number_]]
        column[:] = [a + b for a, b in zip(column, bins, strict=True)]
    reasons = {f"{kind}: {reason}": [0] * columns for kind, reason in story.reasons}
    for (kind, reason), counts in story.reasons.items():
        for number_, count in counts.items():
            reasons[f"{kind}: {reason}"][place[number_]] += count
    first = [numbers[index * size] for index in range(columns)]
    return {"first": first, "size": size, "outcomes": outcomes, "histogram": histogram, "reasons": reasons}


def _times(run: RunFolder, parts: list[str]) -> dict[str, float]:
    """Seconds by part: those of the summary, of a run without one the sums of the metrics."""
    given = run.summary.get("times")
    if isinstance(given, dict) and given:
        return {str(name): value for name, seconds in given.items() if (value := number(seconds)) is not None}
    sums = {name: sum(number(row.get(name)) or 0.0 for row in run.metrics) for name in parts}
    return {name.removeprefix("time/"): round(value, 3) for name, value in sums.items() if value}
