"""Answers as models write them and inputs from public reports, each with its right outcome; by kind and by default."""

import json

import pytest

from lightning_serl.answers.registry import grader_for, resolve_grader
from lightning_serl.prompts.proposals import parse_instructions
from lightning_serl.rewards import MajorityVote, VerifiableReward
from lightning_serl.types import Group

pytestmark = pytest.mark.golden


def read(name, row):
    """How a grader reads a form, and whether that is its answer."""
    problem = "Which of these?" if row["kind"] == "choice" else "How many are there?"
    grader = grader_for(resolve_grader(name), problem, row.get("choices"))
    found = grader.extract(row["text"])
    return found, found is None if row["answer"] is None else found is not None and grader.same(found, row["answer"])


def test_forms_of_answers(golden_dir):
    rows = [json.loads(line) for line in (golden_dir / "answer_forms.jsonl").read_text(encoding="utf-8").splitlines()]
    outcomes = [
        (row["text"], name, *read(name, row))
        for row in rows
        for name in ("choice" if row["kind"] == "choice" else "math", "auto")
    ]
    assert len(outcomes) == 90
    assert [outcome for outcome in outcomes if not outcome[-1]] == []


def outcome(kind, name, given, expected):
    grader = resolve_grader(name)
    if kind == "same":
        a, b = (grader.extract(rf"\boxed{{{given[side]}}}") for side in "ab")
        return grader.same(a, b) == expected["same"]
    if kind == "read":
        found, wanted = grader.extract(given["text"]), expected["answer"]
        return found is None if wanted is None else found is not None and grader.same(found, wanted)
    reward = VerifiableReward(name) if kind == "score" else MajorityVote(name)
    (verdict,) = reward([Group.from_texts("p", given["responses"], label=given.get("label"))], None)
    return verdict.scores.tolist() == expected["scores"]


def test_cases_of_the_field(golden_dir):
    rows = [json.loads(line) for line in (golden_dir / "field_cases.jsonl").read_text(encoding="utf-8").splitlines()]
    wrong, tried = [], 0
    for row in rows:
        given, expected, kind = row["input"], row["expect"], row["kind"]
        if kind == "items":
            tried += 1
            found = [*parse_instructions(given["text"], first=given["first"])]
            wrong += [(row["id"], found)] * (found != expected["items"])
        elif kind in ("same", "read", "score", "vote"):
            named = given.get("grader", "math")
            for name in dict.fromkeys((named, named if named == "choice" else "auto")):
                tried += 1
                wrong += [(row["id"], name)] * (not outcome(kind, name, given, expected))
    assert tried > 100
    assert wrong == []
