"""The world of several skills: its language, its corpus, and the base that the package ships."""

import json
import random
from collections import Counter
from itertools import islice

import pytest
from safetensors import safe_open

from lightning_serl import tiny
from lightning_serl.answers import MathGrader
from lightning_serl.tiny import world as worlds
from lightning_serl.tiny.build import WORLD_HELD_OUT, WORLD_SEEDS
from lightning_serl.tiny.corpus import corpus_hash
from lightning_serl.tiny.language import solve_prompt
from lightning_serl.tiny.pretrain import build_model, train
from lightning_serl.tiny.world import METHODS, PROFILES, SIZES, SKILLS, answer, parse, question, solution, world
from lightning_serl.tiny.world_corpus import STEPS, build_tokenizer, corpus


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def rows(name):
    return [json.loads(line) for line in tiny.path(name).read_text(encoding="utf-8").splitlines()]


def test_answers_by_hand():
    for text, right, shortcut in (
        ("Reverse the digits of 4712.", "2174", "2714"),
        ("Sort the digits of 352.", "235", "532"),
        ("Raise each digit of 511 by one.", "622", "512"),
        ("Lower each digit of 483 by one.", "372", "482"),
        ("Rotate the digits of 82596.", "25968", "68259"),
        ("Add 69 and 49 together.", "118", "8"),
    ):
        skill = SKILLS[parse(text).skill]
        assert answer(text) == right
        assert skill.shortcut(parse(text).numbers) == shortcut
    for text in (
        "",
        "Add 69 and 49.",
        "Subtract 64 from 28 now.",
        "Continue the series 1 2 4.",
        "Add 5 and 77 together.",
        "Sort the digits of 052.",
        "Reverse the digits of 4712. ",
    ):
        assert parse(text) is None
        assert answer(text) is None


def test_every_question_is_read_as_it_was_drawn_and_its_solutions_are_graded_as_meant():
    rng, grader = random.Random(0), MathGrader()
    for skill in SKILLS:
        for size in SIZES * 20:
            text = question(rng, skill, size)
            read = parse(text)
            assert (read.skill, read.size) == (skill, size)
            found = [grader.extract("".join(solution(read, method, rng))) for method in METHODS]
            assert grader.same(found[0], answer(text))
            assert not grader.same(found[1], answer(text))


def test_a_world_draws_which_skill_has_which_habits():
    for seed in range(5):
        of = world(seed)
        assert Counter(of.kinds.values()) == {"easy": 1, "mixed": 2, "habit": 2, "wrong": 1}
        assert len(of.seeded) == len(of.unseeded) == 3
        assert "wrong" not in {of.kinds[skill] for skill in of.seeded}
    assert len({str(world(seed).kinds) for seed in range(5)}) == 5
    assert all(abs(sum(shares) - 1) < 1e-9 for profile in PROFILES.values() for shares in profile)


def test_the_shares_of_the_methods_in_the_corpus_are_those_of_the_profiles(tokenizer):
    of, counts = world(0), {}
    for row in (row for step in islice(corpus(tokenizer, 0), 120) for row in step):
        if row.prompt_length:
            prompt = tokenizer.decode(row.ids[: row.prompt_length])
            text, _, given = prompt.removeprefix("Question: ").partition("\nSolution:")
            read = parse(text)
            assert tokenizer.encode(solve_prompt(text)) == row.ids[: row.prompt_length - bool(given)]
            if not given:
                name = tokenizer.decode(row.ids[row.prompt_length :]).split()[0]
                method = METHODS[[*SKILLS[read.skill].names, "So"].index(name)]
                counts.setdefault((of.kinds[read.skill], read.size), Counter())[method] += 1
    for (kind, size), found in counts.items():
        for method, share in zip(METHODS, PROFILES[kind][SIZES.index(size)], strict=True):
            assert found[method] / found.total() == pytest.approx(share, abs=0.1)


def test_the_shipped_base_is_what_its_record_says(tokenizer):
    base = tiny.path("world")
    record = json.loads((base / "build.json").read_text())
    assert (record["task"], record["seed"], record["steps"]) == ("world", 0, STEPS)
    assert record["corpus"] == corpus_hash(0, corpus, tokenizer)
    losses = [r.loss for r in islice(train(build_model(tokenizer, 0), tokenizer, 0, STEPS, corpus), 3)]
    assert losses == pytest.approx(record["first_losses"], rel=1e-4)
    with safe_open(base / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(key).get_dtype()) for key in file.keys()} == {"F16"}  # noqa: SIM118
    assert sum(path.stat().st_size for path in base.iterdir()) < 1_300_000


def test_the_shipped_problems_are_those_of_the_world():
    of = world(0)
    seeds, seeded, unseeded = (rows(name) for name in ("world_seeds", "world_seeded", "world_unseeded"))
    assert [(row["problem"], row["subject"]) for row in seeds] == worlds.seed_questions(of, WORLD_SEEDS)
    assert {row["subject"] for row in [*seeds, *seeded]} == set(of.seeded)
    assert {row["subject"] for row in unseeded} == set(of.unseeded)
    for held in (seeded, unseeded):
        sizes = Counter((row["subject"], row["level"]) for row in held)
        assert set(sizes.values()) == {WORLD_HELD_OUT // 6}
        assert all(answer(row["problem"]) == row["answer"] for row in held)
        assert not {row["problem"] for row in held} & {row["problem"] for row in seeds}
