"""Positions that go through the decoder per round: ours, sorted or packed, and TRL's with padding.

    python benchmarks/padding.py [--draws 20] [--accumulate 32]

16 prompts of about 120 tokens x 16 answers, log-normal lengths with a mean of 450 or 600, cut at 1,024. TRL pads
every answer to the longest of the whole generation batch and every prompt to the longest prompt (``GRPOTrainer``
1.16), before it slices micro-batches. Ours are the micro-batches that ``SeRLModule.experience`` deals, counted as
``Policy.forward`` counts them. Pure counting, no model runs. Exits 1 if a target is missed: 1.6 times fewer for any
model, 2 times packed.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys

from lightning_serl.objectives.experience import partition, partition_packed
from lightning_serl.policy.packing import pack
from lightning_serl.types import pad_rows

PROMPTS, SAMPLES, LIMIT = 16, 16, 1024
ANY, PACKED = 1.6, 2.0


def draw(seed: int, mean: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """(prompt ids, answer length) of each response."""
    rng = random.Random(seed)
    prompts, answers = [], []
    for k in range(PROMPTS):
        length = max(60, min(400, int(rng.lognormvariate(4.75, 0.35))))
        prompts += [(k + 1,) * length] * SAMPLES
        middle = math.log(mean) - 0.125
        answers += [max(40, min(LIMIT, int(rng.lognormvariate(middle, 0.5)))) for _ in range(SAMPLES)]
    return prompts, answers


def positions(prompts: list[tuple[int, ...]], answers: list[int], slots: int) -> dict[str, int]:
    """Of one round, by each way of laying it out."""
    lengths = [len(p) + n for p, n in zip(prompts, answers, strict=True)]
    packed = 0
    for slot in partition_packed(prompts, lengths, slots):
        batch = pad_rows([prompts[i] + (0,) * answers[i] for i in slot], [len(prompts[i]) for i in slot], 0)
        packed += pack(batch, batch.mask).input_ids.shape[1]
    return {
        "trl": len(prompts) * (max(map(len, prompts)) + max(answers)),
        "sorted": sum(len(s) * max(lengths[i] for i in s) for s in partition(lengths, slots) if s),
        "packed": packed,
    }


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--accumulate", type=int, default=32, help="micro-batches per optimizer step")
    options = parser.parse_args()
    print("| mean answer | TRL's padding | sorted | packed, prompts once |\n|---|---|---|---|")
    least = {"sorted": math.inf, "packed": math.inf}
    for mean in (450, 600):
        rounds = [positions(*draw(seed, mean), options.accumulate) for seed in range(options.draws)]
        of = {name: statistics.mean(r[name] for r in rounds) for name in rounds[0]}
        ratios = {name: of["trl"] / of[name] for name in least}
        least = {name: min(least[name], ratios[name]) for name in least}
        cells = " | ".join(f"{of[name] / 1e3:.0f}k, {ratios[name]:.2f}x fewer" for name in least)
        print(f"| {mean} | {of['trl'] / 1e3:.0f}k | {cells} |")
    met = True
    for name, target in (("sorted", ANY), ("packed", PACKED)):
        met &= least[name] >= target
        said = f"{name}: {least[name]:.2f} times fewer positions, target at least {target}"
        print(f"{'PASS' if least[name] >= target else 'MISS'}  {said}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
