"""Micro-batches without padding: every token once through the decoder, the rows put together for attention alone.

All layers but attention treat tokens one by one. So the tokens of a batch are laid in one line, without padding, the
prompt of neighbouring rows once, and without the last token of each row, whose successor nobody asks for. Around each
attention call queries, keys and values are gathered into rows of similar length, on which the model's own attention
runs with its own mask (causal, sliding window, ...): nothing can leak from row to row, whatever the model's attention
is, unless something else in it mixes tokens. Models where something does, or that do not ask transformers' interface
for their attention, are found out by :func:`unpackable`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_serl.types import RolloutBatch

if TYPE_CHECKING:
    from lightning_serl.policy import Policy

# Rows shorter than this share of the longest beside them get an attention call of their own.
_SIMILAR = 0.75


@dataclass(frozen=True)
class Packed:
    """A batch of B rows as one line of N tokens.

    Attributes:
        input_ids: (1, N) int64.
        position_ids: (1, N) int64, those of each row.
        predictors: (K,) int64, where in the line each masked token of the batch is predicted, row by row.
        gather: (M,) int64, where in the line each token of the rows is; M counts their padding and repeated prompts.
        shapes: (rows, tokens) of the rows of each attention call.
        home: (N,) int64, which of the M tokens of the rows is this one.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    gather: Tensor
    shapes: tuple[tuple[int, int], ...]
    home: Tensor

    def rows(self, line: Tensor) -> list[Tensor]:
        """(1, h, N, d) to one (rows, h, tokens, d) per attention call."""
        heads, width = line.shape[1], line.shape[3]
        tokens = line[0].transpose(0, 1).reshape(-1, heads * width).index_select(0, self.gather)
        parts = torch.split(tokens, [b * t for b, t in self.shapes])
        return [p.view(b, t, heads, width).transpose(1, 2) for p, (b, t) in zip(parts, self.shapes, strict=True)]

    def line(self, rows: list[Tensor]) -> Tensor:
        """One (rows, tokens, h, d) per attention call to (1, N, h, d)."""
        tokens = torch.cat([r.flatten(0, 1) for r in rows])
        return tokens.index_select(0, self.home)[None]


def pack(batch: RolloutBatch, mask: Tensor) -> Packed:
    """Lay a batch in one line; rows beside each other share what they have in common before their first masked token.

    Args:
        batch: Right-padded rows.
        mask: (B, T) bool with at least one True, none in the first column.
    """
    rows, width = mask.shape
    place = torch.arange(width, device=mask.device)
    first = mask.int().argmax(-1)
    last = torch.where(mask.any(-1), (mask * place).amax(-1), 0)
    needed = place < last[:, None]
    prompt = needed & (place < first[:, None])

    alike = (batch.input_ids[1:] == batch.input_ids[:-1]) & (batch.position_ids[1:] == batch.position_ids[:-1])
    shares = torch.zeros(rows, dtype=torch.bool, device=mask.device)
    shares[1:] = (first[1:] == first[:-1]) & (alike | ~prompt[1:]).all(-1) & prompt[:-1].any(-1)
    numbers = torch.arange(rows, device=mask.device)
    leader = torch.where(shares, 0, numbers).cummax(0).values

    own = needed & ~(prompt & shares[:, None])
    index = torch.zeros_like(batch.input_ids)
    index[own] = torch.arange(int(own.sum()), device=mask.device)
    index = torch.where(prompt, index[leader], index)

    gather, shapes, done = [], [], 0
    seat = torch.zeros_like(index)
    for chosen, tokens in _similar(last.tolist()):
        picked = torch.tensor(chosen, device=mask.device)
        gather.append(index[picked, :tokens].flatten())
        seat[picked, :tokens] = done + torch.arange(len(chosen) * tokens, device=mask.device).view(-1, tokens)
        shapes.append((len(chosen), tokens))
        done += len(chosen) * tokens
    return Packed(
        batch.input_ids[own][None], batch.position_ids[own][None], index[:, :-1][mask[:, 1:]],
        torch.cat(gather), tuple(shapes), seat[own],
    )  # fmt: skip


def _similar(lengths: list[int]) -> Iterator[tuple[list[int], int]]:
    """Rows in classes of similar length, and the longest of each; rows of length 0 are in none."""
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    chosen: list[int] = []
    for i in order:
        if chosen and lengths[i] < _SIMILAR * lengths[chosen[0]]:
            yield chosen, lengths[chosen[0]]
            chosen = []
        chosen.append(i)
    yield chosen, lengths[chosen[0]]


# -- transformers' attention interface -----------------------------------------------------------------

_PACKED: ContextVar[Packed | None] = ContextVar("packed", default=None)


@contextmanager
def attending(packed: Packed) -> Iterator[None]:
    """While a model that :func:`prepare` has seen makes its masks, they are for these rows."""
    token = _PACKED.set(packed)
    try:
        yield
    finally:
        _PACKED.reset(token)


