"""The instruction pool and its novelty index."""

from __future__ import annotations

from lightning_serl.pool.pool import InstructionPool

__all__ = ["InstructionPool"]
