"""The command line: ``lightning-serl fit | validate | test | predict``."""

from __future__ import annotations

from lightning_serl.cli.command import entry, main

__all__ = ["entry", "main"]
