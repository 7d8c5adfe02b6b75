"""SeRL's published majority vote and its reward by gold labels, which read prompt and response together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from lightning_serl.answers.verifier.client import VerdictCache, shared_client
from lightning_serl.types import Group, Verdict

# The published code gives math-verify this long for a parse and for a comparison.
_REQUEST_SECONDS = 5.0
_NEUTRAL = "The answer is 7919."


def _read_text(text: str) -> dict[str, Any]:
    """What math-verify extracts from a text (``answer``, ``key``, ``printable``); empty if it takes too long."""
    return shared_client().ask("read", _REQUEST_SECONDS, text=text) or {}


def _read_group(group: Group) -> tuple[list[str], list[dict[str, Any]]]:
    """The published texts of a group (prompt, newline, response), and what is read from each."""
    texts = [f"{group.instruction.prompt}\n{text}" for text in group.texts]
    return texts, [_read_text(text) for text in texts]


def _is_readable(read: dict[str, Any]) -> bool:
    """Whether something was extracted and can be printed: SeRL's metric prints it and counts any error as different."""
    return read.get("key") is not None and bool(read.get("printable"))


def _same_texts(a: str, b: str) -> bool | None:
    """Whether math-verify equates two texts in either direction, ``None`` if it takes too long."""
    reply = shared_client().ask("same", _REQUEST_SECONDS, a=a, b=b)
    return None if reply is None else bool(reply.get("same"))


class PairwiseVote:
    """The published vote, for comparison; :class:`MajorityVote` is the better rule.

    Each text is prompt, newline, response, so a number of the prompt can count as the answer. ``E[i][j]`` is true if
    math-verify equates texts i and j in either direction; it is not transitive. The winner is the first row with the
    largest sum, and a response scores 1 if it is equal to the winner. A text from which nothing can be read equals only
    itself. The result depends on the order of the responses, and truncated responses vote like all others.

    Pairs with the same two extractions are compared once, in a worker process, so this works off the main thread.
    ``info`` holds ``counts`` (row sums), ``majority_index``, ``tie`` and ``unique_answers`` (distinct extractions).
    """

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._verdicts: VerdictCache[tuple[str, str]] = VerdictCache()
        self._too_slow: VerdictCache[str] = VerdictCache()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``answers`` and ``cluster`` stay as they are."""
        return [self._vote(group) for group in groups]

    def _vote(self, group: Group) -> Verdict:
        n = len(group)
        texts, read = _read_group(group)
        keys = [r.get("key") for r in read]
        equal = [[i == j for j in range(n)] for i in range(n)]
        for i, j in combinations(range(n), 2):
            if _is_readable(read[i]) and _is_readable(read[j]):
                equal[i][j] = equal[j][i] = self._same(str(keys[i]), texts[i], str(keys[j]), texts[j])
        counts = [sum(row) for row in equal]
        distinct = len(set(keys) - {None})
        info = {"counts": counts, "tie": False, "unique_answers": distinct, "no_answer": keys.count(None)}
        if not counts:
            return Verdict(torch.zeros(0), confidence=0.0, info=info)
        top = counts.index(max(counts))
        info["majority_index"] = top
        # A tie: another response outside the winner's row has as many matches.
        info["tie"] = any(count == counts[top] and not equal[top][j] for j, count in enumerate(counts))
        scores = torch.tensor([float(match) for match in equal[top]])
        return Verdict(scores, read[top].get("answer"), counts[top] / n, info=info)

    def _same(self, key_a: str, a: str, key_b: str, b: str) -> bool:
        """Whether math-verify equates two texts, cached by what it extracts from them."""
        pair = (key_a, key_b) if key_a < key_b else (key_b, key_a)
        known = self._verdicts.get(pair)
        if known is not None:
            return known
        if self._too_slow.get(key_a) or self._too_slow.get(key_b):
            return False
        same = _same_texts(a, b)
        if same is None:
            # A comparison that takes too long counts as different. A text that is too slow even against a neutral one
            # is not compared again.
            for key, text in ((key_a, a), (key_b, b)):
                if key not in self._too_slow:
                    self._too_slow.put(key, _same_texts(text, _NEUTRAL) is None)
        return self._verdicts.put(pair, bool(same))


class RuleReward:
    r"""Scores 1 if math-verify equates label and text in either direction; :class:`VerifiableReward` is better.

    The text is prompt, newline, response, so a number of the prompt can count as the answer, and a truncated response
    is read like any other. Every error scores 0: a label or text from which nothing can be read, one that takes too
    long, and one whose extraction cannot be printed. A group without a label gets weights 0.

    ``info`` holds ``answers`` (what was read from each text), ``no_answer`` and, without a label, ``reason``.

    Args:
        boxed: Read the label as ``\boxed{label}`` unless it holds a box, as the published evaluation files do. The
            published training with gold labels reads them bare; math-verify then understands only numbers and simple
            fractions, so no answer to 90 of the 500 published seeds can be right.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, boxed: bool = True) -> None:
        self.boxed = boxed
        self._verdicts: VerdictCache[tuple[str, str]] = VerdictCache()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``answers`` and ``cluster`` stay as they are."""
        return [self._score(group) for group in groups]

    def _score(self, group: Group) -> Verdict:
        n, label = len(group), group.instruction.label
        texts, read = _read_group(group)
        answers = [r.get("answer") for r in read]
        info: dict[str, Any] = {"tie": False, "answers": answers, "no_answer": answers.count(None)}
        if label is None:
            info["reason"] = "the instruction has no label"
            return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), info=info)
        gold = "\\boxed{" + label + "}" if self.boxed and "\\boxed" not in label else label
        gold_is_readable = bool(n) and _is_readable(_read_text(gold))
        right = [
            gold_is_readable and _is_readable(r) and self._same(gold, str(r["key"]), text)
            for r, text in zip(read, texts, strict=True)
        ]
        scores = torch.tensor([float(flag) for flag in right])
        return Verdict(scores, label, float(scores.sum()) / max(n, 1), info=info)

    def _same(self, gold: str, key: str, text: str) -> bool:
        """Whether math-verify equates label and text, cached by what it extracts from the text."""
        known = self._verdicts.get((gold, key))
        return self._verdicts.put((gold, key), bool(_same_texts(gold, text))) if known is None else known
