"""The page of all options of ``fit``, made from the command's help."""

from __future__ import annotations

import contextlib
import io
import os
import re
from html import escape
from unittest import mock

from lightning_serl.cli import main

HEAD = """# Options of `fit`

Made from `lightning-serl fit --help`, so that it is what the installed version accepts. `validate`, `test`, `predict`,
`plan` and `compare` take the same options, plus those that their `--help` names. Every option can be written into a
YAML file, with its dots as nesting, and given with `-c file.yaml`.

Options of a part that is chosen by name follow the option that names it: `--data.engine VLLMEngine
--data.engine.memory_share 0.4`. `lightning-serl fit --data.engine.help VLLMEngine` prints them.
"""
PARTS = {
    "--data.engine": ("TransformersEngine", "VLLMEngine", "VLLMServerEngine"),
    "--data.reward": ("MajorityVote", "VerifiableReward", "SelectiveVote", "TeacherVote"),
}
SECTION = re.compile(r"^(\S.*):$")
OPTION = re.compile(r"^  (?:-\w \S+, )?(--[\w.+]+)(?: (\S.*?))?(?:  +(\S.*))?$")


def page() -> str:
    """The page in Markdown: one section for each group of options."""
    lines = [HEAD]
    rows = _rows(_help("fit", "--help"))
    for section, options in rows.items():
        if options:
            lines += [f"\n## {section}\n", *_table(options)]
    for option, names in PARTS.items():
        for name in names:
            found = [row for part in _rows(_help("fit", f"{option}.help", name)).values() for row in part]
            lines += [f"\n## `{option} {name}`\n", *_table(found)]
    return "\n".join(lines) + "\n"


def _help(*arguments: str) -> str:
    """What a command prints; asked in this process, since importing torch takes longer than the rest."""
    printed = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "400", "NO_COLOR": "1"}), contextlib.redirect_stdout(printed):
        status = main(list(arguments))
    if status:
        raise RuntimeError(f"lightning-serl {' '.join(arguments)} ended with status {status}")
    return printed.getvalue()


def _rows(text: str) -> dict[str, list[tuple[str, str, str]]]:
    """By section: option, values, explanation."""
    sections: dict[str, list[tuple[str, str, str]]] = {}
    section, seen = "", False
    for line in text.splitlines():
        if found := SECTION.match(line):
            section = "Of the command line" if found.group(1) == "options" else found.group(1).replace("``", "`")
            sections[section], seen = [], True
        elif seen and (found := OPTION.match(line)):
            sections[section].append((found.group(1), found.group(2) or "", found.group(3) or ""))
        elif seen and line.startswith("      ") and sections[section]:
            name, values, before = sections[section][-1]
            sections[section][-1] = (name, values, f"{before} {line.strip()}".strip())
    return sections


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    lines = ["| option | explanation | type | default |", "|---|---|---|---|"]
    for name, values, told in rows:
        kind, default = "", ""
        if found := re.search(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)$", told):
            said, told = found.group(1), told[: found.start()].strip()
            kind = (re.search(r"type: (.*?)(?:, default: |, known subclasses: |$)", said) or ["", ""])[1]
            default = (re.search(r"default: (.*?)(?:, known subclasses: .*)?$", said) or ["", ""])[1]
        kind = kind or (values if values.startswith("{") else "")
        cells = (
            f"`{name}`",
            _cell(told),
            f"`{_short(kind)}`" if kind else "",
            f"`{_short(default)}`" if default else "",
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


def _cell(text: str) -> str:
    """Text as it is read: rst's double backticks become single ones, and angle brackets are shown."""
    parts = re.split(r"(``[^`]*``|`[^`]*`)", re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text))
    return "".join(f"`{p.strip('`')}`" if p.startswith("`") else escape(p, quote=False) for p in parts)
