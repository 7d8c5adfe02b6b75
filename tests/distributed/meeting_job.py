"""Two ranks with a short time-out; the second is slow, then it is gone. ``meeting_job.py FOLDER``."""

import os
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from lightning_serl.distributed import ranks
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import RankFailure

if __name__ == "__main__":
    folder = sys.argv[1]
    child = os.fork()
    rank = 0 if child else 1
    if rank:
        os.dup2(os.open(f"{folder}/second", os.O_CREAT | os.O_WRONLY), 1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=2)
    )
    ranks._LOST_AFTER = 3.0
    here = Ranks(rank, 2)
    for _ in range(5):
        with here.stage("warming up"):
            pass
    with here.stage("working"):
        time.sleep(5 * rank)
    print("both are here", flush=True)
    if rank:
        os._exit(3)
    began = time.monotonic()
    try:
        with here.stage("waiting"):
            pass
    except RankFailure as error:
        print(f"{error} after {time.monotonic() - began:.0f} s", flush=True)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
