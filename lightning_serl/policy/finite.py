"""Refuses weights that are not finite, before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_serl.distributed.finite import is_finite
from lightning_serl.errors import InputError


@torch.no_grad()
def check_finite(named: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights with NaN or infinity, which a run that diverged has saved; ``what`` they are of."""
    odd = [n for n, t in named.items() if t.is_floating_point() and not is_finite(t)]
    if odd:
        first = odd[0] if len(odd[0]) <= 90 else f"...{odd[0][-87:]}"
        raise InputError(
            f"the weights of {what} are not finite: {len(odd)} of {len(named)} tensors hold NaN or infinity (first "
            f"{first}); give a checkpoint from before it broke"
        )
