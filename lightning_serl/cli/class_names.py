"""Names of the classes that an option takes, for examples in messages and to find what a mistyped name meant."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from lightning_serl.errors import did_you_mean

# Where the classes of an option are, this package's first, and how their names end.
_PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "data.engine": ("Engine", ("lightning_serl.engines",)),
    "data.grader": ("Grader", ("lightning_serl.answers",)),
    "data.reward": ("", ("lightning_serl.rewards",)),
    "model.lr_scheduler": ("", ("torch.optim.lr_scheduler",)),
    "model.optimizer": ("", ("torch.optim",)),
    "trainer.callbacks": ("", ("lightning_serl.callbacks", "lightning.pytorch.callbacks")),
    "trainer.logger": ("Logger", ("lightning_serl.callbacks.loggers", "lightning.pytorch.loggers")),
    "trainer.strategy": ("Strategy", ("lightning_serl.distributed",)),
}
_BASES = {"AnswerGrader", "Callback", "LRScheduler", "Logger", "Optimizer", "RolloutEngine", "RolloutHooks"}


def classes_of(option: str) -> dict[str, Any]:
    """The classes of an option by name; empty for an option that takes none."""
    ending, packages = _PLACES.get(option, ("", ()))
    found: dict[str, Any] = {}
    for package in map(import_module, packages):
        parts = {name: getattr(package, name) for name in package.__all__ if name.endswith(ending)}
        classes = {name: part for name, part in parts.items() if inspect.isclass(part) and name not in _BASES}
        found = classes | found  # where a name is twice, the first is meant
    return found


def advice_on(option: str, name: str) -> str:
    """What to give in place of a name that no class of an option has."""
    known = classes_of(option)
    if meant := did_you_mean(name, known):
        return meant
    listed = ", ".join(known)
    listed = listed if 0 < len(listed) < 150 else "a known name"
    return f"; give {listed} or a full class path such as package.module.Name"
