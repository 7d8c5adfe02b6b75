"""Reads evaluation sets: local files, known benchmarks and other datasets of the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.datamodules.problems.files import check_named, read_rows
from lightning_serl.datamodules.problems.layouts import converted, has_several_answers, strata_in
from lightning_serl.datamodules.problems.rows import Fields, to_problem
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction

_HUB = "hub:"
_OPTION = "--data.evaluation.fields"


@dataclass(frozen=True)
class Benchmark:
    """A known benchmark on the hub."""

    path: str
    split: str
    problems: int  # another number means that the dataset was changed
    config: str | None = None  # if it has several


#: The benchmarks that ``hub:NAME`` names.
BENCHMARKS = {
    "math-500": Benchmark("HuggingFaceH4/MATH-500", "test", 500),
    "math-hard": Benchmark("lighteval/MATH-Hard", "test", 1324, "default"),
    "gsm8k": Benchmark("openai/gsm8k", "test", 1319, "main"),
    "asdiv": Benchmark("EleutherAI/asdiv", "validation", 2215, "asdiv"),
    "college-math": Benchmark("di-zhang-fdu/College_Math_Test", "test", 2818),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", 30),
    "amc23": Benchmark("math-ai/amc23", "test", 40),
    "mmlu-pro": Benchmark("TIGER-Lab/MMLU-Pro", "test", 12032),
}


def read_set(spec: str, fields: Fields, name: str) -> list[Instruction]:
    """Read an evaluation set; uids are ``NAME-ROW``. A known benchmark has its own ``fields``.

    ``spec`` is a jsonl or JSON file; ``tiny:held_out``; ``hub:NAME`` with a name of :data:`BENCHMARKS`;
    ``hub:ORGANISATION/NAME[/CONFIGURATION][@SPLIT]``; or a directory with the data files of such a dataset, with or
    without ``hub:`` and ``@SPLIT``. Rows in the layout of a known benchmark are converted to the problems that SeRL
    evaluated, also from a local file. Level, subject and MMLU-Pro group are kept in ``meta``.

    Raises :class:`InputError` if the set cannot be had, is empty, or lacks a field, with the row where there is one.
    """
    source = _source(spec)
    known = None if source is None else source.known
    fields = fields if known is None else Fields()
    rows = read_rows(spec, fields) if source is None else _load(source, spec)
    kept = [(number, where, converted(row)) for number, where, row in rows if not has_several_answers(row)]
    if len(kept) < len(rows):
        rank_zero_info(f"{name}: {len(rows) - len(kept)} of {len(rows)} problems have several answers and are left out")
    if not kept:
        raise InputError(f"{spec} holds no problems with a single answer; give a set that does")
    found = [row for _, _, row in kept]
    # the options name the fields of all sets, and this one need not be multiple choice
    lists = any(isinstance(value, list) for row in found if isinstance(row, dict) for value in row.values())
    checked = fields if lists else replace(fields, choices=Fields.choices)
    # datasets of the hub usually have labels: if the default answer field is absent, another one should be named
    check_named(spec, checked, found, _OPTION, strict=source is not None)
    problems = []
    for number, where, row in kept:
        problem = to_problem(row, fields, where, f"{name}-{number:05d}", _OPTION)
        problems.append(replace(problem, meta={**problem.meta, **strata_in(row, fields)}))
    if known is not None and source is not None and source.split == known.split and len(problems) != known.problems:
        rank_zero_warn(
            f"{spec} has {len(problems)} problems, not {known.problems}: the dataset was changed, "
            "so results do not compare with published ones"
        )
    return problems


# -- datasets of the hub -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A dataset: its name on the hub or its directory, with configuration and split."""

    path: str
    config: str | None
    split: str | None
    known: Benchmark | None = None


