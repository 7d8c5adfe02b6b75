"""A process that ends while heartbeats are sent, as every run on several ranks does."""

import torch.distributed as dist

from lightning_serl.distributed import ranks

if __name__ == "__main__":
    ranks._HEARTBEAT = 0.0  # so that one is always under way
    store = dist.TCPStore("127.0.0.1", 0, 1, True)
    meetings = [ranks._Rendezvous(store, rank) for rank in range(8)]
