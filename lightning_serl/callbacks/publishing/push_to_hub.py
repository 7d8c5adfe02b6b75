"""Publishes an export and a self-made data set on the Hugging Face hub, at the end of a run or later."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks.export import Export
from lightning_serl.callbacks.publishing import data_set
from lightning_serl.callbacks.publishing.card_example import NAME_LINE
from lightning_serl.callbacks.publishing.hub import Repository
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import HubFailure, InputError
from lightning_serl.policy.export import CARD
from lightning_serl.protocols import SelfPlay, WritesDataSet, module_of

#: Folder of the run's self-made data set.
DATA_SET = "dataset"


class PushToHub(pl.Callback):
    """Publishes the export, and if asked the self-made data set, on the Hugging Face hub when a run ends.

    Names, token and repositories are checked before the run. A hub that fails at its end costs nothing: the run ends
    well, and a warning gives the command that pushes later. After ``predict`` its data set is published. The command
    line has this callback with its options at ``--push``.

    Args:
        repo: Repository for the export of a ``fit``, ``USER/NAME``; null for none.
        dataset: Repository for the problems that the policy wrote, with voted answers; null for none.
        private: Whether new repositories are private; null leaves it to the settings of their owner.
        overwrite: Add a commit to a repository that holds files already; otherwise it is refused.

    Raises:
        InputError: before the run, if a name is none, there is no token, or the hub refuses.
    """

    def __init__(
        self,
        repo: str | None = None,
        dataset: str | None = None,
        private: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        self.repo = None if repo is None else Repository(repo, "model", "push.repo", private, overwrite)
        self.dataset = None if dataset is None else Repository(dataset, "dataset", "push.dataset", private, overwrite)
        self.deferred = False  # set it to call `finish` after the fit instead
        self._opened = False

    def open(self, command: str) -> None:
        """Make sure that the repositories of ``fit`` or ``predict`` can be written to; called in one process.

        Raises:
            InputError: see :meth:`Repository.open`.
        """
        if command == "predict" and self.repo is not None:
            raise InputError("push.repo publishes the model of a fit; predict makes a data set: give --push.dataset")
        for repository in (self.repo, self.dataset):
            if repository is not None and not self._opened:
                repository.open()
        self._opened = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the repositories before anything is loaded."""
        if stage not in ("fit", "predict") or trainer.fast_dev_run or (self.repo is None and self.dataset is None):
            return
        if stage == "fit" and self.repo is not None and self._export_of(trainer) is None:
            raise InputError("PushToHub publishes an export; list Export() among the Trainer's callbacks too")
        with Ranks.of(trainer).stage("opening repositories on the hub"):
            if trainer.is_global_zero:
                self.open(stage)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Publish what the run made; Lightning skips this after an exception."""
        if not self.deferred:
            self.finish(trainer, stage)

    def finish(self, trainer: pl.Trainer, stage: str = "fit") -> None:
        """Publish from rank 0; a hub that fails brings a warning."""
        if stage not in ("fit", "predict") or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        root = Path(trainer.default_root_dir)
        if stage == "predict":
            stream: Any = trainer.predict_dataloaders
            if self.dataset is not None and isinstance(stream, WritesDataSet):
                self._try(self.dataset, stream.target, lambda one: push_data_set(stream.data_set, one))
            return
        if self.repo is not None and (export := self._export_of(trainer)) is not None:
            also = None if self.dataset is None else self.dataset.name
            self._try(self.repo, root, lambda one: push_model(root / export.directory, one, also))
        if self.dataset is not None:
            self._try(self.dataset, root, lambda one: push_data_set(self._made(trainer, root), one))

    def _made(self, trainer: pl.Trainer, root: Path) -> Path:
        """The folder of the data set of a fit."""
        data: object = trainer.datamodule
        seeds = [p.prompt for p in data.seed_problems] if isinstance(data, SelfPlay) else []
        return make_data_set(root, seeds, module_of(trainer).model_name_or_path)

    def _export_of(self, trainer: pl.Trainer) -> Export | None:
        return next((c for c in trainer.callbacks if isinstance(c, Export)), None)

    def _try(self, repository: Repository, root: Path, push: Callable[[Repository], str]) -> None:
        what = "repo" if repository.kind == "model" else "dataset"
        later = f"lightning-serl push {shlex.quote(str(root))} --{what} {repository.name}"
        try:
            rank_zero_info(f"pushed to {push(repository)}")
        except (HubFailure, InputError) as error:
            rank_zero_warn(f"{str(error)[:200]}; nothing is lost, push later by: {later}")
        except KeyboardInterrupt:
            rank_zero_warn(f"the push was interrupted; nothing is lost, push later by: {later}")
            raise


def push_model(folder: Path, repository: Repository, data_set_name: str | None = None) -> str:
    """Publish an export; its card names the repository and, if given, the self-made data set. Returns the address.

    Raises:
        InputError: if the folder holds no model.
        HubFailure: if the hub did not take it.
    """
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{folder} holds no exported model; name a run folder with export/, or an export")

    def files(name: str) -> dict[str, Path | bytes]:
        own = (
            data_set_name if data_set_name is None or "/" in data_set_name else f"{name.split('/')[0]}/{data_set_name}"
        )
        found: dict[str, Path | bytes] = dict(_files(folder))
        if CARD in found:
            found[CARD] = published_card((folder / CARD).read_text(encoding="utf-8"), name, own).encode("utf-8")
        return found

    return repository.write(files, "Model trained by self-play with lightning-serl")


def push_data_set(folder: Path, repository: Repository) -> str:
    """Publish the directory of a data set; returns its address.

    Raises:
        HubFailure: if the hub did not take it.
    """

    def files(name: str) -> dict[str, Path | bytes]:
        text = (folder / data_set.CARD).read_text(encoding="utf-8")
        found: dict[str, Path | bytes] = dict(_files(folder))
        return found | {data_set.CARD: data_set.named(text, name).encode("utf-8")}

    return repository.write(files, "Problems written by self-play with lightning-serl")


def make_data_set(root: Path, seeds: Collection[str], model: str | None) -> Path:
    """Write the problems of a run that are no seeds, with their voted answers, into ``dataset/``; returns the folder.

    Raises:
        InputError: if there are none.
    """
    rows = data_set.rows_of_ledger(root / "ledger.jsonl", seeds)
    if not rows:
        raise InputError(f"{root} holds no self-written problem with a voted answer, so there is no data set to push")
    data_set.write_data_set(root / DATA_SET, rows, None if model is None else Path(model).name)
    return root / DATA_SET


def published_card(text: str, name: str, data_set_name: str | None) -> str:
    """A model card for a repository: its name in the example and the results, and the data set in the head."""
    text = text.replace(NAME_LINE, f'name = "{name}"')
    start, mark, rest = text.removeprefix("---\n").partition("\n---\n")
    if not mark or not text.startswith("---\n"):
        return text  # the user's own card without a head
    try:
        facts = yaml.safe_load(start)
    except yaml.YAMLError:
        return text
    if not isinstance(facts, dict):
        return text
    if data_set_name is not None:
        facts["datasets"] = sorted({*(facts.get("datasets") or []), data_set_name})
    for one in facts.get("model-index") or []:
        one["name"] = name.rpartition("/")[2]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n{rest}"


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their relative path, without hidden ones."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): path for name, path in found.items() if not any(p.startswith(".") for p in name.parts)}
