"""The command line: ``lightning-serl fit | validate | test | predict``."""

from lightning_serl.cli.command import entry, main

__all__ = ["entry", "main"]
