"""The command line from end to end: what a run leaves behind, and what it depends on."""

import dataclasses
import hashlib
import inspect
import itertools
import json
import re
import typing

import pytest
import torch
import yaml
from datasets import load_dataset
from helpers.command_line import cli, finish, problems, rows, small, start, write_rows
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_serl import SelfPlayDataModule, SeRLModule, tiny
from lightning_serl.cli import conventions
from lightning_serl.cli.config_files import presets
from lightning_serl.types import Reason

EVENTS = ["proposed", "rejected", "accepted", "voted", "kept", "dropped", "trained"]
# Which events may come before which; the last ones end an instruction's story.
NEXT = {
    "proposed": {"rejected", "accepted"},
    "accepted": {"voted"},
    "voted": {"kept", "dropped"},
    "kept": {"trained"},
    "rejected": set(),
    "dropped": set(),
    "trained": set(),
}
TRL_NAMES = {
    "loss",
    "entropy",
    "kl",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "sampling/sampling_logp_difference/mean",
    "sampling/sampling_logp_difference/max",
}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("sets") / "held_out.jsonl", problems(5))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, held_out):
    """One undisturbed run: its folder and what it printed."""
    root = tmp_path_factory.mktemp("fitted") / "run"
    ended = cli("fit", *small(root, held_out, samples=2), picture=True)
    assert ended.status == 0, ended.err
    return root, ended


def trace(root):
    """The bytes that must not depend on anything but the run itself."""
    return (root / "ledger.jsonl").read_bytes(), (root / "export" / "model.safetensors").read_bytes()


# -- the run folder --------------------------------------------------------------------------------------------


def test_the_last_line_names_the_run_folder_and_nothing_else_lies_there(fitted):
    root, ended = fitted
    assert ended.run == root
    files = {"config.yaml", "metrics.jsonl", "ledger.jsonl", "samples.jsonl", "summary.json", "evaluation.json"}
    files |= {"report.html"}
    assert {p.name for p in root.iterdir()} == files | {"checkpoints", "export", "curves.png"}
    assert "error" not in ended.err


def test_only_our_checkpoints_are_written(fitted):
    root, _ = fitted
    names = {p.name for p in (root / "checkpoints").iterdir()}
    assert "last.ckpt" in names
    assert not [n for n in names if n.startswith("epoch=")], "Lightning's own ModelCheckpoint is at work too"
    state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2


def test_metrics_have_a_step_and_trls_names(fitted):
    root, _ = fitted
    metrics = rows(root / "metrics.jsonl")
    assert all(isinstance(row["step"], int) for row in metrics)
    steps = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(set(row) >= TRL_NAMES for row in steps)
    evaluations = [row for row in metrics if "val/held_out/pass@1" in row]
    assert [row["step"] for row in evaluations] == [0, 2]
    assert all(0 <= row["val/held_out/mean@k"] <= 1 for row in evaluations)
    # a clock is read under time/ only: two runs differ nowhere else (see the test of bytes below)
    assert all(key.startswith("time/") for row in steps for key in row if "time" in key or "second" in key)
    for row in steps:
        parts = {key.removeprefix("time/"): value for key, value in row.items() if key.startswith("time/")}
        whole = parts.pop("step")
        assert {"answering", "grading", "logprobs", "training"} <= parts.keys()
        assert abs(sum(parts.values()) - whole) < 0.01 * whole + 0.005, "parts overlap, or leave something out"


