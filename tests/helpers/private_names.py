"""Finds private names of other libraries in the package."""

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

from torch import nn

PACKAGE = Path(__file__).resolve().parents[2] / "lightning_serl"
# The modules that wrap private names of Lightning and jsonargparse for all others.
WRAPPERS = ("lightning_serl.distributed.lightning_internals", "lightning_serl.cli.parser_internals")
LIBRARIES = ("lightning", "jsonargparse")
_PRIVATE = re.compile(r"_[a-zA-Z]\w*")
# Names that Lightning has too, but that belong to torch and to named tuples.
_OTHERS = {*vars(nn.Module()), "_asdict", "_fields", "_replace"}
_ASSIGNED = r"(_[a-zA-Z]\w*) *(?::[^=\n]+)?=(?!=)"
_DEFINITION = re.compile(rf"\b(?:def|class) +(_[a-zA-Z]\w*)|\bself\.{_ASSIGNED}|^ *{_ASSIGNED}", re.MULTILINE)


def private_uses(name, libraries=LIBRARIES):
    """Uses of the libraries' private names in one module, each as ``MODULE:LINE NAME``.

    Counted are imports of private names and modules, attributes of other objects than ``self``, and attributes of
    ``self`` and methods that a base class from the libraries has under the same name.
    """
    module = importlib.import_module(name)
    tree = ast.parse(inspect.getsource(module))
    own, found = _defined(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in libraries:
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {(node.lineno, name) for name in names if _PRIVATE.fullmatch(name)}
        elif isinstance(node, ast.Attribute) and _PRIVATE.fullmatch(node.attr) and not _is_self(node.value):
            if node.attr in _names_of(libraries) and node.attr not in own:
                found.add((node.lineno, node.attr))
        elif isinstance(node, ast.ClassDef):
            found |= set(_inherited(getattr(module, node.name, None), node, libraries))
    return [f"{name}:{line} {private}" for line, private in sorted(found)]


def _is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _defined(tree):
    """Private names that a file defines for itself: functions, and attributes of ``self`` or of its classes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _inherited(kind, node, libraries):
    """Private names in a class of ours that one of its bases from the libraries has too."""
    bases = [b for b in getattr(kind, "__mro__", ()) if b.__module__.split(".")[0] in libraries]
    if not bases:
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            name = inner.name
        elif isinstance(inner, ast.Attribute) and (_is_self(inner.value) or isinstance(inner.value, ast.Call)):
            name = inner.attr  # of self, or of super()
        else:
            continue
        if _PRIVATE.fullmatch(name) and any(_has(base, name) for base in bases):
            yield inner.lineno, name


@cache
def _has(base, name):
    return name in vars(base) or re.search(rf"\bself\.{name}\b\s*(:[^=]+)?=", inspect.getsource(base)) is not None


@cache
def _names_of(libraries):
    """All private names that the libraries' source defines."""
    names = set()
    for library in libraries:
        for path in Path(importlib.import_module(library).__file__).parent.rglob("*.py"):
            names |= {name for one in _DEFINITION.findall(path.read_text(encoding="utf-8")) for name in one if name}
    return names - _OTHERS


def private_uses_outside_wrappers():
    """Uses of Lightning's and jsonargparse's private names anywhere but in the modules that wrap them."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    names = [".".join(("lightning_serl", *path.parts)).removesuffix(".__init__") for path in paths]
    return [use for name in names if name not in WRAPPERS and "__main__" not in name for use in private_uses(name)]
