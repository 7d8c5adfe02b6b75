"""Sends tables, warnings and files to Lightning's loggers in the form that each tracker has; imports no tracker."""

from __future__ import annotations

import csv
import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

Rows = Sequence[Sequence[Any]]


def send_table(logger: Any, key: str, columns: Sequence[str], rows: Rows, step: int) -> None:
    """Send a table, by ``logger.log_table`` where there is one (Weights & Biases, Trackio, a logger of your own).

    TensorBoard gets Markdown, MLflow a table as artifact ``KEY/step_STEP.json``, and the folder of a ``CSVLogger`` rows
    in ``KEY.csv``. Other loggers get nothing.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(key, _markdown(columns, rows), step)
    elif isinstance(logger, MLFlowLogger):
        data = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        logger.experiment.log_table(logger.run_id, data=data, artifact_file=f"{key}/step_{step:06d}.json")
    elif isinstance(logger, CSVLogger):
        _append(Path(logger.log_dir) / f"{key}.csv", columns, rows)
    elif callable(getattr(logger, "log_table", None)):
        logger.log_table(key=key, columns=list(columns), data=[list(row) for row in rows], step=step)


def send_alert(logger: Any, title: str, text: str, step: int) -> None:
    """Send a warning: an alert of Weights & Biases, Trackio or a logger with ``alert``, elsewhere a text."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("alerts", f"**{title}**: {html.escape(text)}", step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, f"{title}: {text}\n", f"alerts/step_{step:06d}_{title}.txt")
    elif isinstance(logger, CSVLogger):
        _append(Path(logger.log_dir) / "alerts.csv", ("step", "title", "text"), [(step, title, text)])
    elif isinstance(logger, WandbLogger):
        logger.experiment.alert(title=title, text=text)
    elif callable(getattr(logger, "alert", None)):
        logger.alert(title=title, text=text)


def send_picture(logger: Any, key: str, path: Path, step: int) -> None:
    """Send a PNG file, by ``logger.log_image`` where there is one."""
    if isinstance(logger, TensorBoardLogger):
        from matplotlib import image

        logger.experiment.add_image(key, image.imread(path)[..., :3], step, dataformats="HWC")
    elif isinstance(logger, (MLFlowLogger, CSVLogger)):
        send_file(logger, path, key)
    elif callable(getattr(logger, "log_image", None)):
        logger.log_image(key=key, images=[str(path)], step=step)


def send_file(logger: Any, path: Path, name: str) -> None:
    """Send a file as an artifact, or into the folder of a ``CSVLogger``; TensorBoard has no place for it."""
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path))
    elif isinstance(logger, CSVLogger):
        folder = Path(logger.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    elif isinstance(logger, WandbLogger):
        logger.experiment.log_artifact(str(path), name=f"{name}-{logger.experiment.id}", type="report")
    elif callable(getattr(logger, "log_file", None)):
        logger.log_file(path=path, name=name)


def _markdown(columns: Sequence[str], rows: Rows) -> str:
    """A table in Markdown, in which the text of a model stays text."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(value: Any) -> str:
    text = html.escape("" if value is None else str(value), quote=False)
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return "<br>".join(text.splitlines())


def _append(path: Path, columns: Sequence[str], rows: Rows) -> None:
    """Add rows to a CSV file, which begins with the columns' names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(columns)
        writer.writerows(rows)
