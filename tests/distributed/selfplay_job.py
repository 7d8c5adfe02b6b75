"""Self-play on two ranks; under ``fail`` rank 1's engine raises in the second round, under ``fail-step`` a step.

``narrow`` gives one rank nothing to do, ``resume`` continues from ``checkpoints/last.ckpt`` of the folder; ``sharded``
after the word uses FSDP2.
"""

import sys
from pathlib import Path

import torch
from helpers.training import FailingEngine, selfplay, sharded, trainer_for, weights
from lightning.pytorch.strategies import DDPStrategy

from lightning_serl.callbacks import Checkpoints, Export, ReferenceSync
from lightning_serl.datamodules import RoundOptions

#: One problem at a time: the other rank has nothing to answer and waits for the longest response.
NARROW = {"round": RoundOptions(prompts_per_round=1, samples_per_prompt=6, max_attempts=4)}


def rank_selfplay(**options):
    """Plain SGD: Adam's first steps have the size of the learning rate even on rounding noise."""
    return selfplay(steps=(1, 2), optimizer=lambda p, lr: torch.optim.SGD(p, lr=50 * lr), **options)


def callbacks(every=1):
    """A reference that moves, checkpoints of the four steps, an export."""
    return [ReferenceSync("ema", every_n_steps=1, alpha=0.3), Checkpoints(every, keep=-1), Export()]


def main(root, what, how="ddp"):
    torch.set_num_threads(1)

    def gone(text):
        Path(root, "raised").touch()
        return RuntimeError(text)

    engine = FailingEngine(fail_at=5 if what == "fail" else None, error=gone, rank=1)
    module, data = rank_selfplay(engine=engine, **(NARROW if what == "narrow" else {}))
    if what == "fail-step":
        whole, calls = module.training_step, []

        def training_step(batch, batch_idx):
            calls.append(batch_idx)
            if len(calls) == 3 and module.global_rank == 1:
                Path(root, "raised").touch()
                raise MemoryError("rank 1 has no room")
            return whole(batch, batch_idx)

        module.training_step = training_step
    strategy = sharded() if how == "sharded" else DDPStrategy(process_group_backend="gloo")
    every = 100 if what.startswith("fail") else 1  # there, what is found was saved at the end
    trainer = trainer_for(root, callbacks(every), devices=2, strategy=strategy, gradient_clip_val=1.0)
    trainer.fit(module, data, ckpt_path=f"{root}/checkpoints/last.ckpt" if what == "resume" else None)
    torch.save({"weights": weights(module), "metrics": module.step_metrics}, f"{root}/rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
