"""SeRL's majority reward exactly as published: prompt and response together, every pair, first largest row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers.verifier.cache import Memo
from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.types import Group, Verdict

# The published code gives math-verify this long for a parse and for a comparison.
REQUEST_SECONDS = 5.0
_NEUTRAL = "The answer is 7919."


class PairwiseVote:
    """The published vote, for comparison; :class:`MajorityVote` is the better rule.

    Each text is prompt, newline, response, so a number of the prompt can count as the answer. ``E[i][j]`` is true if
    math-verify equates texts i and j in either direction; it is not transitive. The winner is the first row with the
    largest sum, and a response scores 1 if the winner's row holds it. A text from which nothing can be read equals
    only itself. The result depends on the order of the responses, and cut-off responses vote like all others.

    Pairs with the same two extractions are compared once, in a worker process, so this works off the main thread.
    ``info`` holds ``counts`` (row sums), ``majority_index``, ``tie`` and ``unique_answers`` (distinct extractions).
    """

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._verdicts: Memo[tuple[str, str], bool] = Memo()
        self._hopeless: Memo[str, bool] = Memo()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``answers`` and ``cluster`` stay as they are."""
        return [self._vote(group) for group in groups]

    def _vote(self, group: Group) -> Verdict:
        n = len(group)
        texts = [f"{group.instruction.prompt}\n{text}" for text in group.texts]
        read = [shared_client().ask("read", REQUEST_SECONDS, text=text) or {} for text in texts]
        keys = [r.get("key") for r in read]
        # SeRL's metric prints both extractions and takes any error for "different".
        printable = [bool(r.get("printable")) for r in read]
        equal = [[i == j for j in range(n)] for i in range(n)]
        for i in range(n):
            for j in range(i + 1, n):
                a, b = keys[i], keys[j]
                if a is not None and b is not None and printable[i] and printable[j]:
                    equal[i][j] = equal[j][i] = self._same(a, texts[i], b, texts[j])
        counts = [sum(row) for row in equal]
        info = {
            "counts": counts,
            "tie": False,
            "unique_answers": len(set(keys) - {None}),
            "no_answer": keys.count(None),
        }
        if not counts:
            return Verdict(torch.zeros(0), confidence=0.0, info=info)
        top = counts.index(max(counts))
        info["majority_index"] = top
        # Another response outside the winner's row has as many matches.
        info["tie"] = any(count == counts[top] and not equal[top][j] for j, count in enumerate(counts))
        scores = torch.tensor([float(match) for match in equal[top]])
        return Verdict(scores, read[top].get("answer"), counts[top] / n, info=info)

    def _same(self, key_a: str, a: str, key_b: str, b: str) -> bool:
        """Whether math-verify equates two texts, remembered by what it extracts from them."""
        pair = (key_a, key_b) if key_a < key_b else (key_b, key_a)
        known = self._verdicts.get(pair)
        if known is not None:
            return known
        if self._hopeless.get(key_a) or self._hopeless.get(key_b):
            return False
        reply = shared_client().ask("same", REQUEST_SECONDS, a=a, b=b)
        if reply is None:
            # A comparison that does not end is "different"; whoever cannot be compared with anything is asked no more.
            for key, text in ((key_a, a), (key_b, b)):
                if key not in self._hopeless:
                    self._hopeless.put(key, shared_client().ask("same", REQUEST_SECONDS, a=text, b=_NEUTRAL) is None)
        return self._verdicts.put(pair, bool(reply and reply.get("same")))
