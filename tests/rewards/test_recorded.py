"""Recorded responses and the rewards that SeRL's code gave them, and the report of the differences."""

import importlib.util
import json
import math
import random
import re
import sys
import threading
from pathlib import Path

import pytest
import torch

from lightning_serl.rewards import MajorityVote, PairwiseVote, RestrainVote, SelectiveVote, VerifiableReward
from lightning_serl.types import Group

ROOT = Path(__file__).resolve().parents[2]
FILES = ["math_qwen_8x", "math_l5_16models", "gsm8k_10x", "math500_rho_4x", "addsub_chatgpt_10x"]


@pytest.fixture(scope="module")
def parity():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks" / "parity.py")
    module = sys.modules["parity"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["parity"]


@pytest.fixture(scope="module")
def documented():
    """The rows of docs/parity.md: group or response -> the other cells."""
    rows = {}
    for line in (ROOT / "docs" / "parity.md").read_text(encoding="utf-8").splitlines():
        row = re.fullmatch(r"\| (\w+_\d+(?::\d+)?) \| (.*) \|", line)
        if row is not None:
            rows[row[1]] = row[2]
    return rows


def recorded(golden_dir, name):
    for line in (golden_dir / f"responses_{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        label = f"\\boxed{{{row['gold']}}}"
        yield row, Group.from_texts(row["problem"], [r["text"] for r in row["responses"]], label=label)


@pytest.mark.golden
@pytest.mark.usefixtures("asked_once")
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
@pytest.mark.usefixtures("asked_once")
@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("name", FILES)
def test_majority_vote_is_close_to_the_published_one(golden_dir, documented, name, mode):
    reward, untied, differ, silent, total, ids = MajorityVote(mode=mode, min_answers=1), 0, set(), 0, 0, set()
    for row, group in recorded(golden_dir, name):
        verdict, reference = reward([group], None)[0], row["ref090"]
        silent, total = silent + verdict.info["no_answer"], total + len(group)
        ids.add(row["id"])
        top = max(reference["counts"])
        if any(c == top and not r for c, r in zip(reference["counts"], reference["reward"], strict=True)):
            continue
        untied += 1
        if verdict.scores.tolist() != reference["reward"]:
            differ.add(row["id"])
    assert silent <= 0.03 * total
    assert len(differ) <= (0.03 if mode == "exact" else 0.05) * untied
    listed = {id for id, cells in documented.items() if id in ids and cells.split(" | ")[0] in (mode, "both")}
    assert differ == listed


@pytest.mark.golden
@pytest.mark.usefixtures("asked_once")
@pytest.mark.parametrize("name", FILES)
def test_default_grading_is_close_to_the_published_one(golden_dir, documented, name):
    reward, differ, total, ids = VerifiableReward(), set(), 0, set()
    for row, group in recorded(golden_dir, name):
        scores, rule = reward([group], None)[0].scores.tolist(), row["ref090"]["rule"]
        differ |= {f"{row['id']}:{k}" for k in range(len(group)) if scores[k] != rule[k]}
        total, ids = total + len(group), ids | {row["id"]}
    assert len(differ) <= 0.002 * total
    assert differ == {id for id in documented if ":" in id and id.split(":")[0] in ids}


def explained(parity, prompt, *texts, mode="exact"):
    group = Group.from_texts(prompt, texts)
    MajorityVote(mode=mode)([group], None)
    rewards = PairwiseVote()([group], None)[0].scores.tolist()
    return parity.explain(group, group.cluster, group.answers, rewards)


def test_the_report_finds_answers_read_in_the_problem(parity):
    prompt = "Ann answers 15 letters a day. How many is that in 4 days?"
    reason = explained(parity, prompt, "4 * 15 = 60\nA: 60", "4 + 15 = 19\nA: 19", r"\boxed{60}")
    assert "response 0: published rule reads `` 15 `` in the problem, we read `` 60 `` in the response" in reason
    assert "response 1: published rule reads `` 15 `` in the problem, we read `` 19 `` in the response" in reason


def test_the_report_finds_responses_without_an_answer(parity):
    reason = explained(parity, "What is 3 times 7?", "No idea.", "Who knows?", r"\boxed{21}")
    assert reason == "responses 0, 1: published rule reads `` 7 `` in the problem, we read nothing in the response"


def test_the_report_finds_other_matches(parity):
    reason = explained(parity, "Which?", "As $r^2 = 4$, the answer is (C).", r"\boxed{(C)}", mode="fast")
    assert re.fullmatch(
        r"response 0: published rule takes another match of the response, .*, we read `` \(C\) ``", reason
    )


def test_the_report_finds_broken_transitivity(parity):
    left, right = (parity.Reading(a, a, a, True, False, True) for a in ("x=3", "y=3"))
    assert "equality is not transitive: published rule separates `` x=3 `` and `` y=3 ``" in parity.relation(
        left, right, equal=False
    )


def test_the_report_says_what_it_compared_where_nothing_else_fits(parity):
    group = Group.from_texts("What is 1 + 1?", [r"\boxed{2}", r"\boxed{3}"])
    answers, classes = ["2", "3"], [0, 1]
    reason = parity.explain(group, classes, answers, [1.0, 0.0])
    assert reason == "no pair differs; published rule rewards response 0, our largest classes are responses 0, 1"
    left, right = (parity.Reading(a, a, a, True, False, True) for a in ("2", "3"))
    assert "published rule equates `` 2 `` and `` 3 ``, we compare" in parity.relation(left, right, equal=True)


def test_the_report_of_a_file(parity, tmp_path):
    prompt = "Ann answers 15 letters a day. How many is that in 4 days?"
    texts = ["4 * 15 = 60\nA: 60", "4 + 15 = 19\nA: 19", r"\boxed{60}"]
    verdict = PairwiseVote()([Group.from_texts(prompt, texts)], None)[0]
    row = {
        "id": "mine_1",
        "problem": prompt,
        "gold": 60,
        "responses": [{"text": text} for text in texts],
        "ref090": {"counts": verdict.info["counts"], "reward": verdict.scores.tolist(), "rule": [0.0, 0.0, 1.0]},
    }
    (tmp_path / "responses_mine.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    report = parity.measure(tmp_path / "responses_mine.jsonl")
    assert (report.groups, report.untied, report.pairwise) == (1, 1, 1)
    assert report.equal == {"exact": 0, "fast": 0}
    page = parity.render([report])
    assert "| mine | 1 | 1 | 1 | 0 (0.0 %) | 0 (0.0 %) | 0.00 % | 0.00 % | 1 of 3 (33.33 %) |" in page
    assert re.search(r"^\| mine_1 \| both \| .*in the problem.* \|$", page, re.MULTILINE)
    assert re.search(r"^\| mine_1:0 \| label `` 60 ``: published 0, we 1; .* \|$", page, re.MULTILINE)


def expected_scores(classes, entropies):
    """Scores of the vote family from the class of every response (-1 for no answer), as the papers write them."""
    n, share = len(classes), {c: classes.count(c) / len(classes) for c in classes if c >= 0}
    first, second = [*sorted(share.values(), reverse=True), 0, 0][:2]
    winner = min((c for c in share if share[c] == first), default=None)
    mean = sum(entropies) / n
    of_class = {c: [e for e, k in zip(entropies, classes, strict=True) if k == c] for c in share}
    uncertain = {c for c in share if sum(of_class[c]) / len(of_class[c]) >= mean}
    weight = {c: math.exp(-2 * (share[c] - 1) ** 2) for c in share}
    spread = {c: math.sqrt(share[c] * (1 - share[c])) for c in share}
    return {
        "share .6": [float(c == winner and first >= 0.6) for c in classes],
        "soft": [share.get(c, 0) if first * n > 1.5 else 0.0 for c in classes],
        "selective": [
            1.0 if c == winner and round(first - second, 9) > 0.15 and first >= 0.5
            else -1.0 if c in uncertain and round(share[c], 9) < 0.15 else 0.0
            for c in classes
        ],
        "restrain": [
            sum(weight[j] * ((c == j) - share[j]) / spread[j] for j in share if spread[j]) / sum(weight.values())
            - 0.5 * (round(first, 9) < 0.25) if share else 0.0
            for c in classes
        ],
    }  # fmt: skip


@pytest.mark.golden
@pytest.mark.usefixtures("asked_once")
@pytest.mark.parametrize("name", FILES)
def test_the_vote_family_is_what_its_formulas_give(golden_dir, name):
    family = {
        "share .6": MajorityVote(min_share=0.6), "soft": MajorityVote(soft=True), "selective": SelectiveVote(),
        "restrain": RestrainVote(),
    }  # fmt: skip
    generator, seen = random.Random(0), 0
    for row, group in recorded(golden_dir, name):
        entropies = [generator.random() for _ in group.texts]
        group.stats["entropy"] = [torch.tensor([entropy], dtype=torch.float64) for entropy in entropies]
        found = {key: reward([group], None)[0].scores.tolist() for key, reward in family.items()}
        for key, expected in expected_scores(group.cluster, entropies).items():
            assert found[key] == pytest.approx(expected, abs=1e-5), (row["id"], key)
        seen += max(found["selective"]) > 0 > min(found["selective"])
    # four responses have no share below .15, and the recorded samples of one model agree nearly always
    assert seen or name in ("math500_rho_4x", "math_qwen_8x")
