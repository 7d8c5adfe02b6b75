"""Self-play on two ranks, each with a vLLM engine of its own, and what is left of the process group afterwards."""

import gc
import sys

import torch
import torch.distributed as dist
from helpers.training import selfplay, trainer_for, weights
from lightning.pytorch.strategies import DDPStrategy

from lightning_serl.callbacks import RolloutRefresh
from lightning_serl.engines import Request, Sampling, VLLMEngine, WeightUpdate


def total():
    """A collective call of the trainer's group."""
    value = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(value)
    return float(value)


def main(root):
    torch.set_num_threads(1)
    engine = VLLMEngine(kv_cache_gb=0.05)
    module, data = selfplay(engine=engine)
    refresh = RolloutRefresh()
    trainer = trainer_for(
        root, [refresh], devices=2, strategy=DDPStrategy(process_group_backend="gloo"), enable_checkpointing=False
    )
    trainer.fit(module, data)
    found = {"pushes": refresh.pushes, "closed": engine.version, "size": dist.get_world_size(), "after": total()}

    policy = module.policy
    second = VLLMEngine(kv_cache_gb=0.05)
    second.start(policy)
    found["beside"] = total()
    second.push(WeightUpdate("full", policy.named_weights, policy.version))
    with policy.gathered():
        ((_, (completion,)),) = second.generate([Request((5, 6, 7), (1,), Sampling(max_tokens=4))])
    found["wrote"] = len(completion.token_ids)
    del second  # dropped without a word
    gc.collect()
    found["dropped"] = total()
    torch.save(found | {"weights": weights(module)}, f"{root}/rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
