"""Broken rewards and graders of a user's own: refused at the start, or ending a run that keeps what it has earned."""

import json

import pytest
import torch
from helpers.command_line import cli, rows, small
from helpers.counts import MALFORMED as COUNTS
from helpers.malformed import one_sentence


def own(name, **options):
    return json.dumps({"class_path": f"helpers.malformed.{name}", "init_args": options})


REFUSED = [
    ("rewards", "parameters", ["--data.reward", "helpers.malformed.Uncallable"], "Uncallable"),
    ("rewards", "parameters", ["--data.reward", "helpers.malformed.Swapped"], "ctx"),
    ("rewards", "parameters", ["--data.reward", "helpers.malformed.OneParameter"], "ctx"),
    ("rewards", "parameters", ["--data.reward", "helpers.malformed.ThreeParameters"], "temperature"),
    ("rewards", "needs", ["--data.reward", "helpers.malformed.UnknownNeeds"], "gradients"),
    ("rewards", "needs", ["--data.reward", "helpers.malformed.NeedsText"], "entropy"),
    ("rewards", "absent", ["--data.reward", "helpers.malformed.Rewrad"], "Rewrad"),
    ("rewards", "absent", ["--data.reward", "no_such_module.Reward"], "no_such_module"),
    ("rewards", "absent", ["--data.reward", "Majority"], "MajorityVote"),
    ("rewards", "options", ["--data.reward", own("Reward", who="x")], "Reward has no option 'who'"),
    ("rewards", "options", ["--data.reward", "helpers.malformed.Reward"], "how"),
    ("rewards", "raises", ["--data.reward", "helpers.malformed.RaisesAtOnce"], "MY_KEY"),
    ("graders", "methods", ["--data.grader", "helpers.malformed.NoExtract"], "extract"),
    ("graders", "methods", ["--data.grader", "helpers.malformed.NoSame"], "same"),
    ("graders", "absent", ["--data.grader", "helpers.malformed.Grdaer"], "Grdaer"),
    ("graders", "absent", ["--data.grader", "maths"], "maths"),
    ("graders", "options", ["--data.grader", own("Grader", who="x")], "Grader has no option 'who'"),
    ("graders", "raises", ["--data.grader", "helpers.malformed.RaisesAtOnce"], "MY_KEY"),
]


@pytest.mark.parametrize(("entry", "family", "options", "words"), REFUSED)
def test_refused_before_the_run(tmp_path, entry, family, options, words):
    ended = cli("fit", *small(tmp_path / "run"), *options)
    assert ended.status == 2, (ended.status, ended.err)
    one_sentence(ended.error, words)
    assert not (tmp_path / "run").exists()
    COUNTS[entry, family] += 1


REWARDS = [
    ("numbers of things", "too few", "for 2 groups"),
    ("numbers of things", "too many", "for 2 groups"),
    ("numbers of things", "too few scores", "gave 3 scores to 4 responses"),
    ("no number", "no number", "not a finite number"),
    ("no number", "weight no number", "not a finite number"),
    ("types", "nothing", "a Verdict for each group"),
    ("types", "bare numbers", "a Verdict for each group"),
    ("types", "words", "str"),
    ("raises", "missing key", "KeyError: 'score' in malformed.py"),
    ("raises", "many lines", "first line second line"),
    ("raises", "surrogate", "half"),
    ("raises", "assertion", "AssertionError in malformed.py"),
]
GRADERS = [
    ("types", "number", "the grader Grader returned int"),
    ("types", "bytes", "the grader Grader returned bytes"),
    ("types", "list", "the grader Grader returned list"),
    ("raises", "extract raises", "too deep"),
    ("raises", "same raises", "by zero"),
]
BROKEN = [("rewards", *case) for case in REWARDS] + [("graders", *case) for case in GRADERS]


@pytest.mark.parametrize(("entry", "family", "how", "words"), BROKEN, ids=[f"{b[0]}: {b[2]}" for b in BROKEN])
def test_a_run_that_fails_keeps_what_it_has_earned(tmp_path, entry, family, how, words):
    reward = own("Reward", how=how) if entry == "rewards" else '{"class_path": "helpers.command_line.Judge"}'
    options = ["--data.reward", reward, "--data.round.max_attempts", 1, "--data.probe.every", 0]
    if entry == "graders":
        options += ["--data.grader", own("Grader", how=how)]
    ended = cli("fit", *small(tmp_path, rounds=8), *options)
    assert ended.status == 1, (ended.status, ended.err)
    one_sentence(ended.error, words)
    assert ended.run == tmp_path
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    done = state["global_step"]
    assert done >= 1
    assert {e["round"] for e in rows(tmp_path / "ledger.jsonl") if e["event"] == "trained"} == set(range(done))
    counted = (tmp_path / "ledger.jsonl").read_bytes()[: state["callbacks"]["Ledger"]["offsets"]["ledger"]]
    assert {json.loads(line)["round"] for line in counted.splitlines()} == set(range(done)), "the failed one counts"
    assert sum("loss" in m for m in rows(tmp_path / "metrics.jsonl")) == done
    assert not (tmp_path / "export").exists()
    COUNTS[entry, family] += 1
