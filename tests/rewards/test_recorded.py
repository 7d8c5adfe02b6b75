"""Recorded responses and the rewards that SeRL's code gave them."""

import json
import threading

import pytest

from lightning_serl.rewards import MajorityVote, PairwiseVote
from lightning_serl.types import Group

FILES = ["math_qwen_8x", "math_l5_16models", "gsm8k_10x", "math500_rho_4x", "addsub_chatgpt_10x"]


def recorded(golden_dir, name):
    for line in (golden_dir / f"responses_{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row, Group.from_texts(row["problem"], [r["text"] for r in row["responses"]])


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_pairwise_vote_is_the_published_one(golden_dir, name):
    verdicts = {}

    def run():
        reward = PairwiseVote()
        for row, group in recorded(golden_dir, name):
            verdicts[row["id"]] = (row, reward([group], None)[0])

    thread = threading.Thread(target=run)  # off the main thread, where math-verify alone refuses to work
    thread.start()
    thread.join()
    assert verdicts
    for row, verdict in verdicts.values():
        assert verdict.scores.tolist() == row["ref090"]["reward"], row["id"]
        assert verdict.info["counts"] == row["ref090"]["counts"], row["id"]
        assert verdict.info["majority_index"] == row["ref090"]["majority_index"], row["id"]


@pytest.mark.golden
@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("name", FILES)
def test_majority_vote_is_close_to_the_published_one(golden_dir, name, mode):
    reward, untied, same, silent, total = MajorityVote(mode=mode), 0, 0, 0, 0
    for row, group in recorded(golden_dir, name):
        verdict, reference = reward([group], None)[0], row["ref090"]
        silent, total = silent + verdict.info["no_answer"], total + len(group)
        top = max(reference["counts"])
        if any(c == top and not r for c, r in zip(reference["counts"], reference["reward"], strict=True)):
            continue
        untied += 1
        same += verdict.scores.tolist() == reference["reward"]
    assert silent <= 0.03 * total
    assert same >= (0.95 if mode == "exact" else 0.92) * untied
