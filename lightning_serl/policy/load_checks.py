"""Checks of a model right after it was loaded: known logits, and a cache that writes what training reads."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_serl.errors import InputError, reason
from lightning_serl.policy.decoding_batch import decoding_batch
from lightning_serl.policy.parts import decoder
from lightning_serl.policy.policy import Policy

# The largest difference of two ways to compute logits, as a share of the largest logit. In half precision a router may
# choose another expert.
_ROUNDING = 2e-2
_HALF_ROUNDING = 0.25


@torch.no_grad()
def check_forward(policy: Policy, shown: str) -> None:
    """Refuse a model that would be trained or sampled wrong, on a few tokens.

    Its logits must be what ``Policy.head`` computes, and rows that are written with a cache, left-padded and dropped on
    the way, must get the logits of a pass over each row alone: a recurrent state often is none of this.
    """
    model = policy.causal_lm
    if getattr(model.config, "_attn_implementation", None) not in ("eager", "sdpa"):
        return  # cannot run where the weights are loaded
    size, kind = model.get_input_embeddings().weight.shape[0], type(model).__name__
    rows = [[i % size for i in ids] for ids in ([11, 7, 5, 3, 2, 13], [1, 9, 4])]
    try:
        with policy.over_all_ids():
            whole = [_logits(policy, row) for row in rows]
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"model {shown} ({kind}) does not run as a causal LM here: {reason(error)}") from error
    if not all(bool(torch.isfinite(theirs).all()) for _, theirs in whole):
        raise InputError(f"the logits of model {shown} ({kind}) are not finite; its weights are damaged or too large")
    if not all(_same(ours, theirs, _ROUNDING) for ours, theirs in whole):
        raise InputError(
            f"model {shown} ({kind}) uses logit processing that this package does not reproduce; give a model of "
            "another architecture"
        )
    try:
        with policy.over_all_ids():
            written = _written(policy, rows)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's code makes of the cache
        why = "it has no cache of keys and values from which rows can be taken"
    else:
        share = _ROUNDING if written[0].dtype in (torch.float32, torch.float64) else _HALF_ROUNDING
        if all(_same(ours, theirs, share) for ours, (_, theirs) in zip(written, whole, strict=True)):
            return
        why = "its logits with a cache differ from those of a whole pass"
    raise InputError(
        f"model {shown} ({kind}) cannot be sampled: {why}; recurrent models are often so, give a model with attention"
    )


def _logits(policy: Policy, row: list[int]) -> tuple[Tensor, Tensor]:
    """(T, V) logits of a row, as the policy and as the model itself compute them."""
    model = policy.causal_lm
    ids = torch.tensor([row], device=policy.device)
    places = torch.arange(len(row), device=ids.device)[None]
    out = decoder(model)(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=places, use_cache=False)
    return policy.head(out.last_hidden_state)[0], model(input_ids=ids, use_cache=False).logits[0]


def _written(policy: Policy, rows: list[list[int]]) -> list[Tensor]:
    """The (2, V) logits of the last two tokens of each of two rows, written beside a third that ends before them."""
    long, short = rows
    batch = decoding_batch(policy, 3)
    batch.add(policy, [tuple(row[:-1]) for row in (long, short, long)])
    before = policy.head(batch.hidden)
    order = batch.drop(torch.tensor([True, False, False])).tolist()
    batch.append(policy, torch.tensor([(long, short, long)[i][-1] for i in order]))
    after = policy.head(batch.hidden)
    return [torch.stack([before[i], after[order.index(k)]]) for i, k in ((0, 2), (1, 1))]


def _same(ours: Tensor, theirs: Tensor, share: float) -> bool:
    """Whether logits agree up to a share of the largest; of ``theirs`` the last tokens count."""
    theirs = theirs[-len(ours) :].float()
    return bool((ours.float() - theirs).abs().max() <= share * theirs.abs().max())
