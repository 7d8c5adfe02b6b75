"""What design section 6 wants said before the first rollout, case by case, and how the parser's words become ours."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.command_line import cli, problems, small, write_rows

from lightning_serl import tiny
from lightning_serl.cli import conventions
from lightning_serl.cli.config_files import presets
from lightning_serl.cli.parser_errors import refusal
from lightning_serl.cli.parser_internals import option_names


def refused(root, *options, command="fit"):
    ended = cli(command, *small(root / "run"), *options)
    assert ended.status == 2, ended.err
    assert not (root / "run" / "ledger.jsonl").exists()
    return ended.error


# -- seeds -----------------------------------------------------------------------------------------------------


def test_seeds_missing(tmp_path):
    said = refused(tmp_path, "--data.seeds", tmp_path / "none.jsonl")
    assert "none.jsonl does not exist" in said


def test_no_seeds_named(tmp_path):
    said = refused(tmp_path, "--data.seeds", "null")
    assert "no seeds were given" in said
    assert "--data.seeds" in said


def test_seeds_empty(tmp_path):
    (tmp_path / "seeds.jsonl").write_text("\n\n")
    said = refused(tmp_path, "--data.seeds", tmp_path / "seeds.jsonl")
    assert "seeds.jsonl holds no problems" in said


def test_seeds_without_the_prompt_field_name_file_and_line(tmp_path):
    path = write_rows(tmp_path / "seeds.jsonl", [*problems(2), {"aufgabe": "What is 1 + 1?"}, *problems(2)])
    said = refused(tmp_path, "--data.seeds", path)
    assert f"{path}:3 has no field 'problem'" in said
    assert "aufgabe" in said
    assert "--data.fields.problem" in said
    write_rows(path, problems(5))
    said = refused(tmp_path, "--data.seeds", path, "--data.fields.problem", "aufgabe")
    assert f"{path}:1 has no field 'aufgabe'" in said


def test_fields_of_seeds_that_no_seed_has(tmp_path):
    path = write_rows(tmp_path / "seeds.jsonl", [one | {"gold": "4"} for one in problems(8)])
    said = refused(tmp_path, "--data.seeds", path, "--data.fields.answer", "golt")
    assert "seeds.jsonl has no field 'golt'" in said
    assert said.endswith("did you mean gold?); set --data.fields.answer (null ignores labels)")


def test_more_minibatches_than_responses(tmp_path):
    said = refused(tmp_path, "--model.minibatches", 500)
    assert "model.minibatches is 500 but a round has only" in said


@pytest.mark.parametrize("option", ["data.solve.chat", "data.writing.template.chat"])
def test_a_chat_template_that_is_not_there(tmp_path, option):
    said = refused(tmp_path, f"--{option}", "true")
    assert said.startswith(f"{option} is true but the tokenizer")


def test_more_exemplars_than_seeds(tmp_path):
    path = write_rows(tmp_path / "seeds.jsonl", problems(3))
    said = refused(tmp_path, "--data.seeds", path, "--data.writing.exemplars", 4)
    assert "data.writing.exemplars is 4" in said
    assert "only 3 problems" in said


def test_nothing_to_evaluate(tmp_path):
    for command in ("validate", "test"):
        said = refused(tmp_path, command=command)
        assert f"{command} has nothing to measure" in said
        assert "--data.evaluation.sets" in said


# -- the model ---------------------------------------------------------------------------------------------------


def copied_base(folder, without):
    folder.mkdir()
    for path in tiny.path("base").iterdir():
        if not path.name.startswith(without):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("without", "words"), [("tokenizer", "tokenizer"), ("model", "weights"), ("config", "config.json")]
)
def test_model_directory_without(tmp_path, without, words):
    said = refused(tmp_path, "--model.model_name_or_path", copied_base(tmp_path / "model", without))
    assert "model" in said
    assert f"has no {words}" in said
    assert "save_pretrained" in said


def test_damaged_weights(tmp_path):
    folder = copied_base(tmp_path / "model", "nothing")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    said = refused(tmp_path, "--model.model_name_or_path", folder)
    assert str(folder) in said
    assert "cannot be loaded" in said


def test_no_model_named(tmp_path):
    said = refused(tmp_path, "--model.model_name_or_path", "null")
    assert "no model was named" in said
    assert "--model.model_name_or_path" in said


def test_lora_targets_that_match_nothing(tmp_path):
    said = refused(tmp_path, "--model.lora.target_modules", '["q_proj", "no_such_layer"]')
    assert "no_such_layer" in said
    assert "q_proj" in said
    said = refused(tmp_path, "--model.lora.target_modules", "no_such_layer")
    assert "no_such_layer" in said


@pytest.mark.parametrize("option", ["data.max_tokens", "data.writing.sampling.max_tokens"])
def test_context_shorter_than_prompt_plus_completion(tmp_path, option):
    said = refused(tmp_path, f"--{option}", 512)
    assert f"{option} is 512" in said
    assert "context holds 512 tokens" in said


# -- options -------------------------------------------------------------------------------------------------


def test_group_size_1(tmp_path):
    said = refused(tmp_path, "--data.round.samples_per_prompt", 1)
    assert "samples_per_prompt must be at least 2" in said


def test_difficulty_bounds_reversed(tmp_path):
    bounds = {"class_path": "DifficultyFilter", "init_args": {"low": 0.9, "high": 0.1}}
    said = refused(tmp_path, "--trainer.callbacks", json.dumps([bounds]))
    assert "DifficultyFilter.low must be at most DifficultyFilter.high, got 0.9 and 0.1" in said


@pytest.mark.parametrize("name", ["top_p", "top_k", "temperature"])
def test_sampling_that_would_bias_the_ratio_is_no_option(tmp_path, name):
    """Rollouts have one temperature, the objective's, and no truncation: there is nothing to set wrong."""
    said = refused(tmp_path, f"--data.{name}", 1)
    assert f"--data.{name}" in said


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_absent(tmp_path):
    said = refused(tmp_path, "--data.engine", "VLLMEngine")
    assert "VLLM" in said or "vllm" in said
    assert "data.engine" in said or "install" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.accelerator", "cuda"], "trainer.accelerator: there is no such device here"),
        (["--trainer.strategy", "fsdp"], "fsdp"),
        (["--trainer.strategy", "no_such_strategy"], "no_such_strategy"),
        (["--trainer.devices", 0], "devices"),
    ],
)
def test_a_device_or_strategy_that_cannot_work_here(tmp_path, options, words):
    assert words in refused(tmp_path, *options).replace("FSDP", "fsdp")


