"""How far our votes and verdicts are from those of SeRL's published code, and why, on recorded responses.

    python benchmarks/parity.py --data ../shared/data [NAME ...]

prints a markdown report; ``docs/parity.md`` is its output for the recorded files named there. Every reason is derived
from what both sides read and which pairs they equate, so the same command explains files it has never seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from lightning_serl.answers import MathGrader
from lightning_serl.answers.reading.announced import is_prose
from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.rewards import MajorityVote, PairwiseVote, VerifiableReward
from lightning_serl.types import Group

MODES = ("exact", "fast")
SECONDS = 5.0
SHOWN = 48
HEAD = """# Parity with the published code

Written by `python benchmarks/parity.py --data ../shared/data`; a test compares the rows below with what it finds.

## Published rules and their switches

`preset:as-published` switches all of them on; [recipes.md](recipes.md) compares each with the default.

| rule | code | switch |
|---|---|---|
| few-shot prompt and parser | `prompts/serl.py` | `data.writing.style: serl` |
| quality, novelty and difficulty filters | `callbacks/filters/serl.py` | `style: serl` of each filter |
| majority vote | `rewards/serl.py` | `data.reward: PairwiseVote` |
| verdicts against gold labels | `rewards/serl.py` | `data.reward: RuleReward`, `data.evaluation.scoring: serl` |
| order of a round | `datamodules/rounds/` | `data.round.style: serl` |
| advantages | `objectives/options.py` | `model.objective.style: serl` |
| learning rate | `objectives/schedule.py` | `model.lr_scheduler: lightning_serl.objectives.CosineWithFloor` |

## Recorded responses

The published vote reads each answer from problem and response together, equates texts pair by pair and rewards the
first largest row of that matrix; `PairwiseVote` is that rule. `MajorityVote` reads the response alone and forms
classes; grading against gold labels (`VerifiableReward`, default mode) reads it alone, too. A group is *untied* if no
response outside the published winner's row has as many matches as the winner. Responses are counted from 0.
"""


def load(path: Path) -> Iterator[tuple[dict[str, Any], Group]]:
    """The rows of one recorded file with their groups, labelled with the boxed gold answer."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts = [response["text"] for response in row["responses"]]
        yield row, Group.from_texts(row["problem"], texts, label=f"\\boxed{{{row['gold']}}}")


def untied(reference: dict[str, Any]) -> bool:
    """Whether the published winner's row holds every response with as many matches as the winner."""
    top = max(reference["counts"])
    return all(reward or count < top for count, reward in zip(reference["counts"], reference["reward"], strict=True))


@dataclass
class Reading:
    """What the published rule, math-verify alone and we read from one response; keys are equal for equal extractions.

    Attributes:
        published: From problem and response together.
        alone: By math-verify, from the response alone.
        ours: Our answer.
        same_alone: Whether the published rule reads the same without the problem.
        of_problem: Whether math-verify equates the published reading with what it reads in the problem alone.
        same_ours: Whether math-verify reads the same from our answer in a box as the published rule reads.
    """

    published: str | None
    alone: str | None
    ours: str | None
    same_alone: bool
    of_problem: bool
    same_ours: bool


def readings(group: Group, answers: Sequence[str | None]) -> list[Reading]:
    """One reading for each response."""
    found, prompt = [], group.instruction.prompt
    for text, answer in zip(group.texts, answers, strict=True):
        joined, alone = _ask("read", text=f"{prompt}\n{text}"), _ask("read", text=text)
        boxed = {} if answer is None else _ask("read", text=f"\\boxed{{{answer}}}")
        key, of_problem = joined.get("key"), _ask("same", a=prompt, b=f"{prompt}\n{text}").get("same", False)
        same_ours = key == boxed.get("key") or answer == joined.get("answer")
        values = (joined.get("answer"), alone.get("answer"), answer, key == alone.get("key"), of_problem, same_ours)
        found.append(Reading(*values))
    return found


def _ask(op: str, **fields: str) -> dict[str, Any]:
    """The worker's reply, empty if it gave none in time."""
    return shared_client().ask(op, SECONDS, **fields) or {}


