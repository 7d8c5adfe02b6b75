"""The picture of a run's metrics."""

import json
import math

import pytest

from lightning_serl.callbacks.run_folder.summary import draw_curves

PNG = b"\x89PNG\r\n\x1a\n"


def draw(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    return tmp_path / "curves.png"


def test_curves_with_holes(tmp_path):
    rows = [{"step": 0, "val/a/pass@1": 0.1, "val/a/maj@k": None}, {"step": 1, "kl": 0.5}, {"step": 2, "kl": math.nan}]
    picture = draw(tmp_path, rows)
    assert picture.read_bytes().startswith(PNG)
    first = picture.read_bytes()
    assert draw(tmp_path, rows).read_bytes() == first
    assert draw(tmp_path, [*rows, {"step": 3, "kl": 0.7}]).read_bytes() != first


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 0.5}], [{"step": 1, "kl": None}]])
def test_nothing_to_draw_draws_nothing(tmp_path, rows):
    assert not draw(tmp_path, rows).exists()


def test_no_metrics_at_all(tmp_path):
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
