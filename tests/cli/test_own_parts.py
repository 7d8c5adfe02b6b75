"""Parts of the user's own and of the package by name or class path, with options; errors in them carry their place."""

import sys

import pytest
import yaml
from helpers import own_parts
from helpers.command_line import cli, problems, small, write_rows
from helpers.own_parts import SEEN

from lightning_serl.cli.config_files import read_config
from lightning_serl.cli.own_code import check_class_paths, find_modules_here, import_trouble
from lightning_serl.cli.short_names import CLASS_PATHS, spell_out
from lightning_serl.datamodules.option_values import load_class_path, parse_grader, parse_reward, parse_source
from lightning_serl.errors import InputError, own_place

R, A = "lightning_serl.rewards", "lightning_serl.answers"

# -- short names ---------------------------------------------------------------------------------------------------

SPELLED = [  # arguments, and the same with class paths
    ("--data.reward MajorityVote", "--data.reward MajorityVote"),
    ("--data.reward MajorityVote --data.reward.soft true", f"--data.reward {R}.MajorityVote --data.reward.soft true"),
    ("--data.reward=MajorityVote --data.reward.soft=true", f"--data.reward={R}.MajorityVote --data.reward.soft=true"),
    ("--data.reward.ties abstain --data.reward MajorityVote",
     f"--data.reward.ties abstain --data.reward {R}.MajorityVote"),
    ("--data.reward VerifiableReward --data.reward.mode exact",
     f"--data.reward {R}.VerifiableReward --data.reward.mode exact"),
    ("--data.reward RandomReward --data.reward.init_args.seed 3",
     f"--data.reward {R}.RandomReward --data.reward.init_args.seed 3"),
    ("--data.reward RuleReward --data.reward.boxed false", f"--data.reward {R}.RuleReward --data.reward.boxed false"),
    ("--data.reward.class_path LabelElseVote", f"--data.reward.class_path {R}.LabelElseVote"),
    ("--data.reward my.Own --data.reward.x 1", "--data.reward my.Own --data.reward.x 1"),
    ("--data.reward Majority --data.reward.soft true", "--data.reward Majority --data.reward.soft true"),
    ("--data.grader math", "--data.grader math"),
    ("--data.grader math --data.grader.mode exact", f"--data.grader {A}.MathGrader --data.grader.mode exact"),
    ("--data.grader MathGrader --data.grader.mode exact", f"--data.grader {A}.MathGrader --data.grader.mode exact"),
    ("--data.grader text --data.reward.soft true", "--data.grader text --data.reward.soft true"),
    ("--data.engine TransformersEngine --data.engine.max_rows 3",
     "--data.engine TransformersEngine --data.engine.max_rows 3"),
    ("--data.role_rewards.propose ChildReward --data.role_rewards.propose.form spell",
     f'--data.role_rewards {{"propose": {{"class_path": "{R}.ChildReward"}}}} --data.role_rewards.propose.form spell'),
    ("--data.role_rewards.a=my.Own --data.seed 1 --data.role_rewards.b SelfJudge", '--data.role_rewards {"a": '
     f'{{"class_path": "my.Own"}}, "b": {{"class_path": "{R}.SelfJudge"}}}} --data.seed 1'),
    ("--data.source Proposer --data.source.every 2",
     "--data.source lightning_serl.datamodules.sources.Proposer --data.source.every 2"),
    ("fit -c MajorityVote --data.reward.soft true", "fit -c MajorityVote --data.reward.soft true"),
]  # fmt: skip


def test_short_names_with_options_are_spelled_out():
    assert len(SPELLED) >= 15
    for given, expected in SPELLED:
        assert " ".join(spell_out(given.split())) == expected, given


