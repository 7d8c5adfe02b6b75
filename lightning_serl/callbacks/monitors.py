"""The names of all metrics, and the refusal of callbacks and schedulers that would wait for another one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

import lightning.pytorch as pl

from lightning_serl.callbacks.probe_signs import SIGNS
from lightning_serl.errors import InputError
from lightning_serl.report.signs import BANDS

#: Logged with the first optimizer step of each round; ``docs/metrics.md`` says what each one is.
OF_ROUND = (
    "reward", "reward_std", "frac_reward_zero_std",
    "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    "serl/vote/agreement_mean", "serl/vote/no_answer_frac", "serl/vote/unique_answers",
    "serl/filter/proposed", "serl/filter/accepted_rate", "serl/filter/yield",
    "serl/round/attempts", "serl/round/groups", "serl/round/carried", "serl/rollout/policy_version_lag",
    "serl/pool/size", "serl/pool/queue", "serl/pool/unique_4grams", "serl/pool/words_mean", "serl/pool/nearest_mean",
    "serl/pool/exemplar_age", "serl/documents/labelled_frac", "serl/documents/agreement", "serl/documents/closed_book",
    "serl/documents/imitated", "serl/sync/bytes", "serl/sync/probe_logp_err", "time/sync",
)  # fmt: skip
#: Logged with every optimizer step.
OF_STEP = (
    "loss", "kl", "entropy", "grad_norm", "learning_rate", "num_tokens",
    "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
    "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
    "sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/max",
    "serl/sampling/effective_sample_size", "serl/sampling/masked_frac", "serl/sampling/truncated_frac",
    "serl/batch/pad_frac", "serl/batch/positions", "serl/nonfinite_steps",
)  # fmt: skip
#: Figures of an evaluation set, logged as ``val/SET/FIGURE``.
OF_SET = (
    "pass@1",
    "mean@k",
    "maj@k",
    "pass@k",
    "vote_accuracy",
    "agreement",
    "no_answer",
    "n",
    "labelled",
    "k",
    "correct",
)
_INTERVALS = ("pass@1", "mean@k", "maj@k", "pass@k")
# Names that depend on a reason, a role or a number of samples, and two that Lightning itself offers to callbacks.
_OTHERS = re.compile(r"serl/(reason|role)/.+|val/.+/pass@\d+|step|epoch")


def metric_names(sets: Iterable[str]) -> list[str]:
    """Every metric of a fit with these evaluation sets; some are logged under certain options only."""
    figures = [*OF_SET, *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high"))]
    health = [f"serl/health/{name}" for name in BANDS]
    probe = [f"serl/probe/{name}" for name in SIGNS]
    return [*(f"val/{one}/{figure}" for one in sets for figure in figures), *OF_STEP, *OF_ROUND, *health, *probe]


def check_monitors(trainer: pl.Trainer, sets: Iterable[str]) -> None:
    """Refuse a callback, or a learning-rate scheduler, that monitors a metric which no part of this package logs.

    Where the Trainer has callbacks of the user's own, or another module, they may log whatever they like.

    Raises:
        InputError: with the nearest name, or the most useful ones.
    """
    own = [trainer.lightning_module, *trainer.callbacks]
    if any(type(part).__module__.partition(".")[0] not in ("lightning", "lightning_serl") for part in own):
        return
    sets = list(sets)
    names = metric_names(sets)
    for option, owner, monitor in _monitored(trainer):
        if monitor in names or _OTHERS.fullmatch(monitor):
            continue
        some = [f"val/{sets[0]}/pass@1"] if sets else []
        near = difflib.get_close_matches(monitor, names, n=1, cutoff=0.6)
        near += [name for name in names if monitor.rpartition("/")[2] == name.rpartition("/")[2]]
        meant = "" if monitor.startswith("val_") or not near else f"did you mean {near[0]}? "
        listed = ", ".join([*some, "reward", "serl/vote/agreement_mean", "kl", "loss"])
        more = "" if sets else "; figures on held-out problems need data.evaluation.sets"
        raise InputError(
            f"{option}: {owner} monitors {monitor[:40]!r}, which is not logged; {meant}docs/metrics.md has all names, "
            f"among them {listed}{more}"
        )


def _monitored(trainer: pl.Trainer) -> Iterator[tuple[str, str, str]]:
    """Option, owner and name of every metric that something waits for."""
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            yield "trainer.callbacks", type(callback).__name__, monitor
    scheduled = getattr(trainer.lightning_module, "scheduler_monitor", lambda: None)()
    if scheduled is not None:
        yield "model.lr_scheduler", "ReduceLROnPlateau", scheduled
