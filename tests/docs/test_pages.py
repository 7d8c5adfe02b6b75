"""The pages of the documentation: links lead somewhere, blocks are valid, and the guides' code runs."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from helpers.command_line import finish, fork

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings():
    broken = []
    for page in PAGES:
        for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_blocks_of_the_pages_are_valid_in_their_language():
    """Python, YAML and JSON lines are parsed; a JSON block may also be one object over several lines."""
    read = {"python": ast.parse, "yaml": yaml.safe_load, "json": parse_json}
    seen, wrong = set(), []
    for page in PAGES:
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            if language not in read:
                continue
            seen.add(language)
            try:
                read[language](block)
            except (SyntaxError, ValueError, yaml.YAMLError) as error:
                wrong.append(f"{page.relative_to(ROOT)}: {language}: {error}")
    assert seen == set(read)
    assert wrong == []


def parse_json(block):
    """The values of a block: one, or one a line."""
    try:
        return [json.loads(block)]
    except ValueError:
        return [json.loads(line) for line in block.splitlines()]


@pytest.mark.parametrize("page", ["lightning-project"])
def test_the_code_of_a_guide_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / f"{page}.md").read_text("utf-8"), re.DOTALL)
    script = tmp_path / "guide.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    ended = finish(fork(script, cwd=tmp_path), 300)
    assert ended.status == 0, ended.err[-3000:]
    assert ".ckpt" in ended.out