def source(reading: Reading) -> str | None:
    """How the published reading of a response came to differ from ours, or ``None`` if both read the same."""
    theirs, ours = _code(reading.published), _code(reading.ours)
    if reading.published is None:
        return None if reading.ours is None else f"published rule reads nothing, we read {ours}"
    if not reading.same_alone:
        where = "in the problem" if reading.of_problem else "in problem and response together"
        alone = "" if reading.alone == reading.ours else f" (math-verify reads {_code(reading.alone)} there)"
        return f"published rule reads {theirs} {where}, we read {ours} in the response{alone}"
    if reading.ours is None:
        return f"published rule reads {theirs} in the response, we read nothing"
    if reading.same_ours:
        return None
    if is_prose(reading.ours):
        return f"published rule reads {theirs} in the response, we leave the sentences in its box as they are"
    return f"published rule takes another match of the response, {theirs}, we read {ours}"


def relation(left: Reading, right: Reading, equal: bool) -> str:
    """Why two responses that both sides read alike are equated by one side only."""
    pair, verb = f"{_code(left.ours)} and {_code(right.ours)}", "equates" if equal else "separates"
    if left.ours is None or right.ours is None:
        return f"published rule {verb} two responses in which we read {pair}"
    grader = MathGrader("exact")
    ours = grader.same(left.ours, right.ours)
    if grader.timeouts:
        return f"published rule {verb} {pair}, which takes us longer than a comparison may take"
    if ours == equal:
        how = "each of them equals another class's answer first" if equal else "both equal a third answer"
        return f"equality is not transitive: published rule {verb} {pair}, for us {how}"
    if ("=" in left.ours) != ("=" in right.ours):
        return f"published rule {verb} an equation and its right-hand side, {pair}"
    return f"published rule {verb} {pair}, we compare the two answers alone and do not"


def explain(group: Group, classes: Sequence[int], answers: Sequence[str | None], reward: Sequence[float]) -> str:
    """The reasons why a group's rewards differ, from the pairs that one side equates and the other does not."""
    seen = readings(group, answers)
    found: dict[str, set[int]] = {}
    scored = _winners(classes)
    for i, j in combinations(range(len(group)), 2):
        ours = classes[i] == classes[j] >= 0
        # Only pairs that touch a winner of either side can change a reward.
        if not any(reward[k] or k in scored for k in (i, j)):
            continue
        theirs = published_equal(group, i, j)
        if ours == theirs:
            continue
        causes = [(k, source(seen[k])) for k in (i, j)]
        for k, cause in causes:
            if cause is not None:
                found.setdefault(cause, set()).add(k)
        if all(cause is None for _, cause in causes):
            found.setdefault(relation(seen[i], seen[j], theirs), set()).update((i, j))
    if not found:
        rewarded = {k for k, score in enumerate(reward) if score}
        return (
            f"no pair differs; published rule rewards {_numbers(rewarded)}, our largest classes are {_numbers(scored)}"
        )
    return "; ".join(f"{_numbers(who)}: {cause}" for cause, who in found.items())


def published_equal(group: Group, i: int, j: int) -> bool:
    """Whether the published rule equates two responses of a group."""
    pair = Group.from_texts(group.instruction.prompt, [group.texts[i], group.texts[j]])
    return bool(PairwiseVote()([pair], None)[0].scores[1])


def _winners(classes: Sequence[int]) -> set[int]:
    """The responses in any of the largest classes."""
    sizes = {number: classes.count(number) for number in set(classes) if number >= 0}
    return {k for k, number in enumerate(classes) if number >= 0 and sizes[number] == max(sizes.values())}


def _numbers(responses: set[int]) -> str:
    """Names of responses."""
    return ("response " if len(responses) == 1 else "responses ") + ", ".join(map(str, sorted(responses)))


def _code(answer: str | None) -> str:
    """A short answer as code that does not break a table."""
    if answer is None:
        return "nothing"
    answer = " ".join(answer.split())
    answer = answer if len(answer) <= SHOWN else answer[: SHOWN - 3] + "..."
    return "`` " + answer.replace("|", "\\|") + " ``"


