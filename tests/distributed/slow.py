"""Engines for runs of the command line that are to be stopped from outside."""

import os
import time
from pathlib import Path

from lightning_serl.engines import TransformersEngine


class SlowEngine(TransformersEngine):
    """In the second round it writes nothing for a quarter of an hour, and leaves a file behind when it begins to."""

    def __init__(self, marker: str = ""):
        super().__init__()
        self.marker = Path(marker)

    def generate(self, requests, who="policy"):
        if self.policy.version:  # a step was made
            (self.marker / f"generating-{os.environ.get('LOCAL_RANK', '0')}-{os.getpid()}").touch()
            end = time.monotonic() + 900
            while time.monotonic() < end:
                self.poll()
                time.sleep(0.02)
        yield from super().generate(requests, who)
