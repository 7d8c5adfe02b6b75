"""Exports the trained policy with a model card."""

from __future__ import annotations

from lightning_serl.callbacks.export.callback import Export

__all__ = ["Export"]
