"""Every packaged preset is read, every recipe runs two rounds with a tiny stand-in, and iterations are chained."""

import json

import pytest
import torch
import yaml
from helpers.command_line import cli, problems, rows, write_rows
from safetensors.torch import load_file

from lightning_serl import tiny
from lightning_serl.cli.config_files import presets

MODELS = ["llama-3.2-3b", "qwen2.5-7b"]
ALGORITHMS = ["reinforce++", "grpo", "rloo"]
RECIPES = [f"{model}-{algorithm}" for model in MODELS for algorithm in ALGORITHMS]
CHANGES = [
    "as-published", "gold-labels", "fixed-prompts", "control-random", "control-format", "control-frozen",
]  # fmt: skip


METHODS = {
    "srt": "MajorityVote", "empo": "MajorityVote", "scrl": "SelectiveVote", "evol-rl": "NoveltyVote",
    "restrain": "RestrainVote", "teacher-vote": "TeacherVote", "intuitor": "SelfCertainty", "rent": "NegativeEntropy",
    "sar": "Mix", "ttrl": "MajorityVote", "sr-ttrl": "PlausibleVote", "covo": "CoVo", "dupo": "Mix",
    "sirlc": "SelfJudge", "ssr-zero": "SelfJudge", "rlsr": "SelfJudge",
}  # fmt: skip
# Methods with a source of their own; tests/datamodules/sources/ and tests/seams/ run one each.
SOURCES = ["sqlm", "r-zero", "spell", "lsp", "azr", "mae", "refine-af", "sec", "ladder", "eva", "sws"]
SOURCES += ["co-reward", "self-harmony", "svs", "r-few", "comas"]
# One that asks for other weights, for statistics, for judgements; benchmarks/methods.py runs all of them.
SAMPLE = ["teacher-vote", "scrl", "sirlc"]


def stand_in(root, *chosen, rounds=2):
    """A recipe with nothing replaced but the model, the seeds and the sizes that make it large."""
    options = [option for name in chosen for option in ("-c", f"preset:{name}")]
    options += ["--model.model_name_or_path", "tiny:base", "--data.seeds", "tiny:seeds", "--data.max_tokens", 56]
    options += ["--data.writing.sampling.max_tokens", 170, "--data.rounds_per_epoch", rounds, "--trainer.max_epochs", 1]
    options += ["--data.round.prompts_per_round", 2, "--data.round.samples_per_prompt", 4]
    options += ["--data.probe.prompts", 2, "--data.probe.samples", 2, "--trainer.accumulate_grad_batches", 2]
    options += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.evaluation.sets", "{}"]
    return [*options, "--trainer.default_root_dir", root]