MAPPINGS = [  # data.reward or data.grader in a file, and the same with class paths
    ("reward: MajorityVote", "reward: MajorityVote"),
    ("reward: {class_path: MajorityVote}", f"reward: {{class_path: {R}.MajorityVote}}"),
    ("reward: {class_path: MajorityVote, init_args: {soft: true}}",
     f"reward: {{class_path: {R}.MajorityVote, init_args: {{soft: true}}}}"),
    ("reward: {solve: MajorityVote, judge: my.Own}", f"reward: {{solve: {R}.MajorityVote, judge: my.Own}}"),
    ("reward: {solve: {class_path: RandomReward, init_args: {seed: 2}}}",
     f"reward: {{solve: {{class_path: {R}.RandomReward, init_args: {{seed: 2}}}}}}"),
    ("reward: {class_path: my.Own, init_args: {inner: MajorityVote}}",
     "reward: {class_path: my.Own, init_args: {inner: MajorityVote}}"),
    ("grader: {class_path: math, init_args: {mode: exact}}",
     f"grader: {{class_path: {A}.MathGrader, init_args: {{mode: exact}}}}"),
    ("grader: {class_path: TextGrader}", f"grader: {{class_path: {A}.TextGrader}}"),
    ("grader: null", "grader: null"),
    ("reward: null", "reward: null"),
]  # fmt: skip


def test_short_names_in_files_and_in_mappings_of_the_command_line(tmp_path):
    for given, expected in MAPPINGS:
        path = tmp_path / "one.yaml"
        path.write_text("data:\n  " + given + "\n")
        _, text = read_config(str(path))
        found = yaml.safe_load(path.read_text() if text is None else text)
        assert found == {"data": yaml.safe_load(expected)}, given
        (option, value), (_, wanted) = *yaml.safe_load(given).items(), *yaml.safe_load(expected).items()
        if isinstance(value, dict):
            arguments = spell_out([f"--data.{option}", given.partition(": ")[2]])
            assert yaml.safe_load(arguments[1]) == wanted, given


def test_every_public_reward_and_grader_has_a_short_name():
    assert {"MajorityVote", "VerifiableReward", "RandomReward", "FormatReward"} <= set(CLASS_PATHS["data.reward"])
    assert {"math", "choice", "text", "MathGrader"} <= set(CLASS_PATHS["data.grader"])
    assert "Reward" not in CLASS_PATHS["data.reward"]
    assert "AnswerGrader" not in CLASS_PATHS["data.grader"]


# -- the user's own code -------------------------------------------------------------------------------------------

