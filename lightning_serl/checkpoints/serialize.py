"""Converts completions, groups and verdicts to primitives and tensors, for checkpoints read with ``weights_only``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_serl.types import Completion, Group, Instruction, Link, Verdict


def completion_state(completion: Completion) -> dict[str, Any]:
    """A completion as primitives."""
    logprobs = None if completion.logprobs is None else list(completion.logprobs)
    return {**vars(completion), "token_ids": list(completion.token_ids), "logprobs": logprobs}


def load_completion(state: Mapping[str, Any]) -> Completion:
    """The inverse of :func:`completion_state`."""
    logprobs = None if state["logprobs"] is None else tuple(state["logprobs"])
    return Completion(**{**state, "token_ids": tuple(state["token_ids"]), "logprobs": logprobs})


def instruction_state(instruction: Instruction) -> dict[str, Any]:
    """An instruction, with its link, as primitives."""
    link = None if instruction.link is None else list(instruction.link)
    return {**vars(instruction), "meta": dict(instruction.meta), "link": link}


def load_instruction(state: Mapping[str, Any]) -> Instruction:
    """The inverse of :func:`instruction_state`."""
    link = state.get("link")
    return Instruction(**{**state, "link": None if link is None else Link(*link)})


def pair_state(group: Group, verdict: Verdict) -> dict[str, Any]:
    """A group and its verdict; answers and statistics are left out, since the verdict is made of them already."""
    return {
        "instruction": instruction_state(group.instruction),
        "prompt_ids": list(group.prompt_ids),
        "completions": [completion_state(c) for c in group.completions],
        "verdict": dict(vars(verdict)),
    }


def load_pair(state: Mapping[str, Any]) -> tuple[Group, Verdict]:
    """The inverse of :func:`pair_state`."""
    completions = [load_completion(c) for c in state["completions"]]
    group = Group(load_instruction(state["instruction"]), tuple(state["prompt_ids"]), completions)
    return group, Verdict(**state["verdict"])
