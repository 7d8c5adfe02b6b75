"""Writes the trained policy as a Hugging Face model directory, with a model card."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import lightning.pytorch as pl

from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.policy.export import Form, export, export_form
from lightning_serl.policy.policy import Policy
from lightning_serl.policy.sharded_weights import whole
from lightning_serl.protocols import SelfPlay, TrainsOnGroups, module_of

_PACKAGES = ("lightning-serl", "torch", "lightning", "transformers", "peft", "bitsandbytes")
# Rewards that use no labels.
_BLIND = ("MajorityVote", "PairwiseVote", "FormatReward", "RandomReward")
_FORMS = {
    "full": "All weights were trained; this directory holds them.",
    "merged": "A low-rank adapter was trained; this directory holds the base with the adapter merged into it.",
    "adapter": "A low-rank adapter was trained; this directory holds it alone, to be opened with peft beside its base.",
}

#: Names and values of a table's rows; rows without a value are left out.
Rows: TypeAlias = list[tuple[str, Any]]


class Export(pl.Callback):
    """Writes weights, configuration, tokenizer and a model card into ``export/`` of the run folder when training ends.

    Args:
        directory: Where to write, relative to the run folder.
        form: ``full`` weights or, under LoRA, the adapter ``merged`` into the base, both for
            ``AutoModelForCausalLM.from_pretrained``; or the ``adapter`` alone, for peft. null means ``merged`` under
            LoRA and ``full`` otherwise.
    """

    def __init__(self, directory: str = "export", form: Form | None = None) -> None:
        super().__init__()
        self.directory, self.form = directory, form

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a form that the run cannot write, before the policy is loaded."""
        if hasattr(pl_module, "lora"):
            export_form(self.form, pl_module.lora is not None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the directory from rank 0; sharded weights are gathered from all ranks."""
        if trainer.fast_dev_run:
            return
        live, ranks = module_of(trainer).policy, Ranks.of(trainer)
        form = export_form(self.form, live.has_adapter)
        policy = whole(live, ranks)
        with ranks.stage("exporting the policy"):
            if policy is not None and ranks.leads:
                export(policy, Path(trainer.default_root_dir) / self.directory, form, model_card(trainer, form))


def model_card(trainer: pl.Trainer, form: Form) -> str:
    """Text of the export's ``README.md``: no date, so equal runs write equal cards; only rows that can be filled.

    The head is YAML as the hub reads it, written here because ``huggingface_hub.ModelCardData`` would write the same
    data in other bytes.
    """
    module = module_of(trainer)
    base = module.model_name_or_path
    head = ["---"]
    if base is not None:
        head.append(f"base_model: {json.dumps(base)}")
    head += [f"library_name: {'peft' if form == 'adapter' else 'transformers'}", "pipeline_tag: text-generation"]
    head += ["tags: [serl, self-play, reinforcement-learning, lightning-serl]", "---", ""]
    rows = [("base", base), *_objective(trainer, module), *_data(trainer), *_adapter(module), *_versions(module.policy)]
    facts = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows if value is not None]
    origin = "Trained with lightning-serl, an implementation of SeRL (arXiv 2505.20347)."
    text = ["# A model trained by self-play", "", f"{origin} {_FORMS[form]}", "", "| | |", "|---|---|", *facts, ""]
    return "\n".join([*head, *text])


def _objective(trainer: pl.Trainer, module: TrainsOnGroups) -> Rows:
    objective, steps = module.objective, trainer.global_step
    rows: Rows = []
    if objective is not None:
        clip = f"clip {objective.clip_low:g} to {objective.clip_high:g}"
        rows.append(("algorithm", f"{objective.name} (KL weight {objective.beta:g}, {clip})"))
    if per_round := getattr(trainer.lightning_module, "steps_per_round", None):
        rows.append(("rounds", f"{steps // per_round} of {per_round} optimizer steps each"))
    rows.append(("optimizer steps", steps))
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
        ("adapter started from", None if lora is None else lora.start_from),
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