def _source(spec: str) -> _Source | None:
    """The dataset that ``spec`` names; ``None`` for a file."""
    text = spec.removeprefix(_HUB)
    place, at, split = text.rpartition("@")
    if not at or os.path.isdir(os.path.expanduser(text)):
        place, split = text, ""
    known = BENCHMARKS.get(place) if spec.startswith(_HUB) else None
    if known is not None:
        return _Source(known.path, known.config, split or known.split, known)
    directory = os.path.expanduser(place)
    if os.path.isdir(directory):
        return _Source(directory, None, split or None)
    if not spec.startswith(_HUB):
        return None
    if place.startswith(("/", ".", "~")):
        raise InputError(f"{spec}: there is no directory {place}; check the path")
    parts = place.split("/")
    if len(parts) == 1:
        known_ones = f"the known ones are {', '.join(BENCHMARKS)}, and any dataset is named as hub:ORGANISATION/NAME"
        raise InputError(f"there is no benchmark {place!r}; {known_ones}")
    if len(parts) > 3 or not all(parts):
        shape = "hub:ORGANISATION/NAME[/CONFIGURATION][@SPLIT]"
        raise InputError(f"{spec} names no dataset; write {shape}, or a directory")
    return _Source("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or None)


def _load(source: _Source, spec: str) -> list[tuple[int, str, Any]]:
    """The rows of one split, each with its number from 1 and a name for messages."""
    try:
        import datasets
    except ImportError as error:
        said = f"{spec} needs the package datasets, which is not installed"
        raise InputError(f"{said}; pip install 'datasets>=4.0'") from error
    local = os.path.isdir(source.path)
    if not local:
        rank_zero_info(f"fetching {source.path} from the Hugging Face hub, unless it is cached")
    # the library's cache of local files may be used after the files have changed
    with _quiet(datasets), tempfile.TemporaryDirectory() if local else nullcontext() as cache:
        try:
            builder = datasets.load_dataset_builder(source.path, source.config, cache_dir=cache)
            splits = [str(s) for s in builder.config.data_files or builder.info.splits or ()]
            split = _choose(splits, source.split, spec)
            # a README may list the sizes of the whole set where only a part was copied
            builder.download_and_prepare(verification_mode="no_checks")
            rows = builder.as_dataset(split).to_list()
        except InputError:
            raise
        except Exception as error:  # the library has no base class for its errors
            raise InputError(_refusal(error, source, spec, local)) from error
    return [(number, f"{spec} ({split}, row {number})", row) for number, row in enumerate(rows, 1)]


def _choose(splits: list[str], split: str | None, spec: str) -> str:
    """The split that is named, else the only one, else ``test``."""
    found = ", ".join(splits) or "none"
    if split is None:
        if len(splits) == 1:
            return splits[0]
        if "test" in splits:
            return "test"
        raise InputError(f"{spec} has no split test; name one of its splits ({found}) as in {spec}@SPLIT")
    if split not in splits:
        raise InputError(f"{spec} has no split {split!r}; its splits are {found}")
    return split


def _refusal(error: BaseException, source: _Source, spec: str, local: bool) -> str:
    """One sentence for an error of the library."""
    said = " ".join(str(error).split())
    named = re.search(r"(?:configs|Available): (\[.*?\])", said)
    if named is not None:
        which = "needs a configuration" if source.config is None else f"has no configuration {source.config!r}"
        where = "the directory of one" if local else "one as in hub:ORGANISATION/NAME/CONFIGURATION"
        return f"{spec} {which}; name {where}: {named[1]}"
    if local:
        # the library's message for a damaged file says nothing; the error that caused it does
        while error.__cause__ is not None:
            error = error.__cause__
        # a long path would push the reason out of the message, and the spec names the directory
        said = " ".join(str(error).split()).replace(os.path.abspath(source.path), spec)
        why = said[:120] or type(error).__name__
        return f"{spec} cannot be read as a dataset ({why}); give intact jsonl, json, csv or parquet files"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "DatasetNotFoundError" in kinds:
        return f"{spec}: the hub has no dataset {source.path}, or it asks for a token (HF_TOKEN); check the name"
    if kinds & {"ConnectionError", "OfflineModeIsEnabled", "HTTPError", "TransportError", "TimeoutError"}:
        return f"{spec}: the hub cannot be reached; give a directory with a copy of {source.path} instead"
    return f"{spec} cannot be read from the hub ({type(error).__name__}: {said[:120]})"


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Context without the library's progress bars and its log of every attempt to reach the hub."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
