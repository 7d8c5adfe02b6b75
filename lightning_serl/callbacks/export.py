"""The trained policy as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from lightning_serl.loading import export


class Export(pl.Callback):
    """Writes ``export/`` into the run folder when training ends; ``AutoModelForCausalLM.from_pretrained`` opens it.

    Args:
        directory: Where to write; relative to the run folder.
    """

    def __init__(self, directory: str = "export") -> None:
        super().__init__()
        self.directory = directory

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the directory, from rank 0; all ranks take part where weights are sharded."""
        if trainer.fast_dev_run:
            return
        with pl_module.policy.gathered(trainer):
            if trainer.is_global_zero:
                export(pl_module.policy, Path(trainer.default_root_dir) / self.directory)
        trainer.strategy.barrier("export")
