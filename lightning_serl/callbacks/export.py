"""Writes the trained policy as a Hugging Face model directory, with a model card and the options it was asked with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_serl.answers.registry import NAMES
from lightning_serl.callbacks.publishing.model_card import model_card
from lightning_serl.callbacks.rollout_hooks import span_of
from lightning_serl.callbacks.run_folder.summary import PICTURE
from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.weight_checks import check_finite
from lightning_serl.errors import NotFinite
from lightning_serl.objectives.optimizer_steps import ADVICE
from lightning_serl.policy.export import CARD, OF_BASE, Form, export, export_form
from lightning_serl.policy.sharded_weights import whole
from lightning_serl.protocols import SelfPlay, module_of


class Export(pl.Callback):
    """Writes weights, configuration, tokenizer and a model card into ``export/`` of the run folder when training ends.

    ``serl.json`` beside them holds the options that say how the policy was asked and its answers were read;
    ``lightning-serl validate``, ``test`` and ``predict`` take them as defaults.

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
        """Write the directory from rank 0; sharded weights are gathered from all ranks.

        Raises:
            NotFinite: if the last optimizer step was not taken, or if weights or log-probs are not finite.
        """
        if trainer.fast_dev_run:
            return
        with span_of(trainer.callbacks, "saving"):
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        live, ranks = module_of(trainer).policy, Ranks.of(trainer)
        if module_of(trainer).steps_not_taken:
            with ranks.stage("exporting the policy"):
                raise NotFinite(f"the run ended on a step that was not taken, so nothing is exported; {ADVICE}")
        check_finite(live, trainer)
        form = export_form(self.form, live.has_adapter)
        policy = whole(live, ranks)
        with ranks.stage("exporting the policy"):
            if policy is not None and ranks.leads:
                base = module_of(trainer).model_name_or_path
                target = Path(trainer.default_root_dir) / self.directory
                export(policy, target, form, model_card(trainer, form), options_of(trainer, form), base)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add what the summary made, which is listed before this callback."""
        self.complete(trainer)

    def complete(self, trainer: pl.Trainer) -> None:
        """Put the run's curves beside the model and write its card again with the last evaluation, from rank 0."""
        folder = Path(trainer.default_root_dir) / self.directory
        if not trainer.is_global_zero or trainer.fast_dev_run or not (folder / CARD).exists():
            return
        drawn = Path(trainer.default_root_dir) / PICTURE
        if drawn.exists():
            write_whole(folder / PICTURE, lambda file: file.write(drawn.read_bytes()))
        form = export_form(self.form, module_of(trainer).policy.has_adapter)
        text = model_card(trainer, form, (folder / PICTURE).exists())
        write_whole(folder / CARD, lambda file: file.write(text.encode("utf-8", errors="backslashreplace")))


def options_of(trainer: pl.Trainer, form: Form | None = None) -> dict[str, Any] | None:
    """The options that say how the policy was asked and read, as a configuration; ``None`` for a foreign datamodule.

    Those of an adapter alone also say how its base was held in training.
    """
    data: object = trainer.datamodule
    if not isinstance(data, SelfPlay):
        return None
    evaluation = {"temperature": data.evaluation.temperature, "top_p": data.evaluation.top_p}
    asked: dict[str, Any] = {
        "solve": asdict(data.solve),
        "max_tokens": data.sampling.max_tokens,
        "evaluation": evaluation,
    }
    if data.writes:
        asked["writing"] = asdict(data.writing)
    if data.grader_name in (*NAMES, "auto"):  # the options of a grader of the user's own are not known here
        asked["grader"] = data.grader_name
    module = module_of(trainer)
    model: dict[str, Any] = {"temperature": module.policy.temperature}
    if form == "adapter":
        options = {**getattr(module, "load_options", {}), "quantize": getattr(module, "quantize", None)}
        model |= {name: options[name] for name in OF_BASE if options.get(name) is not None}
    return {"model": model, "data": asked}
