"""Broken problem files, configurations and options, made by rule: each is refused before any model loads.

Every family draws its cases from random numbers with a fixed seed, so that the same cases come every time. What turns
out to be valid after all, by a check of its own that shares no code with the package, is no case.
"""

import dataclasses
import gzip
import json
import random
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
import yaml
from helpers.command_line import cli, problems
from helpers.counts import MALFORMED as COUNTS
from helpers.malformed import one_sentence

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.datamodules import EvaluationOptions
from lightning_serl.errors import InputError

LEAST = 100


@dataclasses.dataclass
class Case:
    """One broken input: what to write, how to call, and words that the sentence must hold."""

    entry: str
    family: str
    number: int
    make: Callable[[Path], list]
    words: tuple[str, ...] = ()
    command: str = "fit"

    def __str__(self):
        return f"{self.entry}: {self.family}-{self.number}"


# -- problem files ---------------------------------------------------------------------------------------------


def valid_problems(data):
    """Whether a file can be read as problems: the rule in a few lines, and on the generous side."""
    try:
        text = data.decode("utf-8-sig")
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (UnicodeDecodeError, ValueError, RecursionError):
        try:
            rows = json.loads(data.decode("utf-8-sig"))
        except (UnicodeDecodeError, ValueError, RecursionError):
            return False
    if len(rows) == 1 and isinstance(rows[0], list):
        rows = rows[0]
    return isinstance(rows, list) and len(rows) >= 4 and all(map(valid_row, rows))


def valid_row(row):
    names = ("problem", "question", "prompt", "instruction")
    if not isinstance(row, dict) or not any(name in row for name in names):
        return False
    text = next(row[name] for name in names if name in row)
    answer, choices = row.get("answer"), row.get("choices")
    sound = isinstance(text, str) and bool(text.strip()) and not any(0xD800 <= ord(c) < 0xE000 for c in text)
    plain = answer is None or (
        isinstance(answer, (str, int, float)) and not isinstance(answer, bool) and answer == answer
    )
    return sound and plain and (choices is None or (isinstance(choices, list) and len(choices) >= 2))


def good_lines(draw):
    return [json.dumps(row, ensure_ascii=False) for row in problems(draw.randint(5, 9), skip=draw.randint(0, 100))]


def joined(lines, draw, broken):
    """The lines with one of them replaced by a broken one."""
    lines[draw.randrange(len(lines))] = broken
    return "\n".join(lines) + "\n"


def corrupt_bytes(draw):
    data = bytearray("\n".join(good_lines(draw)).encode())
    how = draw.randrange(8)
    place = draw.randrange(10, len(data) - 10)
    if how == 0:
        data[place] = draw.choice([0x80, 0xC0, 0xFE, 0xFF])
    elif how == 1:
        data = bytearray(draw.randbytes(400))
    elif how == 2:
        data = bytearray(data.decode().encode(draw.choice(["utf-16", "utf-16-le", "utf-32"])))
    elif how == 3:
        data = bytearray(gzip.compress(bytes(data), mtime=0))
    elif how == 4:
        del data[place:]  # cut off; at the end of a row it is shorter, but whole
    elif how == 5:
        data[place] = draw.choice(b"\x00\x01\x07\x1b")
    elif how == 6:
        data[place:place] = "Grüße".encode("latin-1")
    else:
        data = bytearray(b"\x89PNG\r\n\x1a\n") + data
    return bytes(data)


def corrupt_json(draw):
    lines = good_lines(draw)
    line = draw.choice(lines)
    breaks = [
        line[:-1],
        line[1:],
        line.replace('"', "'"),
        line.replace(": ", " ", 1),
        line.replace(", ", " ", 1),
        line[:-1] + ",}",
        line + line,
        line + " // why",
        line.replace('"problem"', "problem", 1),
        line.replace('"answer": "', '"answer": ', 1)[:-2] + "apples}",
        line.replace(line[-3], "\n", 1) if line[-3].isdigit() else line[:-2],
        "None",
        "{'problem': None}",
        '{"problem": "What is 1 + 1?\t"}',
        '{"problem": "\\x41"}',
        '{"problem": "What is 1 + 1?", "problem": "What is 1 + 2?"}',
        "problem,answer",
        "---",
        "<html>",
    ]
    return joined(lines, draw, draw.choice(breaks)).encode()


