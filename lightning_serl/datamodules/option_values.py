"""Turns the values of ``data.source``, ``data.reward``, ``data.grader`` and ``data.pool_from`` into objects."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.answers.registry import NAMES
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.errors import InputError
from lightning_serl.rewards.base import Reward, check_reward
from lightning_serl.rewards.format import FormatReward
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.random import RandomReward
from lightning_serl.rewards.serl import PairwiseVote, RuleReward
from lightning_serl.rewards.verifiable import VerifiableReward

_MAKERS: dict[str, Callable[[str | AnswerGrader, int], Reward]] = {
    "MajorityVote": lambda grader, seed: MajorityVote(grader),
    "VerifiableReward": lambda grader, seed: VerifiableReward(grader),
    "RandomReward": lambda grader, seed: RandomReward(seed),
    "FormatReward": lambda grader, seed: FormatReward(),
    "PairwiseVote": lambda grader, seed: PairwiseVote(),
    # the labels of the published training files are not boxed
    "RuleReward": lambda grader, seed: RuleReward(boxed=False),
}


def parse_source(source: str | InstructionSource) -> float:
    """The share of each round that comes from the seeds themselves, in [0, 1]."""
    if isinstance(source, InstructionSource):
        return 0.0
    if source in ("self", "seeds"):
        return float(source == "seeds")
    if not (isinstance(source, str) and source.startswith("mix:")):
        raise InputError(f"data.source must be self, seeds or mix:RATIO, got {source!r}")
    try:
        ratio = float(source[4:])
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        raise InputError(f"data.source {source!r}: the ratio must be a number between 0 and 1, as in mix:0.5")
    return ratio


def parse_reward(reward: Any) -> tuple[str | None, dict[str, Callable[..., Any]]]:
    """The name of a reward of this package and an empty dict, or ``None`` and the user's rewards by role.

    ``reward`` is a name; a class path; an object, which is for role ``solve``; objects by role; or ``None``.
    """
    if isinstance(reward, str):
        if reward in _MAKERS:
            return reward, {}
        if reward.lstrip().startswith("{"):
            said = "data.reward: this class takes other options, or is not called as reward(groups, ctx)"
            raise InputError(f"{said}; see rewards.Reward")
        known = f"use {', '.join(_MAKERS)}, or the class path of your own"
        return None, {"solve": check_reward(load_class_path(reward, "data.reward", known))}
    if isinstance(reward, Mapping):
        if not reward:
            raise InputError("data.reward is an empty mapping; give one reward per role, such as solve")
        return None, {str(role): check_reward(one) for role, one in reward.items()}
    return None, {} if reward is None else {"solve": check_reward(reward)}


def named_reward(name: str, grader: str | AnswerGrader, seed: int) -> Reward:
    """The reward of a name, with the run's grader and seed."""
    return _MAKERS[name](grader, seed)


def parse_grader(grader: str | AnswerGrader) -> tuple[AnswerGrader, str]:
    """A grader and its name."""
    if isinstance(grader, str) and "." in grader:
        known = f"use {', '.join(NAMES)}, or the class path of your own"
        grader = load_class_path(grader, "data.grader", known)
    name = grader if isinstance(grader, str) else str(getattr(grader, "name", type(grader).__name__))
    return resolve_grader(grader, option="data.grader"), name


def parse_paths(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> list[str]:
    """One path or several as a list of strings."""
    several = [paths] if isinstance(paths, (str, os.PathLike)) else paths or ()
    return [os.fspath(path) for path in several]


def load_class_path(path: str, option: str, known: str) -> Any:
    """The object at ``package.module.Name``, a class called without arguments; errors name ``option`` and ``known``."""
    if path.lstrip().startswith("{"):  # the parser could not make an object of these options
        raise InputError(f"{option}: this class takes other options, or lacks a method; {known}")
    if "." not in path:
        raise InputError(f"{option}: there is no {path[:80]!r}; {known}")
    try:
        found = pkgutil.resolve_name(path)
        return found() if isinstance(found, type) else found
    except Exception as error:  # the user's module may raise anything while it is imported
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{option}: {path[:80]!r} cannot be used ({said}); {known}") from error
