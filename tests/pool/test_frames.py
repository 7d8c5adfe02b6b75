"""Seeds that are alike: their shared frame does not count, copies do, and nothing changes where they are not alike."""

import random

from lightning_serl.callbacks.filters import NoveltyFilter
from lightning_serl.pool import InstructionPool
from lightning_serl.pool.pool import STATUSES
from lightning_serl.types import Instruction

PLACES = "Norway France Spain Peru Chile Egypt Kenya Japan China India Brazil Canada Mexico Cuba Iran Iraq Italy Greece"
COUNTRIES = "Норвегия Франция Испания Перу Чили Египет Кения Япония Китай Индия Бразилия Канада"


def families() -> dict[str, list[str]]:
    rng = random.Random(4)
    names, things = (
        ["Tom", "Ana", "Ben", "Mia", "Leo", "Zoe", "Sam", "Eva"],
        ["apples", "books", "coins", "pens", "cards", "eggs"],
    )

    def story() -> str:
        name, thing = rng.choice(names), rng.choice(things)
        first, second = rng.sample(range(2, 30), 2)
        return f"{name} has {first} {thing} and buys {second} more. How many {thing} does {name} have now?"

    one = [f"Ann has {a} cats and finds {b} more. How many cats does she have?" for a in range(2, 9) for b in (2, 5, 7)]
    options = ["apple", "pear", "plum", "fig", "stone", "chair", "lamp", "road", "shoe", "cloud", "river", "grape"]
    return {
        "facts": [f"What is the capital of {place}?" for place in PLACES.split()],
        "two templates": [f"What is the capital of {p}?" for p in PLACES.split()]
        + [f"On which continent is {p}?" for p in PLACES.split()],
        "sums": [f"What is {a} + {b}?" for a in range(1, 10) for b in range(1, 10, 2)],
        "products": [f"Calculate {a} times {b}." for a in range(2, 12) for b in range(3, 8)],
        "stories": [story() for _ in range(50)],
        "only numbers": one,
        "Chinese": [
            f"{place}的首都是哪里？"
            for place in ["挪威", "法国", "西班牙", "秘鲁", "智利", "埃及", "肯尼亚", "日本", "印度", "巴西"]
        ],
        "Japanese": [
            f"{place}の首都はどこですか。"
            for place in ["ノルウェー", "フランス", "スペイン", "ペルー", "チリ", "日本", "韓国", "インド"]
        ],
        "Russian": [f"Какой город является столицей страны {place}?" for place in COUNTRIES.split()],
        "Hindi": [
            f"{place} की राजधानी क्या है?" for place in ["भारत", "नेपाल", "चीन", "जापान", "फ्रांस", "पेरू", "मिस्र", "केन्या"]
        ],
        "Arabic": [
            f"ما هي عاصمة {place}؟"
            for place in ["مصر", "السودان", "المغرب", "تونس", "الجزائر", "العراق", "لبنان", "سوريا"]
        ],
        "Spanish": [f"¿Cuál es la capital de {place}?" for place in PLACES.split()],
        "German": [f"Wie heißt die Hauptstadt von {place}?" for place in PLACES.split()],
        "options": [
            "Which of these is a fruit?\nA. {}\nB. {}\nC. {}".format(*rng.sample(options, 3)) for _ in range(30)
        ],
    }


def accepted(seeds: list[str], follow: bool) -> int:
    """How many seeds pass the rule against those before them."""
    seen, rule = InstructionPool(), NoveltyFilter()
    if follow:
        seen.judge_by([Instruction(seed, str(i)) for i, seed in enumerate(seeds)])
    count = 0
    for seed in seeds:
        among = None if follow else STATUSES
        count += seen.similar(seed, rule.threshold, among) is None
        seen.add(seed, "seed")
    return count


def test_seeds_of_one_frame_pass_and_copies_do_not() -> None:
    rule = NoveltyFilter()
    for name, seeds in families().items():
        assert accepted(seeds, follow=False) < len(seeds) / 2, name
        assert accepted(seeds, follow=True) >= 0.8 * len(set(seeds)), name
        pool = InstructionPool(seeds)
        copies = [seed.upper().rstrip("?？؟.") + " !" for seed in seeds]
        assert all(rule.reject(copy, pool) == "duplicate" for copy in copies), name
        assert all(rule.reject(seed, pool) == "duplicate" for seed in seeds), name


def test_what_is_new_in_a_frame() -> None:
    found = families()
    facts, stories, numbers = (InstructionPool(found[name]) for name in ("facts", "stories", "only numbers"))
    rule = NoveltyFilter()
    assert rule.reject("What is the capital of Latvia?", facts) is None
    sums = InstructionPool(found["sums"])
    assert [rule.reject(f"What is {sum_}?", sums) for sum_ in ("3 + 4 + 5", "3 + 4", "4 + 3", "3 + 5")] == [
        None, None, "duplicate", "duplicate",
    ]  # fmt: skip
    facts.add("What is the capital of Latvia?")
    assert rule.reject("what is the capital of latvia", facts) == "duplicate", "written problems count too"
    assert rule.reject("Ann has 8 cats and finds 6 more. How many cats does she have?", numbers) is None
    told = "Tom has 7 apples and buys 9 more. How many apples does Tom have now?"
    stories.add(told)
    assert rule.reject(told.replace("7", "21").replace("9", "16"), stories) is None
    assert rule.reject(told.replace("Tom", "Eva"), stories) == "duplicate", "another name alone is no new problem"
    assert rule.reject(told.replace("9", "8"), stories) == "duplicate", "nor is one number of two beside a story"
    assert NoveltyFilter(style="serl").reject("What is the capital of Latvia?", InstructionPool(found["facts"])) == (
        "duplicate"
    )


def test_the_sentence_and_the_state() -> None:
    seeds = families()["facts"]
    pool = InstructionPool(seeds)
    said = NoveltyFilter().frames_found(pool)
    assert said is not None
    assert said.startswith("novelty: 17 of 18 seeds are above ROUGE-L 0.7")
    assert NoveltyFilter(style="serl").frames_found(pool) is None
    copy = InstructionPool()
    copy.load_state_dict(pool.state_dict())
    for text in ("What is the capital of Latvia?", "What is the capital of NORWAY"):
        assert copy.similar(text, 0.7) == pool.similar(text, 0.7)


def test_seeds_that_are_not_alike_are_judged_by_rouge_alone() -> None:
    rng = random.Random(2)
    seeds = [" ".join(f"w{rng.randrange(300)}" for _ in range(12)) for _ in range(40)] + families()["facts"][:4]
    pool = InstructionPool(seeds)
    assert not pool.frames(0.7)
    assert NoveltyFilter().frames_found(pool) is None
    for _ in range(60):
        words = rng.choice(seeds).split()
        for _ in range(rng.randrange(6)):
            words[rng.randrange(len(words))] = f"w{rng.randrange(300)}"
        assert pool.similar(" ".join(words), 0.7) == pool.similar(" ".join(words), 0.7, STATUSES)
    assert pool.similar("What is the capital of Latvia?", 0.7) is not None
