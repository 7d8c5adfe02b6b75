"""The page of all presets: each file of ``lightning_serl/configs`` as it is, with its comments."""

from __future__ import annotations

from pathlib import Path

HEAD = """# Presets

`-c preset:NAME` of any command; several are merged, and later ones win. The files lie in `lightning_serl/configs`.
"""


def page(root: Path) -> str:
    """The page in Markdown."""
    files = sorted((root / "lightning_serl" / "configs").glob("*.yaml"))
    return HEAD + "".join(f"\n## {file.stem}\n\n```yaml\n{file.read_text('utf-8').strip()}\n```\n" for file in files)
