"""Prompts for answers and for new problems, and the parser of the problems that the policy writes."""

from __future__ import annotations

from lightning_serl.prompts.few_shot import InstructionTemplate
from lightning_serl.prompts.proposals import Item, has_solution, parse_instructions, split_items
from lightning_serl.prompts.solve import SolveTemplate

__all__ = ["InstructionTemplate", "Item", "SolveTemplate", "has_solution", "parse_instructions", "split_items"]
