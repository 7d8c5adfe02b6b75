"""Groups the responses to one problem into classes of equal answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from string import ascii_uppercase

from lightning_serl.answers.reading.each import read_each
from lightning_serl.answers.registry import AnswerGrader, grader_for


def cluster(
    texts: Sequence[str],
    finished: Sequence[bool],
    grader: AnswerGrader,
    choices: Sequence[str] | None = None,
    prompt: str = "",
) -> tuple[list[str | None], list[int]]:
    """The answers of ``n`` responses (``None`` for no answer) and the numbers of their classes (-1 for no answer).

    A sentence that stands for a short answer of the group (``settle`` of :class:`AnswerGrader`) becomes that answer.
    Distinct answers are sorted by length, each is compared with the first answer of every class found so far, and
    classes are numbered by their smallest answer. So the result does not depend on the order of the responses, even
    where equality is not transitive. A letter beyond the problem's ``choices`` is no answer.
    """
    start_group = getattr(grader, "start_group", None)
    if start_group is not None:
        start_group()
    grader = grader_for(grader, prompt, choices)
    read_group = getattr(grader, "read_group", None)
    read = partial(read_each, grader) if read_group is None else read_group
    beyond = () if choices is None else tuple(ascii_uppercase[len(choices) :])
    answers = [None if answer in beyond else answer for answer in read(texts, finished)]
    stands_for = _settled({a for a in answers if a is not None}, grader)
    answers = [a if a is None else stands_for.get(a, a) for a in answers]
    classes = _classes({a for a in answers if a is not None}, grader)
    class_of = {answer: number for number, members in enumerate(sorted(classes, key=min)) for answer in members}
    return answers, [-1 if a is None else class_of[a] for a in answers]


def equal_to_label(label: str, answers: Collection[str], grader: AnswerGrader) -> set[str]:
    """Those of a group's distinct answers that equal a gold label, as :meth:`AnswerGrader.label` returned it.

    An answer that stands for the label (see ``settle`` in :class:`AnswerGrader`) equals it.
    """
    stands_for = _settled({*answers, label}, grader)
    return {answer for answer in sorted(answers) if grader.same(label, stands_for.get(answer, answer))}


def _classes(answers: Collection[str], grader: AnswerGrader) -> list[list[str]]:
    """Lists of equal answers."""
    classes: list[list[str]] = []
    # Short answers come first: "0" represents a class better than "x^2 - x = 0" does, and is cheaper to compare.
    for answer in sorted(answers, key=lambda a: (len(a), a)):
        for members in classes:
            if grader.same(members[0], answer):
                members.append(answer)
                break
        else:
            classes.append([answer])
    return classes


def _settled(answers: Collection[str], grader: AnswerGrader) -> dict[str, str]:
    settle = getattr(grader, "settle", None)
    return {} if settle is None else settle(sorted(answers))
