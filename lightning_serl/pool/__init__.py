"""The instruction pool: all instructions of a run, and their similarity by ROUGE-L."""

from __future__ import annotations

from lightning_serl.pool.pool import InstructionPool

__all__ = ["InstructionPool"]
