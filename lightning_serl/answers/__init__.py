"""Reads the answer of a response and decides which answers are equal. Imports neither torch nor sympy."""

from __future__ import annotations

from lightning_serl.answers.auto_grader import AutoGrader
from lightning_serl.answers.choice_grader import ChoiceGrader
from lightning_serl.answers.choices_in_text import split_choices
from lightning_serl.answers.cluster import cluster, equal_to_label
from lightning_serl.answers.detect import expected_kind
from lightning_serl.answers.math_grader import MathGrader
from lightning_serl.answers.reading.thinking import strip_thinking
from lightning_serl.answers.registry import AnswerGrader, grader_for, resolve_grader
from lightning_serl.answers.text_grader import TextGrader

__all__ = [
    "AnswerGrader",
    "AutoGrader",
    "ChoiceGrader",
    "MathGrader",
    "TextGrader",
    "cluster",
    "equal_to_label",
    "expected_kind",
    "grader_for",
    "resolve_grader",
    "split_choices",
    "strip_thinking",
]
