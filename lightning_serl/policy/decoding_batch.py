"""The model's side of writing: the rows that are written at one time, and their keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_serl.policy.kv_cache import RowCache, row_layers
from lightning_serl.policy.parts import decoder
from lightning_serl.policy.policy import Policy

# Unused columns are dropped when they are at least so many and this share of all.
_UNUSED, _SHARE = 32, 0.25


class RowBatch:
    """Rows that end in one column of a cache, so that a row can begin while others are in the middle of theirs.

    Attributes:
        hidden: (rows, H) last hidden state of each row, from which its next token is predicted.

    Args:
        layers: Attention layers of the model.
        most: The most rows there will be at one time.
        pad: The padding id.
    """

    def __init__(self, layers: int, most: int, pad: int) -> None:
        self._cache, self._most, self._pad = RowCache(layers), most, pad
        self._first = torch.empty(0, dtype=torch.long)  # (rows,) the first column of each row
        self._columns = 0
        self.hidden = torch.empty(0)

    @property
    def rows(self) -> int:
        """Rows that are written now."""
        return len(self._first)

    def takes(self, waiting: int) -> int:
        """How many new rows to add now: few at a time would be run through the model in small batches."""
        free = self._most - self.rows
        return min(free, waiting) if free >= min(waiting, -(-self._most // 8)) else 0

    def add(self, actor: Policy, prompts: list[tuple[int, ...]]) -> None:
        """Append rows; equal prompts are run through the model once. Calls may not bring longer and longer prompts."""
        cache, lengths, place, hidden = prefill(actor, prompts, self._pad)
        self._columns = max(self._columns if self.rows else 0, int(lengths.max()))
        self._cache.put(cache, place, self._most, self._columns)
        self._first = torch.cat([self._first.to(lengths.device), self._columns - lengths[place]])
        hidden = hidden[place]
        self.hidden = torch.cat([self.hidden, hidden]) if self.rows > len(prompts) else hidden

    def drop(self, done: Tensor) -> Tensor:
        """Remove rows, (rows,) bool on the CPU; returns the former number of each row that is left, (rows,) int64."""
        order = torch.arange(len(done))
        left = int((~done).sum())
        # rows at the end take the places of those that leave, so that only they are copied
        target, source = done[:left].nonzero()[:, 0], left + (~done[left:]).nonzero()[:, 0]
        order[target] = source
        order = order[:left]
        there = order.to(self._first.device)
        self._cache.move(source.to(self._first.device), target.to(self._first.device), left)
        self._first, self.hidden = self._first[there], self.hidden[there]
        if left and (unused := int(self._first.min())) >= max(_UNUSED, _SHARE * self._columns):
            self._cache.trim(unused)
            self._first, self._columns = self._first - unused, self._columns - unused
        return order

    def append(self, actor: Policy, tokens: Tensor) -> None:
        """Run one more token of each row, (rows,) int64."""
        place = self._columns - self._first
        if actor.steady_length is not None:
            actor.check_length(int(place.max()) + 1)
        self._columns += 1
        columns = torch.arange(self._columns, device=self._first.device)
        out = decoder(actor.causal_lm)(
            input_ids=tokens.to(actor.device)[:, None],
            attention_mask=(columns >= self._first[:, None]).long(),
            position_ids=place[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self.hidden = out.last_hidden_state[:, -1]


class WholeBatch:
    """Rows that begin together, for models whose cache is not made of keys and values alone; see :class:`RowBatch`."""

    def __init__(self, most: int, pad: int) -> None:
        self._most, self._pad = most, pad
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._position = torch.empty(0, dtype=torch.long)
        self.hidden = torch.empty(0)

    @property
    def rows(self) -> int:
        """Rows that are written now."""
        return len(self._position)

    def takes(self, waiting: int) -> int:
        """How many new rows to add now: none before all have left."""
        return 0 if self.rows else min(self._most, waiting)

    def add(self, actor: Policy, prompts: list[tuple[int, ...]]) -> None:
        """Begin with these rows; equal prompts are run through the model once."""
        self._cache, lengths, place, hidden = prefill(actor, prompts, self._pad)
        # unlike `batch_select_indices`, every kind of cache layer implements this one
        self._cache.reorder_cache(place)
        self.hidden, self._position = hidden[place], lengths[place]
        width = int(lengths.max())
        columns = torch.arange(width, device=lengths.device)
        self._mask = (columns >= width - self._position[:, None]).long()

    def drop(self, done: Tensor) -> Tensor:
        """Remove rows, (rows,) bool on the CPU; returns the former number of each row that is left, (rows,) int64."""
        order = (~done).nonzero()[:, 0]
        there = order.to(self._position.device)
        self._mask, self._position, self.hidden = self._mask[there], self._position[there], self.hidden[there]
        if len(order):
            self._cache.reorder_cache(there)
        return order

    def append(self, actor: Policy, tokens: Tensor) -> None:
        """Run one more token of each row, (rows,) int64."""
        if actor.steady_length is not None:
            actor.check_length(int(self._position.max()) + 1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], -1)
        out = decoder(actor.causal_lm)(
            input_ids=tokens.to(actor.device)[:, None],
            attention_mask=self._mask,
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._position = self._position + 1
        self.hidden = out.last_hidden_state[:, -1]


def decoding_batch(policy: Policy, most: int) -> RowBatch | WholeBatch:
    """An empty batch of at most ``most`` rows, of the kind that the model allows."""
    layers = row_layers(policy.causal_lm.config)
    return WholeBatch(most, policy.pad_id) if layers is None else RowBatch(layers, most, policy.pad_id)


def prefill(actor: Policy, prompts: list[tuple[int, ...]], pad: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Run P prompts, of which N are distinct.

    Returns the cache of N rows, their lengths (N,) int64, the row of each prompt (P,) int64, and the last hidden states
    (N, H).
    """
    distinct = list(dict.fromkeys(prompts))
    number = {ids: k for k, ids in enumerate(distinct)}
    longest, device = max(map(len, distinct)), actor.device
    actor.check_length(longest)
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in distinct], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in distinct], device=device)
    out = decoder(actor.causal_lm)(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=True
    )
    place = torch.tensor([number[p] for p in prompts], device=device)
    return out.past_key_values, mask.sum(-1), place, out.last_hidden_state[:, -1]
