"""The options of ``lightning-serl probe``: how much it may write, at which temperatures, and where it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_serl.cli.plan_options import split_own
from lightning_serl.errors import InputError, check_range, check_target

#: Printed by ``lightning-serl probe --help``.
HELP = """usage: lightning-serl probe [options of fit] [--probe.OPTION VALUE ...] [--out FILE]

Says before a run whether `lightning-serl fit` with the same options has something to learn from: loads the model, lets
it answer some of the seeds and, where it writes problems, some of those, and measures without labels how the answers
are read, cut off, agree and vary, what the filters would keep, and what the whole run would cost. Trains nothing.

  --probe.tokens N            most tokens that the probe writes (default: {tokens:,})
  --probe.temperatures A,B    temperatures that the first seeds are answered at too, beside model.temperature
                              (default: {temperatures}); none: no others
  --out FILE                  where the figures go, as JSON; a folder for FOLDER/probe.json (default: {out})

`lightning-serl fit --help` explains the other options."""

_NAME = "probe.json"


@dataclass
class ProbeOptions:
    """The options of a probe."""

    tokens: int = 100_000
    temperatures: str = "0.6,0.8,1.0"
    out: str = _NAME

    def __post_init__(self) -> None:
        check_range("probe.tokens", self.tokens, at_least=1)
        self.swept  # noqa: B018 - refuses what is no list of temperatures
        check_target("--out", self.file)

    @property
    def swept(self) -> list[float]:
        """The temperatures as numbers, from the lowest on."""
        if self.temperatures == "none":
            return []
        try:
            found = sorted({float(one) for one in self.temperatures.split(",")})
        except ValueError:
            said = f"probe.temperatures must be numbers such as 0.6,0.8, or none; got {self.temperatures[:60]!r}"
            raise InputError(said) from None
        for one in found:
            check_range("probe.temperatures", one, above=0, at_most=5)
        if len(found) > 5:
            raise InputError(f"probe.temperatures must be at most 5 numbers, got {len(found)}")
        return found

    @property
    def file(self) -> Path:
        """Where the figures go."""
        given = Path(self.out).expanduser()
        return given / _NAME if given.is_dir() else given


def split_probe_options(arguments: Sequence[str]) -> tuple[ProbeOptions, list[str]]:
    """The options of a probe, and the other arguments; an InputError for an unknown one or a bad value."""
    spelled = [f"--probe.{one[2:]}" if one.partition("=")[0] == "--out" else one for one in arguments]
    return split_own(spelled, "probe", ProbeOptions)


def help_text() -> str:
    """The options of the command."""
    given = ProbeOptions()
    return HELP.format(tokens=given.tokens, temperatures=given.temperatures, out=given.out)
