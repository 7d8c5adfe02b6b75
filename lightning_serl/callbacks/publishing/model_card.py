"""The model card of an export: what was trained, how it was asked, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import lightning.pytorch as pl

from lightning_serl.callbacks.publishing.card_example import example
from lightning_serl.callbacks.publishing.card_head import Measured, base_of, head
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.callbacks.run_folder.summary import Summary
from lightning_serl.policy.export import OPTIONS, Form
from lightning_serl.policy.policy import Policy
from lightning_serl.protocols import SelfPlay, TrainsOnGroups, module_of
from lightning_serl.types import Instruction

_PACKAGES = ("lightning-serl", "torch", "lightning", "transformers", "peft", "bitsandbytes")
# Rewards that use no labels.
_BLIND = ("MajorityVote", "PairwiseVote", "FormatReward", "RandomReward")
_FORMS = {
    "full": "All weights were trained; this directory holds them.",
    "merged": "A low-rank adapter was trained; this directory holds the base with the adapter merged into it.",
    "adapter": "A low-rank adapter was trained; this directory holds it alone, to be opened with peft beside its base.",
}

# What the card of an adapter says of itself, and what that of the merged model says in its place.
_AS_MERGED = {
    _FORMS["adapter"]: _FORMS["merged"],
    "library_name: peft": "library_name: transformers",
    "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer"
    ),
    "AutoPeftModelForCausalLM": "AutoModelForCausalLM",
}

#: Names and values of a table's rows; rows without a value are left out.
Rows: TypeAlias = list[tuple[str, Any]]


def model_card(trainer: pl.Trainer, form: Form, picture: bool = False) -> str:
    """Text of the export's ``README.md``: no date, so equal runs write equal cards; only rows that can be filled.

    ``picture`` says whether ``curves.png`` lies beside the card.
    """
    module = module_of(trainer)
    base, measured = base_of(module.model_name_or_path), _figures(trainer)
    rows = [
        ("base", base.shown),
        ("licence of the base", base.licence.get("license_name") or base.licence.get("license")),
        *_objective(trainer, module),
        *_data(trainer),
        *_adapter(module),
        *_versions(module.policy),
    ]
    facts = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows if value is not None]
    origin = "Trained with lightning-serl, an implementation of SeRL (arXiv 2505.20347)."
    text = ["", "# A model trained by self-play", "", f"{origin} {_FORMS[form]}", "", "| | |", "|---|---|", *facts, ""]
    parts = [*_measured(trainer, measured), *_curves(picture), *_use(trainer, form), *_asking(trainer)]
    return "\n".join([*head(base, form, measured), *text, *parts])


def _use(trainer: pl.Trainer, form: Form) -> list[str]:
    """A script that asks the model a problem."""
    data: object = trainer.datamodule
    if not isinstance(data, SelfPlay):
        return []
    return ["## Use", "", "```python", *example(data, module_of(trainer).policy.tokenizer, form), "```", ""]


def _curves(picture: bool) -> list[str]:
    return ["![accuracy, agreement, KL and lengths over the optimizer steps](curves.png)", ""] if picture else []


def merged_card(adapter: str | None, base: str) -> str:
    """The card of an adapter that was merged into its base later: that of its export, or a short one without it."""
    ours = adapter is not None and _FORMS["adapter"] in adapter
    if adapter is not None and ours:
        for one, other in _AS_MERGED.items():
            adapter = adapter.replace(one, other)
        return adapter
    head = f"---\nbase_model: {json.dumps(base)}\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    return f"{head}\n# A base with an adapter\n\n{_FORMS['merged']}\n"


def _asking(trainer: pl.Trainer) -> list[str]:
    """The prompt of a problem, and how answers were sampled and read; the figures hold for these alone."""
    data: object = trainer.datamodule
    if not isinstance(data, SelfPlay):
        return []
    policy, solve = module_of(trainer).policy, data.solve
    chat = solve.uses_chat(policy.tokenizer)
    asked = solve.render(Instruction("{problem}", ""), data.grader_name, chat)
    how = "The user turn, in the chat template" if chat else "The whole prompt, without a chat template"
    system = [] if solve.system is None else ["", "After this system prompt:", "", "```", solve.system, "```"]
    sampled = f"{data.sampling.max_tokens} tokens at most, temperature {policy.temperature:g} in training"
    read = f"answers read by the grader {data.grader_name}"
    said = f"{how}; {sampled}; {read}. `{OPTIONS}` holds these options for `lightning-serl validate` and `predict`."
    return ["## How it was asked", "", said, "", "```", asked, "```", *system, ""]


def _figures(trainer: pl.Trainer) -> list[Measured]:
    """The figures of the first and the last evaluation of the run, with the intervals of the last."""
    summary = next((c for c in trainer.callbacks if isinstance(c, Summary)), None)
    sets = {} if summary is None else summary.compared()
    report, data = module_of(trainer).last_report, trainer.datamodule
    sources: Mapping[str, Any] = (data.evaluation.sets or {}) if isinstance(data, SelfPlay) else {}
    found = []
    for name, (before, after) in sets.items():
        intervals = report.get(name, {}).get("intervals", {})
        for figure, value in after.items():
            if figure == "n" or value is None:
                continue
            # the report's names keep the letter: mean@k for mean@16
            ends = intervals.get(figure) or intervals.get(f"{figure.partition('@')[0]}@k")
            bounds = None if ends is None else (float(ends[0]), float(ends[1]))
            source = str(sources.get(name, ""))
            found.append(Measured(name, figure, before.get(figure), value, bounds, int(after["n"]), source))
    return found


def _measured(trainer: pl.Trainer, figures: Sequence[Measured]) -> list[str]:
    """A table of the first and the last evaluation of the run; empty without one."""
    rows = [
        f"| {one.set_name} ({one.problems} problems) | {one.figure} | {_percent(one.before)} | {_percent(one.after)} "
        f"| {_bounds(one.interval)} |"
        for one in figures
    ]
    if not rows:
        return []
    data: object = trainer.datamodule
    evaluation = data.evaluation if isinstance(data, SelfPlay) else None
    how = "" if evaluation is None else f" at temperature {evaluation.temperature:g}, top_p {evaluation.top_p:g}"
    said = (
        f"`pass@1` is greedy; `mean@k` and `maj@k` are over k samples{how}. The interval is that of the figure after."
    )
    table = ["| set | | before | after | 95 % interval |", "|---|---|---|---|---|", *rows]
    return ["## Measured", "", said, "", *table, ""]


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _objective(trainer: pl.Trainer, module: TrainsOnGroups) -> Rows:
    objective, steps = module.objective, trainer.global_step
    rows: Rows = []
    if objective is not None:
        clip = f"clip {objective.clip_low:g} to {objective.clip_high:g}"
        rows.append(("algorithm", f"{objective.name} (KL weight {objective.beta:g}, {clip})"))
    if per_round := getattr(trainer.lightning_module, "steps_per_round", None):
        rows.append(("rounds", f"{steps // per_round} of {per_round} optimizer steps each"))
    kept = next((s for c in trainer.callbacks if (s := getattr(c, "restored_step", None)) is not None), None)
    rows.append(("optimizer steps", steps if kept is None else f"{steps}; the weights are those of step {kept}"))
    if trainer.optimizers:
        optimizer = trainer.optimizers[0]
        rate = optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        rows.append(("optimizer", f"{type(optimizer).__name__}, learning rate {rate:g}"))
    return [*rows, ("precision", trainer.precision)]


def _data(trainer: pl.Trainer) -> Rows:
    data: object = trainer.datamodule
    if not isinstance(data, SelfPlay):
        return []
    options, seeds = data.round_options, len(data.seed_problems)
    reward = data.reward_name or ", ".join(type(r).__name__ for r in data.rewards.values())
    labelled = sum(p.label is not None for p in data.seed_problems)
    unlabelled = reward in _BLIND or not labelled or data.mix_ratio == 0
    source = data.source if isinstance(data.source, str) else type(data.source).__name__
    ledger = next((c for c in trainer.callbacks if isinstance(c, Ledger)), None)
    counts = {} if ledger is None else ledger.counts
    known = [f"{counts[name]} {name}" for name in ("proposed", "kept", "trained") if name in counts]
    return [
        ("size of a round", f"{options.prompts_per_round} prompts with {options.samples_per_prompt} samples each"),
        ("problems", f"source {source}, {seeds} seeds" + (f"; {', '.join(known)}" if known else "")),
        ("documents", f"{len(data.passages)} passages that problems were written from" if data.passages else None),
        ("reward", reward or "labels where a seed has one, majority vote of the policy's own answers otherwise"),
        ("labels", "none were used" if unlabelled else f"{labelled} of {seeds} seeds carry one"),
        ("grader", data.grader_name),
    ]


def _adapter(module: TrainsOnGroups) -> Rows:
    policy, lora = module.policy, module.lora
    if not policy.has_adapter:
        return []
    model: Any = policy.model
    config = next(iter(model.peft_config.values()))
    targets = config.target_modules
    names = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    more = [name for name in ("use_rslora", "use_dora") if getattr(config, name)]
    return [
        ("adapter", ", ".join([f"LoRA of rank {config.r}, alpha {config.lora_alpha:g}, on {names}", *more])),
        ("adapter started from", None if lora is None else base_of(lora.start_from).shown),
        ("base during training", "4 bits (nf4, double quantisation)" if policy.quantized else None),
    ]


def _versions(policy: Policy) -> Rows:
    """Versions of the packages that the run used."""
    used, found = {"peft": policy.has_adapter, "bitsandbytes": policy.quantized}, []
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # run from a checkout
            if used.get(name, True):
                found.append(f"{name} {version(name)}")
    return [("versions", ", ".join(found))]
