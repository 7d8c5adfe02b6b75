"""Tables of answers as models write them and of pairs of answers, by kind, for the default mode."""

import json
from pathlib import Path

import pytest

from lightning_serl.answers import MathGrader

TABLES = Path(__file__).parent / "tables"


def kinds(name):
    rows = [json.loads(line) for line in (TABLES / name).read_text(encoding="utf-8").splitlines()]
    return [pytest.param(row["cases"], id=row["kind"]) for row in rows]


@pytest.mark.parametrize("cases", kinds("readings.jsonl"))
def test_what_is_read(cases):
    grader, wrong = MathGrader(), []
    for text, answer in cases:
        grader.start_group()
        read = grader.extract(text)
        right = read is None if answer is None else read is not None and grader.same(read, grader.label(answer))
        if not right:
            wrong.append((text, read, answer))
    assert wrong == []


@pytest.mark.parametrize("cases", kinds("pairs.jsonl"))
def test_what_is_equal(cases):
    grader, wrong = MathGrader(), []
    for a, b, equal in cases:
        grader.start_group()
        left, right = (grader.extract(f"\\boxed{{{answer}}}") for answer in (a, b))
        if grader.same(left, right) != equal or grader.same(right, left) != equal:
            wrong.append((a, b, equal))
    assert wrong == []
