"""Builds the documentation as a searchable site: ``python docs/generate/site.py [FOLDER]``, by default ``build/site``.

The pages are those of ``docs/``, the README, the change log, the examples, and pages made from the code: options,
presets, messages and the classes. They are written to a folder of sources with their links mended, since the README and
the examples lie elsewhere in the repository, and then given to Sphinx. A warning ends the build with status 1.
"""

from __future__ import annotations

import importlib
import posixpath
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import messages
import options
import presets
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parents[2]
#: Pages from files outside docs/: file of the repository, page of the site.
TAKEN = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "examples/README.md": "examples/index.md",
    "examples/word-problems/README.md": "examples/word-problems.md",
    "examples/multiple-choice/README.md": "examples/multiple-choice.md",
    "examples/short-text/README.md": "examples/short-text.md",
}
#: The table of contents; every page is in it.
CONTENTS = {
    "Guides": [
        "guides/own-problems", "guides/lightning-project", "guides/budget", "guides/comparing", "coming-from-trl",
        "examples/index", "examples/word-problems", "examples/multiple-choice", "examples/short-text",
    ],
    "The method": ["how-it-works", "formulas", "methods", "parity", "recipes"],
    "In use": [
        "domains", "documents", "probe", "plan", "engines", "memory", "scaling", "evaluation", "health",
        "keep-and-stop", "report", "compare", "sharing", "own-projects",
    ],
    "Measured": ["results", "quickstart", "real-model", "worth", "speed"],
    "Reference": ["options", "presets", "metrics", "messages", "classes", "architecture", "changes"],
}  # fmt: skip
CLASSES = [
    "lightning_serl", "lightning_serl.callbacks", "lightning_serl.datamodules", "lightning_serl.datamodules.sources",
    "lightning_serl.rewards", "lightning_serl.engines", "lightning_serl.prompts", "lightning_serl.types",
]  # fmt: skip
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def main(folder: Path) -> int:
    """Write the sources and build the site in a folder; returns the status of Sphinx."""
    sources = folder.parent / f"{folder.name}-source"
    for path in (sources, folder):
        shutil.rmtree(path, ignore_errors=True)
    texts = {
        file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in sorted((ROOT / "docs").rglob("*.md"))
    }
    texts |= {name: (ROOT / name).read_text("utf-8") for name in TAKEN}
    pages = {page_of(name): LINK.sub(lambda found, name=name: link(found, name), text) for name, text in texts.items()}
    pages |= {"options.md": options.page(), "messages.md": messages.page(ROOT), "presets.md": presets.page(ROOT)}
    pages["classes.md"] = classes()
    pages["index.md"] += contents()
    for name, text in pages.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text, "utf-8")
    return sphinx(["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), str(sources), str(folder)])


def page_of(name: str) -> str:
    """The page of the site for a Markdown file of the repository."""
    return TAKEN.get(name) or name.removeprefix("docs/")


def link(found: re.Match[str], name: str) -> str:
    """A link of a repository's file as the site has it: to a page, or the path of a file that is no page."""
    text, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found.group(0)
    path, _, anchor = target.partition("#")
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
    if (ROOT / whole / "README.md").is_file():
        whole = f"{whole}/README.md"
    if not (whole in TAKEN or (whole.startswith("docs/") and whole.endswith(".md"))):
        return text if "`" in text or text in whole else f"{text} (`{whole}`)"
    relative = posixpath.relpath(page_of(whole), posixpath.dirname(page_of(name)) or ".")
    return f"[{text}]({relative}{'#' * bool(anchor)}{anchor})"


def contents() -> str:
    """The table of contents, which Sphinx shows at the side of every page."""
    parts = []
    for title, names in CONTENTS.items():
        parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(names) + "\n```\n")
    return "".join(parts)


def classes() -> str:
    """The page of public classes and functions, from their docstrings; each is under the first module that has it."""
    made, seen = ["# Classes and functions\n"], set()
    for name in CLASSES:
        module = importlib.import_module(name)
        again = [one for one in exported(module) if getattr(module, one) in seen]
        seen |= {getattr(module, one) for one in exported(module)}
        made.append(f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :imported-members:\n")
        made.append(f"   :exclude-members: {', '.join(again)}\n```\n" if again else "```\n")
    return "".join(made)


def exported(module: ModuleType) -> list[str]:
    """The names that a module offers: its ``__all__``, or the public classes and functions that it defines."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [name for name in defined if not name.startswith("_")]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()))
