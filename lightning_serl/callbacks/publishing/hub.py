"""Repositories on the Hugging Face hub: checked before a run, written after it, every failure in one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from lightning_serl.errors import HubFailure, InputError, reason

Kind = Literal["model", "dataset"]
# What the hub itself puts into a new repository.
_EMPTY = {".gitattributes"}
_TOKEN = "give one with write permission (HF_TOKEN, or `hf auth login`)"


@dataclass(frozen=True)
class Repository:
    """A repository to write to.

    Attributes:
        name: ``USER/NAME``, or ``NAME`` alone for one of the token's user.
        kind: What it holds.
        option: The option that names it, for messages.
        private: Whether a new one is private; ``None`` leaves it to the settings of its owner.
        overwrite: Whether to add a commit to one that holds files already.
    """

    name: str
    kind: Kind
    option: str
    private: bool | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse a name that the hub cannot have."""
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            why = f"{self.option} {self.name[:60]!r} is no name of a repository"
            rule = "write USER/NAME with letters, digits, '-', '_' and '.', 96 characters at most"
            raise InputError(f"{why}; {rule}") from error

    def open(self) -> str:
        """Make sure that this process may write to the repository, which is created if absent; returns its full name.

        Raises:
            InputError: if there is no token or the hub refuses it, if the hub cannot be reached, or if the repository
                holds files and is not to be overwritten.
        """
        try:
            if get_token() is None and not constants.HF_HUB_OFFLINE:
                raise InputError(f"{self.option} {self.name}: there is no token of the hub here; {_TOKEN}")
            # asked once, where other requests are repeated for half a minute: a hub that is gone is said at once
            HfApi().whoami()
            return self._open()
        except InputError:
            raise
        except Exception as error:  # httpx, hf_xet and the hub's client have no common base class
            raise InputError(f"{self.option} {self.name}: {_why(error)}") from error

    def _open(self) -> str:
        api = HfApi()
        full = self.name if "/" in self.name else f"{api.whoami()['name']}/{self.name}"
        try:
            held = set(api.list_repo_files(full, repo_type=self.kind)) - _EMPTY
        except RepositoryNotFoundError:
            held = set()
        if held and not self.overwrite:
            number = f"{len(held)} file{'s' * (len(held) != 1)}"
            raise InputError(
                f"{self.option} {full} exists already, with {number}; name another one, or give "
                f"{_beside(self.option, 'overwrite')} to add a commit to it"
            )
        api.create_repo(full, repo_type=self.kind, private=self.private, exist_ok=True)
        return full

    def write(self, files: Callable[[str], Mapping[str, Path | bytes]], message: str) -> str:
        """Commit files, all or none; returns the repository's address.

        ``files`` gives them by their paths in the repository, whose full name it takes.

        Raises:
            HubFailure: if the hub did not take them.
        """
        try:
            full = self._open()
            sources = {
                name: source if isinstance(source, bytes) else str(source) for name, source in files(full).items()
            }
            added = [CommitOperationAdd(name, source) for name, source in sources.items()]
            with _bars_on_terminals_only():
                HfApi().create_commit(full, added, commit_message=message, repo_type=self.kind)
        except InputError as error:
            raise HubFailure(str(error)) from error
        except Exception as error:
            raise HubFailure(f"{self.option} {self.name}: {_why(error)}") from error
        return f"{constants.ENDPOINT}/{'datasets/' * (self.kind == 'dataset')}{full}"


def _beside(option: str, name: str) -> str:
    """Another option: beside ``push.repo`` ``--push.overwrite true``, beside ``--repo`` ``--overwrite``."""
    group = option.rpartition(".")[0]
    return f"--{group}.{name} true" if group else f"--{name}"


def _why(error: Exception) -> str:
    """What went wrong between this process and the hub, and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it, or push later"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 401:
            return f"the hub refused the token; {_TOKEN}"
        if status == 403:
            return f"the token may not write there; {_TOKEN}, or name a repository of your own"
        said = re.sub(r"\s*\(Request ID: [^)]*\)", "", reason(Exception(error.server_message or str(error))))
        return f"the hub answered with status {status} ({said})"
    # the causes of a failed connection say more than the error around them
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return f"the hub at {constants.ENDPOINT} cannot be reached ({type(inner).__name__}: {reason(inner)[:80]})"


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Context without the progress bars of an upload where stderr is a log file."""
    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
