"""``lightning-serl report``: one page on one run or several, from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_serl.cli import run_folder
from lightning_serl.errors import InputError, check_target, did_you_mean, short
from lightning_serl.report import PAGE, write_report
from lightning_serl.report.folder import run_folders
from lightning_serl.report.page import MARK

_OPTIONS = ("--out", "--help")
_HELP = """usage: lightning-serl report RUN [RUN ...] [--out FILE]

Writes one page on a run: results with intervals, curves, problems and why they were left out, health, time, and the
transcripts of every round. Several runs are compared. It needs no network, and works while a run goes on.

  RUN         a run folder, or the folder of a comparison, which stands for all its runs
  --out FILE  the page (default: report.html in the run folder; of several runs, in the working directory)
"""


def report(arguments: Sequence[str]) -> None:
    """Run the command; an InputError for a bad argument."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return
    given, out = _read(arguments)
    folders = list(dict.fromkeys(folder.resolve() for one in given for folder in run_folders(one)))
    target = Path(out).expanduser() if out is not None else (folders[0] if len(folders) == 1 else Path()) / PAGE
    _check(target)
    states = {folder: "running" for folder in folders if run_folder.in_use(folder)}
    size = write_report(folders, target, states)
    print(f"report: {target} ({size / 1e6:.1f} MB)")


def _read(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The run folders and the file that were named."""
    given: list[str] = []
    out: str | None = None
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--out":
            if out is not None:
                raise InputError("report: --out is given twice; name one file")
            out = value if equals else next(words, "")
            if not out or (not equals and out.startswith("--")):
                raise InputError("report: --out needs a file, as in --out report.html")
        elif word.startswith("-"):
            advice = did_you_mean(name, _OPTIONS) or "; its only option is --out FILE"
            raise InputError(f"report: there is no option {short(name)}{advice}")
        else:
            given.append(word)
    if not given:
        raise InputError("report: name a run folder, as in lightning-serl report runs/20260101-120000")
    return given, out


def _check(target: Path) -> None:
    """Refuse a target that cannot be written, or that holds something else than a report."""
    check_target("report: --out", target)
    if target.exists():
        with target.open("rb") as file:
            head = file.read(400)
        if head and MARK.encode() not in head:
            raise InputError(f"report: {short(str(target))} is a file of another kind; name another one with --out")
