"""Makes the rows of ``samples.jsonl``: every answered group of a round, with as many texts as a round has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from lightning_serl.types import Completion, Group, Instruction, Round, Verdict

#: Characters of response texts that one round may write; votes, scores and lengths are written in any case.
ROUND_CHARACTERS = 200_000
#: Longest text of one response; what follows is counted in ``left_out``.
TEXT_CHARACTERS = 20_000
#: Groups of a round whose first responses have their tokens' log-probs, and how many responses.
WITH_LOGPROBS = (4, 4)
_EXEMPLAR_CHARACTERS = 300
# What a row says in separate fields or in its prompt, or what belongs to the writing of problems.
_TOLD = ("choices", "origin", "round", "truncated", "exemplars", "first", "task", "solution")


def sample_rows(played: Round, tokenizer: Any) -> list[dict[str, Any]]:
    """One row per answered group: those of ``played.samples`` first, each with all its responses.

    Texts fill the room of a round in this order: the first response of every group, then the second, and so on, where
    a group's first ones are of different answers, the most common answer first. ``tokenizer`` may be ``None``; then no
    log-probs are written.
    """
    first = {g.instruction.uid for g, _ in played.samples}
    pairs = [*played.samples, *(pair for pair in played.answered if pair[0].instruction.uid not in first)]
    shown = _texts_with_room([group for group, _ in pairs])
    groups, responses = WITH_LOGPROBS
    pieces = None if tokenizer is None else _Pieces(tokenizer)
    return [
        _row(played.number, group, verdict, shown[place], pieces, responses if place < groups else 0)
        for place, (group, verdict) in enumerate(pairs)
    ]


def _texts_with_room(groups: Sequence[Group]) -> list[set[int]]:
    """For each group the responses whose texts are written."""
    shown: list[set[int]] = [set() for _ in groups]
    room = ROUND_CHARACTERS
    for turn in zip_longest(*(_by_answer(group) for group in groups)):
        for place, index in enumerate(turn):
            if index is None:
                continue
            length = min(TEXT_CHARACTERS, len(groups[place].completions[index].text))
            if length <= room:
                room -= length
                shown[place].add(index)
    return shown


def _by_answer(group: Group) -> list[int]:
    """The responses of a group, so that different answers come first, the most common one at the beginning."""
    classes = group.cluster or [0] * len(group)
    sizes, seen, keys = Counter(classes), Counter[int](), []
    for index, its in enumerate(classes):
        keys.append((seen[its], -sizes[its], its, index))
        seen[its] += 1
    return [key[-1] for key in sorted(keys)]


def _row(
    number: int, group: Group, verdict: Verdict, shown: set[int], pieces: _Pieces | None, with_logprobs: int
) -> dict[str, Any]:
    problem, meta = group.instruction, group.instruction.meta
    row: dict[str, Any] = {"round": number, "uid": problem.uid, "prompt": problem.prompt}
    if meta.get("choices"):
        row["choices"] = meta["choices"]
    if problem.role != "solve":
        row["role"] = problem.role
    row |= _ancestry(problem)
    row |= {"label": verdict.label, "confidence": round(verdict.confidence, 6)}
    answers, classes = group.answers or [None] * len(group), group.cluster or []
    row["responses"] = []
    for index, (completion, answer, score) in enumerate(
        zip(group.completions, answers, verdict.scores.tolist(), strict=True)
    ):
        one: dict[str, Any] = {"text": completion.text[:TEXT_CHARACTERS] if index in shown else None}
        if (left_out := len(completion.text) - TEXT_CHARACTERS) > 0 and index in shown:
            one["left_out"] = left_out
        one |= {"answer": answer, "score": round(score, 6), "finished": completion.finished}
        one["tokens"] = len(completion.token_ids)
        if classes:
            one["class"] = classes[index]
        if index < with_logprobs and pieces is not None and index in shown:
            one |= pieces.of(completion)
        row["responses"].append(one)
    return row


def _ancestry(problem: Instruction) -> dict[str, Any]:
    """Where a problem comes from: the problems its writer was shown, its parent, and what its source noted."""
    out: dict[str, Any] = {}
    if problem.link is not None:
        out["parent"] = {"uid": problem.link.parent, "relation": problem.link.relation, "response": problem.link.index}
    if exemplars := problem.meta.get("exemplars"):
        out["exemplars"] = [str(text)[:_EXEMPLAR_CHARACTERS] for text in exemplars]
    noted = {k: v for k, v in problem.meta.items() if k not in _TOLD and isinstance(v, (str, int, float))}
    if noted:
        out["meta"] = {k: v[:TEXT_CHARACTERS] if isinstance(v, str) else v for k, v in noted.items()}
    return out


class _Pieces:
    """Divides a text into the pieces that its tokens stand for, each with its log-prob."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, completion: Completion) -> dict[str, Any]:
        """``pieces``, the number of characters of each, and ``logprobs``, in nats to two digits.

        Empty where the engine reported no log-probs or the pieces do not add up to the text. A token that is a part of
        a character is joined to the tokens after it; tokens beyond the text, such as an end token, are left out.
        """
        if completion.logprobs is None or len(completion.text) > TEXT_CHARACTERS:
            return {}
        lengths, values, place, waiting, total = [], [], 0, list[int](), 0.0
        before: list[int] = []
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            waiting.append(token)
            total += logprob
            # some tokenizers drop the space before the first token, so that a token is read after the one before it
            text = self._decode(before + waiting).removeprefix(self._decode(before))
            if not completion.text.startswith(text, place):
                if len(waiting) > 8 or "\ufffd" not in text:
                    break
                continue
            if text:
                lengths.append(len(text))
                values.append(round(total, 2) + 0.0)  # not -0.0
            place, before, waiting, total = place + len(text), waiting, [], 0.0
        return {"pieces": lengths, "logprobs": values} if place == len(completion.text) else {}

    def _decode(self, tokens: Sequence[int]) -> str:
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return self._known[key]
