"""Writes the page: one HTML file with its style, its program and its data, which needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.report.content import content_of
from lightning_serl.report.folder import RunFolder, labels_of
from lightning_serl.report.problems import read_story
from lightning_serl.report.transcripts import pack

#: Name of the page in a run folder.
PAGE = "report.html"
#: Most bytes of a page.
PAGE_BYTES = 6_000_000
# For what the estimate of the sizes leaves out: the frame around each chunk.
_SPARE = 100_000
#: Stands in every page, so that a file of another kind is not replaced.
MARK = "<!-- report of lightning-serl -->"
_SCRIPTS = ("draw.js", "figures.js", "transcripts.js", "compare.js", "main.js")
# Nothing is loaded and nothing is sent, whatever a text of a model may hold.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def write_report(folders: Sequence[Path], target: Path, states: Mapping[Path, str] | None = None) -> int:
    """Write one page on one run or several; returns its size in bytes.

    Args:
        folders: Run folders.
        target: The file, which is written in one step.
        states: How a run ended, by its folder, where more is known than its files say.

    Raises:
        InputError: if a folder holds no run.
        StorageFailure: if the file cannot be written.
    """
    runs = []
    for folder, label in zip(folders, labels_of(folders), strict=True):
        run = RunFolder.read(folder)
        run.label = label
        story = read_story(run.ledger)
        state = (states or {}).get(folder) or ("finished" if run.summary else "not finished")
        runs.append((run, story, content_of(run, story, state)))
    frame = _document("", "", "")
    fixed = len(frame.encode()) + sum(len(_json(content)) for _, _, content in runs) + _SPARE
    room = max(0, PAGE_BYTES - fixed)
    chunks: dict[str, str] = {}
    # small runs first: what they leave goes to the others
    for left, (place, (run, story, content)) in enumerate(
        sorted(enumerate(runs), key=lambda one: len(one[1][0].samples)), -len(runs)
    ):
        packed = pack(story, run.samples, f"r{place}", room // -left)
        chunks |= packed.chunks
        room = max(0, room - packed.size)
        content["transcripts"] = {
            "problems": packed.problems,
            "rounds": {str(number): name for number, name in packed.rounds.items()},
            "left_out": packed.left_out,
            "recorded": packed.responses[0],
            "shown": packed.responses[1],
        }
    made = datetime.now().strftime("%Y-%m-%d %H:%M")
    data = _json({"made": made, "runs": [content for _, _, content in runs]})
    body = "".join(f'<script type="text/plain" id="{name}">{text}</script>\n' for name, text in chunks.items())
    page = _document(_title([run for run, _, _ in runs]), data, body).encode("utf-8", errors="replace")
    write_whole(target, lambda file: file.write(page))
    return len(page)


def _title(runs: Sequence[RunFolder]) -> str:
    return f"{runs[0].name} - report" if len(runs) == 1 else f"{len(runs)} runs - comparison"


def _json(value: Any) -> str:
    """JSON for the inside of a script element, which ``</script>`` and ``<!--`` would end or change."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _document(title: str, data: str, chunks: str) -> str:
    style = _asset("page.css")
    program = "\n".join(_asset(name) for name in _SCRIPTS)
    return f"""<!DOCTYPE html>
<html lang="en">
{MARK}
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{style}
</style>
</head>
<body>
<noscript><p class="noscript">This page draws its figures with JavaScript, which is turned off here.</p></noscript>
<div id="app"></div>
<script type="application/json" id="data">{data}</script>
{chunks}<script>
"use strict";
(() => {{
{program}
}})();
</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("lightning_serl.report").joinpath("assets", name).read_text(encoding="utf-8")
