"""What a response answers, and which answers are equal. Importing this package costs neither torch nor sympy."""

from __future__ import annotations

from lightning_serl.answers.base import AnswerGrader
from lightning_serl.answers.choice import ChoiceGrader
from lightning_serl.answers.cluster import cluster
from lightning_serl.answers.detect import detect_grader
from lightning_serl.answers.math import MathGrader
from lightning_serl.answers.options import split_choices
from lightning_serl.answers.resolve import resolve_grader
from lightning_serl.answers.text import TextGrader
from lightning_serl.answers.thinking import strip_thinking

__all__ = [
    "AnswerGrader",
    "ChoiceGrader",
    "MathGrader",
    "TextGrader",
    "cluster",
    "detect_grader",
    "resolve_grader",
    "split_choices",
    "strip_thinking",
]
