"""Data sets of problems with voted answers: parquet with a card, as ``datasets.load_dataset`` opens a directory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.errors import InputError
from lightning_serl.jsonl import numbered_lines, parse_line, read_text

#: Where the rows are in the directory, and its card.
DATA, CARD = "data/train-00000-of-00001.parquet", "README.md"
Row = Mapping[str, Any]
# The line of a card's example that opens the data set; :func:`named` puts a repository in its place.
_OPENS = 'rows = load_dataset(".", split="train")  # this directory'
_FIELDS = {
    "problem": "a problem that the model wrote",
    "answer": "the answer that most of the model's own responses gave, unchecked",
    "confidence": "share of the responses that gave this answer, from 0 to 1",
    "round": "round of self-play in which it was answered, from 0",
    "choices": "options of a multiple-choice problem, in order",
}


def write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Write rows with ``problem``, ``answer``, ``confidence``, ``round`` and, if any has them, ``choices``.

    Types are string, string, float64, int64 and list of strings. Returns the number of rows; the file is replaced as a
    whole. Raises StorageFailure if it cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    rows = list(rows)
    columns: dict[str, Any] = {
        "problem": pyarrow.array([_plain(row["problem"]) for row in rows], pyarrow.string()),
        "answer": pyarrow.array([_plain(row["answer"]) for row in rows], pyarrow.string()),
        "confidence": pyarrow.array([float(row["confidence"]) for row in rows], pyarrow.float64()),
        "round": pyarrow.array([int(row["round"]) for row in rows], pyarrow.int64()),
    }
    if any("choices" in row for row in rows):
        lists = [[_plain(choice) for choice in row["choices"]] if "choices" in row else None for row in rows]
        columns["choices"] = pyarrow.array(lists, pyarrow.list_(pyarrow.string()))
    table = pyarrow.table(columns)
    write_whole(path, lambda file: pyarrow.parquet.write_table(table, file))
    return len(rows)


def write_data_set(folder: Path, rows: Iterable[Row], model: str | None = None) -> int:
    """Write a directory with parquet and a card; returns the number of rows.

    Args:
        folder: The directory, made if absent; the files in it are replaced.
        rows: See :func:`write_parquet`.
        model: The model that wrote the problems, for the card.
    """
    rows = list(rows)
    number = write_parquet(folder / DATA, rows)
    text = card(rows, model)
    write_whole(folder / CARD, lambda file: file.write(text.encode("utf-8", errors="backslashreplace")))
    return number


def card(rows: Collection[Row], model: str | None) -> str:
    """The data set's ``README.md``; its head says which files belong to the split ``train``."""
    fields = [name for name in _FIELDS if name != "choices" or any("choices" in row for row in rows)]
    mean = sum(float(row["confidence"]) for row in rows) / len(rows) if rows else 0.0
    by = "" if model is None else f" by {model}"
    head = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*",
        f"size_categories: [{_size(len(rows))}]",
        "tags: [synthetic, self-play, serl, lightning-serl]",
        "task_categories: [text-generation]",
        "---",
    ]
    text = [
        "# Problems written by self-play",
        "",
        f"{len(rows)} problems that were written and answered{by} with lightning-serl, an implementation of SeRL "
        f"(arXiv 2505.20347). The answers are majority votes, not labels; their mean confidence is {mean:.2f}.",
        "",
        "| field | |",
        "|---|---|",
        *(f"| `{name}` | {_FIELDS[name]} |" for name in fields),
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        _OPENS,
        'sure = rows.filter(lambda row: row["confidence"] >= 0.5)',
        "print(sure[0] if len(sure) else rows)",
        "```",
        "",
    ]
    return "\n".join([*head, "", *text])


def named(text: str, repository: str) -> str:
    """The card of a data set, for a repository of that name."""
    return text.replace(_OPENS, f'rows = load_dataset("{repository}", split="train")')


def rows_of_ledger(ledger: Path, seeds: Collection[str]) -> list[dict[str, Any]]:
    """The problems of a run's ``ledger.jsonl`` that have a voted answer and are no seeds, with their last vote.

    Raises:
        InputError: if the file cannot be read.
    """
    known, out = {text.strip() for text in seeds}, {}
    proposed: dict[str, dict[str, Any]] = {}
    for event in _events(ledger):
        uid, kind = event.get("uid"), event.get("event")
        if kind == "proposed" and event.get("role", "solve") == "solve" and event["prompt"].strip() not in known:
            proposed[uid] = event
        elif kind == "voted" and uid in proposed and event.get("label") is not None:
            asked = proposed[uid]
            row = {"problem": asked["prompt"], "answer": event["label"], "confidence": event["confidence"]}
            out[uid] = row | {"round": event["round"]} | ({"choices": asked["choices"]} if "choices" in asked else {})
    return list(out.values())


def rows_of_predictions(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that ``predict`` wrote.

    Raises:
        InputError: if it cannot be read or is no such file.
    """
    rows = list(_events(path))
    if not all(isinstance(row, dict) and {"problem", "answer", "confidence", "round"} <= row.keys() for row in rows):
        raise InputError(
            f"{path} has rows without problem, answer, confidence and round; give a file that predict wrote"
        )
    return rows


def _events(path: Path) -> Iterator[Any]:
    text = read_text(path, str(path), "name another file")
    for number, line in numbered_lines(text):
        yield parse_line(line, f"{path}:{number}", unique=False)


def _plain(value: object) -> str:
    """A text as UTF-8 can hold it: a model may write lone surrogates, which are escaped."""
    return str(value).encode("utf-8", errors="backslashreplace").decode("utf-8")


def _size(rows: int) -> str:
    """The hub's class of sizes."""
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((name for bound, name in bounds.items() if rows < bound), "n>1M")