def test_micro_batches_that_cut_a_step(tmp_path):
    held_out = json.dumps({"h": str(write_rows(tmp_path / "h.jsonl", problems(2)))})
    cut = ["--trainer.limit_train_batches", 1, "--trainer.accumulate_grad_batches", 2]
    said = refused(tmp_path, *cut, "--data.evaluation.sets", held_out)
    assert "must be a multiple of trainer.accumulate_grad_batches" in said


def test_an_optimizer_that_cannot_be_made_is_refused_before_the_first_evaluation(tmp_path):
    held_out = json.dumps({"h": str(write_rows(tmp_path / "h.jsonl", problems(2)))})
    said = refused(tmp_path, "--model.optimizer.init_args.lr", -1, "--data.evaluation.sets", held_out)
    assert "model.optimizer" in said
    assert "learning rate: -1" in said


# -- checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("begun") / "run"
    ended = cli("fit", *small(root, rounds=1))
    assert ended.status == 0, ended.err
    return root


def test_options_that_a_checkpoint_would_silently_override(tmp_path, run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    for option, value in (("lr", "0.0005"), ("betas", "[0.5, 0.6]"), ("weight_decay", "0.1")):
        said = refused(tmp_path, "--ckpt_path", checkpoint, f"--model.optimizer.init_args.{option}", value)
        assert f"model.optimizer has {option}" in said
        assert "which would win" in said


def test_a_checkpoint_does_not_change_other_options(tmp_path, run):
    more = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 2, "--model.objective.beta", 0]
    ended = cli("fit", *small(tmp_path / "run", rounds=1), *more)
    assert ended.status == 0, ended.err
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if "loss" in row] == [2]
    assert not any("kl" in row for row in metrics)


