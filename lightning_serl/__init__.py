"""Self-play reinforcement learning of language models without labels, as PyTorch Lightning parts.

The names below load on first use: processes that only grade answers must not pay for torch and Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_serl.datamodules.self_play import SelfPlayDataModule
    from lightning_serl.module import SeRLModule
    from lightning_serl.types import Group, Instruction

__all__ = ["Group", "Instruction", "SeRLModule", "SelfPlayDataModule"]
__version__ = "0.1.0"

_HOME = {
    "SeRLModule": "lightning_serl.module",
    "SelfPlayDataModule": "lightning_serl.datamodules.self_play",
    "Group": "lightning_serl.types",
    "Instruction": "lightning_serl.types",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
