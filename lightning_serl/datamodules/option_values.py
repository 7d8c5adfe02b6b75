"""Turns the values of ``data.source``, ``data.reward``, ``data.grader`` and ``data.pool_from`` into objects."""

from __future__ import annotations

import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from inspect import isabstract, isclass
from typing import Any, Protocol

import yaml

from lightning_serl import rewards
from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.answers.registry import NAMES
from lightning_serl.datamodules import sources
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.follow_ups import FollowUps
from lightning_serl.datamodules.sources.seeded import SeededSource
from lightning_serl.errors import InputError, did_you_mean, own_place, said_by
from lightning_serl.rewards.base import Reward, check_reward
from lightning_serl.rewards.format import FormatReward
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.random import RandomReward
from lightning_serl.rewards.serl import PairwiseVote, RuleReward
from lightning_serl.rewards.verifiable import VerifiableReward

# Rewards that need the run's grader or seed, or another option than by default; all others are made without options.
_MAKERS: dict[str, Callable[[str | AnswerGrader, int], Reward]] = {
    "MajorityVote": lambda grader, seed: MajorityVote(grader),
    "VerifiableReward": lambda grader, seed: VerifiableReward(grader),
    "RandomReward": lambda grader, seed: RandomReward(seed),
    "FormatReward": lambda grader, seed: FormatReward(),
    "PairwiseVote": lambda grader, seed: PairwiseVote(),
    # the labels of the published training files are not boxed
    "RuleReward": lambda grader, seed: RuleReward(boxed=False),
}
_CLASSES = [name for name in rewards.__all__ if isclass(one := getattr(rewards, name)) and one is not Reward]
_REWARDS = [*_MAKERS, *(name for name in _CLASSES if name not in _MAKERS)]
# What data.source would be for the sources of this package that are made of seeds and pool; all others have a name.
_MADE = {"FewShotSelfInstruction": "self", "PromptSet": "seeds", "Mixture": "mix:RATIO, as in mix:0.5",
         "DocumentQuestions": "self, and data.documents to a folder"}  # fmt: skip
_NAMED = [
    name
    for name in sources.__all__
    if issubclass(one := getattr(sources, name), (SeededSource, FollowUps)) and not isabstract(one)
]
_SOURCES = ", ".join(["self", "seeds", "mix:RATIO", *_NAMED])


class GraderLike(Protocol):
    """What ``data.grader`` accepts by class path: a grader with or without types, see ``answers.AnswerGrader``."""

    def extract(self, text: Any, /) -> Any:
        """The answer of a response."""

    def same(self, a: Any, b: Any, /) -> Any:
        """Whether two answers are equal."""


class RewardLike(Protocol):
    """What ``data.reward`` accepts by class path: a reward with or without types, see ``rewards.Reward``."""

    def __call__(self, groups: Any, ctx: Any, /) -> Any:
        """One verdict for each group."""


def parse_follow_ups(source: Any) -> tuple[Any, FollowUps | None]:
    """What :func:`parse_source` takes, and ``source`` itself if it adds follow-ups to another source."""
    source = _made_source(source)
    if not isinstance(source, FollowUps):
        return source, None
    base = _made_source(source.base)
    if isinstance(base, FollowUps):
        kinds = f"{type(source).__name__} and its base {type(base).__name__}"
        raise InputError(f"data.source: {kinds} both add follow-ups; set base to another source, such as self")
    return base, source


def parse_source(source: str | InstructionSource) -> tuple[str | InstructionSource, float]:
    """The source, made if it is a class path, and the share of each round that comes from the seeds themselves."""
    source = _made_source(source)
    if isinstance(source, InstructionSource):
        return source, 0.0
    if source in ("self", "seeds"):
        return source, float(source == "seeds")
    if not isinstance(source, str):
        kind = getattr(source, "__name__", type(source).__name__)
        raise InputError(f"data.source {kind} is no source; subclass datamodules.sources.InstructionSource")
    if said := made_by_the_run(source):
        raise InputError(said)
    if not source.startswith("mix:"):
        meant = did_you_mean(source, ["self", "seeds", *_NAMED])
        raise InputError(f"data.source must be {_SOURCES} or the class path of your own, got {source!r}{meant}")
    try:
        ratio = float(source[4:])
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        raise InputError(f"data.source {source!r}: the ratio must be a number between 0 and 1, as in mix:0.5")
    return source, ratio


def made_by_the_run(source: str) -> str | None:
    """The answer to the name of a source that is made of seeds and pool; ``None`` for any other name."""
    return f"data.source {source!r} is made by the run: set data.source to {_MADE[source]}" if source in _MADE else None


