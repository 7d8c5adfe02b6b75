"""Reports how the answers of a round were read: as what kinds, how many not at all, and what those look like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from lightning_serl.answers import AnswerGrader, AutoGrader, strip_thinking
from lightning_serl.types import Group

# A form of answer that goes unread is worth a warning from this share and this number of a round's answers on.
_OFTEN, _LEAST = 0.1, 3
_EXAMPLES, _EXAMPLE_LENGTH = 3, 36


def reading_shares(groups: Sequence[Group], grader: AnswerGrader) -> str:
    """As what the finished answers of some groups were read, such as ``math 93 %, text 7 %; unread 2 %``.

    The kinds are shares of the answers that were read, ``unread`` is a share of all finished answers. Only the default
    grader has kinds; for another one the sentence holds ``unread`` alone.
    """
    read: Counter[str] = Counter()
    unread = 0
    for group, _, answer in _finished(groups):
        if answer is None:
            unread += 1
        elif isinstance(grader, AutoGrader):
            problem = group.instruction
            read[grader.kind_of(answer, problem.prompt, problem.meta.get("choices"))] += 1
        else:
            read[""] += 1
    total = sum(read.values())
    missing = f"unread {_percent(unread, total + unread)}"
    if not isinstance(grader, AutoGrader):
        return missing
    kinds = ", ".join(f"{kind} {_percent(n, total)}" for kind, n in sorted(read.items(), key=lambda x: (-x[1], x[0])))
    return f"{kinds or 'none read'}; {missing}"


def unread_form(groups: Sequence[Group]) -> str | None:
    """A sentence on the form of answers that most often goes unread, with three examples; ``None`` if that is rare."""
    forms: dict[str, list[str]] = {}
    total = 0
    for group, text, answer in _finished(groups):
        total += 1
        if answer is None:
            last = _last_line(text)
            forms.setdefault(_form(last, bool(group.instruction.meta.get("choices"))), []).append(last)
    if not forms:
        return None
    form, found = max(forms.items(), key=lambda item: (len(item[1]), item[0]))
    if len(found) < max(_LEAST, _OFTEN * total):
        return None
    distinct = sorted(set(found))
    examples = " | ".join(_shortened(x) for x in distinct[:: max(1, len(distinct) // _EXAMPLES)][:_EXAMPLES])
    said = f"{_percent(len(found), total)} of the finished answers {form} and cannot be read"
    return said + (f": {examples}" if form != _EMPTY else "")


_EMPTY = "are empty"


def _finished(groups: Sequence[Group]) -> Iterator[tuple[Group, str, str | None]]:
    """Each finished response to a problem, with its group and its answer."""
    for group in groups:
        if group.instruction.role != "solve" or group.answers is None:
            continue
        for completion, answer in zip(group.completions, group.answers, strict=True):
            if completion.finished:
                yield group, completion.text, answer


def _last_line(text: str) -> str:
    lines = strip_thinking(text)[-2000:].strip().splitlines()
    return " ".join(lines[-1].split()) if lines else ""


def _form(line: str, has_choices: bool) -> str:
    if not line:
        return _EMPTY
    if has_choices:
        return "name no single option of their problem"
    return "are numbers or formulas" if re.search(r"\d|\\[a-zA-Z]", line) else "are words"


def _shortened(line: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in line)
    return repr(printable if len(printable) <= _EXAMPLE_LENGTH else "..." + printable[-_EXAMPLE_LENGTH:])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f} %"