def test_the_ledger_tells_every_instructions_story_in_order(fitted):
    root, _ = fitted
    stories: dict[str, list[dict]] = {}
    for row in rows(root / "ledger.jsonl"):
        stories.setdefault(row["uid"], []).append(row)
        assert row["event"] in EVENTS
        assert isinstance(row["round"], int)
        assert ("reason" in row) == (row["event"] in ("rejected", "dropped"))
        assert row.get("reason", "empty") in typing.get_args(Reason)
        assert not [key for key in row if "time" in key or "date" in key]
        if row["event"] == "voted":
            assert row["label"] is None or isinstance(row["label"], str)
            assert 0 <= row["confidence"] <= 1
            assert len(row["scores"]) == 4
            assert all(isinstance(score, float) for score in row["scores"])
    assert len(stories) == 8
    for story in stories.values():
        events = [row["event"] for row in story]
        assert events[0] == "proposed"
        assert [("prompt" in row) for row in story] == [True] + [False] * (len(story) - 1)
        assert story[0]["prompt"].strip()
        for one, following in itertools.pairwise(events):
            assert following in NEXT[one], events
        assert events[-1] != "kept", "kept, but never trained on"
    ends = [story[-1]["event"] for story in stories.values()]
    assert ends.count("trained") == 4
    assert "dropped" in ends


def test_samples_are_there_to_read(fitted):
    root, _ = fitted
    samples = rows(root / "samples.jsonl")
    assert {row["round"] for row in samples} == {0, 1}
    first = samples[0]
    assert {"uid", "prompt", "label", "confidence", "responses"} <= set(first)
    assert {"text", "answer", "score", "finished", "tokens", "class"} <= set(first["responses"][0])


