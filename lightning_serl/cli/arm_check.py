"""Checks the arguments of an arm as ``fit`` would, without loading a model, and returns the options that they mean."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import Namespace

from lightning_serl.cli.lightning_cli import SelfPlayCLI
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.datamodules import checks
from lightning_serl.types import Instruction

# What differs between the runs of one method, or where they lie.
_OF_THE_RUN = ("seed_everything", "ckpt_path", "trainer.default_root_dir", "config", "weights_only")


@dataclass(frozen=True)
class Checked:
    """What the options of an arm amount to.

    ``options`` are all options of ``fit`` by name, and fingerprints of the problem files; ``root`` is
    ``trainer.default_root_dir`` if it was given; ``labelled_seeds`` and ``labelled`` count problems with an answer,
    ``labelled`` by evaluation set.
    """

    options: dict[str, Any]
    root: str | None
    labelled_seeds: int
    labelled: dict[str, int]


class _Stop(Exception):
    """Ends the command after its checks; carries what they found."""

    def __init__(self, found: Checked) -> None:
        super().__init__()
        self.found = found


class _CheckOnly(SelfPlayCLI):
    """A ``fit`` that ends after its checks: no folder is written to, and no model is loaded."""

    def settle_run_folder(self, options: Namespace) -> None:
        """Leave the folders alone."""

    def before_fit(self) -> None:
        """Check everything that a fit checks, and stop."""
        checks.check_fit(self.trainer, self.model, self.datamodule)
        data = self.datamodule
        text = self.parser.dump(self.config, skip_none=False)
        options = dict(flat(yaml.safe_load(text)["fit"]))
        problems = {"data.seeds": data.seed_problems} if data.seed_problems else {}
        problems |= {f"data.evaluation.sets.{name}": one for name, one in data.evaluation_problems.items()}
        found = Checked(
            {name: value for name, value in options.items() if name not in _OF_THE_RUN}
            | {f"{name} (content)": _fingerprint(one) for name, one in problems.items()},
            options.get("trainer.default_root_dir"),
            sum(p.label is not None for p in data.seed_problems),
            {n: sum(p.label is not None for p in problems) for n, problems in data.evaluation_problems.items()},
        )
        raise _Stop(found)


def _fingerprint(problems: Sequence[Instruction]) -> str:
    """A short hash of problems and their labels: a file may change under the same name."""
    text = json.dumps([(problem.prompt, problem.label) for problem in problems])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def check_arm(arguments: Sequence[str]) -> Checked:
    """Check the arguments of a ``fit``; raises what ``fit`` would raise before it begins, without its log lines."""
    environment = dict(os.environ)
    try:
        with _silence():
            _CheckOnly(["fit", *arguments], CommandState())
    except _Stop as stopped:
        return stopped.found
    finally:  # seed_everything leaves variables there, which the runs would inherit
        os.environ.clear()
        os.environ.update(environment)
    raise AssertionError("the checks of an arm did not end")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep log lines and prints of the checks away: each run says them again in its own log."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options by their full names, as a user types them."""
    for name, value in options.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