@dataclass(frozen=True)
class _Rows:
    """What travels through the layers in place of an attention mask; a layer computed again finds it there too."""

    packed: Packed
    masks: list[Tensor | None]


def prepare(model: Any) -> str | None:
    """Register the model's attention under a name of its own, which behaves as before unless rows are packed.

    Args:
        model: A transformers model.

    Returns:
        Why its attention cannot be prepared, or None.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    name = model.config._attn_implementation
    if str(name).startswith("packed_"):
        return None
    if name not in ("sdpa", "eager"):
        return f"its attention is {name}, not sdpa"
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' interface"
    AttentionMaskInterface.register(f"packed_{name}", _mask_of(AttentionMaskInterface()[name]))
    AttentionInterface.register(f"packed_{name}", _attention_of(name))
    model.set_attn_implementation(f"packed_{name}")
    return None


def _mask_of(make: Callable[..., Any]) -> Callable[..., Any]:
    def mask(**given: Any) -> Any:
        packed = _PACKED.get()
        if packed is None:
            return make(**given)
        if given["mask_function"] is None or given["q_length"] != packed.input_ids.shape[1]:
            raise ValueError("the model asks for a mask of other tokens than it was given")
        masks = []
        for rows, tokens in packed.shapes:
            # padding comes after the tokens of its row, so a causal mask hides it
            asked = {"batch_size": rows, "q_length": tokens, "kv_length": tokens, "attention_mask": None}
            masks.append(make(**{**given, **asked}))
        return _Rows(packed, masks)

    return mask


def _attention_of(name: str) -> Callable[..., Any]:
    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *given: Any, **more: Any
    ) -> tuple[Tensor, None]:
        from transformers import AttentionInterface

        if name == "eager":
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = AttentionInterface()[name]
        if not isinstance(attention_mask, _Rows):
            if attention_mask is None and _PACKED.get() is not None:
                raise ValueError("the model keeps its attention mask to itself")
            return attend(module, query, key, value, attention_mask, *given, **more)
        packed = attention_mask.packed
        calls = zip(*(packed.rows(x) for x in (query, key, value)), attention_mask.masks, strict=True)
        return packed.line([attend(module, q, k, v, mask, *given, **more)[0] for q, k, v, mask in calls]), None

    return attention


# -- is it the same? ----------------------------------------------------------------------------------


@torch.no_grad()
def unpackable(policy: Policy) -> str | None:
    """Prepare a policy for packing and try it out on a few rows; call inside ``Policy.gathered``.

    Packed rows must give the log-probs of padded ones up to rounding, and a row must not notice what stands in others.

    Returns:
        Why the policy cannot be packed, or None; ``Policy.packs`` is set accordingly.
    """
    from lightning_serl.policy import pad_rows

    policy.packs = False
    reason = prepare(policy.causal_lm)
    if reason is not None:
        return reason
    size = policy.causal_lm.get_input_embeddings().weight.shape[0]
    lengths = [(7, 14), (7, 19), (5, 20), (5, 8)]  # prompt and whole row; two rows share each prompt

    def rows(shift: int) -> list[list[int]]:
        """Only the first two rows, prompt included, depend on the shift."""
        whole = [[(37 * t + 11 * start + (t >= start) * 5 * n) % size for t in range(n)] for start, n in lengths]
        return [[(i + shift) % size for i in row] if k < 2 else row for k, row in enumerate(whole)]

    def stats(chosen: list[list[int]], starts: list[int]) -> list[Tensor]:
        batch = pad_rows(chosen, starts, policy.pad_id).to(policy.device)
        found = policy(batch, certainty=True)
        return [torch.stack([x[i][batch.mask[i]] for x in found]) for i in range(len(chosen))]

    starts = [start for start, _ in lengths]
    padded = stats(rows(0), starts)
    alone = [stats([row], [start])[0] for row, start in zip(rows(0), starts, strict=True)]
    policy.packs = True
    try:
        packed, changed = stats(rows(0), starts), stats(rows(size // 2), starts)
    except Exception as error:  # whatever a model's code makes of it
        policy.packs = False
        return f"its code does not take packed rows ({type(error).__name__})"
    scale = max(float(x.abs().max()) for x in padded)
    # some layers are in float32 whatever the model is
    eps = max(torch.finfo(dtype).eps for dtype in (next(policy.parameters()).dtype, torch.float32))
    noise = _gap(padded, alone)
    same = _gap(packed, padded) <= 10 * noise + 4 * eps * scale
    # the same shapes and other neighbours: nothing is rounded differently, at any precision
    apart = _gap(packed[2:], changed[2:]) <= 1e-6 * scale and _gap(packed[:2], changed[:2]) > 0
    policy.packs = same and apart
    return None if policy.packs else "something in it besides attention mixes tokens"


def _gap(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
