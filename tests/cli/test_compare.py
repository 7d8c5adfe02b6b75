"""The command ``compare``: what it refuses, the arguments of each arm, its folder and the process of an arm."""

import json
import re
import stat
import sys

import pytest
from helpers.command_line import cli

from lightning_serl.cli import arm_process
from lightning_serl.cli.arm_process import ArmProcess, reason_of, run_arms, seconds_left, threads_of
from lightning_serl.cli.compare import read_request
from lightning_serl.cli.comparison_folder import Run, arms_of, check_folder, folder_of
from lightning_serl.cli.methods import CONTROLS, read_method
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.errors import InputError

REFUSED = [  # arguments after compare, and what is said; nothing is parsed or loaded
    ("-c preset:quickstart", "compare needs --methods, as in"),
    ("--methods MajortyVote", "there is no method 'MajortyVote'; did you mean MajorityVote"),
    ("--methods scl", "did you mean method-scrl"),
    ("--methods method-scrll", "did you mean method-scrl"),
    ("--methods nothing_like_it", "see docs/methods.md"),
    ("--methods preset:method-scr", "there is no preset 'method-scr'; did you mean method-scrl"),
    ("--methods absent.yaml", "there is no file absent.yaml"),
    ("--methods no_such_module.Mine", "there is no 'no_such_module.Mine'"),
    ("--methods lightning_serl.rewards.Nothing", "there is no 'lightning_serl.rewards.Nothing'"),
    ("--methods MajorityVote MajorityVote", "MajorityVote is listed twice"),
    ("--methods a=MajorityVote b=MajorityVote", "b is listed twice"),
    ("--methods a=MajorityVote a=SelectiveVote", "a is listed twice"),
    ("--methods random=MajorityVote", "random is the name of a control"),
    (
        "--methods MajorityVote RandomReward",
        "the controls random, format, frozen and gold always run; leave RandomReward",
    ),
    ("--methods control-frozen", "leave control-frozen out"),
    ("--methods MajorityVote --methods SelectiveVote", "--methods is given twice"),
    ("--method MajorityVote", "there is no option --method; did you mean --methods?"),
    ("--methods MajorityVote --seeds", "--seeds needs run seeds"),
    ("--methods MajorityVote --seeds 0 0", "each once"),
    ("--methods MajorityVote --seeds one", "'one' is no run seed"),
    ("--methods MajorityVote --seeds -1", "needs run seeds"),
    ("--methods MajorityVote --jobs 0", "--jobs takes one whole number from 1 on, the runs at a time, got 0"),
    ("--methods MajorityVote --jobs two", "got two"),
    ("--methods MajorityVote --jobs 1 2", "got 1 2"),
    ("--methods MajorityVote --jobs -1", "--jobs takes one whole number"),
    ("--methods MajorityVote --gold", "--gold takes one method"),
    ("--methods MajorityVote --gold Majority", "--gold: there is no method 'Majority'"),
    ("--methods MajorityVote --data.reward SelectiveVote", "compare does not take --data.reward: list rewards at"),
    ("--methods MajorityVote --data.reward.soft true", "compare does not take --data.reward.soft"),
    ("--methods MajorityVote --seed_everything=3", "compare does not take --seed_everything"),
    ("--methods MajorityVote --ckpt_path last", "compare does not take --ckpt_path"),
]