def test_checkpoint_of_another_model(tmp_path, run):
    said = refused(tmp_path, "--ckpt_path", run / "checkpoints" / "last.ckpt", "--model.lora.r", 2)
    assert said == "the checkpoint holds full weights and this run does not; give no --model.lora"


def test_a_run_that_has_nothing_left_to_do_ends_well(tmp_path, run):
    ended = cli("fit", *small(tmp_path / "run", rounds=1), "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert ended.status == 0, ended.err
    assert ended.run == tmp_path / "run"
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    assert "has reached trainer.max_epochs 1; a higher --trainer.max_epochs trains it further" in ended.err


def test_a_refused_command_leaves_the_run_as_it_was(run):
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.rglob("*") if p.is_file()}
    ended = cli("fit", *small(run, rounds=1), "--ckpt_path", "last", "--model.lora.r", 2)
    assert ended.status == 2
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.rglob("*") if p.is_file()} == before


def test_checkpoint_that_is_none(tmp_path):
    plain, torn = tmp_path / "plain.ckpt", tmp_path / "torn.ckpt"
    plain.write_text("not a checkpoint")
    assert "no checkpoint" in refused(tmp_path, "--ckpt_path", plain)
    torch.save({"state_dict": {}}, torn)
    assert "--ckpt_path" in refused(tmp_path, "--ckpt_path", torn)
    assert "does not exist" in refused(tmp_path, "--ckpt_path", tmp_path / "none.ckpt")


# -- the parser's words -------------------------------------------------------------------------------------------

NAMES = [
    "--data.seeds",
    "--data.seed",
    "--data.round.samples_per_prompt",
    "--data.round.max_waves",
    "--trainer.max_epochs",
]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Parser key \"a.b\":\n  Expected a <class 'int'>. Got value: x", "a.b: expected a whole number, but got x"),
        (
            'Parser key "a":\n  Does not validate against any of the Union subtypes\n'
            "  Subtypes: [int, None]\n  Errors:\n"
            "    - Expected a <class 'int'>\n    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n"
            "  Given value: --",
            "a: expected a whole number, but got --",
        ),
        (
            'Parser key "a":\n\n  - Expected a path but Nope either not accessible or invalid\n'
            "  - Expected a dot import path string: Nope",
            "a: there is no 'Nope'; give a known name or a full class path such as package.module.Name",
        ),
        (
            'Parser key "data.engine":\n\n  - Expected a dot import path string: VLMEngine',
            "data.engine: there is no 'VLMEngine'; did you mean VLLMEngine?",
        ),
        (
            'Parser key "trainer.logger":\n\n  - Expected a dot import path string: TensorBordLogger',
            "trainer.logger: there is no 'TensorBordLogger'; did you mean TensorBoardLogger?",
        ),
        (
            "Parser key \"trainer.logger\":\n\n  - Expected a <class 'bool'>\n"
            "  - Expected a dot import path string: wandb",
            "trainer.logger: there is no 'wandb'; did you mean WandbLogger?",
        ),
        (
            'Parser key "model.optimizer":\n\n  - Expected a dot import path string: AdmW',
            "model.optimizer: there is no 'AdmW'; did you mean AdamW?",
        ),
        (
            "Parser key \"data.seed\":\n  Expected a <class 'int'>. Got value: p.jsonl",
            "data.seed: expected a whole number, but got p.jsonl; did you mean --data.seeds?",
        ),
        (
            "Parser key \"k\":\n  Expected a typing.Literal['k1', 'k2']. Got value: k9",
            "k: expected one of 'k1', 'k2', but got k9",
        ),
        ("unrecognized arguments: --data.sedes x", "unrecognized arguments: --data.sedes; did you mean --data.seeds?"),
        ("unrecognized arguments: --data.SEEDS=x", "unrecognized arguments: --data.SEEDS; did you mean --data.seeds?"),
        ("unrecognized arguments: zzz", "unrecognized arguments: zzz; --help lists the options of a command"),
        (
            "Subcommand 'fit' does not accept option 'data.round.sampels'",
            "there is no option 'data.round.sampels'; did you mean data.round.samples_per_prompt?",
        ),
        ("Option 'lrr' is not accepted", "there is no option 'lrr'"),
        ("Parser key \"config\": File does not exist: 'x'", "config: File does not exist: 'x'"),
    ],
)
def test_sentences(text, sentence):
    assert refusal(text, NAMES) == sentence


