"""Every private name of jsonargparse and LightningCLI that the command line needs.

``tests/test_lightning_contract.py`` holds each of them with a test of its name.
"""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse._actions import _ActionConfigLoad
from lightning.fabric.utilities.enums import LightningEnum
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

# Lightning's enumerations, defaults of callbacks such as Timer, are strings that YAML would not write.
yaml.SafeDumper.add_multi_representer(LightningEnum, lambda dumper, value: dumper.represent_str(value.value))


class StrictCLI(LightningCLI):
    """A LightningCLI whose options come from the command line and its configuration files only."""

    def _parse_ckpt_path(self) -> None:
        """Do nothing; LightningCLI merges options stored in a checkpoint over those of the command line."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.run(subcommand)

    def run(self, subcommand: str) -> None:
        """Carry out a subcommand with the Trainer, once everything is made."""
        super()._run_subcommand(subcommand)

    @property
    def command_parser(self) -> LightningArgumentParser:
        """The parser of the subcommand that was chosen."""
        return self._parser(self.subcommand)


def option_names(parser: Any) -> list[str]:
    """All option names of a parser and of its subcommands."""
    names: list[str] = []
    for action in parser._actions:
        names += [o for o in action.option_strings if o.startswith("--") and not o.endswith((".help", "+"))]
        choices = getattr(action, "choices", None)
        if isinstance(choices, dict):
            for sub in choices.values():
                if hasattr(sub, "_actions"):
                    names += option_names(sub)
    return list(dict.fromkeys(names))


def option_groups(parser: LightningArgumentParser) -> list[str]:
    """Names of the options that hold further options by name, such as ``data`` and ``data.round``."""
    return [action.dest for action in parser._actions if isinstance(action, _ActionConfigLoad)]
