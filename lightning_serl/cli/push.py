"""``lightning-serl push``: publishes the export and the self-made data set of a finished run on the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lightning_serl.callbacks.publishing import data_set
from lightning_serl.callbacks.publishing.hub import Repository
from lightning_serl.callbacks.publishing.push_to_hub import DATA_SET, make_data_set, push_data_set, push_model
from lightning_serl.cli.parser_errors import ParserRefusal
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.datamodules.problems.files import read_problems
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.errors import InputError
from lightning_serl.report.folder import runs_inside

_DESCRIPTION = (
    "Publishes on the Hugging Face hub what a run left behind: the export with its card (--repo), the problems that "
    "the policy wrote with their voted answers (--dataset), or both. `lightning-serl fit --push.repo NAME` does it at "
    "the end of a run."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ParserRefusal(f"push: {message}; lightning-serl push --help shows the usage")


def push(arguments: Sequence[str], state: CommandState) -> None:
    """Run the command.

    Raises:
        InputError: if there is nothing to publish, or a repository cannot be written to.
        HubFailure: if the hub fails while it is written to.
    """
    parser = _Parser(prog="lightning-serl push", description=_DESCRIPTION)
    parser.add_argument("run", type=Path, help="a run folder, an export, or the file or directory that predict wrote")
    parser.add_argument("--repo", metavar="USER/NAME", help="repository for the model")
    parser.add_argument("--dataset", metavar="USER/NAME", help="repository for the self-made data set")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--overwrite", action="store_true", help="add a commit to repositories that hold files")
    given = parser.parse_args(list(arguments))
    if given.repo is None and given.dataset is None:
        raise InputError("push needs --repo NAME for the model, --dataset NAME for the data set, or both")
    root: Path = given.run.expanduser()
    if not root.exists():
        raise InputError(f"there is no run folder {root}; name the one that the run printed as its last line")
    state.command = "push"
    more: dict[str, Any] = {"private": given.private or None, "overwrite": given.overwrite}
    model = None if given.repo is None else Repository(given.repo, "model", "--repo", **more)
    made = None if given.dataset is None else Repository(given.dataset, "dataset", "--dataset", **more)
    export = None if model is None else _export(root)
    rows = None if made is None else _data_set(root)
    for repository in (model, made):
        if repository is not None:
            repository.open()
    state.began = True  # from here on, a failure is the hub's
    if model is not None and export is not None:
        print(f"pushed to {push_model(export, model, given.dataset)}", flush=True)
    if made is not None and rows is not None:
        print(f"pushed to {push_data_set(rows, made)}", flush=True)


def _export(root: Path) -> Path:
    """The export of a run folder, or the folder itself if it holds a model."""
    for folder in (root / "export", root):
        if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            return folder
    advice = runs_inside(root, "export") or "; let the run end, or name an export"
    raise InputError(f"{root} holds no exported model (no export/config.json){advice}")


def _data_set(root: Path) -> Path:
    """The directory of the data set that belongs to a run, a file of ``predict``, or a directory that it wrote."""
    if root.is_file():
        return _of_predictions(root)
    for folder in (root, root / DATA_SET, root / "predictions"):
        if (folder / data_set.DATA).is_file() and (folder / data_set.CARD).is_file():
            return folder
    if (root / "predictions.jsonl").is_file():
        return _of_predictions(root / "predictions.jsonl")
    if not (root / "ledger.jsonl").is_file():
        raise InputError(f"{root} holds no data set: neither ledger.jsonl nor predictions.jsonl; name a run folder")
    seeds, model = _seeds_and_model(root / "config.yaml")
    return make_data_set(root, seeds, model)


def _of_predictions(path: Path) -> Path:
    """Write the data set of a file of ``predict`` beside it, as ``predict`` does at its end."""
    rows = data_set.rows_of_predictions(path)
    if not rows:
        raise InputError(f"{path} holds no problems, so there is no data set to push")
    folder = path.with_suffix("")
    data_set.write_data_set(folder, rows)
    return folder


def _seeds_and_model(config: Path) -> tuple[list[str], str | None]:
    """The seeds of a run, which are not the policy's and so not published, and the model that it began with."""
    try:
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
        data, model = options["data"], options["model"]["model_name_or_path"]
        fields = Fields(**data["fields"])
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        said = f"{config} does not say which seeds the run had, so they cannot be left out of the data set"
        raise InputError(f"{said}; give the config.yaml that fit wrote") from error
    seeds = [] if data["seeds"] is None else [p.prompt for p in read_problems(data["seeds"], fields, "seed")]
    return seeds, model