def test_refusals_before_anything_is_parsed():
    for given, said in REFUSED:
        ended = cli("compare", *given.split())
        assert ended.status == 2, given
        assert said in ended.error, (given, ended.error)
    for text, said in (
        ("'open", "quotation marks"),
        ("", "empty name"),
        ("MajorityVote soft", "'soft' in 'MajorityVote"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            read_method(text)


def test_options_are_refused_as_by_fit(tmp_path):
    options = [
        "compare",
        "--methods",
        "MajorityVote",
        "-c",
        "preset:quickstart",
        "--trainer.default_root_dir",
        tmp_path,
    ]
    for more, said in (
        (["--data.rond.prompts_per_round", 2], "data.rond.prompts_per_round"),
        (
            ["--data.evaluation.sets", "{}"],
            "there is no problem set to measure on; give --data.evaluation.sets.NAME FILE",
        ),
    ):
        ended = cli(*options, *more)
        assert ended.status == 2, ended.err
        assert said in ended.error
    assert not any(tmp_path.iterdir())
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(InputError, match="holds a run, not a comparison"):
        check_folder(tmp_path)
    (tmp_path / "ledger.jsonl").rename(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="holds other files"):
        check_folder(tmp_path)


def test_help(capsys):
    ended = cli("compare", "--help")
    assert (ended.status, ended.out.startswith("usage: lightning-serl compare --methods")) == (0, True)


METHODS = [  # as given, its label, and the arguments of fit beside -c a.yaml --x 1
    ("MajorityVote", "MajorityVote", "-c a.yaml --x 1 --data.reward MajorityVote"),
    ("method-scrl", "method-scrl", "-c a.yaml -c preset:method-scrl --x 1"),
    ("preset:method-scrl", "method-scrl", "-c a.yaml -c preset:method-scrl --x 1"),
    ("MajorityVote --data.reward.soft true", "MajorityVote soft=true",
     "-c a.yaml --x 1 --data.reward MajorityVote --data.reward.soft true"),
    ("soft=MajorityVote --data.reward.soft=true", "soft",
     "-c a.yaml --x 1 --data.reward MajorityVote --data.reward.soft=true"),
    ("helpers.own_parts.Watch", "helpers.own_parts.Watch", "-c a.yaml --x 1 --data.reward helpers.own_parts.Watch"),
    ("helpers.own_parts.by_length", "helpers.own_parts.by_length",
     "-c a.yaml --x 1 --data.reward helpers.own_parts.by_length"),
    ("helpers.own_parts.Sums --data.source.first 3", "helpers.own_parts.Sums first=3",
     "-c a.yaml --x 1 --data.source helpers.own_parts.Sums --data.reward MajorityVote --data.source.first 3"),
    ("lightning_serl.callbacks.DifficultyFilter", "lightning_serl.callbacks.DifficultyFilter",
     "-c a.yaml --x 1 --trainer.callbacks+ lightning_serl.callbacks.DifficultyFilter --data.reward MajorityVote"),
]  # fmt: skip


def test_arguments_of_methods(tmp_path, monkeypatch):
    for given, label, arguments in METHODS:
        one = read_method(given)
        assert (one.label, " ".join(one.arguments(["-c", "a.yaml", "--x", "1"]))) == (label, arguments), given
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: {reward: MajorityVote}")
    one = read_method("mine.yaml --model.lr 1e-5")
    assert one.arguments(["--config=a.yaml", "--x", "1"]) == [
        "--config=a.yaml", "-c", "mine.yaml", "--x", "1", "--model.lr", "1e-5",
    ]  # fmt: skip
    given = [
        "-c",
        "a.yaml",
        "--methods",
        "MajorityVote",
        "mine.yaml",
        "--seeds",
        "0",
        "7",
        "--x",
        "1",
        "--gold=mine.yaml",
    ]
    request = read_request([*given, "--trainer.default_root_dir=out"])
    assert [method.label for method in request.methods] == ["MajorityVote", "mine"]
    assert (request.seeds, request.common, request.root) == ([0, 7], ["-c", "a.yaml", "--x", "1"], "out")
    assert (request.jobs, read_request([*given, "--jobs", "3"]).jobs) == (1, 3)
    assert (request.gold.label, request.gold.control, request.gold.configs) == ("gold", True, ("mine.yaml",))


def run_in(root, label="MajorityVote", options=None):
    method = read_method(label)
    folder = folder_of(root, method, 0)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(method, 0, folder, (), options or {"data.max_tokens": 56, "data.seeds": "a"})


def test_states_of_arms(tmp_path):
    run = run_in(tmp_path)
    assert not run.ended
    for state, ended, shown in (
        ("running", False, "interrupted"), ("interrupted", False, "interrupted"), ("killed", False, "failed"),
        ("failed", True, "failed"), ("done", True, "done"),
    ):  # fmt: skip
        run.note(state, "why", seconds=1.5)
        assert run.ended is ended
        (arm,) = arms_of(tmp_path, [run])
        assert (arm.state, arm.method, arm.seed, arm.reason) == (shown, "MajorityVote", 0, "why")
    assert arm.seconds == 7.5
    run.check_options()
    changed = run_in(tmp_path, options={"data.max_tokens": 40, "data.seeds": "a"})
    with pytest.raises(InputError, match=r"data\.max_tokens is 40 but was 56 when MajorityVote ran in this comparison"):
        changed.check_options()
    # what an earlier command left stays in the table, controls last
    other = run_in(tmp_path, "SelectiveVote")
    control = Run(CONTROLS[0], 0, folder_of(tmp_path, CONTROLS[0], 0), (), {})
    assert [arm.method for arm in arms_of(tmp_path, [control, other])] == ["SelectiveVote", "MajorityVote", "random"]
    (run.folder / "summary.json").write_text(json.dumps({"seconds": 3.0}))
    run.note("running")  # killed after its last file was written
    assert run.ended


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A shell script in the place of the interpreter: the process of an arm without its 8 seconds of imports."""

    def make(script):
        path = tmp_path / "stand_in.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))
        return tmp_path / "log.txt"

    monkeypatch.setattr(arm_process, "EVERY", 0.1)
    monkeypatch.setattr(arm_process, "_POLL", 0.02)
    return make


def arm(log, relay=print, *arguments, ends=None, threads=None):
    """What :func:`run_arms` calls to begin an arm of one process; its status, or the exception, goes to ``ends``."""

    def steps():
        try:
            ends.append((yield ArmProcess(arguments, log, relay, threads)))
        except BaseException as error:
            ends.append(type(error))
            raise

    return steps


def test_the_process_of_an_arm(stand_in):
    state, lines, ends = CommandState(), [], []
    log = stand_in('echo "$@" $OMP_NUM_THREADS; echo "error: no room" >&2; exit 1')
    run_arms([arm(log, lines.append, "fit", "--x", "1", ends=ends, threads=3)], 1, state)
    assert (ends, log.read_text().splitlines()[0]) == ([1], "-m lightning_serl fit --x 1 3")
    assert reason_of(1, log) == "no room"
    log = stand_in("echo round 1; sleep 0.3; kill -9 $$")
    run_arms([arm(log, lines.append, ends=ends)], 1, state)
    assert (ends[-1], lines[0]) == (-9, "round 1")
    assert reason_of(-9, log) == "its process was ended by SIGKILL, which the system sends where memory runs out"
    assert reason_of(3, stand_in("").with_name("none")) == "it ended with status 3 and no message"


def test_an_interrupt_reaches_every_running_arm_once(stand_in):
    script = """echo "$3"; trap 'echo saved; sleep 0.1; exit 130' INT; while :; do sleep 0.02; done"""
    state, ends, log = CommandState(), [], stand_in(script)
    logs = [log.with_name(f"{name}.txt") for name in "abc"]

    def interrupt(line):
        assert len(state.children()) == 2
        raise KeyboardInterrupt

    arms = [arm(one, interrupt, one.stem, ends=ends) for one in logs]
    with pytest.raises(KeyboardInterrupt):
        run_arms(arms, 2, state)
    assert [one.read_text().split() for one in logs[:2]] == [["a", "saved"], ["b", "saved"]]
    assert (ends, logs[2].exists(), state.children()) == ([KeyboardInterrupt] * 2, False, [])


def test_what_is_left_and_how_many_threads(monkeypatch):
    for ended, running, waiting, jobs, left in (
        ([10], [], 3, 1, 30),  # as many times the mean as there are arms
        ([8, 12], [4], 2, 2, 16),  # lanes of 6 and 0: the next ones end at 10 and 16
        ([10], [25, 1], 0, 2, 9),  # one takes longer than the others did
        ([10], [9, 9, 9], 1, 3, 11),
    ):
        assert seconds_left(ended, running, waiting, jobs) == left, (ended, running, waiting, jobs)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of(jobs, 1) for jobs in (1, 2, 3, 16)] == [None, 4, 2, 1]
    assert threads_of(2, 2) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_of(2, 1) is None
