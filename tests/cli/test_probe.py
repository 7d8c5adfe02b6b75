"""``lightning-serl probe``: the figures and the advice from groups made by hand, one run, and what it refuses."""

import json
import signal
from collections import Counter

import pytest
from helpers.command_line import cli, small

from lightning_serl.cli import plan
from lightning_serl.cli.probe_advice import changes, verdict
from lightning_serl.cli.probe_figures import Setting, figures_of, round_yield, values_of
from lightning_serl.cli.probe_options import ProbeOptions, split_probe_options
from lightning_serl.datamodules import probing
from lightning_serl.datamodules.probing import Judged, Probed, answers_of
from lightning_serl.errors import InputError
from lightning_serl.policy.roofline import Machine
from lightning_serl.types import Completion, Group, Instruction

QUIET = Machine(1e11, 1e11, 1e10, 1e10, 1e10, 1e10, 1e-4, 1e-4, 1e-5, 1e9, 1e9)  # takes no time to measure


def group(answers, length=10, cut=0, text="?"):
    """Answers to a problem as a list, None for one that cannot be read; the last ``cut`` were cut off."""
    n = len(answers)
    completions = [Completion((0,) * length, text, None, i < n - cut) for i in range(n)]
    known = sorted({a for a in answers if a is not None})
    classes = [-1 if a is None else known.index(a) for a in answers]
    return Group(Instruction("?", "u"), (), completions, list(answers), classes)


def probed(answers, reasons=None, longest=32, **more):
    """What a probe found on eight problems with the same pattern of answers; ``{}`` is filled with the problem."""
    shape = {key: more.pop(key) for key in ("length", "cut", "text") if key in more}
    groups = [group([a and a.format(i) for a in answers], **shape) for i in range(8)]
    found = Probed(1.0, longest, samples=len(answers), seeds=Judged(groups, reasons or [None] * 8))
    for name, value in more.items():
        setattr(found, name, value)
    return found


SETTING = Setting(16, 4, 1.0, None, 256, 0.8)
CLEAR, NOISE = ["a{}"] * 5 + ["b{}", "c{}", "d{}"], ["a{}", "b{}", "c{}", "d{}", "e{}", "f{}", "g{}", "h{}"]
AGREED = ["a{}"] * 8
CHATTER = ["a{}"] * 4 + [None] * 4

# (what was found, outlook, part of the verdict, how the changes begin)
ADVICE = [
    (probed(CLEAR), "likely", "an improvement is likely", []),
    (probed(NOISE), "unlikely", "the majority is an accident", ["--data.seeds with easier"]),
    (probed(AGREED, ["too_easy"] * 7 + [None]), "unlikely", "agree already (100 %)",
     ["--data.seeds with harder", "--data.round.max_attempts 8"]),
    (probed(AGREED, ["too_easy"] * 8), "unlikely", "rounds would be empty", ["--data.seeds with harder"]),
    (probed(["yes"] * 6 + ["no"] * 2), "unlikely", "different problems get the same answers", []),
    (probed([None] * 8), "unlikely", "100 % of the answers cannot be read", ["--data.solve.answer_format 'Answer"]),
    (probed(CHATTER, text="so it is 5"), "likely", "and 50 %", ["--data.solve.answer_format 'Answer"]),
    (probed(CHATTER, cut=4, length=60, longest=64), "likely", "", ["--data.max_tokens 128"]),
    (probed(CHATTER, longest=256), "likely", "", ["--data.solve.answer_format 'Answer", "--data.max_tokens 20"]),
    (probed(CLEAR, proposed=8, rejected=Counter(duplicate=7)), "likely", "",
     ["--data.writing.sampling.temperature 1"]),
    (probed(CLEAR, proposed=8, rejected=Counter(truncated_item=6)), "likely", "",
     ["--data.writing.sampling.max_tokens 512"]),
]  # fmt: skip


def test_verdict_and_advice():
    for number, (found, outlook, part, beginnings) in enumerate(ADVICE):
        figures = figures_of(found, SETTING)
        said, advised = verdict(figures), changes(figures)
        assert (said.outlook, part in said.sentence) == (outlook, True), (number, said)
        assert len(advised) == len(beginnings), (number, advised)
        assert all(a.startswith(b) for a, b in zip(advised, beginnings, strict=True)), (number, advised)
        json.dumps(values_of(figures))


def test_temperature_that_is_better_on_the_same_problems():
    warm = probed(NOISE)
    warm.other = {0.6: probed(CLEAR).seeds.groups, 0.8: probed(NOISE).seeds.groups[:6]}
    figures = figures_of(warm, SETTING)
    assert [(one.temperature, one.answers.problems) for one in figures.sweep] == [(0.6, 6), (0.8, 6), (1.0, 6)]
    assert [one.gain > 0.2 for one in figures.sweep] == [True, False, False]
    assert [one.same_vote for one in figures.sweep] == [None, None, None]  # no vote at the run's temperature
    assert changes(figures)[0].startswith("--model.temperature 0.6: trainability 0.")