BROKEN = {  # module, its text, what is said, and where
    "syntax": ("class Part\n    pass", "SyntaxError", "syntax.py:1"),
    "indent": ("class Part:\npass", "IndentationError", "indent.py:2"),
    "unclosed": ("class Part:\n    x = (1,", "SyntaxError", "unclosed.py:2"),
    "name": ("import re\n\nwords = rex.compile('x')", "NameError: name 'rex'", "name.py:3"),
    "attribute": ("import re\n\nclass Part:\n    words = re.compil('x')", "AttributeError", "attribute.py:4 (Part)"),
    "library": ("import no_such_library_at_all", "ModuleNotFoundError", "library.py:1"),
    "member": ("from json import nothing", "ImportError", "member.py:1"),
    "deeper": ("from name import words", "NameError", "name.py:3"),
    "zero": ("one = 1 / 0", "ZeroDivisionError", "zero.py:1"),
    "helper": ("def read():\n    return {}['key']\n\nfound = read()", "KeyError: 'key'", "helper.py:2 (read)"),
    "raised": ("raise ValueError('no data here')", "ValueError: no data here", "raised.py:1"),
    "bare": ("assert 1 == 2", "AssertionError", "bare.py:1"),
    "exits": ("raise RuntimeError('a\\nb')", "RuntimeError: a b", "exits.py:1"),
    "called": ("class Part:\n    def __init__(self):\n        self.x = None.y",
        "AttributeError", "called.py:3 (Part.__init__)"),
    "inner": ("class Part:\n    def __init__(self):\n        int('x')",
        "ValueError: invalid literal", "inner.py:3 (Part.__init__)"),
}  # fmt: skip


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A working directory with modules of the user's, none of which stays imported."""
    for name, (text, _, _) in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(text + "\n")
    (tmp_path / "codes.py").write_text(
        "class Codes:\n    def extract(self, text):\n        return text.nothing\n\n    same = None.__eq__\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_errors_in_the_users_modules_carry_file_and_line(beside):
    with pytest.raises(InputError, match=r"modules are looked for in .*installed packages"):
        check_class_paths(["--data.grader", "codes.Codes"])
    find_modules_here()
    find_modules_here()
    assert sys.path.count(str(beside)) == 1
    check_class_paths(["--data.grader", "codes.Codes", "--data.reward=codes.Codes"])
    for name, (_, said, place) in BROKEN.items():
        with pytest.raises(InputError, match=r"^data\.reward: ") as refused:
            load_class_path(f"{name}.Part", "data.reward", "use a known one")
        assert said in str(refused.value), name
        assert place in str(refused.value), name
        if "__init__" not in place:
            trouble = import_trouble(f"{name}.Part")
            assert said in trouble, name
            assert place in trouble, name
    assert import_trouble("codes.Codes") is None
    assert import_trouble("codes.Cods") == "there is no 'codes.Cods' (module 'codes' has no attribute 'Cods')"


def test_an_error_inside_of_a_part_is_placed_in_the_users_code_alone(beside):
    find_modules_here()
    grader, _ = parse_grader("codes.Codes")
    with pytest.raises(AttributeError) as raised:
        grader.extract("x")
    assert own_place(raised.value) is None  # this package took no part
    with pytest.raises(InputError) as refused:
        parse_reward({})
    assert own_place(refused.value) is None


WRONG = [  # options, and what the refusal says
    (["--data.source", "helpers.own_parts.Sums", "--data.source.frist", "1"],
     "Sums has no option 'frist'; did you mean first?"),
    (["--data.source", "helpers.own_parts.Nope", "--data.source.x", "1"],
     "data.source: there is no 'helpers.own_parts.Nope'"),
    (["--data.source", "helpers.own_parts.LastNumber"], "LastNumber is no source; subclass"),
    (["--data.source", "PromptSet"], "data.source 'PromptSet' is made by the run: set data.source to seeds"),
    (["--data.reward", "helpers.own_parts.Watch", "--data.reward.powr", "1"],
     "Watch has no option 'powr'; did you mean power?"),
    (["--data.reward", '{"solve": "Majority"}'], "data.reward.solve: there is no 'Majority'"),
    (["--data.grader", "math", "--data.grader.mode", "exat"], "must be fast or exact, got 'exat'"),
    (["--data.grader", '{"class_path": "helpers.own_parts.LastNumber", "init_args": {"prefx": 1}}'],
     "no option 'prefx'"),
    (["--data.engine", "no_such.Engine"], "data.engine: there is no 'no_such.Engine' (No module named 'no_such')"),
]  # fmt: skip


def test_wrong_parts_are_refused_by_what_is_wrong(tmp_path):
    for options, said in WRONG:
        ended = cli("fit", *small(tmp_path / "run"), *options)
        assert (ended.status, said in ended.error) == (2, True), (options, ended.error)


def test_sources_as_values():
    source, share = parse_source("helpers.own_parts.Sums")
    assert (type(source), share) == (own_parts.Sums, 0.0)
    assert parse_reward({"solve": "RandomReward", "judge": own_parts.by_length})[1]["judge"] is own_parts.by_length


def test_a_run_of_ones_own_parts_and_the_options_its_export_brings(tmp_path):
    """Source, engine, grader and reward with options; the reward sees the run's grader; the export says how to ask."""
    held = write_rows(tmp_path / "held.jsonl", problems(3))
    run = tmp_path / "run"
    own = [*small(run, rounds=1), "--data.evaluation.sets", "null", "--model.lora.r", 2, "--model.optimizer", "null"]
    own += ["--data.source", "helpers.own_parts.Sums", "--data.source.first", 30, "--data.probe.every", 0]
    own += ["--data.grader", "helpers.own_parts.LastNumber", "--data.grader.prefix", "n"]
    own += ["--data.reward", "helpers.own_parts.Watch", "--data.reward.power", 2]
    own += ["--data.engine", "helpers.own_parts.Slow", "--data.engine.nap", "0.1", "--data.seeds", "null"]
    form = ["--trainer.callbacks+", "Export", "--trainer.callbacks.form", "adapter"]
    SEEN.clear()
    ended = cli("fit", *own, *form)
    assert ended.status == 0, ended.err
    assert SEEN["answers"] == SEEN["extracted"]
    assert all(a is None or a.startswith("n") for a in SEEN["answers"])
    assert SEEN["label"].startswith("n")  # of a majority vote without a grader of its own
    assert (SEEN["same"], SEEN["power"]) == (True, 2)
    assert SEEN["told"][0] == SEEN["again"]  # the same string gets the same completions
    assert SEEN["prompts"][0] == "Compute 30 + 2."
    assert "learning rate: 0.0001, AdamW on an adapter" in ended.err
    assert "from the source" in ended.out
    assert "wrote" not in ended.out
    assert "written" not in ended.out
    exported = run / "export"
    card = (exported / "README.md").read_text()
    assert "learning rate 0.0001" in card
    assert "Question: {problem}\nSolution:" in card
    assert yaml.safe_load((exported / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny:base"
    asked = yaml.safe_load((exported / "serl.json").read_text())["data"]
    assert (asked["max_tokens"], asked["solve"]["answer_format"], "grader" in asked) == (56, "", False)
    measure = ["--model.model_name_or_path", "tiny:base", "--model.lora.start_from", exported]
    measure += ["--data.evaluation.sets.held", held, "--data.evaluation.samples", 0, "--data.max_tokens", 20]
    ended = cli("validate", "--trainer.default_root_dir", tmp_path / "v", *measure)
    assert ended.status == 0, ended.err
    assert 'asked as in training (serl.json of the model): data.solve.answer_format ""' in ended.err
    assert "yours win: data.max_tokens" in ended.err


def test_null_is_no_mapping_for_every_option_that_takes_one():
    from lightning_serl.datamodules.streams.evaluation import EvaluationOptions
    from lightning_serl.policy.lora import LoraOptions
    from lightning_serl.prompts import InstructionTemplate, SolveTemplate

    assert EvaluationOptions(sets=None).sets == {}
    assert LoraOptions(peft=None).config().r == 16
    for template in (SolveTemplate, InstructionTemplate):
        assert template(chat_kwargs=None).chat_kwargs is None


def test_a_script_of_ones_own_takes_presets_and_short_names(tmp_path, capsys):
    from lightning_serl.cli import PresetCLI

    nulls = ["data.evaluation.sets", "data.solve.chat_kwargs", "data.writing.template.chat_kwargs", "data.templates"]
    options = [
        "-c",
        "preset:quickstart",
        *(part for name in nulls for part in (f"--{name}", "null")),
        "--model.lr",
        "2e-5",
    ]
    options += [
        "--data.reward",
        "MajorityVote",
        "--data.reward.soft",
        "true",
        "--trainer.default_root_dir",
        str(tmp_path),
    ]
    made = PresetCLI(args=options, run=False)
    assert made.datamodule.evaluation.sets == {}
    assert made.datamodule.rewards["solve"].soft
    assert made.model.check_optimizer().param_groups[0]["lr"] == 2e-5
    with pytest.raises(SystemExit) as ended:
        PresetCLI(args=["-c", "preset:quikstart"], run=False)
    assert ended.value.code == 2
    assert "did you mean quickstart" in capsys.readouterr().err
