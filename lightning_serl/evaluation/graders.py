"""Chooses the grader of each evaluation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_serl.answers import AnswerGrader, detect_grader, resolve_grader
from lightning_serl.types import Instruction


class SetGrader(NamedTuple):
    """How the answers of one set are read and compared; ``name`` chooses the sentence on the answer format."""

    grader: AnswerGrader
    name: str


def set_graders(
    sets: Mapping[str, Sequence[Instruction]], run: SetGrader | None
) -> tuple[dict[str, SetGrader], list[str]]:
    """Choose the grader of each set.

    Args:
        sets: The problems of each set.
        run: The grader of ``data.grader``; ``None`` detects one for each set.

    Returns:
        The graders: ``choice`` for a set whose problems all have choices, else the run's, else the detected one; and
        for the log a sentence for each set with another grader than the run's.
    """
    made: dict[str, SetGrader] = {} if run is None else {run.name: run}
    out: dict[str, SetGrader] = {}
    sentences: list[str] = []
    for name, problems in sets.items():
        chosen = run.name if run is not None else None
        if chosen is None or all("choices" in p.meta for p in problems):
            choices = [p.meta.get("choices") for p in problems]
            found, sentence = detect_grader([p.prompt for p in problems], [p.label for p in problems], choices)
            if found != chosen:
                sentences.append(f"{name}: {sentence if run is None else sentence.partition(';')[0]}")
            chosen = found
        if chosen not in made:
            made[chosen] = SetGrader(resolve_grader(chosen), chosen)
        out[name] = made[chosen]
    return out, sentences