def test_yield_of_a_round():
    found = probed(CLEAR, [None] * 4 + ["too_hard"] * 4, proposed=10, rejected=Counter(duplicate=5))
    found.written = Judged(found.seeds.groups[:4], [None, "no_spread", "no_spread", "no_spread"])
    mixed = round_yield(found, 16, 4, 0.5)
    assert (mixed.kept, mixed.trained, mixed.accepted) == (0.375, 16, 0.5)
    assert mixed.asked == pytest.approx(16 / 0.375)
    assert mixed.proposals == pytest.approx(16 / 0.375)  # half of them written, every second rejected
    assert mixed.reasons == {"no_spread": 0.375, "too_hard": 0.25}
    assert round_yield(found, 16, 2, 0.0).trained == 8
    assert round_yield(Probed(1.0, 64), 16, 4, 1.0).trained == 0


def test_a_probe_reports_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "cpu_machine", lambda *given: QUIET)
    monkeypatch.setattr(probing, "PROBLEMS", 8)
    monkeypatch.chdir(tmp_path)
    options = [*small(tmp_path / "run"), "--probe.tokens", 8000, "--probe.temperatures", "0.5,1"]
    ended = cli("probe", *options, "--data.source", "mix:0.5")
    assert ended.status == 0, ended.err
    assert [p.name for p in tmp_path.iterdir()] == ["probe.json"], "no run folder is left"
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["complete"]
    assert 0 < found["tokens"] <= 8000
    assert (found["seeds"]["problems"], found["samples"], found["cut_short"]) == (8, 4, [])
    assert [one["temperature"] for one in found["temperatures"]] == [0.5, 1.0]
    assert found["temperatures"][1]["gain"] == 0.0
    assert [one["answers"]["answers"] for one in found["temperatures"]] == [32, 32]
    assert sum(sum(one["classes"]) + one["no_answer"] for one in found["problems"] if one["origin"] == "seed") == 32
    assert found["written"]["proposed"] >= found["written"]["problems"] > 0
    assert found["cost"]["rounds"] == 2
    assert found["cost"]["run_tokens"] == 2 * found["cost"]["round_tokens"]
    for line in ("same vote from half", "a round: ", "the run: 2 rounds", f"verdict: {found['verdict']}"):
        assert line in ended.out

    def interrupt(bound, trainer):
        if bound.data.engine.tokens_written > 600:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(probing.TokenBound, "poll", interrupt)
    monkeypatch.setattr(probing, "AT_ONCE", 2)
    stopped = cli("probe", *options, "--data.source", "seeds", "--out", tmp_path / "part.json")
    assert stopped.status == 130
    part = json.loads((tmp_path / "part.json").read_text())
    assert not part["complete"]
    assert 0 < part["seeds"]["problems"] < 32
    assert "not computed, because the probe was stopped" in stopped.out


# (arguments after those of the quickstart, what the error says)
REFUSED = [
    (["--probe.tokens", "many"], "probe.tokens must be a whole number, got 'many'"),
    (["--probe.tokens", "100"], "probe.tokens is 100, too few for 4 answers of at most 56 tokens to 4 problems; give"),
    (["--probe.token", "9"], "there is no option --probe.token; did you mean --probe.tokens?"),
    (["--probe.temperatures", "warm"], "probe.temperatures must be numbers such as 0.6,0.8, or none"),
    (["--probe.temperatures", "0.5,-1"], "probe.temperatures must be above 0"),
    (["--out", "/nowhere/at/all.json"], "--out: the folder of '/nowhere/at/all.json' does not exist"),
    (["--data.seeds", "null"], "no seeds were given; set --data.seeds"),
    (["--data.seeds", "absent.jsonl"], "absent.jsonl"),
    (["--model.model_name_or_path", "/nowhere/model"], "model directory '/nowhere/model' does not exist"),
]


def test_what_a_probe_refuses():
    for arguments, said in REFUSED:
        ended = cli("probe", "-c", "preset:quickstart", *arguments)
        assert ended.status == 2, (arguments, ended.err)
        assert said in ended.error, (arguments, ended.error)
    assert "--probe.tokens N" in cli("probe", "--help").out


def test_options_of_the_probe_are_taken_out(tmp_path):
    given, rest = split_probe_options(["--out", str(tmp_path), "--probe.tokens=5", "--model.lr", "1"])
    assert (given.file, given.tokens, rest) == (tmp_path / "probe.json", 5, ["--model.lr", "1"])
    assert (ProbeOptions(temperatures="none").swept, ProbeOptions(temperatures="1,0.6").swept) == ([], [0.6, 1.0])
    with pytest.raises(InputError, match="at most 5"):
        ProbeOptions(temperatures="1,2,3,4,4.5,5")


def test_fewer_answers_where_the_bound_leaves_few_problems():
    cases = [((16, 56, 50_000), 16), ((2, 56, 50_000), 4), ((64, 1024, 50_000), 8), ((16, 1024, 140_000), 16),
             ((16, 1024, 30_000), 4)]  # fmt: skip
    for given, expected in cases:
        assert answers_of(*given) == expected, given
