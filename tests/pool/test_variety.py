"""Variety of written problems: of a set of texts, and in the metrics of real rounds."""

import pytest
from helpers.command_line import cli, rows, small

from lightning_serl.pool.words import unique_ngrams


def test_distinct_ngrams():
    assert unique_ngrams([]) == 1.0
    assert unique_ngrams(["a b c"]) == 1.0, "too short for one"
    assert unique_ngrams(["a b c d e"]) == 1.0
    assert unique_ngrams(["a b c d", "a B c, d!"]) == 0.5
    assert unique_ngrams(["a b c d", "b c d e"]) == 1.0
    assert unique_ngrams(["a b a b"], n=2) == pytest.approx(2 / 3)
    assert unique_ngrams(["小明有五个苹果", "小明有五个梨"], n=2) == pytest.approx(7 / 11)


def test_metrics_of_a_run(tmp_path):
    ended = cli("fit", *small(tmp_path, rounds=3))
    assert ended.status == 0, ended.err
    metrics = rows(tmp_path / "metrics.jsonl")
    for row in metrics:
        assert 0 < row["serl/pool/unique_4grams"] <= 1
        # absent where the queue had enough; what is nearer than 0.7 is no new problem
        assert 0 <= row.get("serl/pool/nearest_mean", 0) <= 0.7
        assert row["serl/pool/words_mean"] > 4
    assert metrics[0]["serl/pool/nearest_mean"] > 0
    assert "serl/pool/exemplar_age" not in metrics[0] or metrics[0]["serl/pool/exemplar_age"] == 0
    assert metrics[2]["serl/pool/exemplar_age"] > 0
