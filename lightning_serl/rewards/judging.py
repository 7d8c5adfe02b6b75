"""Shows texts of a policy to a judge in such a way that they cannot speak for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import strip_thinking

# Grades compared by their likelihood; a finer scale is sampled at so many places.
_GRADES = 11
# Longer responses are cut in the middle: the beginning and the end say most about them.
LONGEST = 8000


def to_judge(response: str, longest: int = LONGEST) -> str:
    """What a judge sees of a response: its text without thinking, cut in the middle where it is very long."""
    text = strip_thinking(response).strip()
    return text if len(text) <= longest else f"{text[: longest // 2]}\n[...]\n{text[-longest // 2 :]}"


def fence_of(*texts: str) -> str:
    """A line that none of the texts holds, to stand around each: no text can hold a hash of itself."""
    joined = "\0".join(texts)
    return f"=== {hashlib.sha256(joined.encode('utf-8', 'surrogatepass')).hexdigest()[:16]} ==="


def last_line(judgement: str) -> str:
    """The last line of the judge's own text, without thinking; the only one that is read."""
    lines = strip_thinking(judgement[-2000:]).strip().splitlines()
    return lines[-1].strip() if lines else ""


def likely_grade(ctx: Any, prompts: Sequence[str], line: str, scale: int, who: str) -> list[float]:
    """The mean grade of each prompt's judgement in [0, 1], weighted by how likely the judge finds it; one pass for all.

    ``line`` has the place ``{}`` for the grade. Likelihoods are those of the bare prompt, without a chat template.
    """
    count = min(scale + 1, _GRADES)
    grades = [round(k * scale / (count - 1)) for k in range(count)]
    texts = [line.format(grade) for grade in grades]
    rows = [(f"{prompt}\n", text) for prompt in prompts for text in texts]
    # never an empty call: it is a collective where the weights are sharded
    logps = ctx.score(["", *(p for p, _ in rows)], ["", *(t for _, t in rows)], who=who)[1:]
    totals = torch.tensor([float(logp.sum()) for logp in logps]).reshape(len(prompts), count)
    return [float(row @ torch.tensor(grades, dtype=row.dtype)) / scale for row in totals.softmax(-1)]
