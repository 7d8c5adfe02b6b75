"""``lightning-serl merge``: an adapter that was exported alone, merged into its base."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning_serl.callbacks.publishing.model_card import merged_card
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.errors import InputError, SeRLError, did_you_mean, reason, short
from lightning_serl.policy.merging import adapter_directory, base_of, merge_adapter, stored_card

_HELP = """usage: lightning-serl merge RUN_OR_EXPORT --out DIR [--base MODEL] [--dtype DTYPE] [--quantize nf4]

Merges an adapter that was exported alone (Export with form adapter), or that peft has saved, into its base, and writes
a directory for AutoModelForCausalLM.from_pretrained: weights, tokenizer with chat template, generation config, model
card, and serl.json with the options that it was asked with.

  RUN_OR_EXPORT  run folder, its export/, or a directory that holds adapter_config.json
  --out          directory to write; it must not exist, or be empty
  --base         directory or hub name of the base; by default the one that adapter_config.json names
  --dtype        float32, bfloat16 or float16; by default that of the base in training (serl.json), else of its files
  --quantize     nf4 if the base had 4 bits in training; by default as serl.json says
"""
_OPTIONS = ("--out", "--base", "--dtype", "--quantize", "--help")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors in this package's words."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise InputError(f"merge: {message}; lightning-serl merge --help shows the options")


def merge(arguments: Sequence[str], state: CommandState) -> None:
    """Run the command; raises an InputError before anything is loaded where that is possible."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return
    asked = _read(arguments)
    adapter = adapter_directory(asked.adapter)
    base, out = base_of(adapter, asked.base), Path(asked.out).expanduser().absolute()
    _check_out(out)
    card = merged_card(stored_card(adapter), base)
    try:
        merge_adapter(adapter, out, base, asked.dtype, asked.quantize, card)
    except InputError as error:
        said = (
            str(error).replace("model.lora.start_from", "the adapter").replace("model.quantize nf4", "--quantize nf4")
        )
        raise InputError(f"merge: {said}") from error
    except OSError as error:
        raise SeRLError(
            f"merge: {short(str(out))} cannot be written ({reason(error)}); free space, or name another --out"
        ) from error
    print(f"merged: {out}", flush=True)


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="lightning-serl merge", add_help=False, allow_abbrev=False)
    parser.add_argument("adapter", metavar="RUN_OR_EXPORT")
    parser.add_argument("--out", required=True)
    parser.add_argument("--base")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16", "float64"))
    parser.add_argument("--quantize", choices=("nf4",))
    for word in arguments:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in _OPTIONS:
            advice = did_you_mean(name, _OPTIONS) or f"; give {', '.join(_OPTIONS)}"
            raise InputError(f"merge has no option {name[:60]}{advice}")
    return parser.parse_args(list(arguments))


def _check_out(out: Path) -> None:
    """Refuse a directory that holds something, and one that cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"merge: --out {short(str(out))} exists already; name a new directory")
    place = next(parent for parent in (out, *out.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"merge: --out {short(str(out))} cannot be made in {place}; name another place")
