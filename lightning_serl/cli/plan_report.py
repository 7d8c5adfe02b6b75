"""The table that ``lightning-serl plan`` prints, and the same as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from lightning_serl.callbacks.foresight import Division
from lightning_serl.callbacks.run_folder.phase_clock import duration
from lightning_serl.callbacks.run_folder.profile import in_words
from lightning_serl.cli.plan_work import Work
from lightning_serl.policy.memory_plan import Plan, gib
from lightning_serl.policy.roofline import Machine, Round, Shape

_PARTS = ("weights", "gradients", "optimizer", "frozen", "activations", "allocator", "scoring", "engine")
_WORDS = {"frozen": "frozen copies", "scoring": "log-probs", "engine": "writing"}


@dataclass(frozen=True)
class Report:
    """Everything that a plan says."""

    model: str
    shape: Shape
    device: str
    nodes: int
    devices: int  # of each node
    servers: int
    memory: Plan  # for the longest texts that the options allow
    expected: Plan  # for the texts that the plan is made with
    free: int
    libraries: int  # bytes that the process holds besides a model, which are no longer free
    fits: bool
    own: bool  # whether the policy itself writes
    division: Division
    responses: int  # of a micro-batch
    work: Work
    played: Round
    rounds: float
    changes: tuple[str, ...]
    assumed: tuple[str, ...]
    machine: Machine

    @property
    def cards(self) -> int:
        """Devices that train or write."""
        return self.nodes * self.devices + self.servers

    @property
    def seconds(self) -> float:
        """Seconds of the whole run; infinite without an end."""
        return self.rounds * self.played.seconds + self.work.evaluations * self.played.evaluation

    def tokens(self) -> dict[str, float]:
        """Tokens of the parts of a round: written, read again or trained on."""
        work = self.work
        wanted = work.steps.reference + work.steps.old
        return {
            "writing": work.calls * work.texts.written,
            "answering": work.answers.written,
            "probing": 0.0 if work.probe is None else work.probes * work.probe.written,
            "logprobs": wanted * work.steps.tokens,
            "training": work.steps.passes * work.steps.tokens,
        }


def report_lines(report: Report) -> list[str]:
    """The plan as a plain table."""
    shape, division, played = report.shape, report.division, report.played
    trained = f"{_count(shape.adapter)} of an adapter trained" if shape.adapter else "all trained"
    where = f"{report.nodes} x {report.devices} {report.device}" + f" and {report.servers} servers" * bool(
        report.servers
    )
    lines = [f"plan: {report.model} ({_count(shape.total)} weights, {trained}) on {where}", ""]
    lines.append(f"{'memory of a device':<24}{'GiB':>10}")
    held = report.libraries
    if held:
        lines.append(f"  {'libraries':<22}{gib(held):>10}")
    for name in _PARTS:
        if amount := getattr(report.memory, name):
            lines.append(f"  {_WORDS.get(name, name):<22}{gib(amount):>10}")
    lines.append(f"  {'peak':<22}{gib(held + report.memory.peak):>10}  of {gib(held + report.free)} free")
    lines.append(f"  {'expected':<22}{gib(held + report.expected.peak):>10}  with texts as long as below")
    if report.memory.host:
        lines.append(f"  {'frozen copies on CPU':<22}{gib(report.memory.host):>10}")
    rows = f"; {division.rows} completions written at one time" if report.own else ""
    lines.append(f"  {division.micro_batches} micro-batches of {report.responses} responses{rows}")
    if not report.fits:
        lines.append("  it does not fit; the times below are those of a larger device that is as fast")
    lines += ["", f"{'a round':<24}{'tokens':>10}{'seconds':>10}{'share':>8}"]
    tokens, whole = report.tokens(), sum(played.parts.values())
    for name, seconds in played.parts.items():
        count = f"{tokens[name]:,.0f}" if tokens.get(name) else ""
        lines.append(f"  {in_words(name):<22}{count:>10}{_short(seconds):>10}{100 * seconds / whole:>6.0f} %")
    together = "  (the next round is written while one trains)" if played.ahead else ""
    lines.append(f"  {'whole':<22}{'':>10}{_short(played.seconds):>10}{together}")
    lines += ["", *_run(report)]
    share = 100 * played.parts[played.limit] / whole
    lines.append(f"what limits: {in_words(played.limit)}, {share:.0f} % of a round")
    lines += [f"change: {said}" for said in report.changes]
    lines += [f"assumed: {said}" for said in report.assumed]
    return lines


def _run(report: Report) -> list[str]:
    """The whole run."""
    each = report.work.evaluations
    lines = [f"an evaluation: {duration(report.played.evaluation)}, {each:.0f} of them"] if each else []
    if not isfinite(report.seconds):
        return [*lines, f"the run: {duration(report.played.seconds)} for each round, without an end"]
    hours = report.seconds / 3600
    cost = "" if report.device == "cpu" else f", {hours * report.cards:.1f} card hours"
    return [*lines, f"the run: {report.rounds:.0f} rounds, {duration(report.seconds)} ({hours / 24:.2f} days){cost}"]


def report_values(report: Report) -> dict[str, Any]:
    """The plan as values that JSON can hold; seconds, bytes and tokens."""
    ends = isfinite(report.seconds)
    memory = {name: getattr(report.memory, name) for name in (*_PARTS, "host", "peak")}
    # on a CPU the libraries are part of what is seen of the process from outside
    memory |= {"expected": report.expected.peak, "free": report.free, "libraries": report.libraries}
    return {
        "model": report.model,
        "device": {"name": report.device, "nodes": report.nodes, "devices": report.devices, "servers": report.servers},
        "memory": memory,
        "fits": report.fits,
        "division": asdict(report.division) | {"responses": report.responses},
        "tokens": {name: round(count) for name, count in report.tokens().items()},
        "seconds": {name: round(s, 4) for name, s in report.played.parts.items()},
        "round_seconds": round(report.played.seconds, 4),
        "evaluation_seconds": round(report.played.evaluation, 4),
        "limit": report.played.limit,
        "rounds": report.rounds if ends else None,
        "run_seconds": round(report.seconds, 1) if ends else None,
        "card_hours": round(report.seconds / 3600 * report.cards, 2) if ends and report.device != "cpu" else None,
        "changes": list(report.changes),
        "assumed": list(report.assumed),
        "machine": asdict(report.machine),
    }


def _count(weights: int) -> str:
    """A number of weights with its unit."""
    return f"{weights / 1e9:.2f} B" if weights >= 1e9 else f"{weights / 1e6:.2f} M"


def _short(seconds: float) -> str:
    """Seconds with about three digits."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"
