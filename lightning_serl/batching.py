"""From responses to the micro-batches of an optimizer step: pure functions of lengths, equal on all ranks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence


def minibatches(uids: Sequence[str], parts: int, epoch: int) -> list[list[int]]:
    """Deal responses into ``parts`` optimizer steps.

    Args:
        uids: Instruction uid of each response.
        parts: Optimizer steps per inner epoch.
        epoch: Inner epoch; each deals anew.

    Returns:
        ``parts`` lists of indices, sizes equal up to one. A single part keeps the order.
    """
    order = list(range(len(uids)))
    if parts > 1:
        # keyed by what is dealt, so that no counter has to survive a resume
        word = hashlib.blake2b("\n".join(uids).encode(), digest_size=8).hexdigest()
        random.Random(f"{word} {epoch}").shuffle(order)
    return [sorted(order[k::parts]) for k in range(parts)]


def partition(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Pack rows into exactly ``slots`` micro-batches of similar padded size, similar lengths together.

    The largest padded size (rows x longest row) is as small as contiguous runs of the length-sorted rows allow.

    Args:
        lengths: Tokens of each row.
        slots: Micro-batches of the optimizer step, over all ranks; some stay empty if there are fewer rows.

    Returns:
        ``slots`` lists of indices; longest rows first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))

    def runs(limit: int) -> list[list[int]]:
        out: list[list[int]] = []
        for i in order:
            # rows come longest first, so the first row of a run sets its width
            if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= limit:
                out[-1].append(i)
            else:
                out.append([i])
        return out

    low, high = max(lengths, default=0), sum(lengths) + max(lengths, default=0) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(runs(middle)) <= slots:
            high = middle
        else:
            low = middle + 1
    packed = runs(low)
    return packed + [[] for _ in range(slots - len(packed))]