def swap_types(draw):
    wrong = draw.choice(
        [7, 1.5, True, None, [], ["What?"], {}, {"text": "What?"}, float("nan"), "", " \t", "\ud800 and 1?"]
    )
    row = draw.choice(
        [
            {"problem": wrong, "answer": "1"},
            wrong,
            {
                "problem": "What is 1 + 1?",
                "answer": draw.choice([[2], {"value": 2}, True, float("nan"), float("inf"), "\udfff"]),
            },
            {
                "problem": "What is it?",
                "choices": draw.choice(["A or B", {"A": 1}, [], ["one"], [1, None], [["a"], ["b"]], 3]),
            },
        ]
    )
    return joined(good_lines(draw), draw, json.dumps(row)).encode()


def lose_fields(draw):
    row = {
        draw.choice(["Problem", "problems", "probelm", "text", "", "query", "problem "]): "What is 1 + 1?",
        "answer": "2",
    }
    row = draw.choice([row, {}, {"answer": "2"}, {"meta": row}, [row]])
    if draw.random() < 0.3:
        return "".join(json.dumps(row) + "\n" for _ in range(6)).encode()
    return joined(good_lines(draw), draw, json.dumps(row)).encode()


def nest_and_swell(draw):
    deep = draw.choice([3000, 200_000])
    digits = draw.choice([5000, 200_000])
    broken = draw.choice(
        [
            "[" * deep,
            "[" * deep + "]" * deep,
            '{"problem":' * deep,
            '{"problem":' * deep + "1" + "}" * deep,
            '{"problem": "What is 1 + 1?", "answer": ' + "9" * digits + "}",
            '{"problem": ' + "9" * digits + "}",
            '{"problem": "What is 1 + 1?", "answer": 1e999}',
            '{"problem": "' + "x" * digits,
            '{"problem": 1e400}',
        ]
    )
    return joined(good_lines(draw), draw, broken).encode()


def damage_list(draw):
    listed = json.dumps(problems(6), indent=draw.choice([None, 1]))
    breaks = [
        listed[:-1],
        listed + "]",
        listed + "\n" + listed,
        listed.replace("},", "}", 1),
        listed.replace("},", "},,", 1),
        listed[:-1] + ",]",
        json.dumps([json.dumps(p) for p in problems(6)]),
        json.dumps([[p] for p in problems(6)]),
        json.dumps({"problems": problems(6)}),
        json.dumps(problems(6))[:-1] + ", 3]",
        "[]",
        "[null]",
    ]
    return draw.choice(breaks).encode()


