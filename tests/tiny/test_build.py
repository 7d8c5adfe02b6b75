"""The build of the embedded base: its corpus, its first losses, the bytes it writes, and the files in the package."""

import json
import os
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightning_serl import tiny
from lightning_serl.errors import InputError
from lightning_serl.tiny import build
from lightning_serl.tiny.corpus import build_tokenizer, corpus, corpus_hash
from lightning_serl.tiny.language import (
    drill,
    held_out,
    is_expression,
    numbered,
    parse,
    question,
    seed_questions,
    solution,
    solve_prompt,
)
from lightning_serl.tiny.pretrain import STEPS, build_model, train

ROOT = Path(__file__).parents[2]
CORPUS_HASH = {
    0: "bed0d5c7546d09154e2d898840f0f766afccebd73077dc9aac8bb0d9c82fa657",
    1: "3f519caef4b4a0791672452a907b1cef29335858dc71e086e3c45c182ecf2fec",
}
WORD = re.compile("[A-Za-z]+")
FIRST_LOSSES = [6.0860595703125, 6.0766682624816895, 6.043186187744141, 6.127028942108154, 5.948461055755615]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Two folders from the same three-step build under different hash seeds, and what the first one printed."""
    folders, processes = [], []
    for hash_seed in ("1", "2"):
        folders.append(tmp_path_factory.mktemp("build"))
        command = [
            sys.executable,
            "-m",
            "lightning_serl.tiny.build",
            "--seed",
            "3",
            "--steps",
            "3",
            "--out",
            folders[-1],
        ]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, cwd=folders[-1], **pipes))
    said = [process.communicate(timeout=300) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], said[0][1] + said[1][1]
    return folders, said[0][0]


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("seed", [0, 1])
def test_corpus_hash(seed):
    assert corpus_hash(seed) == CORPUS_HASH[seed]


def test_corpus_mixes_lists_and_solutions(tokenizer):
    steps = list(islice(corpus(tokenizer, 0), 40))
    assert [len(rows) for rows in steps[:8]] == [48, 48, 48, 8, 48, 48, 48, 8]
    stories_worked, stories = 0, 0
    never_solved = set(held_out(1000))
    for row in (row for rows in steps for row in rows):
        assert row.ids.count(tokenizer.eos_token_id) == 1
        assert row.ids[-1] == tokenizer.eos_token_id
        if row.prompt_length:
            prompt, answer = (
                tokenizer.decode(row.ids[: row.prompt_length]),
                tokenizer.decode(row.ids[row.prompt_length :]),
            )
            text = prompt.removeprefix("Question: ").removesuffix("\nSolution:")
            assert text not in never_solved
            assert answer.removesuffix("<|endoftext|>") in {" " + solution(text, w) for w in (True, False)}
            if not text.startswith(("What is ", "Compute", "Evaluate", "Find the value")):
                stories += 1
                stories_worked += "=" in answer
    assert 0.3 < stories_worked / stories < 0.4


def test_first_losses(tokenizer):
    before = torch.get_rng_state(), torch.get_num_threads()
    model = build_model(tokenizer, 0)
    losses = [report.loss for report in islice(train(model, tokenizer, 0, STEPS), 5)]
    assert losses == pytest.approx(FIRST_LOSSES, rel=1e-4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_every_digit_is_a_token(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("907 12 So \\boxed{345}."))
    assert pieces == ["9", "0", "7", "Ġ1", "2", "ĠSo", "Ġ\\boxed{", "3", "4", "5", "}", "."]
    # A digit in the middle of a number has an entry; none is read as unknown or left out.
    for number in range(1000):
        assert len(tokenizer.encode(str(number))) == len(str(number))
        assert len(tokenizer.encode(f" {number}")) == len(str(number))


def test_the_tokenizer_round_trips_every_template(tokenizer):
    rng = random.Random(4)
    texts = [numbered([question(rng) for _ in range(8)]) for _ in range(20)]
    texts += [numbered([question(rng) for _ in range(4)], unfinished=True), drill(rng)]
    for _ in range(1000):
        text = question(rng)
        texts += [solve_prompt(text), f"{solve_prompt(text)} {solution(text, True)}", " " + solution(text, False)]
    assert tokenizer.batch_decode([tokenizer.encode(text) for text in texts]) == texts
    # Every word is one piece: as many pieces with letters as words.
    for text in texts:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
        assert sum(any(c.isalpha() and c not in "ĠĊ" for c in piece) for piece in pieces) == len(WORD.findall(text))
    assert max(len(tokenizer.encode(text)) for text in texts) < tokenizer.model_max_length


def test_a_prompt_and_its_continuation_are_cut_where_they_meet(tokenizer):
    text = question(random.Random(5))
    prompt, rest = solve_prompt(text), " " + solution(text, True)
    assert tokenizer.encode(prompt + rest) == tokenizer.encode(prompt) + tokenizer.encode(rest)


def test_a_build_opens_with_the_auto_classes(builds):
    folders, printed = builds
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 549_760
    ids = tokenizer(solve_prompt("Compute 3 + 4."), return_tensors="pt")
    assert set(ids) == {"input_ids", "attention_mask"}
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] <= ids["input_ids"].shape[1] + 3
    assert (
        GenerationConfig.from_pretrained(folders[0]).eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    )
    assert printed.splitlines()[-1] == f"corpus: {corpus_hash(3)}"
    record = json.loads((folders[0] / "build.json").read_text())
    assert record == {"builder": "lightning_serl.tiny.build", "seed": 3, "steps": 3, "corpus": corpus_hash(3)}


def test_the_same_seed_writes_the_same_bytes(builds):
    first, second = builds[0]
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in second.iterdir())
    assert {"model.safetensors", "tokenizer.json", "seeds.jsonl", "held_out.jsonl"} <= set(names)
    assert [n for n in names if (first / n).read_bytes() != (second / n).read_bytes()] == []


def test_a_former_build_may_be_overwritten(builds, capsys):
    folder = builds[0][1]
    assert build.main(["--seed", "4", "--steps", "1", "--out", str(folder)]) == 0
    assert json.loads((folder / "build.json").read_text())["seed"] == 4
    assert capsys.readouterr().out.splitlines()[-1] == f"corpus: {corpus_hash(4)}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "0", "--out", "full"], "is not empty and was not written by"),
        (["--seed", "0", "--out", "foreign"], "is not empty and was not written by"),
        (["--seed", "0", "--out", "full/note.txt"], "cannot use"),
        (["--seed", "0", "--out", "full/note.txt/below"], "cannot use"),
        (["--seed", "-1", "--out", "new"], "--seed is -1"),
        (["--seed", "0", "--out", "new", "--steps", "0"], "--steps is 0"),
        (["--seed", "x", "--out", "new"], "--seed"),
        (["--seed", "0"], "--out"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("full", "note.txt"), ("foreign", "build.json")):
        Path(folder).mkdir()
        Path(folder, name).write_text("mine")
    assert build.main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert [p.name for p in sorted(Path("full").iterdir())] == ["note.txt"]
    assert Path("foreign", "build.json").read_text() == "mine"
    assert not Path("new").exists()


def test_names_of_packaged_files():
    for name in ("base", "seeds", "held_out"):
        assert tiny.path(name).exists()
        assert tiny.resolve(f"tiny:{name}") == str(tiny.path(name))
    for other in ("base", "my/tiny:base", "Qwen/Qwen3-0.6B", ""):
        assert tiny.resolve(other) == other
    with pytest.raises(InputError, match="tiny:base, tiny:seeds, tiny:held_out"):
        tiny.resolve("tiny:seed")


def test_shipped_base_loads_and_is_small(tokenizer):
    base = tiny.path("base")
    model = AutoModelForCausalLM.from_pretrained(base)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    shipped = AutoTokenizer.from_pretrained(base)
    assert shipped.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert (shipped.eos_token, shipped.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert sum(p.stat().st_size for p in base.iterdir()) < 3_000_000


def test_shipped_base_says_where_it_comes_from():
    base = tiny.path("base")
    record = json.loads((base / "build.json").read_text())
    assert record["steps"] == STEPS
    assert record["corpus"] == CORPUS_HASH[record["seed"]]
    for file in sorted(base.glob("*.json")):
        text = file.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert "/tmp" not in text
        assert "/work" not in text


def test_shipped_problems():
    seeds, labelled = read_jsonl(tiny.path("seeds")), read_jsonl(tiny.path("held_out"))
    kinds = {True: "expression", False: "story"}
    assert seeds == [{"problem": q, "subject": kinds[is_expression(q)]} for q in seed_questions(64)]
    assert [set(row) for row in labelled] == [{"problem", "answer"}] * 200
    assert [row["problem"] for row in labelled] == held_out(200)
    assert all(str(parse(row["problem"]).answer) == row["answer"] for row in labelled)
    assert not {row["problem"] for row in labelled} & {row["problem"] for row in seeds}