def settings(*arguments):
    """What the command line makes of its arguments, as ``--print_config`` prints it."""
    printed = cli("fit", *arguments, "--print_config")
    assert printed.status == 0, printed.err
    return yaml.safe_load(printed.out)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_recipes_are_there():
    assert {*RECIPES, *CHANGES, *MODELS, *ALGORITHMS, "serl", "quickstart", "dapo", "gspo", "cispo"} <= set(presets())
    assert {f"iteration-{k}" for k in (1, 2, 3)} <= set(presets())
    assert {f"method-{name}" for name in (*METHODS, *SOURCES)} == {
        name for name in presets() if name.startswith("method-")
    }


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_read(name):
    assert settings("-c", f"preset:{name}")["data"]["max_tokens"] in (None, 24, 56, 256, 1024, 2048)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_hold_the_published_numbers(recipe):
    found = settings("-c", f"preset:{recipe}")
    model, data = found["model"], found["data"]
    assert model["model_name_or_path"] == (
        "meta-llama/Llama-3.2-3B-Instruct" if recipe.startswith("llama") else "Qwen/Qwen2.5-7B-Instruct"
    )
    assert recipe.endswith(model["objective"]["name"])
    assert (model["objective"]["beta"], model["objective"]["clip_low"], model["objective"]["clip_high"]) == (
        1e-4,
        0.2,
        0.2,
    )
    adam = model["optimizer"]["init_args"]
    assert (adam["lr"], adam["betas"], adam["eps"], adam["weight_decay"]) == (5e-7, [0.9, 0.95], 1e-8, 0)
    assert model["lr_scheduler"]["init_args"] == {"total_steps": 2000, "warmup_steps": 60, "floor": 0.1, "hold": True}
    responses = data["round"]["prompts_per_round"] * data["round"]["samples_per_prompt"]
    assert (responses, responses // model["minibatches"], model["temperature"]) == (256, 128, 1)
    assert data["rounds_per_epoch"] * found["trainer"]["max_epochs"] * data["round"]["prompts_per_round"] == 2000
    writing = data["writing"]
    assert (writing["exemplars"], writing["from_kept"], writing["prompts_per_call"]) == (8, 2, 4)
    drawn = writing["sampling"]
    assert (drawn["temperature"], drawn["top_p"], drawn["presence_penalty"], drawn["max_tokens"]) == (
        0.8,
        0.95,
        2,
        1024,
    )
    assert (data["max_tokens"], data["round"]["max_prompt_tokens"]) == (1024, 1024)
    if recipe.startswith("llama"):  # its template would print the date of the day
        assert data["solve"]["chat_kwargs"] == writing["template"]["chat_kwargs"] == {"date_string": "26 Jul 2024"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_run(recipe, tmp_path):
    ended = cli("fit", *stand_in(tmp_path, recipe))
    assert ended.status == 0, ended.err
    metrics = rows(tmp_path / "metrics.jsonl")
    assert len(metrics) == 4, "two rounds of two updates"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kept"] >= 3
    assert (tmp_path / "export" / "model.safetensors").exists()
    # the first update has learning rate 0, the schedule's own
    assert [round(m["learning_rate"] * 60 / 5e-7) for m in metrics] == [0, 1, 2, 3]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_recipes_run_as_published(algorithm, tmp_path):
    ended = cli("fit", *stand_in(tmp_path, f"qwen2.5-7b-{algorithm}", "as-published"))
    assert ended.status == 0, ended.err
    ledger = rows(tmp_path / "ledger.jsonl")
    made = [e["prompt"] for e in ledger if e["event"] == "proposed"]
    assert made == [" ".join(p.split()).capitalize() for p in made]


@pytest.mark.parametrize("change", [c for c in CHANGES if c != "as-published"])
def test_baselines_and_controls_run(change, tmp_path):
    extra = []
    if change == "control-format":  # the stand-in boxes everything it has room for
        extra = ["--data.max_tokens", 14]
    if change == "gold-labels":
        extra = ["--data.seeds", write_rows(tmp_path / "labelled.jsonl", problems(16))]
    ended = cli("fit", *stand_in(tmp_path / "run", "llama-3.2-3b-grpo", change), *extra)
    assert ended.status == 0, ended.err
    ledger = rows(tmp_path / "run" / "ledger.jsonl")
    if change in ("gold-labels", "fixed-prompts"):
        known = {row["problem"] for row in rows(extra[1] if extra else tiny.path("seeds"))}
        assert {e["prompt"] for e in ledger if e["event"] == "proposed"} <= known
    before, after = weights(tiny.path("base")), weights(tmp_path / "run" / "export")
    moved = any(not torch.equal(before[name], after[name]) for name in before)
    assert moved == (change != "control-frozen")


@pytest.mark.parametrize("method", SAMPLE)
def test_methods_run(method, tmp_path):
    extra = ["--data.source", "seeds", "--data.grader", "math", "--data.solve.answer_format", "", "--model.lr", 1e-3]
    extra += ["--data.round.samples_per_prompt", 8]
    ended = cli("fit", *stand_in(tmp_path, f"method-{method}", rounds=3), *extra)
    assert ended.status == 0, ended.err
    found = yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["reward"]
    assert METHODS[method] in (found if isinstance(found, str) else found["class_path"])
    assert len([row for row in rows(tmp_path / "metrics.jsonl") if "reward" in row]) == 3
    before, after = weights(tiny.path("base")), weights(tmp_path / "export")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_iterations_start_from_the_last_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--data.rounds_per_epoch", 2, "--trainer.max_epochs", 1, "--data.evaluation.sets", "{}"]
    size += ["--data.round.prompts_per_round", 2, "--data.round.samples_per_prompt", 4, "--data.probe.every", 0]

    def iterate(k, *more):
        return cli("fit", "-c", "preset:quickstart", "-c", f"preset:iteration-{k}", *size, *more)

    early = iterate(2)
    assert (early.status, "runs/serl/iteration-1/export" in early.error) == (2, True)
    first = iterate(1)
    assert first.status == 0, first.err
    assert first.run == tmp_path / "runs/serl/iteration-1"
    second = iterate(2, "--data.pool_from", "runs/serl/iteration-1")
    assert second.status == 0, second.err
    metrics = rows(second.run / "metrics.jsonl")
    steps = [m for m in metrics if "kl" in m]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-7), "the export is its own reference"
    assert steps[-1]["kl"] > 1e-5
    written = [e for e in rows(first.run / "ledger.jsonl") if e["event"] == "accepted"]
    seeds = len(rows(tiny.path("seeds")))
    assert steps[0]["serl/pool/size"] >= seeds + len(written)
    alone = iterate(2, "--trainer.default_root_dir", "alone")
    assert alone.status == 0, alone.err
    assert rows(alone.run / "metrics.jsonl")[0]["serl/pool/size"] < steps[0]["serl/pool/size"]
    third = iterate(3, "--data.pool_from", '["runs/serl/iteration-1", "runs/serl/iteration-2"]')
    assert third.status == 0, third.err


# -- files that extend others -----------------------------------------------------------------------------------------


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_extends_presets_and_files_beside_it(tmp_path):
    write(tmp_path / "base.yaml", "data:\n  max_tokens: 77\n  rounds_per_epoch: 3\n")
    mine = write(
        tmp_path / "mine.yaml", "extends: [preset:qwen2.5-7b-rloo, base.yaml]  # two\ndata:\n  max_tokens: 99\n"
    )
    found = settings("-c", mine)
    assert found["model"]["model_name_or_path"] == "Qwen/Qwen2.5-7B-Instruct"
    assert (found["data"]["max_tokens"], found["data"]["rounds_per_epoch"]) == (99, 3)
    assert settings("-c", mine, "--data.max_tokens", "5")["data"]["max_tokens"] == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: [preset:nothing]\n", "there is no preset 'nothing'"),
        ("extends: preset:serl\n", "extends must be a list"),
        ("extends: [1]\n", "extends must be a list"),
        ("extends: [missing.yaml]\n", "missing.yaml"),
        ("extends: [mine.yaml]\n", "extends itself"),
        ("extends: [preset:serl]\ndata:\n  max_tokenz: 3\n", "max_tokenz"),
        ("extends: [preset:serl]\nnonsense\n", "mine.yaml"),
        ("data:\n  max_tokens: 9\ntrainer: {}\ndata:\n  seed: 1\n", "mine.yaml:4 holds 'data' a second time, which "),
        ("extends: [preset:serl]\ndata:\n  round: {max_waves: 1, max_waves: 0}\n", "mine.yaml:3 holds 'max_waves' a "),
        ("extends: [preset:serl]\nextends: [preset:rloo]\n", "would undo line 1; put both under one 'extends'"),
        ("trainer:\n  callbacks:\n  - class_path: Health\n    class_path: Ledger\n", "mine.yaml:4 holds 'class_path'"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, said):
    ended = cli("fit", "-c", write(tmp_path / "mine.yaml", text), "--trainer.default_root_dir", tmp_path / "run")
    assert ended.status == 2
    assert said in ended.error


def test_a_part_used_twice_by_its_anchor_is_no_key_twice(tmp_path):
    text = "data: {writing: {sampling: &s {max_tokens: 7}}}\nextends: [base.yaml]\n"
    write(tmp_path / "base.yaml", "data: {writing: {sampling: &s {max_tokens: 9}, template: {<<: {}, <<: {}}}}\n")
    assert settings("-c", write(tmp_path / "mine.yaml", text))["data"]["writing"]["sampling"]["max_tokens"] == 7
    circle = write(tmp_path / "circle.yaml", "data: &a\n  seed: *a\n")
    assert cli("fit", "-c", circle, "--trainer.default_root_dir", tmp_path / "run").status == 2


def test_earlier_runs_that_are_none(tmp_path):
    run = ["-c", "preset:quickstart", "--trainer.default_root_dir", tmp_path / "run"]
    ended = cli("fit", *run, "--data.pool_from", tmp_path / "nowhere")
    assert ended.status == 2
    assert "data.pool_from" in ended.error
    broken = write_rows(tmp_path / "ledger.jsonl", [{"uid": "a", "event": "proposed"}, {"uid": "a"}])
    ended = cli("fit", *run, "--data.pool_from", broken)
    assert ended.status == 2
    assert "line 1 of ledger.jsonl is no event of a run" in ended.error


@pytest.mark.parametrize(
    "text",
    [
        "extends:\n  - preset:quickstart\n  - preset:rloo\ntrainer:\n  max_epochs: 7\n",
        "trainer:\n    max_epochs: 7\nextends:\n    - preset:quickstart  # one\n    # and\n    - 'preset:rloo'\n",
        "{extends: [preset:quickstart, preset:rloo], trainer: {max_epochs: 7}}\n",
        '"extends": ["preset:quickstart", "preset:rloo"]\ntrainer: {max_epochs: 7}\n',
    ],
)
def test_every_way_to_write_a_list_in_yaml(tmp_path, text):
    found = settings("-c", write(tmp_path / "mine.yaml", text))
    assert (found["model"]["model_name_or_path"], found["model"]["objective"]["name"]) == ("tiny:base", "rloo")
    assert (found["trainer"]["max_epochs"], found["model"]["optimizer"]["init_args"]["lr"]) == (7, 1e-4)


def test_a_circle_through_folders_is_seen(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.yaml", "extends: [../b.yaml]\n")
    write(tmp_path / "b.yaml", "extends: [sub/../sub/a.yaml]\n")
    ended = cli("fit", "-c", tmp_path / "b.yaml", "--trainer.default_root_dir", tmp_path / "run")
    assert (ended.status, "extends itself" in ended.error) == (2, True)
