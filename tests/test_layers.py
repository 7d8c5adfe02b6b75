"""The package's structure: layers without upward imports, no import circle, short files and functions."""

import ast
from functools import cache
from pathlib import Path

from helpers.private_names import private_uses_outside_wrappers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_serl"
# From top to bottom; a module imports from its own layer and the ones below it.
LAYERS = (
    ("cli", "__main__"),
    ("module", "datamodules"),
    ("callbacks",),
    ("protocols",),
    ("engines",),
    ("policy", "evaluation"),
    ("objectives", "rewards", "prompts", "checkpoints", "report"),
    ("answers", "distributed", "pool", "tiny"),
    ("jsonl",),
    ("types", "errors"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MOST_LINES, MOST_CODE, MOST_MODULE = 500, 80, 400


def modules():
    """Every module of the package by its dotted name, without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


@cache
def parsed(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports(name):
    """The modules that a module imports anywhere, in functions and for type checkers alone included."""
    found = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lightning_serl":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                found.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("lightning_serl.")}
    return found & MODULES.keys() - {name}


def test_every_room_has_a_layer():
    assert {name.split(".")[0] for name in MODULES} == LEVEL.keys()
    assert len(LEVEL) <= 21


def test_no_import_points_upwards():
    room = lambda name: name.split(".")[0]  # noqa: E731
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imports(name)
        if LEVEL[room(other)] < LEVEL[room(name)]
    ]
    assert not upward, upward


def test_nothing_imports_module_from_datamodules_or_back():
    """They stand side by side: each works without the other."""
    across = [n for n in MODULES if n.split(".")[0] == "datamodules" and "module" in imports(n)]
    across += [other for other in imports("module") if other.split(".")[0] == "datamodules"]
    assert not across, across


def circles():
    """Import circles between files, each as the list of its modules."""
    found, state, path = [], {}, []

    def visit(name):
        state[name] = "open"
        path.append(name)
        for other in sorted(imports(name)):
            if state.get(other) == "open":
                found.append(path[path.index(other) :])
            elif other not in state:
                visit(other)
        path.pop()
        state[name] = "closed"

    for name in MODULES:
        if name not in state:
            visit(name)
    return found


def test_there_is_no_import_circle():
    assert not circles(), circles()


def test_files_are_short():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    long = {name: n for name, n in lines.items() if n > (MOST_MODULE if name == "module" else MOST_LINES)}
    assert not long, long


def code_lines(function):
    """Lines of a function that hold code: no docstring, comment or blank line, nor those of functions inside it."""
    lines = set()
    for node in ast.walk(function):
        if isinstance(node, (ast.stmt, ast.expr)) and hasattr(node, "lineno"):
            lines |= {node.lineno, node.end_lineno}
    if ast.get_docstring(function) is not None:
        doc = function.body[0]
        lines -= set(range(doc.lineno, doc.end_lineno + 1))
    return len(lines)


def test_functions_are_short():
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    functions = [(name, n) for name in MODULES for n in ast.walk(parsed(name)) if isinstance(n, kinds)]
    assert len(functions) > 1000
    long = {f"{name}.{f.name}": code_lines(f) for name, f in functions if code_lines(f) > MOST_CODE}
    assert not long, long


def test_private_names_stay_in_their_file():
    """A name with an underscore is nobody else's."""
    taken = []
    for name in MODULES:
        for node in ast.walk(parsed(name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_serl"):
                taken += [f"{name}: {a.name} of {node.module}" for a in node.names if a.name.startswith("_")]
    assert not taken, taken


def test_private_names_of_lightning_stay_in_the_modules_that_wrap_them():
    """An upgrade then fails in tests/test_lightning_contract.py, with a name."""
    assert not private_uses_outside_wrappers()


def test_the_card_s_folders_are_links_into_the_package():
    for name in ("callbacks", "datamodules", "configs"):
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == PACKAGE / name