@dataclass
class Report:
    """The figures of one file and the rows of the tables."""

    name: str
    groups: int = 0
    untied: int = 0
    pairwise: int = 0
    equal: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))
    silent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))
    responses: int = 0
    votes: list[tuple[str, str, str]] = field(default_factory=list)
    rules: list[tuple[str, str]] = field(default_factory=list)

    def line(self) -> str:
        """The file's line in the table of figures."""
        shares = [f"{self.equal[m]} ({100 * self.equal[m] / max(self.untied, 1):.1f} %)" for m in MODES]
        silent = [f"{100 * self.silent[m] / max(self.responses, 1):.2f} %" for m in MODES]
        wrong = f"{len(self.rules)} of {self.responses} ({100 * len(self.rules) / max(self.responses, 1):.2f} %)"
        values = [self.name, f"{self.groups}", f"{self.untied}", f"{self.pairwise}", *shares, *silent, wrong]
        return "| " + " | ".join(values) + " |"


def measure(path: Path) -> Report:
    """Compare one recorded file with its recorded rewards and rule verdicts."""
    report = Report(path.stem.removeprefix("responses_"))
    pairwise, votes, rule = (
        PairwiseVote(),
        {mode: MajorityVote(mode=mode, min_answers=1) for mode in MODES},
        VerifiableReward(),
    )
    for row, group in load(path):
        reference, n = row["ref090"], len(group)
        report.groups, report.responses = report.groups + 1, report.responses + n
        report.pairwise += pairwise([group], None)[0].scores.tolist() == reference["reward"]
        report.rules += rule_rows(row, group, rule)
        report.untied += untied(reference)
        differing: dict[str, str] = {}
        for mode in MODES:
            verdict = votes[mode]([group], None)[0]
            report.silent[mode] += verdict.info["no_answer"]
            if untied(reference) and verdict.scores.tolist() == reference["reward"]:
                report.equal[mode] += 1
            elif untied(reference):
                assert group.answers is not None
                assert group.cluster is not None
                differing[mode] = explain(group, group.cluster, group.answers, reference["reward"])
        if differing:
            modes = "both" if len(differing) == len(MODES) else "".join(differing)
            report.votes.append((row["id"], modes, differing.get("exact") or differing["fast"]))
    return report


def rule_rows(row: dict[str, Any], group: Group, rule: VerifiableReward) -> list[tuple[str, str]]:
    """One row for each response whose verdict against the gold label differs from the recorded one."""
    scores, recorded = rule([group], None)[0].scores.tolist(), row["ref090"]["rule"]
    wrong = [k for k in range(len(group)) if scores[k] != recorded[k]]
    if not wrong:
        return []
    assert group.answers is not None
    seen, rows = readings(group, group.answers), []
    for k in wrong:
        verdicts = f"label {_code(str(row['gold']))}: published {recorded[k]:.0f}, we {scores[k]:.0f}"
        alike = f"both read {_code(group.answers[k])} and compare it with the label differently"
        rows.append((f"{row['id']}:{k}", f"{verdicts}; {source(seen[k]) or alike}"))
    return rows


def render(reports: Sequence[Report]) -> str:
    """The markdown report."""
    lines = [HEAD, "## Figures", ""]
    titles = ["file", "groups", "untied", "`PairwiseVote` equal", "`MajorityVote` exact equal, of untied", "fast equal"]
    titles += ["no answer, exact", "no answer, fast", "default grading against gold labels differs"]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *(r.line() for r in reports), ""]
    lines += ["## Untied groups with other rewards", "", "| group | mode | reason |", "|---|---|---|"]
    lines += [f"| {name} | {mode} | {reason} |" for r in reports for name, mode, reason in r.votes]
    lines += ["", "## Responses with another verdict against the gold label", ""]
    lines += ["| group:response | reason |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for r in reports for name, reason in r.rules]
    return "\n".join(lines)


def main() -> None:
    """Measure the files and print the report."""
    parser = argparse.ArgumentParser(description="Compare votes and verdicts with those of SeRL's published code.")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds responses_*.jsonl")
    parser.add_argument("names", nargs="*", help="only these files, such as gsm8k_10x; default: all")
    options = parser.parse_args()
    paths = sorted(options.data.glob("responses_*.jsonl"))
    known = [path.stem.removeprefix("responses_") for path in paths]
    for name in options.names:
        if name not in known:
            parser.error(f"there is no responses_{name}.jsonl in {options.data}; it holds {', '.join(known) or 'none'}")
    if not paths:
        parser.error(f"there is no responses_*.jsonl in {options.data}; --data is the folder of the recorded responses")
    print(render([measure(p) for p, name in zip(paths, known, strict=True) if name in (options.names or known)]))


if __name__ == "__main__":
    main()
