"""Groups the responses to one problem into classes of equal answers."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from types import NoneType

from lightning_serl.answers.registry import AnswerGrader
from lightning_serl.errors import InputError


def cluster(
    texts: Sequence[str],
    finished: Sequence[bool],
    grader: AnswerGrader,
    choices: Sequence[str] | None = None,
) -> tuple[list[str | None], list[int]]:
    """The answers of ``n`` responses (``None`` for no answer) and the numbers of their classes (-1 for no answer).

    Distinct answers are sorted by length, each is compared with the first answer of every class found so far, and
    classes are numbered by their smallest answer. So the result does not depend on the order of the responses, even
    where equality is not transitive. A letter beyond the problem's ``choices`` is no answer.
    """
    start_group = getattr(grader, "start_group", None)
    if start_group is not None:
        start_group()
    extract_truncated = getattr(grader, "extract_truncated", None)
    beyond = () if choices is None else tuple(ascii_uppercase[len(choices) :])
    # Each distinct response is read once, in sorted order: a grader with bounded time must not favour the responses
    # that happen to come first. Sorting finds equal texts without hashing long ones.
    answers: list[str | None] = [None] * len(texts)
    last: tuple[str, bool] | None = None
    answer: str | None = None
    for text, done, i in sorted(zip(texts, map(bool, finished), range(len(texts)), strict=True)):
        if (text, done) != last:
            last = text, done
            if done:
                answer = grader.extract(text)
            else:
                answer = None if extract_truncated is None else extract_truncated(text)
            if not isinstance(answer, (str, NoneType)):
                kind = type(answer).__name__
                raise InputError(
                    f"extract of the grader {type(grader).__name__} returned {kind}; it must return a string or None"
                )
        answers[i] = None if answer in beyond else answer

    classes: list[list[str]] = []
    # Short answers come first: "0" represents a class better than "x^2 - x = 0" does, and is cheaper to compare.
    for answer in sorted({a for a in answers if a is not None}, key=lambda a: (len(a), a)):
        for members in classes:
            if grader.same(members[0], answer):
                members.append(answer)
                break
        else:
            classes.append([answer])
    class_of = {answer: number for number, members in enumerate(sorted(classes, key=min)) for answer in members}
    return answers, [-1 if a is None else class_of[a] for a in answers]
