"""A small run with the trackers themselves, and what can be read back from each: numbers, tables, alerts, pictures.

Trackio and MLflow write to local files, TensorBoard its event files, Weights & Biases works offline. Trackers that are
not installed are left out:

    pip install trackio tensorboard mlflow wandb
    python benchmarks/trackers.py [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.callbacks import Health, default_callbacks
from lightning_serl.callbacks.loggers import TrackioLogger
from lightning_serl.callbacks.loggers.tables import COLUMNS
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.sources import Writing
from lightning_serl.engines import Sampling
from lightning_serl.prompts import SolveTemplate

METRIC = "serl/vote/agreement_mean"
WARNING = "vote_entropy is 0.97, above 0.95: use easier problems or a stronger model"


def fit(root: Path, loggers: list) -> None:
    """Two rounds on the embedded base, in which one health sign is outside its band."""
    module = SeRLModule("tiny:base", optimizer=lambda params: torch.optim.AdamW(params, lr=1e-4))
    data = SelfPlayDataModule(
        seeds="tiny:seeds",
        grader="math",
        round=RoundOptions(prompts_per_round=3, samples_per_prompt=4),
        writing=Writing(exemplars=4, sampling=Sampling(max_tokens=64)),
        solve=SolveTemplate(answer_format=""),
        max_tokens=24,
        rounds_per_epoch=2,
    )
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=loggers,
        default_root_dir=root, callbacks=default_callbacks(checkpoints=False),
    )  # fmt: skip
    with mock.patch.object(Health, "outside", [WARNING]):
        trainer.fit(module, data)


def of_tensorboard(logger: TensorBoardLogger) -> dict[str, object]:
    """What the event files hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = events.Tags()
    table = events.Tensors("completions/text_summary")[0].tensor_proto.string_val[0].decode()
    return {
        "numbers": len(events.Scalars(METRIC)),
        "tables": len(events.Tensors("completions/text_summary")),
        "columns": [name.strip() for name in table.splitlines()[0].strip("|").split("|")],
        "alerts": [events.Tensors("alerts/text_summary")[0].tensor_proto.string_val[0].decode()],
        "pictures": [tag for tag in tags["images"] if tag == "curves"],
    }


def of_trackio(logger: TrackioLogger) -> dict[str, object]:
    """What Trackio's database holds."""
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(logger.name, logger.version)
    tables = [row["completions"] for row in rows if "completions" in row]
    alerts = SQLiteStorage.get_alerts(logger.name)
    assert [run.name for run in Api().runs(logger.name)] == [logger.version]
    return {
        "numbers": sum(METRIC in row for row in rows),
        "tables": len(tables),
        "columns": list(tables[0]["_value"][0]),
        "alerts": [f"**{one['title']}**: {one['text']}" for one in alerts],
        "pictures": [name for row in rows for name in row if name == "curves"],
    }


def of_mlflow(logger: MLFlowLogger) -> dict[str, object]:
    """What the local store holds."""
    client, run = logger.experiment, logger.run_id
    tables = [one.path for one in client.list_artifacts(run, "completions")]
    alerts = [one.path for one in client.list_artifacts(run, "alerts")]
    first = json.loads(Path(client.download_artifacts(run, tables[0])).read_text())
    said = Path(client.download_artifacts(run, alerts[0])).read_text().strip()
    title, _, text = said.partition(": ")
    return {
        "numbers": len(client.get_metric_history(run, METRIC)),
        "tables": len(tables),
        "columns": first["columns"],
        "alerts": [f"**{title}**: {text}"],
        "pictures": [one.path.removesuffix(".png") for one in client.list_artifacts(run) if one.path == "curves.png"],
    }


def of_wandb(logger: WandbLogger) -> dict[str, object]:
    """What the offline run's folder holds; numbers and alerts go into a file that only its server reads."""
    import wandb

    folder = Path(logger.experiment.dir)
    wandb.finish()
    tables = sorted((folder / "media" / "table").rglob("*.table.json"))
    return {
        "tables": len(tables),
        "columns": json.loads(tables[0].read_text())["columns"],
        "pictures": ["curves" for one in (folder / "media" / "images").rglob("curves*.png")],
    }


def of_csv(logger: CSVLogger) -> dict[str, object]:
    """What the folder holds."""
    folder = Path(logger.log_dir)
    table, alerts = ((folder / f"{name}.csv").read_text().splitlines() for name in ("completions", "alerts"))
    _, title, text = alerts[1].split(",", 2)
    numbers = (folder / "metrics.csv").read_text().splitlines()
    place = numbers[0].split(",").index(METRIC)
    return {
        "numbers": sum(bool(line.split(",")[place]) for line in numbers[1:]),
        "tables": 2 if table[1].startswith("0,0,") and any(line.startswith("1,1,") for line in table) else 1,
        "columns": table[0].split(","),
        "alerts": [f"**{title}**: " + text.strip('"')],
        "pictures": [path.stem for path in folder.glob("curves.png")],
    }


def main() -> None:
    """Run, read back and compare; a line for each tracker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="folder to keep (default: a temporary one)")
    out = parser.parse_args().out or Path(tempfile.mkdtemp())
    os.environ |= {"TRACKIO_DIR": str(out / "trackio"), "WANDB_DIR": str(out), "MLFLOW_ALLOW_FILE_STORE": "true"}
    makers = {
        "csv": (lambda: CSVLogger(out), of_csv),
        "tensorboard": (lambda: TensorBoardLogger(out), of_tensorboard),
        "trackio": (lambda: TrackioLogger("trackers"), of_trackio),
        "mlflow": (
            lambda: MLFlowLogger(tracking_uri=f"sqlite:///{out}/mlflow.db", artifact_location=str(out / "m")),
            of_mlflow,
        ),
        "wandb": (lambda: WandbLogger(project="trackers", save_dir=out, offline=True), of_wandb),
    }
    used = {name: (make(), read) for name, (make, read) in makers.items() if name == "csv" or find_spec(name)}
    fit(out / "run", [logger for logger, _ in used.values()])
    expected = {"numbers": 2, "tables": 2, "columns": list(COLUMNS), "alerts": [], "pictures": ["curves"]}
    expected["alerts"] = [f"**vote_entropy**: {WARNING}"]
    failed = False
    for name, (logger, read) in used.items():
        found = read(logger)
        wrong = {key: value for key, value in found.items() if value != expected[key]}
        failed |= bool(wrong)
        print(f"{name}: {', '.join(found)} arrived" if not wrong else f"{name}: {wrong} instead of {expected}")
    print(f"not installed: {', '.join(makers.keys() - used.keys()) or 'none'}; files in {out}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
