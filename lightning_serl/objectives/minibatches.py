"""Assigns responses to optimizer steps and micro-batches: pure functions with equal results on all ranks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence


def minibatches(uids: Sequence[str], parts: int, epoch: int) -> list[list[int]]:
    """Divide responses among ``parts`` optimizer steps.

    Args:
        uids: Instruction uid of each response.
        parts: Optimizer steps per inner epoch.
        epoch: Inner epoch; each has another order.

    Returns:
        ``parts`` lists of indices, sizes equal up to one. A single part keeps the order.
    """
    order = list(range(len(uids)))
    if parts > 1:
        # seeded by the uids, so that no counter has to be in a checkpoint
        seed = hashlib.blake2b("\n".join(uids).encode(), digest_size=8).hexdigest()
        random.Random(f"{seed} {epoch}").shuffle(order)
    return [sorted(order[k::parts]) for k in range(parts)]


def partition(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Divide rows among exactly ``slots`` micro-batches of similar padded size, similar lengths together.

    The largest padded size (rows x longest row) is as small as contiguous runs of the length-sorted rows allow.

    Args:
        lengths: Tokens of each row.
        slots: Micro-batches of the optimizer step on all ranks; some are empty if there are fewer rows.

    Returns:
        ``slots`` lists of indices; longest rows first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))

    def size(run: list[int], _: int, i: int) -> int:
        # rows are sorted longest first, so the first row of a run sets its width
        return (len(run) + 1) * lengths[run[0] if run else i]

    return _runs(order, slots, size)


def partition_packed(prompts: Sequence[tuple[int, ...]], lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Divide rows among exactly ``slots`` micro-batches of similar token counts, a prompt counted once in each.

    The largest count is as small as contiguous runs allow, with the rows of a prompt next to each other.

    Args:
        prompts: Prompt ids of each row.
        lengths: Tokens of each row, prompt included.
        slots: As in :func:`partition`.

    Returns:
        ``slots`` lists of indices; prompts in order of appearance, the longest rows of each first.
    """
    number = {prompt: k for k, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(lengths)), key=lambda i: (number[prompts[i]], -lengths[i], i))

    def size(run: list[int], before: int, i: int) -> int:
        shared = bool(run) and prompts[run[-1]] == prompts[i]
        return before + lengths[i] - (len(prompts[i]) if shared else 0)

    return _runs(order, slots, size)


def _runs(order: list[int], slots: int, size: Callable[[list[int], int, int], int]) -> list[list[int]]:
    """Cut a sequence into ``slots`` runs so that the largest size is minimal, by bisection over that size.

    Args:
        order: The sequence.
        slots: How many runs; the last are empty if fewer suffice.
        size: ``(run, its size, next)`` to the size of the run with ``next`` appended; must not decrease.
    """

    def runs(limit: int) -> list[list[int]]:
        out: list[list[int]] = []
        now = 0
        for i in order:
            grown = size(out[-1], now, i) if out else limit + 1
            if grown <= limit:
                out[-1].append(i)
                now = grown
            else:
                out.append([i])
                now = size([], 0, i)
        return out

    low = max((size([], 0, i) for i in order), default=0)
    high = max(low, sum(size([], 0, i) for i in order), len(order) * low)
    while low < high:
        middle = (low + high) // 2
        if len(runs(middle)) <= slots:
            high = middle
        else:
            low = middle + 1
    packed = runs(low)
    return packed + [[] for _ in range(slots - len(packed))]
