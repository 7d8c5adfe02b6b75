"""Why an instruction or a group was left out: the closed list that ledger, summary and filters share."""

from __future__ import annotations

REASONS = (
    "empty",
    "too_short",
    "too_long",
    "keyword",
    "write_a_program",
    "punctuation",
    "non_ascii",
    "duplicate",
    "truncated_item",
    "solution_leak",
    "no_choices",
    "too_easy",
    "too_hard",
    "no_spread",
    "no_answer",
    "over_long_prompt",
    "stale",
)
