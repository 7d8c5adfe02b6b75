"""One of two ranks with a short time-out; the second is slow, then it is gone."""

import os
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from lightning_serl.distributed import ranks
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import RankFailure

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=3)
    )
    ranks._LOST_AFTER = 4.0
    here = Ranks(rank, 2)
    for _ in range(5):
        with here.stage("warming up"):
            pass
    with here.stage("working"):
        time.sleep(9 * rank)
    print("both are here", flush=True)
    if rank:
        os._exit(3)
    began = time.monotonic()
    try:
        with here.stage("waiting"):
            pass
    except RankFailure as error:
        print(f"{error} after {time.monotonic() - began:.0f} s", flush=True)
        os._exit(0)
