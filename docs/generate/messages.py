"""The page of all messages: every error and warning of the package, found in its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HEAD = """# Messages

Every error and warning of the package, made from its code. A message says what was wrong, where (the option as it is
typed) and how to mend it; `⟨...⟩` stands for a value. Search for a few of its words. Errors of bad input end a command
with status 2 before work begins, failures during work with status 1; `LIGHTNING_SERL_DEBUG=1` adds the traceback.
"""
WARNERS = {"warn", "warning", "rank_zero_warn", "warn_once", "say", "announce"}
AREAS = {
    "answers": "Reading and comparing answers", "callbacks": "Callbacks and the run folder",
    "checkpoints": "Checkpoints", "cli": "The command line", "datamodules": "Problems, sources and rounds",
    "distributed": "Processes", "engines": "Engines", "evaluation": "Evaluation", "objectives": "Objectives",
    "policy": "The model", "pool": "The pool", "prompts": "Prompts", "rewards": "Rewards", "tiny": "The embedded model",
    "report": "Reports", "": "General",
}  # fmt: skip


def page(root: Path) -> str:
    """The page in Markdown: one section for each folder of the package."""
    package, found = root / "lightning_serl", {}
    for file in sorted(package.rglob("*.py")):
        area = file.relative_to(package).parts[0] if file.parent != package else ""
        tree = ast.parse(file.read_text("utf-8"))
        for kind, text in _messages(tree):
            found.setdefault(area, {})[text] = kind
    lines = [HEAD]
    for area, title in AREAS.items():
        if area in found:
            lines += [f"\n## {title}\n", "| message | kind |", "|---|---|"]
            lines += [f"| {_shown(text)} | {kind} |" for text, kind in sorted(found[area].items())]
    return "\n".join(lines) + "\n"


def _messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions or [tree]:
        known = _texts(function)
        for node in ast.walk(function):
            kind, call = "", None
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind, call = "error", node.exc
            elif isinstance(node, ast.Call) and _name(node.func) in WARNERS:
                kind, call = "warning", node
            if call is not None and call.args and len(text := _text(call.args[0], known)) > 25 and " " in text:
                yield kind, text


def _texts(function: ast.AST) -> dict[str, ast.expr]:
    """Names that the function gives to one text, such as the beginning of a message."""
    given: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            given.setdefault(node.targets[0].id, []).append(node.value)
    kinds = ast.Constant | ast.JoinedStr | ast.BinOp
    return {name: values[0] for name, values in given.items() if len(values) == 1 and isinstance(values[0], kinds)}


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.Name) and node.id in known:
        rest = {name: value for name, value in known.items() if name != node.id}
        return _text(known[node.id], rest)
    name = _name(node.func) if isinstance(node, ast.Call) else _name(node)
    return f"⟨{name or 'value'}⟩"


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _shown(text: str) -> str:
    whole = " ".join(text.split())
    for sign in ("\\", "|", "<", "*", "_", "`", "[", "]", "$"):
        whole = whole.replace(sign, {"<": "&lt;"}.get(sign, f"\\{sign}"))
    return whole
