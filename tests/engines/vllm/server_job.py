"""One of two ranks that share small servers: ``server_job.py RANK FOLDER PUBLISH_TO URL...``; writes what it saw."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.small_models import small_policy

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines import Request, Sampling, VLLMServerEngine, WeightUpdate


def main(rank, folder, publish_to, urls):
    """Two pushes and a round; the second push fails on rank 0 where the folder vanished."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ranks, policy = Ranks(rank, 2), small_policy("llama_tied")
    engine = VLLMServerEngine(urls, publish_to=publish_to, patience=2.0, start_seconds=20.0)
    engine.start(policy, ranks)
    seen = {"versions": [], "names": []}
    receipt = engine.push(WeightUpdate("full", policy.named_weights, 4))
    seen["names"], seen["versions"] = sorted(receipt.names), [receipt.version, engine.version]
    requests = [Request((5, 6, 7 + i + 50 * rank), (1, 2), Sampling(4)) for i in range(4)]
    seen["written"] = {i: [c.token_ids for c in cs] for i, cs in engine.generate(requests)}
    if rank == 0:
        engine.session.weight_writer.folder = Path("/proc/nowhere")
    try:
        engine.push(WeightUpdate("full", policy.named_weights, 5))
    except Exception as error:  # both ranks have to come here
        seen["error"] = f"{type(error).__name__}: {error}"
    engine.close()
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
