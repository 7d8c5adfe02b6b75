"""The notebooks run on the embedded policy, cell by cell; only the parameters are smaller."""

import json
from pathlib import Path

import pytest
from helpers.command_line import finish, fork

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALLER = {
    "first_run": {"ROUNDS": 1},
    "own_problems": {
        "MODEL": "tiny:base",
        "ROUNDS": 1,
        "PROMPTS": 2,
        "SAMPLES": 4,
        "TOKENS": 40,
        "OPTIONS": [],
    },
}


def code_of(name):
    """The notebook's code as a script, without the cell that installs the package."""
    parts = []
    for cell in json.loads((EXAMPLES / f"{name}.ipynb").read_text("utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "install" not in tags:
            parts.append("".join(cell["source"]))
            if "parameters" in tags:
                parts += [f"{key} = {value!r}" for key, value in SMALLER[name].items()]
    return "\n".join(parts)


@pytest.mark.parametrize("name", SMALLER)
def test_notebook(name, tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(code_of(name), encoding="utf-8")
    ended = finish(fork(script, cwd=tmp_path), 300)
    assert ended.status == 0, ended.err[-3000:]
    assert "exit status 0" in ended.out
    assert ("label 24" if name == "first_run" else "step 1") in ended.out


def test_all_notebooks_are_run():
    assert {file.stem for file in EXAMPLES.glob("*.ipynb")} == set(SMALLER)
