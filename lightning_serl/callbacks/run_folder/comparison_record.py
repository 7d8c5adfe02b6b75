"""Writes what ``lightning-serl compare`` needs of a run: graded problems before and after, tokens, signs of health."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.protocols import data_of, module_of
from lightning_serl.types import Round

#: Files in the run folder: a row per problem as in ``evaluation_items.jsonl``, and the facts of the rounds.
BEFORE, AFTER, FACTS = "evaluation_items_before.jsonl", "evaluation_items_after.jsonl", "comparison_facts.json"


class ComparisonRecord(RolloutHooks):
    """Keeps the graded problems of the first and the last evaluation of a fit, which paired comparisons need.

    ``comparison_facts.json`` holds ``rounds``; ``tokens``, all that the engine wrote over all ranks, evaluations not
    counted; and ``health``, the signs that are outside their bands.
    """

    keeps_items = True  # makes the module gather them inside a fit

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0  # up to the last round, that of the run before a resume included
        self._former = 0  # tokens before a resume
        self._excluded = 0  # tokens of evaluations on this rank
        self._evaluation_began = 0
        self._rounds = 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how many tokens were written before the evaluation."""
        self._evaluation_began = _written(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the graded problems."""
        self._excluded += _written(trainer) - self._evaluation_began
        if trainer.sanity_checking or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        items = module_of(trainer).evaluation_items
        rows = [json.dumps({"set": name, **p.facts}, ensure_ascii=False) for name, ps in items.items() for p in ps]
        # a model can produce lone surrogates, which utf-8 cannot encode
        data = "".join(f"{row}\n" for row in rows).encode("utf-8", errors="backslashreplace")
        trained = trainer.global_step > 0 or trainer.ckpt_path is not None  # a checkpoint of a run that failed
        target = Path(trainer.default_root_dir) / (AFTER if trained else BEFORE)
        write_whole(target, lambda file: file.write(data))

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Count the tokens of the round."""
        mine = torch.tensor([float(_written(trainer) - self._excluded)], dtype=torch.float64)
        self.tokens = self._former + int(Ranks.of(trainer).sum(mine))
        self._rounds += bool(played.stats)  # a round without a group to train on has none
        self._write_facts(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the signs of health after the last step."""
        self._write_facts(trainer)

    def _write_facts(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        signs = [w.partition(" is ")[0] for c in trainer.callbacks if isinstance(c, Health) for w in c.outside]
        facts = {"rounds": self._rounds, "tokens": self.tokens, "health": signs}
        data = (json.dumps(facts) + "\n").encode()
        write_whole(Path(trainer.default_root_dir) / FACTS, lambda file: file.write(data))

    def state_dict(self) -> dict[str, Any]:
        """Rounds and tokens so far."""
        return {"tokens": self.tokens, "rounds": self._rounds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.tokens = self._former = state_dict["tokens"]
        self._rounds = state_dict["rounds"]


def _written(trainer: pl.Trainer) -> int:
    """Tokens that this rank's engine has written in this process."""
    return int(getattr(data_of(trainer).engine, "tokens_written", 0))
