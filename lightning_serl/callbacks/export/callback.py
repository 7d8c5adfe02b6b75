"""Writes the trained policy as a Hugging Face model directory."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from lightning_serl.callbacks.export.model_card import model_card
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.policy.export import Form, export, export_form
from lightning_serl.policy.sharded_weights import whole
from lightning_serl.protocols import LoadsPolicy, module_of


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
        """Refuse a form that the run cannot write, before the policy is loaded.

        Raises:
            InputError: naming the form.
        """
        if isinstance(pl_module, LoadsPolicy):
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