NO_CLASS = (
    "    - Expected an instantiatable class, but lightning_serl.engines.RolloutEngine is abstract\n"
    "    - Expected a <class 'NoneType'>\n"
)


def union(option, errors, given):
    """The parser's message about a value that fits none of an option's types."""
    return (
        f'Parser key "{option}":\n  Does not validate against any of the Union subtypes\n'
        f"  Subtypes: [<class 'a.Base'>, <class 'NoneType'>]\n  Errors:\n{errors}  Given value: {given}"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            union("data.engine", NO_CLASS, "NestedArg(key='max_rows', val='0')"),
            "data.engine.max_rows: data.engine needs a class first, as in --data.engine TransformersEngine "
            "--data.engine.max_rows 0",
        ),
        (
            union("trainer.profiler", "    - Expected a <class 'str'>\n", "NestedArg(key='foo', val='0')"),
            "trainer.profiler.foo: trainer.profiler needs a class first, as in --trainer.profiler "
            "package.module.Name --trainer.profiler.foo 0",
        ),
        (
            union(
                "data.grader",
                "    - Expected a dot import path string: math\n    - Expected a <class 'str'>\n",
                "NestedArg(key='foo', val='0')",
            ),
            "data.grader.foo: data.grader 'math' takes no options; give a class, as in --data.grader "
            "package.module.Name --data.grader.foo 0",
        ),
        (
            union("data.engine", NO_CLASS, "{'max_rows': 3}"),
            "data.engine needs a class_path, as in data.engine: "
            "{class_path: TransformersEngine, init_args: {max_rows: ...}}",
        ),
        (
            union(
                "data.engine",
                "    - Problem with given class_path 'a.b.Engine':\n"
                "        max_rows: expected a whole number, but got x\n",
                "Namespace(class_path='a.b.Engine')",
            ),
            "data.engine.max_rows: expected a whole number, but got x",
        ),
        (
            union(
                "trainer.callbacks",
                "    - Problem with given class_path 'a.b.Filter':\n"
                "        there is no option 'lo'; did you mean low?\n",
                "[Namespace(class_path='a.b.Filter')]",
            ),
            "trainer.callbacks: Filter has no option 'lo'; did you mean low?",
        ),
        (
            'Parser key "data.solve":\nUnable to load config \'1\'\n  - Parser key "data.solve": '
            'Unable to load config "1"',
            "data.solve: expected options by name, but got 1",
        ),
    ],
)
def test_options_of_classes(text, sentence):
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.engine.max_rows", "0"], "data.engine.max_rows: data.engine needs a class first, as in --data.engine"),
        (["--data.engine", "TransformersEngine", "--data.engine.max_rows", "0"], "data.engine.max_rows must be"),
        (["--data.reward.ties", "smallest"], "data.reward.ties: data.reward needs a class first, as in"),
        (["--data.source.ratio", "0"], "data.source.ratio: data.source 'self' takes no options; give a class"),
        (["--trainer.strategy.timeout", "0"], "trainer.strategy.timeout: trainer.strategy 'auto' takes no options"),
        (["--trainer.callbacks.low", "0"], "trainer.callbacks.low: trainer.callbacks needs a class first"),
        (["--model.optimizer.foo", "0"], "model.optimizer: there is no option 'foo'"),
        (["--learning_rate", "1e-4"], "unrecognized arguments: --learning_rate; did you mean --model.lr?"),
        (
            ["--model.lr_scheduler.gamma", "0.5"],
            "model.lr_scheduler.gamma: give the scheduler's class first, as in --model.lr_scheduler",
        ),
        (["--model.lora.r", "x"], "model.lora.r: expected a whole number, but got x"),
        (["--data.engine", "ReplayEngine"], "data.engine: ReplayEngine needs recordings; give --data.engine."),
    ],
)
def test_options_of_classes_name_the_option_as_typed(tmp_path, options, sentence):
    assert refused(tmp_path, *options).startswith(sentence)


