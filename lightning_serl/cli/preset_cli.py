"""A LightningCLI with presets, class paths of earlier versions, and errors in one sentence."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from lightning_serl.cli.config_files import preset_path, presets, read_config, with_current_paths
from lightning_serl.cli.own_code import check_class_paths
from lightning_serl.cli.parser_errors import ParserRefusal, refusal
from lightning_serl.cli.parser_internals import StrictCLI, option_names
from lightning_serl.cli.short_names import spell_out
from lightning_serl.datamodules.self_play import SelfPlayDataModule
from lightning_serl.errors import InputError
from lightning_serl.module import SeRLModule


class ConfigFile(ActionConfigFile):
    """The option ``--config``: a configuration file, or ``preset:NAME`` for a packaged one."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Merge a file into the configuration."""
        self._merge(parser, cfg, str(values), ())

    def _merge(self, parser: Any, cfg: Any, values: str, above: tuple[str, ...]) -> None:
        """Merge one file, after the ones that it extends; ``above`` are the files that extend it."""
        named = os.path.normpath(values)
        if named in above:
            raise ParserRefusal(f"{named} extends itself ({' extends '.join((*above, named))}); remove one extends")
        if values.startswith("preset:"):
            values = preset_path(values.removeprefix("preset:"))
        try:
            extended, rest = read_config(values)
            for other in extended:
                self._merge(parser, cfg, other, (*above, named))
            if rest != "":
                super().__call__(parser, cfg, values if rest is None else rest)
        except (ParserRefusal, TypeError, ValueError, OSError) as error:
            said = str(error) if isinstance(error, ParserRefusal) else refusal(_bare(error), option_names(parser))
            raise ParserRefusal(said if values in said or above else f"{values[-120:]}: {said}") from error


def _bare(error: Exception) -> str:
    """The parser's message about a configuration file, without the name of the option ``--config``."""
    if isinstance(error, UnicodeDecodeError):
        return "this is not UTF-8 text; give a configuration in YAML"
    return re.sub(r'^[Pp]arser key "c?(onfig)?":\s*', "", str(error))


class Parser(LightningArgumentParser):
    """Raises its error messages as one sentence in place of printing them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ParserRefusal; the parser of a class inside an option leaves that to the one around it."""
        said = refusal(message, option_names(self))
        if not self.exit_on_error:
            super().error(said, ex)
        raise ParserRefusal(said) from ex


class PresetCLI(StrictCLI):
    """A LightningCLI for a script of your own, whose ``-c`` takes ``preset:NAME`` and files that extend others.

    It differs from Lightning's in four points: ``-c preset:NAME``; short names for this package's rewards and graders;
    options come from the command line and its configuration files, never from a checkpoint; the optimizer is
    ``--model.optimizer``, because the policy's weights do not exist yet when LightningCLI would make ``--optimizer``.
    Input that is refused while parsing ends the script with one sentence and status 2.

    Args:
        model_class: ``SeRLModule``, a subclass, or a module of your own with ``policy`` and ``experience``.
        datamodule_class: ``SelfPlayDataModule`` or a subclass.
        args: The arguments, by default those of the process.
        options: Further arguments of ``LightningCLI``.
    """

    def __init__(
        self,
        model_class: Any = SeRLModule,
        datamodule_class: Any = SelfPlayDataModule,
        *,
        args: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        given = sys.argv[1:] if args is None else args
        self.arguments = spell_out([with_current_paths(str(argument)) for argument in given])
        options.setdefault("auto_configure_optimizers", False)
        super().__init__(model_class, datamodule_class, args=self.arguments, **options)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose option ``--config`` takes presets."""
        parser = Parser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigFile,
            help=f"Configuration file, or preset:NAME (there are: {', '.join(presets())}); may be given again.",
        )
        return parser

    def parse_checked(self, parser: LightningArgumentParser) -> None:
        """Parse the arguments; LightningCLI would warn where they are given besides those of the process."""
        check_class_paths(self.arguments)
        self.config = parser.parse_args(self.arguments)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, or end with one sentence and status 2."""
        try:
            self.parse_checked(parser)
        except (ParserRefusal, InputError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
