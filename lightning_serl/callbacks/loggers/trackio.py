"""A Lightning logger for Trackio, which keeps runs in files of this machine or in a Space of the Hugging Face hub."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_serl.errors import InputError


class TrackioLogger(Logger):
    """Logs to Trackio, by default into its local files; ``trackio show`` opens them in a browser.

    Its methods are named as those of Lightning's ``WandbLogger``. Numbers, tables of completions, curves and alerts of
    a run arrive there. The run is finished at the end of each Trainer call and continued by the next one.

    Args:
        project: Name of the project.
        name: Name of the run; by default Trackio makes one. A run of that name is continued.
        group: Name of a group of runs.
        space_id: Space of the hub to log to, ``USER/NAME``; by default the files of this machine (``TRACKIO_DIR``).
        private: Whether a new Space is private.
        webhook_url: Address that alerts are sent to, of Slack or Discord for example.
        log_hardware: Whether to log the use of GPU, CPU and memory too.

    Raises:
        InputError: if the package ``trackio`` is not installed.
    """

    def __init__(
        self,
        project: str = "lightning-serl",
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
        private: bool | None = None,
        webhook_url: str | None = None,
        log_hardware: bool = False,
    ) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise InputError("TrackioLogger needs the package trackio; pip install 'lightning-serl[trackio]'")
        self._project, self._run_name, self._hardware = project, name, log_hardware
        self._options = {"group": group, "space_id": space_id, "private": private, "webhook_url": webhook_url}
        self._parameters: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The name of the run, once there is one."""
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``trackio.Run``; begun, or continued, on first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                self._project,
                name=self._run_name,
                config=self._parameters or None,
                resume="never" if self._run_name is None else "allow",
                embed=False,
                auto_log_gpu=self._hardware,
                auto_log_cpu=self._hardware,
                **{name: value for name, value in self._options.items() if value is not None},
            )
            self._run_name = self._run.name
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep the options for the run's configuration; those of nested groups get names with dots."""
        values = vars(params) if isinstance(params, Namespace) else params
        self._parameters |= dict(_flat(values))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int | None = None
    ) -> None:
        """Log a table given by its columns' names and its rows."""
        import trackio

        table = trackio.Table(columns=list(columns), data=[list(row) for row in data], allow_mixed_types=True)
        self.experiment.log({key: table}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str | Path], step: int | None = None) -> None:
        """Log image files."""
        import trackio

        for number, image in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{number}"
            self.experiment.log({name: trackio.Image(str(image))}, step=step)

    @rank_zero_only
    def log_file(self, path: Path, name: str) -> None:
        """Keep a file with the run, as an artifact of that name."""
        self.experiment.log_artifact(str(path), name=name, type="report")

    @rank_zero_only
    def alert(self, title: str, text: str) -> None:
        """Send a warning, which the dashboard shows and the webhook gets."""
        self.experiment.alert(title=title, text=text)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait until everything is written, and finish the run; the next use continues it."""
        if self._run is None:
            return
        import trackio

        trackio.finish()
        self._run = None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Options by dotted names, as primitives."""
    out: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{name}.")
        else:
            out.append(
                (f"{prefix}{name}", value if isinstance(value, (str, int, float, bool, type(None))) else str(value))
            )
    return out
