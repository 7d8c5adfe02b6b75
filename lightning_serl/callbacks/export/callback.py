"""The trained policy as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from lightning_serl.callbacks.export.model_card import model_card
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.policy.export import Form, export, export_form
from lightning_serl.policy.sharded_weights import whole


class Export(pl.Callback):
    """Writes ``export/`` into the run folder when training ends.

    It holds weights, configuration, tokenizer, generation config and a model card that says how it was trained.

    Args:
        directory: Where to write; relative to the run folder.
        form: ``full`` weights or, under LoRA, the adapter ``merged`` into the base, for
            ``AutoModelForCausalLM.from_pretrained``; or the ``adapter`` alone, for peft. null takes the one of the
            first two that fits.
    """

    def __init__(self, directory: str = "export", form: Form | None = None) -> None:
        super().__init__()
        self.directory, self.form = directory, form

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a form that the run has not, before it begins."""
        if hasattr(pl_module, "lora"):  # the policy itself is not loaded yet
            export_form(self.form, pl_module.lora is not None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the directory, from rank 0; all ranks take part where weights are sharded."""
        if trainer.fast_dev_run:
            return
        form = export_form(self.form, pl_module.policy.has_adapter)
        ranks = Ranks.of(trainer)
        policy = whole(pl_module.policy, ranks)
        with ranks.stage("exporting the policy"):
            if policy is not None and ranks.leads:
                export(policy, Path(trainer.default_root_dir) / self.directory, form, model_card(trainer, form))