def test_the_export_opens_and_has_learnt(fitted):
    root, _ = fitted
    model = AutoModelForCausalLM.from_pretrained(root / "export", local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(tiny.path("base"), local_files_only=True)
    assert model.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(root / "export", local_files_only=True)
    assert tokenizer("What is 1 + 1?").input_ids
    before, after = base.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    saved = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    name = "model.embed_tokens.weight"
    assert torch.equal(saved[f"policy.model.{name}"], after[name])


def test_curves_are_a_picture_and_the_summary_keeps_its_contract(fitted):
    root, ended = fitted
    assert (root / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    summary = json.loads((root / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(summary[when]) == {"pass@1", "mean@2", "maj@2", "n"}
        assert summary[when]["n"] == 5
    events = [row["event"] for row in rows(root / "ledger.jsonl")]
    reasons = [row["reason"] for row in rows(root / "ledger.jsonl") if row["event"] == "rejected"]
    assert summary["proposed"] == events.count("proposed")
    assert summary["kept"] == events.count("kept")
    assert summary["rejected"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert 0 < summary["seconds"] < 600
    rounding = 0.005 * len(summary["times"])
    assert abs(sum(summary["times"].values()) - summary["seconds"]) < 0.05 * summary["seconds"] + rounding
    assert {"answering", "training", "evaluating", "saving"} <= summary["times"].keys()
    line = next(line for line in ended.out.splitlines() if line.startswith("time: "))
    assert re.fullmatch(r"time: \d+ s for 2 rounds(; |, [\w -]+ \d+ %)+", line.replace("; ", "; , ", 1)), line
    assert summary["labels"] is True
    assert "greedy pass@1" in ended.out
    assert "mean@2" in ended.out
    assert "no labels here" not in ended.out


def test_the_saved_config_is_the_run(fitted, held_out):
    root, _ = fitted
    config = yaml.safe_load((root / "config.yaml").read_text())
    assert config["data"]["round"]["prompts_per_round"] == 2
    assert config["data"]["evaluation"]["sets"] == {"held_out": str(held_out)}
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-4


def test_a_second_run_into_the_same_folder_is_refused(fitted, held_out):
    root, _ = fitted
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}
    ended = cli("fit", *small(root, held_out))
    assert ended.status == 2
    assert "holds a run already" in ended.error
    assert "--ckpt_path last" in ended.error
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()} == before


def test_a_finished_run_that_is_continued_keeps_its_table(tmp_path, held_out):
    options = small(tmp_path, held_out, rounds=1, samples=2)
    assert cli("fit", *options).status == 0
    names = ("summary.json", "ledger.jsonl", "export/model.safetensors", "metrics.jsonl")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    ended = cli("fit", *options, "--ckpt_path", "last")
    assert ended.status == 0, ended.err
    for name in names[1:]:
        assert (tmp_path / name).read_bytes() == before[name], name
    tables = [
        json.loads(text) | {"seconds": 0, "times": 0, "memory": 0}
        for text in (before[names[0]], (tmp_path / names[0]).read_bytes())
    ]
    assert tables[0] == tables[1]


# -- the other commands -----------------------------------------------------------------------------------------


def test_validate_writes_its_results(tmp_path, held_out):
    ended = cli("validate", *small(tmp_path / "run", held_out, samples=2))
    assert ended.status == 0, ended.err
    assert ended.run == tmp_path / "run"
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(result) == {"held_out"}
    one = result["held_out"]
    assert {"n", "correct", "pass@1", "maj@k", "pass@k", "no_answer", "vote_accuracy"} <= set(one)
    assert one["n"] == 5
    assert one["k"] == 2
    assert one["pass@1"] == one["correct"] / 5
    assert one["maj@k"] <= one["pass@k"]
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_validate_after_training_measures_the_trained_weights(tmp_path, fitted, held_out):
    """A checkpoint's results are those its run ended with."""
    root, _ = fitted
    checkpoint = root / "checkpoints" / "last.ckpt"
    ended = cli("validate", *small(tmp_path, held_out, samples=2), "--ckpt_path", checkpoint)
    assert ended.status == 0, ended.err
    one = json.loads((tmp_path / "evaluation.json").read_text())["held_out"]
    last = [row for row in rows(root / "metrics.jsonl") if "val/held_out/pass@1" in row][-1]
    figures = {f"val/held_out/{k}": v for k, v in one.items() if not isinstance(v, dict)}
    ends = {}
    for name, (low, high) in one["intervals"].items():
        ends |= {f"val/held_out/{name}_low": low, f"val/held_out/{name}_high": high}
    assert figures | ends == {k: v for k, v in last.items() if k != "step"}
    assert one == json.loads((root / "evaluation.json").read_text())["held_out"]


def test_predict_writes_problems_with_voted_answers(tmp_path):
    target = tmp_path / "made" / "problems.jsonl"
    ended = cli("predict", *small(tmp_path / "run"), "--data.predict_to", target)
    assert ended.status == 0, ended.err
    made = rows(target)
    assert made
    for row in made:
        assert set(row) == {"problem", "answer", "confidence", "round"}
        assert row["problem"].strip()
        assert row["answer"].strip()
        assert 0 < row["confidence"] <= 1
    assert {row["round"] for row in made} <= {0, 1}
    said = f"predictions: {len(made)} problems with answers in {target} and, as parquet, in {target.with_suffix('')}"
    assert ended.out.splitlines()[-2] == said
    folder = str(target.with_suffix(""))
    assert load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache")).to_list() == made
    before = target.read_bytes()
    again = cli("predict", *small(tmp_path / "other"), "--data.predict_to", target)
    assert again.status == 2
    assert "exists already" in again.error
    assert target.read_bytes() == before


def test_predicted_problems_can_be_seeds(tmp_path):
    target = tmp_path / "made.jsonl"
    assert cli("predict", *small(tmp_path / "a"), "--data.predict_to", tmp_path / "made.parquet").status == 0
    assert parquet.read_table(tmp_path / "made.parquet").to_pylist() == rows(target)
    assert not (tmp_path / "made").exists()
    ended = cli("fit", *small(tmp_path / "b", rounds=1), "--data.seeds", target, "--data.writing.exemplars", 2)
    assert ended.status == 0, ended.err


# -- options -------------------------------------------------------------------------------------------------


def test_the_printed_config_is_the_same_run(tmp_path, fitted, held_out):
    printed = cli("fit", *small(tmp_path / "run", held_out, samples=2), "--print_config")
    assert printed.status == 0
    assert not (tmp_path / "run").exists()
    config = tmp_path / "config.yaml"
    config.write_text(printed.out)
    again = cli("fit", "-c", config, "--print_config")
    assert again.out == printed.out
    assert cli("fit", "-c", config).status == 0
    assert trace(tmp_path / "run") == trace(fitted[0])


def test_the_saved_config_runs_again(tmp_path, fitted):
    ended = cli("fit", "-c", fitted[0] / "config.yaml", "--trainer.default_root_dir", tmp_path / "again")
    assert ended.status == 0, ended.err
    assert trace(tmp_path / "again") == trace(fitted[0])


def documented(cls, prefix):
    """Every option of a class and of the dataclasses in its signature, as they are named on the command line."""
    hints = typing.get_type_hints(cls.__init__)
    for name in inspect.signature(cls).parameters:
        kinds = [k for k in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(k)]
        optional = dataclasses.is_dataclass(hints[name])
        yield f"{prefix}.{name}", not optional
        for kind in kinds:
            for inner, shown in documented(kind, f"{prefix}.{name}"):
                yield inner, shown and optional


def help_texts(text):
    """Option -> what is said about it, types and defaults left out."""
    found, names = {}, []
    for line in text.splitlines():
        option = re.match(r"  (-[^ ]+)", line)
        if option:
            names = re.findall(r"--([\w.]+)", line.split("  ")[1] if "  " in line[2:] else line)
            said = re.sub(r"^  \S.*?(  +|$)", "", line)
            found |= dict.fromkeys(names, said)
        elif line.startswith("     ") and names:
            for name in names:
                found[name] += " " + line.strip()
        else:
            names = []
    return {name: re.sub(r"\(type: .*", "", said).strip() for name, said in found.items()}


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_help_explains_every_option(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ended = cli(command, "--help")
    assert ended.status == 0
    said = help_texts(ended.out)
    lora = cli(command, "--model.lora.help")
    assert lora.status == 0
    said |= help_texts(lora.out)
    wanted = [*documented(SeRLModule, "model"), *documented(SelfPlayDataModule, "data")]
    assert len(wanted) > 60
    for name, explained in wanted:
        assert name in said, name
        if explained:
            assert len(said[name].split()) >= 3, f"--{name} is not explained: {said[name]!r}"
    assert "data.writing.template.header" in said
    assert "model.lora.r" in said
    whole = "".join(ended.out.split())  # names are broken at their hyphens
    assert all(n in whole for n in presets())


def test_the_overview_names_every_command_on_one_screen():
    ended = cli("--help")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) < 120
    named = [line.split()[0] for line in lines if re.match(r"  \w+  ", line)]
    assert sorted(named) == sorted([*conventions.COMMANDS, *conventions.OWN_COMMANDS])
    bare = cli()
    assert bare.status == 2
    assert bare.err.startswith(ended.out)
    assert bare.error.startswith("no command was given")


def test_fields_of_any_name(tmp_path):
    """The same problems under other names, in a JSON list, are the same run, and so are numbers read by default."""
    plain = write_rows(tmp_path / "plain.jsonl", problems(12))
    renamed = [{"frage": p["problem"], "loesung": p["answer"], "problem": "not this"} for p in problems(12)]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(renamed, indent=1))
    names = ["--data.fields.problem", "frage", "--data.fields.answer", "loesung", "--data.grader", "auto"]
    first = cli("fit", *small(tmp_path / "a"), "--data.seeds", plain, "--data.source", "seeds")
    second = cli("fit", *small(tmp_path / "b"), "--data.seeds", other, "--data.source", "seeds", *names)
    assert (first.status, second.status) == (0, 0), second.err
    assert trace(tmp_path / "a") == trace(tmp_path / "b")
    assert "labels: 12 of 12 seeds have one" in first.err + first.out
    assert "grader: auto reads each problem's answers by what they are; of 12 problems, 12 ask for" in second.err
    assert re.search(r"grader: auto; round 1: math 100 %; unread \d+ %\n", second.err)
    assert "grader: auto" not in first.err


@pytest.mark.parametrize(("source", "seeds", "written"), [("self", 0, 2), ("seeds", 2, 0), ("mix:0.5", 1, 1)])
def test_sources(tmp_path, source, seeds, written):
    ended = cli(
        "fit",
        *small(tmp_path, rounds=1),
        "--data.source",
        source,
        "--data.round.max_attempts",
        1,
        "--data.reward",
        '{"class_path": "helpers.command_line.Judge"}',
    )
    assert ended.status == 0, ended.err
    ledger = rows(tmp_path / "ledger.jsonl")
    prompts = {row["uid"]: row["prompt"] for row in ledger if row["event"] == "proposed"}
    known = {seed["problem"] for seed in rows(tiny.path("seeds"))}
    voted = [prompts[row["uid"]] in known for row in ledger if row["event"] == "voted"]
    assert (voted.count(True), voted.count(False)) == (seeds, written)
    proposed = [prompt in known for prompt in prompts.values()]
    taken, wrote = proposed.count(True), proposed.count(False)
    rejected = sum(row["event"] == "rejected" for row in ledger)
    (line,) = [line for line in ended.out.splitlines() if line.startswith("round 1/1: ")]
    brought = [f"wrote {wrote}"] * bool(wrote) + [f"took {taken} seeds"] * bool(taken)
    assert line.startswith(f"round 1/1: {', '.join(brought)}, kept ")
    brought = [f"{wrote} written"] * bool(wrote) + [f"{taken} taken from the seeds"] * bool(taken)
    assert f"\nproblems: {', '.join(brought)}, {rejected} rejected" in ended.out


def test_lora_saves_the_adapter_alone_and_exports_it_merged(tmp_path):
    ended = cli(
        "fit", *small(tmp_path), "--model.lora.r", 4, "--model.lora.alpha", 8, "--model.optimizer.init_args.lr", 0.01
    )
    assert ended.status == 0, ended.err
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all("lora_" in name for name in state)
    assert {tensor.shape[0] for name, tensor in state.items() if "lora_A" in name} == {4}
    exported = load_file(tmp_path / "export" / "model.safetensors")
    base = load_file(tiny.path("base") / "model.safetensors")
    assert exported.keys() == base.keys()
    assert not (tmp_path / "export" / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", local_files_only=True)
    name = next(n for n in base if n.endswith("layers.0.self_attn.q_proj.weight"))
    key = name.removesuffix(".weight")
    a, b = (next(t for n, t in state.items() if key in n and f"lora_{x}" in n) for x in "AB")
    merged = base[name].float() + 8 / 4 * (b @ a)
    assert not torch.equal(base[name].float(), merged)
    assert torch.allclose(model.state_dict()[name], merged, atol=1e-6)


# -- labels ----------------------------------------------------------------------------------------------------


def permuted(found):
    answers = [p["answer"] for p in found]
    return [p | {"answer": a} for p, a in zip(found, answers[1:] + answers[:1], strict=True)]


def labelled_run(root, seeds, held_out, *options):
    ended = cli("fit", *small(root, held_out, rounds=4, samples=2), "--data.seeds", seeds, *options)
    assert ended.status == 0, ended.err
    return trace(root)


def test_labels_do_not_reach_training(tmp_path):
    """Neither those of seeds, when new problems are written, nor those of held-out sets."""
    seeds, held_out = problems(12, skip=20), problems(5)
    right = [write_rows(tmp_path / "seeds.jsonl", seeds), write_rows(tmp_path / "held.jsonl", held_out)]
    wrong = [
        write_rows(tmp_path / "seeds2.jsonl", permuted(seeds)),
        write_rows(tmp_path / "held2.jsonl", permuted(held_out)),
    ]
    assert right[0].read_bytes() != wrong[0].read_bytes()
    first = labelled_run(tmp_path / "a", *right)
    assert labelled_run(tmp_path / "b", *wrong) == first
    # the labels were read, and measured with
    results = [json.loads((tmp_path / run / "evaluation.json").read_text())["held_out"] for run in "ab"]
    assert results[0]["labelled"] == results[1]["labelled"] == 5
    assert results[0]["mean@k"] != results[1]["mean@k"]


def test_labels_of_seeds_that_are_trained_on_count(tmp_path):
    """What the test above would see if labels did reach training."""
    seeds = problems(12, skip=20)
    paths = [write_rows(tmp_path / "seeds.jsonl", seeds), write_rows(tmp_path / "seeds2.jsonl", permuted(seeds))]
    options = ["--data.source", "seeds", "--data.round.max_attempts", 4]
    ends = [cli("fit", *small(tmp_path / str(i), rounds=1), "--data.seeds", p, *options) for i, p in enumerate(paths)]
    assert ends[0].status == 0
    assert (tmp_path / "0" / "ledger.jsonl").read_bytes() != (tmp_path / "1" / "ledger.jsonl").read_bytes()


def test_without_labels_the_table_says_so(tmp_path):
    held_out = write_rows(tmp_path / "h.jsonl", [{"problem": p["problem"]} for p in problems(4)])
    ended = cli("fit", *small(tmp_path / "run", held_out, samples=4))
    assert ended.status == 0, ended.err
    assert "no labels here" in ended.out
    assert "agreement of answers" in ended.out
    assert "pass@1" not in ended.out.split("before")[-1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["labels"] is False
    for when in ("before", "after"):
        assert set(summary[when]) == {"agreement", "no_answer", "n"}
        assert 0 < summary[when]["agreement"] <= 1
    assert "KL to the starting policy" in ended.out


def test_without_any_set_the_rounds_are_compared(tmp_path):
    ended = cli("fit", *small(tmp_path))
    assert ended.status == 0, ended.err
    assert "no labels here" in ended.out
    summary = json.loads((tmp_path / "summary.json").read_text())
    metrics = [row for row in rows(tmp_path / "metrics.jsonl") if "loss" in row]
    for when, row in zip(("before", "after"), metrics, strict=True):
        said = {"agreement": row["serl/vote/agreement_mean"], "no_answer": row["serl/vote/no_answer_frac"]}
        assert summary[when] == said


# -- the same run again ------------------------------------------------------------------------------------------


def test_two_runs_with_one_seed_are_equal_bytes(tmp_path, fitted, held_out):
    """Under other hash seeds, in other working directories, by module and by console script."""
    runs = []
    for name, program in (
        ("1", ("-m", "lightning_serl")),
        ("4242", ("-c", "from lightning_serl.cli.command import entry; entry()")),
    ):
        here = tmp_path / f"cwd{name}"
        here.mkdir()
        runs.append(start("fit", *small("run", held_out, samples=2), program=program, cwd=here, PYTHONHASHSEED=name))
    for process, name in zip(runs, ("1", "4242"), strict=True):
        ended = finish(process)
        assert ended.status == 0, ended.err
        root = tmp_path / f"cwd{name}" / "run"
        assert ended.run == root
        assert trace(root) == trace(fitted[0])
        assert (root / "curves.png").read_bytes() == (fitted[0] / "curves.png").read_bytes()
        assert (root / "samples.jsonl").read_bytes() == (fitted[0] / "samples.jsonl").read_bytes()


def test_another_seed_is_another_run(tmp_path, fitted, held_out):
    ended = cli("fit", *small(tmp_path, held_out, samples=2), "--seed_everything", 1)
    assert ended.status == 0, ended.err
    ours, theirs = trace(tmp_path), trace(fitted[0])
    assert ours[0] != theirs[0]
    assert ours[1] != theirs[1]


# -- failures ------------------------------------------------------------------------------------------------


def test_a_reward_that_raises_ends_the_run_in_one_sentence(tmp_path, held_out):
    options = [
        *small(tmp_path, held_out),
        "--data.reward",
        json.dumps({"class_path": "helpers.command_line.Judge", "init_args": {"fail_at": 2}}),
    ]
    ended = cli("fit", *options, picture=True)
    assert ended.status == 1
    assert ended.error.startswith("RuntimeError: the judge is gone in command_line.py:")
    assert "(Judge.__call__)" in ended.error
    assert ended.run == tmp_path
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    ledger = rows(tmp_path / "ledger.jsonl")
    assert {row["round"] for row in ledger} == {0}
    assert ledger[-1]["event"] == "trained"
    assert not (tmp_path / "export").exists()


def test_a_run_that_failed_goes_on(tmp_path):
    """The judge is well again: the rest is what it would have been."""
    well = json.dumps({"class_path": "helpers.command_line.Judge"})
    ill = json.dumps({"class_path": "helpers.command_line.Judge", "init_args": {"fail_at": 2}})
    assert cli("fit", *small(tmp_path / "a"), "--data.reward", well).status == 0
    assert cli("fit", *small(tmp_path / "b"), "--data.reward", ill).status == 1
    ended = cli("fit", *small(tmp_path / "b"), "--data.reward", well, "--ckpt_path", "last")
    assert ended.status == 0, ended.err
    assert trace(tmp_path / "b") == trace(tmp_path / "a")


def test_when_every_group_is_filtered_the_run_says_why(tmp_path):
    constant = json.dumps({"class_path": "helpers.command_line.Judge", "init_args": {"constant": True}})
    ended = cli("fit", *small(tmp_path), "--data.reward", constant)
    assert ended.status == 1
    assert "none of 4 groups survived 2 attempts" in ended.error
    assert "no_spread 4" in ended.error
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    dropped = [row for row in rows(tmp_path / "ledger.jsonl") if row["event"] == "dropped"]
    assert [row["reason"] for row in dropped] == ["no_spread"] * 4


def test_when_nothing_usable_is_written_the_run_says_so(tmp_path):
    filters = '[{"class_path": "QualityFilter", "init_args": {"min_words": 500, "max_words": 501}}]'
    ended = cli("fit", *small(tmp_path), "--trainer.callbacks", filters)
    if ended.status == 2:
        pytest.fail(ended.err)
    assert ended.status == 1
    assert "none could be used" in ended.error
    assert "too_short" in ended.error
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_tracebacks_are_for_debugging(tmp_path, monkeypatch):
    refused = [*small(tmp_path / "a"), "--data.seeds", "/nowhere.jsonl"]
    unknown = [*small(tmp_path / "b"), "--data.sedes", "x"]
    for arguments in (refused, unknown):
        ended = cli("fit", *arguments)
        assert ended.status == 2
        assert "Traceback" not in ended.err
    monkeypatch.setenv("LIGHTNING_SERL_DEBUG", "1")
    for arguments in (refused, unknown):
        ended = cli("fit", *arguments)
        assert ended.status == 2
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1].startswith("error: ")


def test_a_callback_list_in_yaml_keeps_the_machinery(tmp_path):
    ended = cli("fit", *small(tmp_path, rounds=1), "--trainer.callbacks", '[{"class_path": "DifficultyFilter"}]')
    assert ended.status == 0, ended.err
    for name in ("ledger.jsonl", "metrics.jsonl", "summary.json", "export", "checkpoints/last.ckpt"):
        assert (tmp_path / name).exists(), name
    said = "filters: DifficultyFilter, as trainer.callbacks list them, in place of the default ones; off: QualityFilter"
    assert said in ended.err


def test_a_users_own_checkpoints_are_left_alone(tmp_path):
    theirs = json.dumps({"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "mine")}})
    ended = cli("fit", *small(tmp_path / "run", rounds=1), "--trainer.callbacks", f"[{theirs}]")
    assert ended.status == 0, ended.err
    assert list((tmp_path / "mine").glob("*.ckpt"))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_without_a_folder_a_new_one_is_made_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = small("unused", rounds=1)
    place = options.index("--trainer.default_root_dir")
    del options[place : place + 2]
    ended = cli("fit", *options)
    assert ended.status == 0, ended.err
    assert ended.run.parent == tmp_path / "runs"
    assert (ended.run / "summary.json").exists()
