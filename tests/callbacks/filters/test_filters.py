"""The filters on single instructions and groups."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from lightning_serl.callbacks.filters import (
    DifficultyFilter,
    GroupFilter,
    InstructionFilter,
    NoveltyFilter,
    QualityFilter,
    ZeroSpread,
)
from lightning_serl.errors import InputError
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import parse_instructions
from lightning_serl.types import Group, Instruction, Reason, Verdict

REASONS = get_args(Reason)
LONG = " ".join(f"word{i}" for i in range(700))

DEFAULT = [
    ("What is the sum of 3 and 4?", None),
    ("$\\sin x = 1$ holds for which smallest positive x?", None),
    ("\\(2x + 3 = 9\\). Solve for x.", None),
    ("12 + 5 - 3 = ?", "too_short"),
    ("12 + 5 - 3 + 8 = ?", None),
    ("小明有五个苹果,又买了三个。一共有几个?", None),
    ("¿Cuánto es la mitad de ocho?", None),
    ("لدى أحمد خمس تفاحات، كم تفاحة لديه؟", None),
    ("राम के पास पाँच सेब हैं?", None),
    ("Write about the graph of $y = x^2$: where is its vertex?", None),
    ("What is the image of the point (2, 3) under a reflection in the x axis?", None),
    ("On a map one inch stands for five miles. How far is three inches?", None),
    ("A picture frame is 5 by 7 inches; find its area.", None),
    ("A student prepares a solution: 5 g of NaCl in 1 L of water. What is its molarity?", None),
    (" ".join(["A tenant of the house claims damages."] * 60) + " Who pays?", None),
    ("", "empty"),
    (" \n\t", "empty"),
    ("?!? ...", "punctuation"),
    ("🍎🍎 ➕ 🍎", "punctuation"),
    ("Add them now", "too_short"),
    ("一加一", "too_short"),
    (LONG, "too_long"),
    ("In the figure, find the angle ABC.", "keyword"),
    ("Find the area of the triangle in the diagram.", "keyword"),
    ("Use the graph below to find f(3) exactly.", "keyword"),
    ("How many stars are shown in the picture of the sky?", "keyword"),
    ("Find x as shown. The square has side 4.", "keyword"),
    ("Below is the graph of $y = a \\sin bx$. Find $a.$", "keyword"),
    ("Find the area. [asy] draw((0,0)--(1,1)); [/asy] Square units.", "keyword"),
    ("A note in the chart says that he is allergic to penicillin. Which antibiotic is safe?", None),
    ("By how much does the figure exceed the statutory cap of $5,000?", None),
    ("The figure was revised to 40 million. By what percentage did it rise from 32 million?", None),
    ("As shown by the blood test, potassium is 6.1. Which drug is to be stopped?", None),
    ("As illustrated by Smith v. Jones, who bears the burden of proof?", None),
    ("As shown in $\\triangle ABC$, $AB = AC = 25$ and $BC = 14$. Find $AD$.", None),
    ("How many more pupils chose apples, according to the chart?", "keyword"),
    ("The figure shows a square in a regular hexagon. Find the angle.", "keyword"),
    ("What is the perimeter of the shaded figure in centimetres?", "keyword"),
    ("As shown in Figure 3, a rod leans against a wall. Find the force.", "keyword"),
    ("In the adjoining figure the chord AB has length 6. Find the radius.", "keyword"),
    ("A given plot of land is 20 m by 30 m. What does a fence around it cost?", None),
    ("La siguiente gráfica es de las ventas de mayo. ¿Cuánto se vendió?", "keyword"),
    ("Berechne den Umfang: die folgende Skizze ist ein Trapez.", "keyword"),
    ("如图所示,在三角形ABC中,求角A的度数。", "keyword"),
    ("下图是一个正方形,求阴影部分的面积。", "keyword"),
    ("例如图书馆有三百本书,借出五十本,还剩多少本?", None),
    ("在地图中一厘米代表五千米,三厘米代表多少千米?", None),
    ("Según la figura, ¿cuál es el área del triángulo?", "keyword"),
    ("¿Qué es, según la figura jurídica del mandato, el mandante?", None),
    ("في الشكل المجاور، أوجد مساحة المثلث.", "keyword"),
    ("Wie groß ist der Winkel in der Abbildung?", "keyword"),
    ("Was ist das Bild von 3 in der Abbildung $f(x) = 2x$?", None),
    ("Dans la figure ci-dessous, calculer la longueur AB.", "keyword"),
    ("D'après la figure ci-dessous, que vaut AB ?", "keyword"),
    ("Il a une tache sur la figure ; quel savon choisir ?", None),
    ("図のように,円Oがある。半径を求めよ。", "keyword"),
    ("그림과 같이 원이 있다. 반지름을 구하시오.", "keyword"),
    ("На рисунке изображён квадрат. Найдите его площадь.", "keyword"),
    ("Nella figura, quanto misura l'angolo ABC?", "keyword"),
    ("Na figura abaixo, qual é a área do quadrado?", "keyword"),
    ("चित्र में दिखाए गए त्रिभुज का क्षेत्रफल ज्ञात करो।", "keyword"),
    ("You mix two solutions. Solution: 0.1 mol HCl in 1 L. What is the pH?", None),
    ("You mix two solutions.\nSolution: 50 mL of water.\nWhat is the pH?\nAnswer: 7", "solution_leak"),
    ("What is the molarity of 5 g in 1 L? Solution: 0.5 M", "solution_leak"),
    ("Find the molarity of 5 g of salt. Solution: 0.5 M", "solution_leak"),
    ("Write a program that prints the first ten primes.", "write_a_program"),
    ("What is 3 + 4?\nSolution: 3 + 4 = 7.", "solution_leak"),
    ("What is 3 plus 4? Answer: 7", "solution_leak"),
    ("What is 3 plus 4? **Answer:** 7", "solution_leak"),
    ("What is 3 plus 4? It is \\boxed{7}.", "solution_leak"),
    ("三加四等于多少?\n答案:七", "solution_leak"),
    ("¿Cuánto es tres más cuatro? Respuesta: siete", "solution_leak"),
    ("Сколько будет три плюс четыре? Ответ: семь", "solution_leak"),
    ("There are 2 * 5 + 17.", None),
    ("The capital of Peru is ____.", None),
    ("Name the capital of Peru.", None),
    ("Given that $2x = 6$, find $x$.", None),
    ("太郎はりんごを五個持っています。全部で何個ですか。", None),
    ("Is 7 a prime number? Give a reason for your answer.", None),
    ("How many eggs does Ann have if she buys a dozen?", None),
    ("Paris is the capital of France.", "no_question"),
    ("These problems test your knowledge of history.", "no_question"),
    ("The sum of two even numbers is always even.", "no_question"),
    ("El perro tiene cuatro patas y una cola.", "no_question"),
    ("La tour Eiffel est une tour de Paris.", "no_question"),
    ("Die Stadt Berlin ist die Hauptstadt von Deutschland.", "no_question"),
    ("太郎はりんごを五個買いました。", "no_question"),
    ("Миша купил пять яблок в магазине.", "no_question"),
    ("How many days are in a week? How many hours are in a day?", "several_questions"),
    ("A cat has 4 legs. (a) How many have 3 cats? (b) How many have 5 cats?", "several_questions"),
    ("What is left of 9 after 4 go? **Problem 6:** What is 7 plus 3?", "several_questions"),
    ("How many apples does she have left?", "no_context"),
    ("How many legs are there in total?", "no_context"),
]

SERL = [
    ("What is the sum of 3 and 4?", None),
    ("what is the sum of 3 and 4?", None),
    ("", "empty"),
    (" \n ", "empty"),
    ("Compute three plus.", "too_short"),
    ("Compute three plus four.", None),
    (" ".join(["word"] * 150), None),
    (" ".join(["word"] * 151), "too_long"),
    ("Sketch the GRAPH of y = x.", "keyword"),
    ("Find all graphs on 4 vertices.", "keyword"),
    ("Tom must go to school at eight.", "keyword"),
    ("Tom must go\nto school at eight.", "keyword"),
    ("Study cartography and mapping on weekends.", None),
    ("write a Program that prints primes.", "write_a_program"),
    ("Please write a program that prints primes.", None),
    ("$x = 3$ gives what?", "punctuation"),
    ("\\sin x = 1 has which root?", "punctuation"),
    ("ünder what condition is it even?", "non_ascii"),
    ("小明 有 五个 苹果 吗", "non_ascii"),
    ("What is 3 + 4? Solution: it is \\boxed{7}", None),
    # The first rule that fails names the reason.
    ("draw it", "too_short"),
    ("$draw a picture now", "keyword"),
]


@pytest.mark.parametrize(("text", "reason"), DEFAULT)
def test_default_quality(text: str, reason: str | None) -> None:
    quality = QualityFilter()
    assert quality.reject(text, None) == reason
    assert quality.reject(Instruction(text, "u"), InstructionPool(["What is two plus two?"])) == reason
    assert reason is None or reason in REASONS


@pytest.mark.parametrize(("text", "reason"), SERL)
def test_serl_quality(text: str, reason: str | None) -> None:
    assert QualityFilter("serl").reject(Instruction(text, "u"), None) == reason


@pytest.mark.parametrize(
    "word",
    ["image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"],
)
def test_every_serl_keyword(word: str) -> None:
    assert QualityFilter("serl").reject(f"Now consider {word.upper()}, then count.", None) == "keyword"
    assert QualityFilter("serl").reject(f"Now consider x{word}y, then count.", None) is None


def test_every_reason_of_the_quality_rules_is_in_the_tables() -> None:
    assert {r for _, r in SERL if r} == {
        "empty", "too_short", "too_long", "keyword", "write_a_program", "punctuation", "non_ascii",
    }  # fmt: skip
    assert {r for _, r in DEFAULT if r} == {
        "empty", "too_short", "too_long", "keyword", "write_a_program", "punctuation", "solution_leak",
        "no_question", "several_questions", "no_context",
    }  # fmt: skip
    assert len(set(REASONS)) == len(REASONS) == 27


def test_a_cut_off_proposal_is_named_as_such() -> None:
    cut = Instruction("A train leaves the station at nine and", "u", meta={"truncated": True})
    assert QualityFilter().reject(cut, None) == "truncated_item"


def test_choices() -> None:
    options = {"choices": ["iron", "gold"]}
    seeds = InstructionPool([Instruction("Which metal rusts in moist air?", "a", meta=options)])
    with_options = Instruction("Which metal is the most noble?", "b", meta=options)
    without = Instruction("Which metal is the most noble?", "c")
    leaking = Instruction("Which metal is noble today?", "d", meta={"choices": ["iron", "gold\nAnswer: B"]})
    quality = QualityFilter()
    assert quality.reject(without, None) is None
    assert quality.reject(without, seeds) == "no_choices"
    assert quality.reject(with_options, seeds) is None
    assert quality.reject(leaking, seeds) == "solution_leak"
    assert quality.reject("Which metal is the most noble?\nA. iron\nB. gold\nC. Iron", seeds) == "no_choices"
    assert quality.reject("Which metal is the most noble?\nA. iron\nB. gold", seeds) is None
    assert quality.reject("Which metal is the most noble?", seeds) == "no_choices"
    assert QualityFilter(require_choices=True).reject(without, None) == "no_choices"
    assert QualityFilter(require_choices=False).reject(without, seeds) is None
    assert QualityFilter("serl").reject(without, seeds) is None


def test_quality_options() -> None:
    assert QualityFilter(min_words=2).reject("Add now", None) is None
    assert QualityFilter(max_words=5).reject("What is three plus four then?", None) == "too_long"
    own = QualityFilter(keywords=["如图", "look  up", "C++"])
    assert own.reject("如图所示,求角的度数。", None) == "keyword"
    assert own.reject("Please LOOK\nup the boiling point.", None) == "keyword"
    assert own.reject("Should one overlook upper and lower parts?", None) is None
    assert own.reject("What does C++ print for this line?", None) == "keyword"
    assert own.reject("In the figure, find the angle ABC.", None) is None
    assert QualityFilter(keywords=[]).reject("In the figure, find the angle ABC.", None) is None


def test_what_seeds_do_is_no_fault() -> None:
    told = "The tower stands in the middle of the town."
    parts = "A cat has 4 legs. (a) How many have 3 cats? (b) How many have 5 cats?"
    asking = InstructionPool([f"What is the sum of {i} and {i}?" for i in range(9)])
    assert [QualityFilter().reject(text, asking) for text in (told, parts)] == ["no_question", "several_questions"]
    assert QualityFilter().reject("Mji mkuu wa Kenya ni Nairobi leo.", asking) == "no_question", "the seeds ask"
    telling = InstructionPool([f"The number {i} comes from the town of birth." for i in range(9)])
    assert QualityFilter().reject(told, telling) is None
    assert QualityFilter().reject(parts, InstructionPool([parts.replace("cat", "dog")])) is None
    short = InstructionPool(["Who wrote Hamlet?", "Who wrote Faust?", "What is the capital of Peru?"])
    assert [QualityFilter().reject("Who wrote Emma?", pool) for pool in (asking, short)] == ["too_short", None]
    with_options = Instruction("The smallest of these numbers is", "u", meta={"choices": ["3", "4"]})
    assert QualityFilter().reject(with_options, None) is None


def test_novelty() -> None:
    pool = InstructionPool(["Tom has five apples and buys three. How many has he?", "求和。", "!!!"])
    novelty = NoveltyFilter()
    assert novelty.reject("tom has five apples and buys three -- how many has he", pool) == "duplicate"
    assert novelty.reject(Instruction("求和。", "u"), pool) == "duplicate"
    assert novelty.reject("!!!", pool) == "duplicate"
    assert novelty.reject("A train leaves at nine. When does it arrive?", pool) is None
    assert novelty.reject("!!!", None) is None
    near = "Tom has five apples and sells nine. How many has he?"
    assert novelty.reject(near, pool) == "duplicate"
    assert NoveltyFilter(0.9).reject(near, pool) is None


BAKERY = "A bakery sells {a} loaves in the morning and {b} in the afternoon. How many loaves does it sell on that day?"
CAKES = "A bakery bakes {a} cakes before noon and {b} cakes later. How many cakes does it bake on a whole day?"


def test_a_limit_on_problems_of_one_mould() -> None:
    stories = [CAKES.format(a="twelve", b="nine"), BAKERY.format(a=3, b=4)]
    new = "A bakery sells 30 rolls by noon and 12 rolls later. How many rolls does it sell on that day in May?"
    pool = InstructionPool([BAKERY.format(a=1, b=2)])
    for number, story in enumerate(stories):
        pool.add(Instruction(story, f"own-{number}"), "spent")
    assert pool.similar(new, 0.7) is None
    assert [pool.alike(new, 0.5, limit) for limit in (1, 2, 3)] == [1, 2, 2], "the seed does not count"
    verdicts = [NoveltyFilter(max_alike=limit).reject(new, pool) for limit in (None, 1, 2, 3)]
    assert verdicts == [None, "duplicate", "duplicate", None]
    assert NoveltyFilter(max_alike=1, alike=0.7).reject(new, pool) is None


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdict(*scores: float, weight: list[float] | None = None, **more) -> Verdict:
    return Verdict(torch.tensor(scores), weight=None if weight is None else torch.tensor(weight), **more)


def ones(k: int, n: int) -> Verdict:
    return verdict(*[1.0] * k, *[0.0] * (n - k))


BANDS = [
    # votes, responses, default, serl
    (0, 5, "too_hard", "too_hard"),
    (1, 5, None, None),
    (4, 5, None, "too_easy"),
    (5, 5, "too_easy", "too_easy"),
    (3, 16, "too_hard", "too_hard"),
    (4, 16, None, None),
    (12, 16, None, None),
    (13, 16, "too_easy", "too_easy"),
    (2, 10, None, None),
    (8, 10, None, "too_easy"),
    (1, 6, "too_hard", "too_hard"),
    (16, 20, None, "too_easy"),
    (800, 1000, None, "too_easy"),
    (801, 1000, "too_easy", "too_easy"),
    (199, 1000, "too_hard", "too_hard"),
]


@pytest.mark.parametrize(("votes", "n", "default", "serl"), BANDS)
def test_difficulty_band(votes: int, n: int, default: str | None, serl: str | None) -> None:
    group = Group.from_texts("p", ["t"] * n)
    for style, reason in (("default", default), ("serl", serl)):
        weights, reasons = DifficultyFilter(style=style).weigh([group], [ones(votes, n)])
        assert reasons == [reason]
        assert weights == [1.0 if reason is None else 0.0]


def test_difficulty_bounds_are_inclusive_for_every_share() -> None:
    problem = Group.from_texts("p", [])
    for n in range(1, 40):
        for k in range(n + 1):
            share = DifficultyFilter(k / n, k / n)
            for votes in range(n + 1):
                reason = share.weigh([problem], [ones(votes, n)])[1]
                assert reason == [None if votes == k else "too_hard" if votes < k else "too_easy"]


def test_difficulty_counts_only_responses_with_weight_and_takes_soft_scores() -> None:
    kept_out = verdict(1, 1, 1, 0, 0, weight=[1, 1, 1, 1, 0])
    soft = verdict(*[0.8] * 5)
    advantages = verdict(1, 1, 1, centred=True)
    nobody = verdict(0, 0, weight=[0, 0])
    said = verdict(0, 0, info={"no_answer": 2})
    problem = Group.from_texts("p", [])
    weights, reasons = DifficultyFilter(0.2, 0.75).weigh([problem] * 4, [kept_out, advantages, nobody, said])
    assert reasons == [None, None, "no_answer", "no_answer"]
    assert weights == [1.0, 1.0, 0.0, 0.0]
    assert DifficultyFilter().weigh([problem], [soft]) == ([1.0], [None])


def test_difficulty_judges_only_problems_with_scores_that_are_shares() -> None:
    problem = Group.from_texts("p", [])
    proposal = Group(Instruction("q", "u", role="propose"), (), [])
    certainty, all_solved = verdict(19.0, 18.5), verdict(1, 1)
    assert DifficultyFilter().weigh([problem, proposal, problem], [certainty, all_solved, all_solved])[1] == [
        None,
        None,
        "too_easy",
    ]


def test_zero_spread() -> None:
    cases = [
        (verdict(1, 0, 1), None),
        (verdict(1, 1, 1), "no_spread"),
        (verdict(0, 0, 0), "no_spread"),
        (verdict(1, 1, 0, weight=[1, 1, 0]), "no_spread"),
        (verdict(1, 0, 0, weight=[0.5, 2, 0]), None),
        (verdict(1), "no_spread"),
        (verdict(0.17911, 0.1791102, 0.1791101), "no_spread"),  # the same log-probs in batches of other sizes
        (verdict(-19.0, -19.0001), "no_spread"),
        (verdict(0.17911, 0.17921), None),
        (verdict(-19.0, -19.001), None),
        (verdict(0, 0, weight=[0, 0]), "no_answer"),
        (verdict(0, 0, 0, info={"no_answer": 3}), "no_answer"),
        (verdict(1, 1, info={"no_answer": 1}), "no_spread"),
        (verdict(1, 1, centred=True), None),
        (verdict(1, 1, token_scores=[torch.ones(2), torch.zeros(3)]), None),
    ]
    weights, reasons = ZeroSpread().weigh([], [v for v, _ in cases])
    assert reasons == [r for _, r in cases]
    assert weights == [1.0 if r is None else 0.0 for _, r in cases]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: DifficultyFilter(0.8, 0.2),
            "DifficultyFilter.low must be at most DifficultyFilter.high, got 0.8 and 0.2",
        ),
        (lambda: DifficultyFilter(float("nan"), 0.2), "got nan and 0.2"),
        (lambda: DifficultyFilter(style="Serl"), "DifficultyFilter.style must be default or serl, got 'Serl'"),
        (lambda: NoveltyFilter(0.0), "NoveltyFilter.threshold must be above 0 and at most 1, got 0.0"),
        (lambda: NoveltyFilter(1.5), "NoveltyFilter.threshold must be above 0 and at most 1, got 1.5"),
        (lambda: NoveltyFilter(max_alike=0), "NoveltyFilter.max_alike must be at least 1, got 0; null means no limit"),
        (lambda: NoveltyFilter(max_alike=2, alike=0.8), "NoveltyFilter.alike must be above 0 and at most 0.7, got 0.8"),
        (lambda: QualityFilter(style="strict"), "QualityFilter.style must be default or serl, got 'strict'"),
        (lambda: QualityFilter(min_words=9, max_words=3), "at most QualityFilter.max_words, got 9 and 3"),
        (lambda: QualityFilter(min_words=-1), "QualityFilter.min_words must be at least 0 .*, got -1 and 600"),
        (lambda: QualityFilter(keywords="figure"), "QualityFilter.keywords must be a list"),
        (lambda: QualityFilter(keywords=["a", " "]), "QualityFilter.keywords must be a list"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(make, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_filters_of_one_class_have_distinct_state_keys() -> None:
    filters = [
        QualityFilter(), QualityFilter("serl"), QualityFilter(keywords=["a"]), QualityFilter(min_words=2),
        NoveltyFilter(), NoveltyFilter(0.5), NoveltyFilter(max_alike=3), NoveltyFilter(style="serl"),
        DifficultyFilter(), DifficultyFilter(0.3), DifficultyFilter(style="serl"), ZeroSpread(),
    ]  # fmt: skip
    assert len({f.state_key for f in filters}) == len(filters)
    assert NoveltyFilter(0.5).state_key == NoveltyFilter(0.5).state_key


def test_bases_are_abstract() -> None:
    for base in (InstructionFilter, GroupFilter):
        with pytest.raises(TypeError, match="abstract"):
            base()


def test_hostile_texts_cost_little() -> None:
    for style in ("default", "serl"):
        quality = QualityFilter(style)
        for text in ("\n" * 1_000_000, "{" * 1_000_000, "a" * 1_000_000, "\ud800 \x00 a b c d", ("answer " * 100_000)):
            reason = quality.reject(text, None)
            assert reason is None or reason in REASONS


@pytest.mark.golden
def test_serl_style_equals_the_recorded_rejections_and_acceptances(golden_dir: Path) -> None:
    seeds = [row["problem"] for row in read(golden_dir / "serl_seed_500.jsonl")]
    rows = read(golden_dir / "serl_generated_llama_iter4_sample.jsonl")
    pool, quality, novelty = InstructionPool(seeds), QualityFilter(style="serl"), NoveltyFilter(0.7)
    for row in rows:
        proposal = Instruction(row["problem"], f"row-{row['idx']}")
        rejected = quality.reject(proposal, pool)
        assert rejected == row["filter_reject"], row["idx"]
        accepted = rejected is None and novelty.reject(proposal, pool) is None
        assert accepted == row["accepted_in_sequence"], row["idx"]
        if accepted:
            pool.add(proposal)
    assert len(pool) == 538


@pytest.mark.golden
def test_serl_style_on_the_seeds(golden_dir: Path) -> None:
    seeds = [row["problem"] for row in read(golden_dir / "serl_seed_500.jsonl")]
    reasons = [QualityFilter("serl").reject(seed, None) for seed in seeds]
    counts = {reason: reasons.count(reason) for reason in set(reasons)}
    assert counts == {None: 421, "keyword": 58, "too_short": 13, "too_long": 6, "punctuation": 2}
    changed = sum(parse_instructions(f"1. {seed}", "serl") != [" ".join(seed.split())] for seed in seeds)
    assert changed >= 321
    drawn = sum("[asy]" in seed for seed in seeds)
    default = [QualityFilter().reject(seed, None) for seed in seeds]
    assert default.count("keyword") >= drawn
    assert default.count(None) >= 500 - drawn - 15, "seeds that need no picture are usable"
