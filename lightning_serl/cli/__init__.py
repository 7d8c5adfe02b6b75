"""The command ``lightning-serl`` with ``fit``, ``validate`` ... ``report``; :class:`PresetCLI` for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_serl.cli.command import entry, main

if TYPE_CHECKING:
    from lightning_serl.cli.preset_cli import PresetCLI

__all__ = ["PresetCLI", "entry", "main"]


def __getattr__(name: str) -> Any:
    """``PresetCLI`` is imported when it is used: it needs torch and Lightning."""
    if name == "PresetCLI":
        from lightning_serl.cli.preset_cli import PresetCLI

        return PresetCLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
