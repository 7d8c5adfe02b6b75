"""The model card of an export: how it was trained, from the run's own facts."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as pl

from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.policy.export import Form

_PACKAGES = ("lightning-serl", "torch", "lightning", "transformers", "peft", "bitsandbytes")
_BLIND = ("MajorityVote", "PairwiseVote", "FormatReward", "RandomReward")
_FORMS = {
    "full": "All weights were trained; this directory holds them.",
    "merged": "A low-rank adapter was trained; this directory holds the base with the adapter merged into it.",
    "adapter": "A low-rank adapter was trained; this directory holds it alone, to be opened with peft beside its base.",
}


def model_card(trainer: pl.Trainer, form: Form) -> str:
    """The text of ``README.md``; equal runs write equal cards, so there is no date in it.

    A module or datamodule of the user's own is described as far as it has what ours have.
    """
    module, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
    base = getattr(module, "model_name_or_path", None)
    head = ["---"]
    if base is not None:
        head.append(f"base_model: {json.dumps(base)}")
    head += [f"library_name: {'peft' if form == 'adapter' else 'transformers'}", "pipeline_tag: text-generation"]
    head += ["tags: [serl, self-play, reinforcement-learning, lightning-serl]", "---", ""]
    rows = [("base", base), *_objective(trainer), *_data(trainer, data), *_adapter(module), *_versions(module)]
    facts = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows if value is not None]
    return "\n".join(
        [
            *head,
            "# A model trained by self-play",
            "",
            "Trained with lightning-serl, an implementation of SeRL (arXiv 2505.20347). " + _FORMS[form],
            "",
            "| | |",
            "|---|---|",
            *facts,
            "",
        ]
    )


def _objective(trainer: pl.Trainer) -> list[tuple[str, Any]]:
    module: Any = trainer.lightning_module
    objective = getattr(module, "objective", None)
    rows: list[tuple[str, Any]] = []
    if objective is not None:
        rows.append(("algorithm", f"{objective.name} (KL weight {objective.beta:g}, clip {objective.clip_low:g} to "
                                  f"{objective.clip_high:g})"))  # fmt: skip
    steps = trainer.global_step
    per_round = getattr(module, "steps_per_round", None)
    rows.append(("rounds", None if not per_round else f"{steps // per_round} of {per_round} optimizer steps each"))
    rows.append(("optimizer steps", steps))
    if trainer.optimizers:
        optimizer = trainer.optimizers[0]
        rate = optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        rows.append(("optimizer", f"{type(optimizer).__name__}, learning rate {rate:g}"))
    return [*rows, ("precision", trainer.precision)]


def _data(trainer: pl.Trainer, data: Any) -> list[tuple[str, Any]]:
    if not hasattr(data, "round_options"):
        return []
    options = data.round_options
    named = getattr(data, "_reward_name", None) or ", ".join(type(r).__name__ for r in data.rewards.values())
    labelled = sum(p.label is not None for p in data.seed_problems)
    blind = named in _BLIND or not labelled or data.mix_ratio == 0
    ledger = next((c for c in trainer.callbacks if isinstance(c, Ledger)), None)
    counts = {} if ledger is None else ledger.counts
    known = [f"{counts[name]} {name}" for name in ("proposed", "kept", "trained") if name in counts]
    return [
        ("size of a round", f"{options.prompts_per_round} prompts with {options.samples_per_prompt} samples each"),
        ("problems", f"source {data.source if isinstance(data.source, str) else type(data.source).__name__}, "
                     f"{len(data.seed_problems)} seeds" + (f"; {', '.join(known)}" if known else "")),
        ("reward", named or "labels where a seed has one, majority vote of the policy's own answers otherwise"),
        ("labels", "none were used" if blind else f"{labelled} of {len(data.seed_problems)} seeds carry one"),
        ("grader", data.grader_name),
    ]  # fmt: skip


def _adapter(module: Any) -> list[tuple[str, Any]]:
    policy = module.policy
    if not policy.has_adapter:
        return []
    config = next(iter(policy.model.peft_config.values()))
    targets = (
        config.target_modules if isinstance(config.target_modules, str) else ", ".join(sorted(config.target_modules))
    )
    more = [name for name in ("use_rslora", "use_dora") if getattr(config, name)]
    return [
        ("adapter", ", ".join([f"LoRA of rank {config.r}, alpha {config.lora_alpha:g}, on {targets}", *more])),
        ("adapter started from", getattr(getattr(module, "lora", None), "start_from", None)),
        ("base during training", "4 bits (nf4, double quantisation)" if policy.quantized else None),
    ]


def _versions(module: Any) -> list[tuple[str, Any]]:
    policy, out = module.policy, []
    for name in _PACKAGES:
        if (name == "peft" and not policy.has_adapter) or (name == "bitsandbytes" and not policy.quantized):
            continue
        try:
            out.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # run from a checkout
            continue
    return [("versions", ", ".join(out))]
