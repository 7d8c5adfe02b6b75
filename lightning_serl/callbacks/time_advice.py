"""What to change about a run if one part of it takes most of the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from lightning_serl.distributed.strategies import precision_of
from lightning_serl.engines import TransformersEngine, VLLMServerEngine
from lightning_serl.protocols import data_of, module_of

#: From this share on a part is worth a sentence.
DOMINATES = 0.4


@dataclass(frozen=True)
class Situation:
    """What the advice depends on."""

    gpu: bool = False  # whether a GPU trains
    engine: str = "own"  # own: the policy writes, vllm: vLLM in the process, server: vLLM servers
    most_rows: int | None = None  # completions that the policy writes at one time; None where an engine decides
    answers: int = 0  # completions of a round on this process
    lora: bool = False
    checkpointing: bool = False
    mixed: bool = False  # whether training computes in 16 bits
    reference: bool = False  # whether the divergence to a reference is computed
    old: bool = False  # whether log-probs at the start of the round are computed
    ahead: bool = False  # whether the next round is written while one trains


def situation_of(trainer: pl.Trainer) -> Situation:
    """The situation of a run; what foreign modules and datamodules do not say has its default."""
    module, data = module_of(trainer), data_of(trainer)
    engine, size = data.engine, getattr(data, "round_options", None)
    kind = "own" if isinstance(engine, TransformersEngine) else "vllm"
    options: dict[str, Any] = getattr(trainer.lightning_module, "load_options", {})
    precision = precision_of(trainer)
    answers = 0 if size is None else size.prompts_per_round * size.samples_per_prompt
    return Situation(
        gpu=trainer.strategy.root_device.type == "cuda",
        engine="server" if isinstance(engine, VLLMServerEngine) else kind,
        most_rows=engine.max_rows if isinstance(engine, TransformersEngine) else None,
        answers=-(-answers // trainer.world_size),
        lora=module.lora is not None,
        checkpointing=bool(options.get("gradient_checkpointing")),
        mixed=precision.autocast is not None or precision.weights is not None,
        reference=bool(getattr(module.objective, "beta", 0)),
        old=module.steps_per_round > 1,
        ahead=bool(getattr(trainer.datamodule, "max_staleness", 0)),
    )


def advice(part: str, run: Situation) -> str:
    """What to change if a part of a run (named as under ``time/``) takes most of its time; empty if nothing helps."""
    if part in ("writing", "answering"):
        return _about_writing(part, run)
    if part == "training":
        return _about_training(run)
    if part == "logprobs":
        with_reference = "model.objective.beta 0 needs no reference" if run.reference else ""
        with_old = "one optimizer step for each round (model.inner_epochs 1, model.minibatches 1) needs no old ones"
        return " and ".join(filter(None, (with_reference, with_old if run.old else "")))
    if part == "waiting":
        if run.engine == "server":
            more = "more servers in data.engine.urls"
            return (
                more if run.ahead else f"{more}, or data.max_staleness 1, which writes the next round while one trains"
            )
        return (
            "the processes wait for the longest answer of each: more prompts in a round, or a smaller data.max_tokens"
        )
    return {
        "evaluating": "evaluate less often (trainer.check_val_every_n_epoch) or with fewer data.evaluation.samples",
        "grading": "a cheaper data.reward or data.grader; those of this package take milliseconds for each prompt",
        "sync": "train an adapter (model.lora.r 16), of which megabytes are pushed" if not run.lora else "",
        "probing": "a rarer health probe (data.probe.every)",
        "filtering": "a cheaper filter in trainer.callbacks",
        "saving": "save less often (trainer.callbacks Checkpoints, every_n_train_steps)",
    }.get(part, "")


def _about_writing(part: str, run: Situation) -> str:
    if run.engine == "server":
        more = "more servers in data.engine.urls"
        return more if run.ahead else f"{more}, or data.max_staleness 1, which writes the next round while one trains"
    shorter = "a smaller data.max_tokens" if part == "answering" else "a smaller data.writing.sampling.max_tokens"
    if run.engine == "vllm":
        return f"{shorter}, or vLLM servers on other GPUs (data.engine VLLMServerEngine)"
    if run.gpu:
        return f"data.engine VLLMEngine, or {shorter}"
    if run.most_rows is not None and run.most_rows < min(run.answers, 64):
        return f"a larger data.engine.max_rows (now {run.most_rows}), or {shorter}"
    return f"{shorter}, or fewer data.round.samples_per_prompt; on a GPU data.engine VLLMEngine"


def _about_training(run: Situation) -> str:
    options = []
    if run.gpu and not run.mixed:
        options.append("trainer.precision bf16-mixed")
    if run.checkpointing:
        options.append("model.gradient_checkpointing false if the memory allows it")
    if not run.lora:
        options.append("an adapter (model.lora.r 16)")
    options.append("more devices (trainer.devices)" if run.gpu else "fewer data.round.samples_per_prompt")
    return ", or ".join(options)