def _made_source(source: Any) -> Any:
    """The source of a name of this package or at a class path; everything else as it is."""
    if isinstance(source, str) and source in _NAMED:
        source = f"{sources.__name__}.{source}"
    if isinstance(source, str) and "." in source and not source.startswith("mix:"):
        source = load_class_path(source, "data.source", f"use {_SOURCES}, or the class path of your own")
    return source


def parse_reward(reward: Any) -> tuple[str | None, dict[str, Callable[..., Any]]]:
    """The name of a reward of this package and an empty dict, or ``None`` and the user's rewards by role.

    ``reward`` is a name; a class path; an object, which is for role ``solve``; any of these by role; or ``None``.
    """
    if isinstance(reward, str) and reward in _MAKERS:
        return reward, {}
    if isinstance(reward, Mapping):
        if not reward:
            raise InputError("data.reward is an empty mapping; give one reward per role, such as solve")
        return None, {str(role): _own_reward(one, f"data.reward.{role}") for role, one in reward.items()}
    return None, {} if reward is None else {"solve": _own_reward(reward, "data.reward")}


def parse_role_rewards(rewards: Mapping[str, Any] | None) -> dict[str, Callable[..., Any]]:
    """The rewards of roles besides ``solve``, by role in the order in which they are called."""
    given = {str(role): one for role, one in (rewards or {}).items()}
    if "solve" in given:
        raise InputError("data.role_rewards.solve: the answers to problems are scored by data.reward; give it there")
    return {role: _own_reward(one, f"data.role_rewards.{role}") for role, one in given.items()}


def _own_reward(reward: Any, option: str) -> Callable[..., Any]:
    """The reward at a class path, or the object itself, after a check of its signature."""
    if isinstance(reward, str):
        # all names would fill the message
        meant = did_you_mean(reward, _REWARDS).removeprefix("; ")
        known = meant or f"use {', '.join(_MAKERS)} or another of lightning_serl.rewards, or the class path of your own"
        reward = load_class_path(f"{rewards.__name__}.{reward}" if reward in _REWARDS else reward, option, known)
    return check_reward(reward)


def named_reward(name: str, grader: str | AnswerGrader, seed: int) -> Reward:
    """The reward of a name, with the run's grader and seed."""
    return _MAKERS[name](grader, seed)


def parse_grader(grader: Any) -> tuple[AnswerGrader, str]:
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
    """The object at ``package.module.Name``, a class called without arguments.

    An InputError names ``option``, what is ``known``, and file and line where the user's own code raised.
    """
    if path.lstrip().startswith("{"):  # the parser could not make an object of these options
        raise InputError(_why_unmade(yaml.safe_load(path), option) or f"{option}: expected a mapping; {known}")
    if "." not in path:
        raise InputError(f"{option}: there is no {path[:80]!r}; {known}")
    try:
        found = pkgutil.resolve_name(path)
        return found() if isinstance(found, type) else found
    except Exception as error:  # the user's module may raise anything while it is imported
        said = " ".join(str(error).split())[:120] or type(error).__name__
        if place := own_place(error):
            said = f"{said_by(error)[:120]} in {place}"
            raise InputError(f"{option}: {path[:80]!r} cannot be used: {said}") from error
        raise InputError(f"{option}: {path[:80]!r} cannot be used ({said}); {known}") from error


def _why_unmade(given: Any, option: str) -> str | None:
    """Why the parser made no object of ``class_path`` and ``init_args``, or of those of a role; ``None`` if unknown."""
    if not isinstance(given, Mapping):
        return None
    if "class_path" not in given:
        parts = {role: one if isinstance(one, Mapping) else {"class_path": one} for role, one in given.items()}
        reasons = (_why_unmade({"class_path": None, **one}, f"{option}.{role}") for role, one in parts.items())
        return next((reason for reason in reasons if reason), None)
    path, options = str(given["class_path"]), given.get("init_args") or {}
    try:
        found = pkgutil.resolve_name(path)
        taken = inspect.signature(found).parameters
    except Exception as error:
        return f"{option}: there is no {path[:80]!r} ({said_by(error)[:120]})"
    for wrong in (one for one in options if one not in taken):
        return f"{option}: {found.__name__} has no option {wrong!r}{did_you_mean(str(wrong), taken)}"
    missing = [n for n, p in taken.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    for name in (one for one in missing if one not in options):
        return f"{option}: {found.__name__} needs {name}; give it in init_args"
    return None
