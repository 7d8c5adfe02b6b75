"""Several processes: agreement between ranks, sharded weights, strategies and seeds."""