CONVENTIONS = {
    "command": conventions.command_refusal,
    "group": conventions.group_refusal,
    "name": lambda name: conventions.meant(name, OPTIONS),
    "class": conventions.without_class,
    "several": conventions.several_classes,
    "ambiguous": conventions.ambiguous,
    "trainer": conventions.of_trainer,
    "environment": conventions.reads_environment,
}
OPTIONS = [
    "--config", "--model.model_name_or_path", "--model.lr_scheduler", "--model.lr", "--model.optimizer", "--model.lora",
    "--trainer.max_epochs", "--trainer.default_root_dir", "--trainer.callbacks", "--data.round.samples_per_prompt",
]  # fmt: skip


def test_options_of_other_command_lines():
    """Each is answered by the option's name here, or is none of the kind (null)."""
    rows = [json.loads(line) for line in Path(__file__).with_name("conventions.jsonl").read_text().splitlines()]
    for row in rows:
        arguments = [row["arguments"]] if row["call"] == "command" else row["arguments"]
        said = CONVENTIONS[row["call"]](*arguments)
        assert (said == row["says"]) if not isinstance(row["says"], str) else row["says"] in said, (row, said)
        assert not isinstance(said, str) or len(said) < 290


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "q.yaml", "fit"], "--config stands before the command; give it after fit"),
        (["fit", "--model", "tiny:base"], "give the model as --model.model_name_or_path tiny:base"),
        (["fit", "--model", "mymod.MyModule"], "this command runs SeRLModule alone"),
        (["fit", "--optimizer.lr", "1e-4"], "did you mean --model.optimizer.lr?"),
        (["fit", "--model.optimizer.lr", "1e-5"], "give --model.lr 1e-5, or a class first, as in"),
        (
            ["fit", "--model.lr", "-1e-5"],
            "--model.lr has no value; a value that begins with - is given as --model.lr=V",
        ),
        (
            ["fit", "-c", "preset:quickstart", "--trainer.devices", "0"],
            "trainer.devices: `Trainer(devices='0')` value is",
        ),
        (
            ["fit", "-c", "preset:quickstart", "--trainer.logger", "WandbLogger"],
            "trainer.logger: WandbLogger: Requirement",
        ),
        (["fit", "--model.opt", "AdamW"], "did you mean --model.optimizer?"),
        (["fit", "--model.lr_scheduler", "ReduceLROnPlateau"], "lightning.pytorch.cli.ReduceLROnPlateau or torch"),
    ],
)
def test_options_of_other_command_lines_are_answered(arguments, words):
    ended = cli(*arguments)
    assert ended.status == 2
    assert words in ended.error


def test_long_values_are_cut():
    said = refusal(f"Parser key \"a\":\n  Expected a <class 'int'>. Got value: {'9' * 5000}")
    assert len(said) < 150
    assert "expected a whole number" in said


def test_option_names_cover_all_commands():
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--one")
    parser.add_subparsers().add_parser("go").add_argument("--two", "--two+", "--two.help")
    assert [n for n in option_names(parser) if n != "--help"] == ["--one", "--two"]


def test_an_unknown_preset_is_told_the_nearest_ones(tmp_path):
    said = refused(tmp_path, "-c", "preset:quikstart")
    assert "'quikstart'; did you mean quickstart" in said
    said = refused(tmp_path, "-c", "preset:zzz")
    assert "'zzz'" in said
    assert "--help" in said
    printed = "".join(cli("fit", "--help").out.split())  # names are broken at their hyphens
    assert all(name in printed for name in presets())


def test_environment_variables_that_name_no_option_are_told():
    known = ["--model.lr", "--data.evaluation.sets", "--trainer.max_epochs"]
    for name, said in (
        ("PL_FIT__MODEL__LRR", "did you mean PL_FIT__MODEL__LR?"),
        ("PL_FIT__TRAINER__MAX_EPOCS", "did you mean PL_FIT__TRAINER__MAX_EPOCHS?"),
        ("PL_FIT__XYZ", "PL_FIT__XYZ names no option of fit and is ignored"),
        ("PL_FIT__MODEL__LR", None),
        ("PL_FIT__DATA__EVALUATION__SETS__MINE", None),
        ("PL_VALIDATE__MODEL__LRR", None),
        ("PL_CONFIG", None),
    ):
        found = conventions.unused_variables("fit", known, {name: "1"})
        assert len(found) == (said is not None)
        assert said is None or said in found[0]
