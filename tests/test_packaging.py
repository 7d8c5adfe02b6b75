"""The wheel away from the checkout, the names under which parts are imported, and what an import costs."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightning_serl.cli.config_files import presets

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("callbacks", "datamodules", "configs")


def python(*arguments, cwd, path=None):
    """Another interpreter that knows the installed packages but not the checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env |= {"OMP_NUM_THREADS": "1"} | ({} if path is None else {"PYTHONPATH": str(path)})
    ended = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the checkout, with the top-level links in place."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "lightning_serl", source / "lightning_serl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in LINKS:
        (source / name).symlink_to(f"lightning_serl/{name}")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source), cwd=source)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_everything_that_is_not_code(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [p for p in (ROOT / "lightning_serl").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    missing = {str(p.relative_to(ROOT)) for p in wanted} - names
    assert not missing
    for name in (
        "lightning_serl/py.typed",
        "lightning_serl/configs/quickstart.yaml",
        "lightning_serl/tiny/seeds.jsonl",
        "lightning_serl/tiny/held_out.jsonl",
        "lightning_serl/tiny/base/config.json",
        "lightning_serl/tiny/base/model.safetensors",
        "lightning_serl/tiny/base/tokenizer.json",
    ):
        assert name in names, name


def test_the_wheel_has_one_package(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"lightning_serl"}


def test_the_wheel_names_its_command_and_its_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(points).decode())
    assert dict(scripts["console_scripts"]) == {"lightning-serl": "lightning_serl.cli:entry"}
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    assert set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.MULTILINE)) >= {"vllm", "qlora", "dev"}


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(target)
    program = (
        "import lightning_serl, lightning_serl.cli.config_files as cli, lightning_serl.tiny as tiny;"
        "print(lightning_serl.__file__); print(cli.presets()); print(tiny.path('seeds').exists())"
    )
    where, known, found = python("-c", program, cwd=elsewhere, path=target).splitlines()
    assert Path(where).is_relative_to(target)
    assert known == str(presets())
    assert found == "True"
    options = ["--print_config", "-c", "preset:quickstart"]
    printed = python("-m", "lightning_serl", "fit", *options, cwd=elsewhere, path=target)
    assert "tiny:base" in printed


def sources():
    """Everything that people read or run: code, documents, presets."""
    for pattern in ("*.py", "*.md", "*.yaml", "*.toml", "*.cfg", "Makefile"):
        for path in ROOT.rglob(pattern):
            inner = path.relative_to(ROOT).parts
            hidden = any(part.startswith(".") or part in ("build", "dist", "runs") for part in inner)
            if not hidden and inner[0] not in LINKS and path != Path(__file__):
                yield path


BARE = re.compile(
    rf"^\s*(?:from|import)\s+(?:{'|'.join(LINKS)})\b"  # from callbacks.filters import ...
    rf"|class_path['\"]?\s*:\s*['\"]?(?:{'|'.join(LINKS)})\.",  # class_path: callbacks.QualityFilter
    re.MULTILINE,
)


def test_nothing_imports_a_part_by_its_link():
    """``callbacks.X`` would be a second class beside ``lightning_serl.callbacks.X``."""
    found = list(sources())
    assert len(found) > 60
    assert [str(p) for p in found if BARE.search(p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "from callbacks.filters import X",
        "import datamodules",
        "    from callbacks import X",
        "- class_path: callbacks.X",
        '{"class_path": "datamodules.X"}',
    ],
)
def test_a_bare_import_would_be_found(text):
    assert BARE.search(text)
    assert not BARE.search(text.replace("callbacks", "lightning_serl.callbacks").replace("data", "lightning_serl.data"))


@pytest.mark.parametrize("name", LINKS)
def test_the_top_level_shows_the_packages_folders(name):
    assert (ROOT / name).is_symlink()
    assert (ROOT / name).resolve() == ROOT / "lightning_serl" / name


@pytest.mark.parametrize(
    "module",
    [
        "lightning_serl",
        "lightning_serl.answers",
        "lightning_serl.answers.verifier.worker",
        "lightning_serl.cli",
    ],
)
def test_imports_that_must_be_cheap(module, tmp_path):
    heavy = "{'torch', 'lightning', 'transformers', 'jsonargparse'}"
    program = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert python("-c", program, cwd=tmp_path, path=ROOT).strip() == "[]"


def test_the_promised_names_are_there():
    import lightning_serl

    for name in ("SeRLModule", "SelfPlayDataModule", "Group", "Instruction"):
        assert name in dir(lightning_serl)
        assert getattr(lightning_serl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = lightning_serl.Nope


def test_no_text_has_marks_of_a_merge():
    texts = [p for p in ROOT.rglob("*") if p.suffix in (".md", ".py", ".yaml", ".cfg", ".toml") and p.is_file()]
    ours = [p for p in texts if not any(part.startswith((".", "build")) for part in p.relative_to(ROOT).parts)]
    assert len(ours) > 300
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    assert not [p for p in ours if any(line.startswith(marks) for line in p.read_text(encoding="utf-8").splitlines())]
