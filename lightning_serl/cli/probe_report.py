"""The table that ``lightning-serl probe`` prints."""

from __future__ import annotations

from typing import Any

from lightning_serl.callbacks.run_folder.phase_clock import duration
from lightning_serl.cli.probe_figures import Answers, Figures
from lightning_serl.policy.memory_plan import gib

_REASONS = {"no_spread": "all scored alike", "no_answer": "without an answer"}


def report_lines(figures: Figures, sentence: str, changes: list[str], cost: dict[str, Any] | str) -> list[str]:
    """The figures as a plain table, the verdict, and what to change; ``cost`` is a sentence where it is not known."""
    probed = figures.probed
    lines = [
        f"probe: {figures.judged.problems} problems with {probed.samples} answers each at temperature "
        f"{probed.temperature:g}; {probed.tokens:,} tokens written",
        "",
        *_columns(figures),
        "",
        *_round(figures),
    ]
    if figures.sweep:
        lines += ["", *_sweep(figures)]
    lines += ["", *_cost(cost)]
    if probed.stopped:
        lines.append(f"cut short by --probe.tokens: {', '.join(probed.stopped)}")
    lines += ["", f"verdict: {sentence}"]
    return lines + [f"change: {said}" for said in changes]


def _columns(figures: Figures) -> list[str]:
    """The answers to seeds and to written problems side by side."""
    shown = [("seeds", figures.seeds), ("written", figures.written)]
    shown = [(name, one) for name, one in shown if one.problems]
    lines = [f"{'answers':<44}" + "".join(f"{name:>10}" for name, _ in shown)]

    def row(words: str, value: Any) -> None:
        lines.append(f"  {words:<42}" + "".join(f"{value(one):>10}" for _, one in shown))

    row("problems", lambda a: str(a.problems))
    row("readable", lambda a: _percent(a.readable))
    row("cut off by data.max_tokens", lambda a: _percent(a.truncated))
    row("ended, but cannot be read", lambda a: _percent(a.unread))
    row("agreement: in the largest class", lambda a: _percent(a.agreement))
    row("in the second largest", lambda a: _percent(a.second))
    row("distinct answers to a problem", lambda a: f"{a.classes:.1f}")
    row("same vote from half of the answers", lambda a: _percent(a.trainability.half_vote))
    row("same vote on different problems", lambda a: _percent(a.trainability.by_chance))
    row("tokens of an answer", lambda a: f"{a.mean_tokens:.0f}")
    row("trainability", _trainability)
    return lines


def _trainability(answers: Answers) -> str:
    return f"{answers.trainability.figure:.2f}"


def _round(figures: Figures) -> list[str]:
    """What a round would train on."""
    yields, prompts = figures.yields, figures.setting.prompts
    dropped = ", ".join(
        f"{_REASONS.get(reason, reason.replace('_', ' '))} {_percent(share)}"
        for reason, share in sorted(yields.reasons.items(), key=lambda item: -item[1])
    )
    lines = [
        f"a round: {yields.trained:.1f} groups trained of {prompts} wanted, {yields.asked:.0f} problems answered; "
        f"{_percent(yields.kept)} kept" + (f" (dropped: {dropped})" if dropped else "")
    ]
    probed = figures.probed
    if probed.proposed:
        rejected = ", ".join(f"{reason} {count}" for reason, count in probed.rejected.most_common(4))
        lines.append(
            f"writing: {probed.proposed} problems proposed, {_percent(yields.accepted or 0.0)} accepted"
            + (f" (rejected: {rejected})" if rejected else "")
            + (f"; {yields.proposals:.0f} are written for a round" if yields.proposals else "")
        )
    return lines


def _sweep(figures: Figures) -> list[str]:
    """The temperatures side by side."""
    count = figures.sweep[0].answers.problems
    head = f"temperature ({count} problems)"
    lines = [f"{head:<28}{'readable':>10}{'cut off':>10}{'agree':>8}{'same vote':>11}{'trainability':>14}"]
    for one in figures.sweep:
        answers = one.answers
        same = "" if one.same_vote is None else _percent(one.same_vote)
        mark = " (the run's)" if one.temperature == figures.probed.temperature else ""
        lines.append(
            f"  {f'{one.temperature:g}{mark}':<26}{_percent(answers.readable):>10}{_percent(answers.truncated):>10}"
            f"{_percent(answers.agreement):>8}{same:>11}{answers.trainability.figure:>14.2f}"
        )
    return lines


def _cost(cost: dict[str, Any] | str) -> list[str]:
    """What the whole run would take."""
    if isinstance(cost, str):
        return [f"the run: {cost}"]
    written = f"{cost['round_tokens']:,.0f} tokens a round"
    memory = f"memory {gib(cost['memory'])} GiB" + ("" if cost["fits"] else ", which does not fit")
    if cost["run_seconds"] is None:
        return [f"the run: without an end, {duration(cost['round_seconds'])} and {written}; {memory}"]
    return [
        f"the run: {cost['rounds']:.0f} rounds, {duration(cost['run_seconds'])} on {cost['device']}, "
        f"{written}, {cost['run_tokens']:,.0f} in all; {memory} (lightning-serl plan says more)"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
