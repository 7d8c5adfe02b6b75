"""The methods of ``lightning-serl compare``: what a user names, the controls, and the arguments of ``fit`` for each."""

from __future__ import annotations

import difflib
import pkgutil
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl

from lightning_serl import rewards
from lightning_serl.cli.config_files import preset_path, presets
from lightning_serl.cli.own_code import import_trouble
from lightning_serl.cli.short_names import CLASS_PATHS
from lightning_serl.datamodules.sources import InstructionSource
from lightning_serl.errors import InputError
from lightning_serl.evaluation.comparison import GOLD, RANDOM

#: Names of the rewards of this package.
REWARDS = tuple(name for name in rewards.__all__ if name in CLASS_PATHS["data.reward"])
_LABEL = re.compile(r"([\w.+-]+)=(.+)", re.DOTALL)
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_VOTE = ("--data.reward", "MajorityVote")
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        label: Its name in the table.
        configs: Configuration files and presets; they follow those of all arms and precede the other options.
        options: Further arguments of ``fit``, which follow the options of all arms.
        control: Whether it is one of the controls.
    """

    label: str
    configs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    control: bool = False

    def arguments(self, common: Sequence[str]) -> list[str]:
        """The arguments of ``fit`` with the options of all arms, which win over the files of the method."""
        last = max((place for place, word in enumerate(common) if word in ("-c", "--config")), default=-2) + 2
        last = max([last, *(n + 1 for n, word in enumerate(common) if word.startswith(("-c=", "--config=")))])
        configs = [word for name in self.configs for word in ("-c", name)]
        return [*common[:last], *configs, *common[last:], *self.options]

    @property
    def folder(self) -> str:
        """The label as the beginning of a folder's name."""
        return _UNSAFE.sub("_", self.label).strip("_") or "method"


CONTROLS = (
    Method(RANDOM, options=("--data.reward", "RandomReward"), control=True),
    # the preset leaves the difficulty band out, which would drop every group whose responses all have the format
    Method("format", ("preset:control-format",), ("--data.reward", "FormatReward"), control=True),
    Method("frozen", options=(*_VOTE, "--model.lr", "0"), control=True),
)
#: Labelled seeds, scored against their labels.
LABELLED = Method(GOLD, options=("--data.source", "seeds", "--data.reward", "VerifiableReward"), control=True)
_CONTROL_NAMES = {method.label for method in (*CONTROLS, LABELLED)} | {"RandomReward", "FormatReward"}
_CONTROL_NAMES |= {f"{prefix}control-{name}" for name in ("random", "format", "frozen") for prefix in ("", "preset:")}


def read_methods(given: Sequence[str]) -> list[Method]:
    """The methods that a user lists; an InputError for one that is unknown, listed twice, or a control."""
    methods: list[Method] = []
    for text in given:
        if text in _CONTROL_NAMES:
            raise InputError(f"--methods: the controls random, format, frozen and gold always run; leave {text} out")
        one = read_method(text)
        for other in methods:
            same = (one.configs, one.options) == (other.configs, other.options)
            if same or one.label == other.label:
                raise InputError(
                    f"--methods: {one.label} is listed twice; remove one, or name them as in a={text[:60]!r}"
                )
        if one.label in _CONTROL_NAMES:
            raise InputError(f"--methods: {one.label} is the name of a control; give another name before the =")
        methods.append(one)
    folders = [method.folder.lower() for method in methods]
    for method, folder in zip(methods, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(
                f"--methods: {method.label} has the folder name of another method; name it as in mine='...'"
            )
    return methods


def read_method(text: str, option: str = "--methods") -> Method:
    """One method: ``[LABEL=]NAME [OPTIONS OF fit]``.

    ``NAME`` is a reward of this package, a class path (a reward, a source or a callback of the user's), a preset, or a
    YAML file.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{option}: {text[:80]!r} cannot be read ({error}); close its quotation marks") from error
    if not words:
        raise InputError(f"{option} holds an empty name; give a reward, a class path, a preset or a yaml file")
    labelled = _LABEL.fullmatch(words[0])
    label, name = (labelled[1], labelled[2]) if labelled else ("", words[0])
    options = words[1:]
    if options and not options[0].startswith("-"):
        raise InputError(f"{option}: {options[0]!r} in {text[:80]!r} is no option; quote one method with its options")
    default, configs, chosen = _named(name, option)
    shown = [word.lstrip("-").rpartition(".")[2] for word in options]
    return Method(label or " ".join([default, *_joined(shown, options)]), configs, (*chosen, *options))


def _joined(shown: Sequence[str], options: Sequence[str]) -> list[str]:
    """``soft=true`` for ``--data.reward.soft true``."""
    out: list[str] = []
    for short, word in zip(shown, options, strict=True):
        if word.startswith("--") or not out:
            out.append(short)
        else:
            out[-1] += f"={word}"
    return out


def _named(name: str, option: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Default label, configuration files and options of a method's name."""
    bare = name.removeprefix("preset:")
    if name.startswith("preset:") or bare in presets():
        preset_path(bare)  # refuses an unknown one
        return bare, (f"preset:{bare}",), ()
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise InputError(f"{option}: there is no file {name[-120:]}")
        return Path(name).stem, (name,), ()
    if name in REWARDS:
        return name, (), ("--data.reward", name)
    if not _CLASS_PATH.fullmatch(name):
        known = [*REWARDS, *(one for one in presets() if one.startswith("method-"))]
        lowered = {one.lower().removeprefix("method-"): one for one in known}
        near = difflib.get_close_matches(name.lower().removeprefix("method-"), lowered, n=2, cutoff=0.6)
        meant = (
            f"did you mean {' or '.join(lowered[one] for one in near)}?"
            if near
            else "see docs/methods.md for the names"
        )
        raise InputError(f"{option}: there is no method {name[:60]!r}; {meant}")
    if trouble := import_trouble(name):
        raise InputError(f"{option}: {trouble}")
    part = pkgutil.resolve_name(name)
    if isinstance(part, type) and issubclass(part, InstructionSource):
        return name, (), ("--data.source", name, *_VOTE)
    if isinstance(part, type) and issubclass(part, pl.Callback):
        return name, (), ("--trainer.callbacks+", name, *_VOTE)
    return name, (), ("--data.reward", name)
