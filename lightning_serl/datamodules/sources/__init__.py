"""Instruction sources: few-shot self-instruction, a fixed prompt set, a mixture of both, or your own."""

from __future__ import annotations

from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.few_shot import FewShotSelfInstruction, Writing
from lightning_serl.datamodules.sources.prompt_set import Mixture, PromptSet

__all__ = ["FewShotSelfInstruction", "InstructionSource", "Mixture", "PromptSet", "Writing"]