def leave_empty(draw):
    return draw.choice(
        [b"", b"\n", b" \t\r\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"[]", b"[ ]\n", b"\x00", b"\n\n\n[]\n"]
    )


FILES = {
    "bytes": (corrupt_bytes, 18),
    "JSON syntax": (corrupt_json, 18),
    "types": (swap_types, 18),
    "fields": (lose_fields, 10),
    "depth and size": (nest_and_swell, 12),
    "JSON lists": (damage_list, 10),
    "empty": (leave_empty, 6),
}


def file_cases():
    for family, (make, count) in FILES.items():
        draw = random.Random(f"malformed {family}")
        made: list[bytes] = []
        while len(made) < count:
            data = make(draw)
            if not valid_problems(data) and data not in made:
                made.append(data)
        for number, data in enumerate(made):
            command, option = draw.choice(
                [("fit", "seeds"), ("predict", "seeds"), ("validate", "sets"), ("fit", "sets")]
            )

            def write(folder, data=data, option=option):
                path = folder / "broken.jsonl"
                path.write_bytes(data)
                return (
                    ["--data.seeds", path]
                    if option == "seeds"
                    else ["--data.evaluation.sets", json.dumps({"h": str(path)})]
                )

            yield Case("problem files", family, number, write, ("broken.jsonl",), command)


# -- options -------------------------------------------------------------------------------------------------


def leaves(cls, prefix):
    """(name, type) of every option of a class and of the dataclasses in its signature."""
    hints = typing.get_type_hints(cls.__init__)
    for name, kind in hints.items():
        if name == "return":
            continue
        parts = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
        if parts:
            yield from leaves(parts[0], f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", kind


OPTIONS = dict([*leaves(SeRLModule, "model"), *leaves(SelfPlayDataModule, "data")])
TRAINER = ("max_epochs", "accelerator", "precision", "gradient_clip_val", "devices", "limit_train_batches", "callbacks")
GROUPS = {name[:i] for name in OPTIONS for i, c in enumerate(name) if c == "."}


def misspelt(name, draw):
    """A name with two letters swapped, one lost, doubled, or another case; never another option's name."""
    taken = {n.rpartition(".")[2] for n in (*OPTIONS, *GROUPS)} | {"trainer", "trainers", *TRAINER}
    while True:
        i = draw.randrange(len(name))
        new = draw.choice([name[:i] + name[i + 1 :], name[:i] + 2 * name[i] + name[i + 1 :], name.upper(), name + "_x"])
        if new and new not in taken and new != name:
            return new


def nested(name, value):
    """``a.b.c`` as nested mappings."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def through_yaml(tree):
    def write(folder):
        path = folder / "broken.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        return ["-c", path]

    return write


def text_config(text):
    def write(folder):
        path = folder / "broken.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["-c", path]

    return write


def typo_cases():
    draw = random.Random("malformed typos")
    names = [*OPTIONS, *GROUPS, "trainer", *(f"trainer.{t}" for t in TRAINER), "seed_everything", "ckpt_path"]
    levels: dict[int, list[str]] = {}
    for name in sorted(set(names)):
        levels.setdefault(name.count("."), []).append(name)
    assert sorted(levels) == [0, 1, 2, 3]
    number = 0
    for level, found in levels.items():
        for name in draw.sample(found, min(len(found), 9 if level else 4)):
            parent, _, leaf = name.rpartition(".")
            wrong = misspelt(leaf, draw)
            full = f"{parent}.{wrong}" if parent else wrong
            if draw.random() < 0.6:
                yield Case("configurations", f"typo, level {level}", number, through_yaml(nested(full, 1)), (wrong,))
            else:
                yield Case(
                    "command line", f"typo, level {level}", number, lambda _, full=full: [f"--{full}", 1], (wrong,)
                )
            number += 1


def wrong_value(kind, draw):
    """A value that an option of this type cannot take; ``None`` where every text will do."""
    simple = [k for k in (typing.get_args(kind) or (kind,)) if k is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return draw.choice(["no_such_choice", 17, [1], {"a": 1}])
    if all(k in (int, float, bool) for k in simple):
        return draw.choice(["many", [1], {"a": 1}, "1,5", "0x", "--"])
    if simple == [str]:
        return draw.choice([[1], {"a": 1}])
    if typing.get_origin(kind) is dict:
        return draw.choice([3, "text", [1]])
    return None


def type_cases():
    draw = random.Random("malformed types")
    found = [(name, wrong_value(kind, draw)) for name, kind in sorted(OPTIONS.items())]
    found = [(name, value) for name, value in found if value is not None]
    for number, (name, value) in enumerate(draw.sample(found, 26)):
        leaf = name.rpartition(".")[2]
        if isinstance(value, str) and draw.random() < 0.5:
            yield Case("command line", "wrong type", number, lambda _, n=name, v=value: [f"--{n}={v}"], (leaf,))
        else:
            yield Case(
                "configurations",
                "wrong type",
                number,
                through_yaml(nested(name, value)),
                (leaf,) if not name.startswith("model.lora") else (),
            )


RANGES = [
    ("data.round.samples_per_prompt", 1, "samples_per_prompt"),
    ("data.round.samples_per_prompt", -4, "samples_per_prompt"),
    ("data.round.prompts_per_round", 0, "prompts_per_round"),
    ("data.round.max_attempts", 0, "max_attempts"),
    ("data.round.max_waves", -1, "max_waves"),
    ("data.round.max_derived", 0, "max_derived"),
    ("data.round.max_prompt_tokens", 0, "max_prompt_tokens"),
    ("data.rounds_per_epoch", 0, "rounds_per_epoch"),
    ("data.max_tokens", 0, "max_tokens"),
    ("data.seed", -1, "data.seed"),
    ("data.evaluation.samples", -1, "samples"),
    ("data.evaluation.batch_size", 0, "batch_size"),
    ("data.evaluation.temperature", 0, "temperature"),
    ("data.writing.exemplars", 0, "exemplars"),
    ("data.writing.exemplars", 65, "exemplars"),
    ("data.writing.from_kept", 5, "from_kept"),
    ("data.writing.prompts_per_call", 0, "prompts_per_call"),
    ("data.writing.sampling.temperature", -0.5, "temperature"),
    ("data.writing.sampling.top_p", 0, "top_p"),
    ("data.writing.sampling.top_p", 1.5, "top_p"),
    ("data.writing.sampling.top_k", -1, "top_k"),
    ("data.writing.sampling.max_tokens", 0, "max_tokens"),
    ("data.source", "mix:0", "mix:0"),
    ("data.source", "mix:x", "mix:x"),
    ("data.source", "seed", "data.source"),
    ("data.grader", "maths", "grader"),
    ("data.reward", "Majority", "data.reward"),
    ("data.writing.template.item", "no place", "item"),
    ("data.solve.plain", "no place", "plain"),
    ("model.inner_epochs", 0, "inner_epochs"),
    ("model.minibatches", 0, "minibatches"),
    ("model.temperature", 0, "temperature"),
    ("model.lora.r", 0, "lora.r"),
    ("model.lora.alpha", -1, "lora.alpha"),
    ("model.lora.dropout", 1.0, "lora.dropout"),
    ("model.objective.clip_low", 1.5, "clip_low"),
    ("model.objective.beta", -1, "beta"),
    ("model.objective.eps", -1, "eps"),
    ("model.objective.dual_clip", 0.5, "dual_clip"),
    ("model.objective.constant_length", 0, "constant_length"),
    ("model.optimizer.init_args.lr", -1, "learning rate"),
    ("trainer.max_epochs", -7, "max_epochs"),
    ("trainer.devices", 0, "devices"),
    ("trainer.accelerator", "abacus", "abacus"),
    ("trainer.strategy", "solo", "solo"),
    ("trainer.limit_train_batches", -1, "limit_train_batches"),
    ("seed_everything", -3, "seed_everything"),
    ("model.model_name_or_path", "no/such/place", "no/such/place"),
    ("model.model_name_or_path", "tiny:giant", "tiny:giant"),
    ("data.seeds", "tiny:seed", "tiny:seed"),
]

CLASSES = [
    ("trainer.callbacks", ["NoSuchFilter"]),
    ("trainer.callbacks", [{"class_path": "lightning_serl.NoSuchFilter"}]),
    ("trainer.callbacks", [{"class_path": "QualityFilter", "init_args": {"min_wrds": 3}}]),
    ("trainer.callbacks", [{"class_path": "DifficultyFilter", "init_args": {"low": "x"}}]),
    ("trainer.callbacks", [{"class_path": "ReferenceSync", "init_args": {"mode": "fast"}}]),
    ("trainer.callbacks", 3),
    ("trainer.callbacks", [{"class_path": "json.JSONDecoder"}]),
    ("trainer.logger", "NoLogger"),
    ("data.engine", "NoEngine"),
    ("data.engine", {"class_path": "TransformersEngine", "init_args": {"btch": 1}}),
    ("data.engine", {"class_path": "os.path.join"}),
    ("model.optimizer", {"class_path": "torch.optim.Adam2"}),
    ("model.optimizer", {"class_path": "torch.optim.SGD", "init_args": {"lrr": 0.1}}),
    ("model.optimizer", "json.JSONDecoder"),
    ("model.lr_scheduler", {"class_path": "NoSuchLR"}),
    ("data.reward", "no.such.Reward"),
    ("data.reward", {"solve": "no.such.Reward"}),
    ("data.reward", {}),
    ("data.source", "no.such.Source"),
    ("data.grader", "no.such.Grader"),
]

TEXTS = [
    "data: {seeds: x",
    "data:\n\tseeds: x\n",
    "data:\n  seeds: x\n model: y\n",
    "- a\n- b\n",
    "just words",
    "42",
    "!!python/object:os.x {}",
    "data: *nowhere",
    "a: b: c",
    b"\xff\xfe\x00",
    b"\x89PNG\r\n\x1a\n",
    '{"data": {"seeds": ',
    "data: [1, 2]",
    "data: 7",
    "model: text",
    "trainer: [a]",
    "data:\n  round: 3\n",
    "? {a: b}\n: c\n",
    "\x00",
    "%YAML 9.9\n---\na: 1\n",
    "fit:\n  data:\n    seeds: x\n",
    "data:\n  round:\n    samples_per_prompt: {a: [1, {b: 2}]}\n",
]


def path_cases():
    long = "x" * 300

    def loop(folder):
        (folder / "a").symlink_to(folder / "b")
        (folder / "b").symlink_to(folder / "a")
        return folder / "a"

    def half_model(folder, *names):
        (folder / "half").mkdir()
        for name in names:
            (folder / "half" / name).write_text("{}")
        return folder / "half"

    def file_in(folder):
        (folder / "file").write_text("x")
        return folder / "file"

    made = [
        (lambda f: ["--data.seeds", f / "none.jsonl"], "does not exist"),
        (lambda f: ["--data.seeds", f], "directory"),
        (lambda f: ["--data.seeds", f / long], "File name too long"),
        (lambda f: ["--data.seeds", loop(f)], "symbolic"),
        (lambda f: ["--data.seeds", ""], ""),
        (lambda f: ["--data.seeds", "/proc/self/mem"], "cannot be read"),
        (lambda f: ["--data.seeds", file_in(f) / "x"], "Not a directory"),
        (lambda f: ["--data.seeds", "a\0b"], "cannot be read"),
        (lambda f: ["-c", f / "none.yaml"], "none.yaml"),
        (lambda f: ["-c", f], "file"),
        (lambda f: ["-c", f / long], ""),
        (lambda f: ["-c", loop(f)], ""),
        (lambda f: ["-c", ""], ""),
        (lambda f: ["-c", "preset:"], "preset"),
        (lambda f: ["-c", "preset:quikstart"], "quickstart"),
        (lambda f: ["-c", "preset:../configs/quickstart"], "quickstart"),
        (lambda f: ["--model.model_name_or_path", half_model(f)], "config.json"),
        (lambda f: ["--model.model_name_or_path", half_model(f, "config.json")], "weights"),
        (lambda f: ["--model.model_name_or_path", half_model(f, "config.json", "a.safetensors")], "tokenizer"),
        (lambda f: ["--model.model_name_or_path", file_in(f)], "is a file"),
        (lambda f: ["--model.model_name_or_path", ""], "model"),
        (lambda f: ["--trainer.default_root_dir", file_in(f)], "is a file"),
        (lambda f: ["--trainer.default_root_dir", file_in(f) / "x"], "is a file"),
        (lambda f: ["--trainer.default_root_dir", "/proc/none/x"], "cannot be written"),
        (lambda f: ["--ckpt_path", f / "none.ckpt"], "does not exist"),
        (lambda f: ["--ckpt_path", "best_of_all.ckpt"], "does not exist"),
        (lambda f: ["--ckpt_path", ""], "ckpt_path is empty"),
        (lambda f: ["--ckpt_path", file_in(f)], "no checkpoint"),
    ]
    for number, (make, words) in enumerate(made):
        yield Case("paths", "path", number, make, (words,))


def argument_cases():
    made = [
        ["extra"],
        ["--data.seeds"],
        ["--no-such"],
        ["-x"],
        ["--data.round.samples_per_prompt", "4", "5"],
        ["--print_config", "--nope"],
        ["--data.round.samples_per_prompt=4=5"],
        ["--=", "1"],
        ["---data.seeds", "x"],
    ]
    for number, arguments in enumerate(made):
        yield Case("command line", "arguments", number, lambda _, a=arguments: a)


def option_cases():
    draw = random.Random("malformed options")
    for number, (name, value, word) in enumerate(RANGES):
        spoken = isinstance(value, (int, float, str)) and draw.random() < 0.5
        make = (lambda _, n=name, v=value: [f"--{n}={v}"]) if spoken else through_yaml(nested(name, value))
        yield Case("command line" if spoken else "configurations", "out of range", number, make, (word,))
    for number, (name, value) in enumerate(CLASSES):
        yield Case("configurations", "class", number, through_yaml(nested(name, value)))
    for number, text in enumerate(TEXTS):
        yield Case("configurations", "configuration text", number, text_config(text))


FILE_CASES = list(file_cases())
CASES = [*FILE_CASES, *typo_cases(), *type_cases(), *option_cases(), *path_cases(), *argument_cases()]
#: Of the problem files, one of each family: the others meet the same reader without the command line around it.
THROUGH_THE_COMMAND_LINE = [case for case in CASES if case.entry != "problem files" or case.number == 0]


@pytest.fixture
def loaded(monkeypatch):
    """Every model that was loaded; loading still works."""
    calls = []
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        through = kind.from_pretrained

        def spy(*args, through=through, **kwargs):
            calls.append(args)
            return through(*args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", spy)
    return calls


@pytest.mark.parametrize("case", FILE_CASES, ids=str)
def test_a_broken_problem_file_is_refused_where_it_is_read(case, tmp_path, monkeypatch, loaded, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    option, value = case.make(tmp_path)
    sets = EvaluationOptions(sets=json.loads(value) if option == "--data.evaluation.sets" else {})
    data = SelfPlayDataModule(seeds=value if option == "--data.seeds" else "tiny:seeds", evaluation=sets)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        data.check_files(case.command)
    one_sentence(caught.value, *case.words)
    assert not loaded
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr().out == ""
    COUNTS[case.entry, case.family] += 1


@pytest.mark.parametrize("case", THROUGH_THE_COMMAND_LINE, ids=str)
def test_refused_in_one_sentence(case, tmp_path, monkeypatch, loaded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "run"
    arguments = [str(a) for a in case.make(tmp_path)]
    ended = cli(case.command, "-c", "preset:quickstart", "--trainer.default_root_dir", root, *arguments)
    assert ended.status == 2, (ended.status, ended.err)
    sentence = ended.error
    assert len(sentence.split()) >= 4, sentence
    for word in case.words:
        assert word in sentence, sentence
    assert not loaded
    assert ended.out == ""
    assert not root.exists(), list(root.iterdir())
    COUNTS[case.entry, case.family] += case.entry != "problem files"  # those are counted above


def test_there_are_many():
    assert len(FILE_CASES) >= 80
    assert {case.family for case in FILE_CASES if case in THROUGH_THE_COMMAND_LINE} == set(FILES)
    assert len(CASES) - len(FILE_CASES) >= LEAST


def test_the_untouched_inputs_are_accepted(tmp_path, loaded):
    """What the cases are broken from does begin: here it ends at a model's door, which is past every check above."""
    path = tmp_path / "whole.jsonl"
    path.write_text("\n".join(json.dumps(p) for p in problems(8)))
    assert valid_problems(path.read_bytes())
    ended = cli(
        "fit",
        "-c",
        "preset:quickstart",
        "--trainer.default_root_dir",
        tmp_path / "run",
        "--data.seeds",
        path,
        "--data.max_tokens",
        100_000,
    )
    assert ended.status == 2
    assert "context" in ended.error
    assert loaded
