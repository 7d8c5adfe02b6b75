"""The pool: decisions equal to those of rouge_score, statuses and state."""

import json
import random
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lightning_serl.pool import InstructionPool, similarity
from lightning_serl.pool.pool import STATUSES
from lightning_serl.types import Instruction

SCORER = RougeScorer(["rougeL"], use_stemmer=False)


SEEDS = {
    "chinese": "小明有五个苹果,妈妈又给了他三个,请问他现在一共有多少个苹果?",
    "japanese": "太郎はりんごを五個持っています。三個もらうと全部で何個になりますか。",
    "korean": "철수는 사과 다섯 개를 가지고 있습니다. 세 개를 더 받으면 모두 몇 개입니까?",
    "arabic": "لدى أحمد خمس تفاحات وأعطته أمه ثلاث تفاحات أخرى، كم تفاحة لديه الآن؟",
    "hindi": "राम के पास पाँच सेब हैं और माँ ने उसे तीन सेब और दिए, अब उसके पास कितने सेब हैं?",
    "russian": "У Миши было пять яблок, мама дала ему ещё три. Сколько яблок у него теперь?",
    "greek": "Ο Γιάννης έχει πέντε μήλα και η μητέρα του έδωσε άλλα τρία. Πόσα μήλα έχει τώρα;",
    "thai": "สมชายมีแอปเปิลห้าผล แม่ให้อีกสามผล ตอนนี้เขามีแอปเปิลกี่ผล",
    "spanish": "Juan tenía cinco manzanas y su mamá le dio tres más. ¿Cuántas manzanas tiene ahora según tú?",
    "hebrew": "לדני היו חמישה תפוחים ואמא נתנה לו עוד שלושה. כמה תפוחים יש לו עכשיו?",
    "signs": "!!! ??? -> ...",
    "emoji": "🍎🍎🍎 ➕ 🍎 ❓",
    "english": "Tom has five apples and his mother gives him three more. How many apples does he have now?",
}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rouge(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


def words(rng: random.Random, size: int, vocabulary: int) -> list[str]:
    return [f"w{rng.randrange(vocabulary)}" for _ in range(size)]


def edit(rng: random.Random, text: str) -> str:
    """A text at a ROUGE-L distance that is often near 0.7."""
    parts = text.split()
    for _ in range(rng.randrange(2 + len(parts))):
        place = rng.randrange(len(parts) + 1)
        match rng.randrange(4):
            case 0:
                parts[place:place] = words(rng, 1, 40)
            case 1 if parts:
                del parts[min(place, len(parts) - 1)]
            case 2 if parts:
                parts[min(place, len(parts) - 1)] = f"W{rng.randrange(40)}!"
            case _:
                parts[place : place + 3] = parts[place : place + 3][::-1]
    return " ".join(parts)


@pytest.fixture(params=["as shipped", "crowded"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rows of bits nearly all words share one, and only the last dozen words of a text are counted."""
    if request.param == "crowded":
        for name, value in {"_OWN_ROWS": 16, "_SHARED_ROWS": 7, "_COUNTED": 12}.items():
            monkeypatch.setattr(similarity, name, value)


@pytest.mark.usefixtures("rows")
def test_scores_and_decisions_equal_rouge_score() -> None:
    rng = random.Random(7)
    pool, texts = InstructionPool(), []
    decisions = near = ties = 0
    for step in range(260):
        fresh = " ".join(words(rng, rng.randrange(1, 25), 40))
        text = edit(rng, rng.choice(texts)) if texts and rng.random() < 0.7 else fresh
        if not text:
            continue
        scores = [rouge(text, t) for t in texts]
        value, index = pool.nearest(text)
        best = max(scores, default=0.0)
        assert value == best
        assert index == (scores.index(best) if scores else -1)
        # thresholds that a score meets exactly are ties
        met = [score for score in rng.sample(scores, min(3, len(scores))) if score]
        for threshold in (0.4, 0.7, 0.9, 1.0, 1.0 - rng.random(), *met):
            first = next((i for i, score in enumerate(scores) if score > threshold), None)
            assert pool.similar(text, threshold, STATUSES) == first
            if threshold < 1.0:
                assert (pool.similar(text, threshold) is None) == (first is None)
            ties += best == threshold < 1.0
        decisions += len(scores)
        near += sum(0.6 < s < 0.8 for s in scores)
        assert pool.add(text) == len(texts), step
        texts.append(text)
    assert decisions >= 20_000
    assert near >= 100
    assert ties >= 3


def test_decisions_equal_rouge_score_when_words_share_rows() -> None:
    rng = random.Random(11)
    texts = [" ".join(f"w{int(9000 * rng.random() ** 3)}" for _ in range(rng.randrange(15, 60))) for _ in range(500)]
    pool = InstructionPool(texts)
    assert len({word for text in texts for word in text.split()}) > 4096, "more words than rows"
    found = 0
    for text in rng.sample(texts, 12):
        text = edit(rng, text)
        scores = [rouge(text, t) for t in texts]
        for threshold in (0.1, 0.3, 0.5, 0.7):
            first = next((i for i, score in enumerate(scores) if score > threshold), None)
            assert pool.similar(text, threshold) == first
            found += first is not None
        assert pool.nearest(text) == (max(scores), scores.index(max(scores)))
    assert 12 < found < 48


def test_long_texts_equal_rouge_score() -> None:
    rng = random.Random(12)
    base = [f"w{rng.randrange(3000)}" for _ in range(2300)]
    half, more = ([word for word in base if rng.random() < share] for share in (0.52, 0.57))
    pool = InstructionPool([" ".join(words) for words in (base[200::-1], half, more)])
    text = " ".join(base)
    scores = [rouge(text, other) for other in pool.texts]
    assert 0.65 < scores[1] < 0.7 < scores[2] < 0.75
    for threshold in (0.3, 0.7, scores[2]):
        first = next((i for i, score in enumerate(scores) if score > threshold), None)
        assert pool.similar(text, threshold) == first
    assert pool.nearest(text) == (scores[2], 2)


def test_few_entries_are_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    score = similarity.TextIndex.score
    monkeypatch.setattr(similarity.TextIndex, "score", lambda *args: compared.append(args) or score(*args))
    rng = random.Random(13)
    texts = [[f"w{int(60 * rng.random() ** 3)}" for _ in range(rng.randrange(20, 60))] for _ in range(3000)]
    pool = InstructionPool(map(" ".join, texts))
    pool.similar(" ".join([*texts[0], "1"]), 0.7)
    compared.clear()
    copies = 0
    for text in rng.sample(texts, 50):
        copies += pool.similar(" ".join([*text, "so", "many", "words", "more"]), 0.7) is not None
        half = len(text) // 2
        assert pool.similar(" ".join(rng.sample(text, half) + words(rng, half, 60)), 0.7) is None
    assert copies == 50
    assert 50 <= len(compared) <= 100, "of 300,000 pairs"


def test_single_pairs_equal_rouge_score() -> None:
    rng = random.Random(8)
    outcomes = []
    for _ in range(2500):
        a = " ".join(words(rng, rng.randrange(1, 30), 15))
        b = edit(rng, a)
        assert InstructionPool([a]).nearest(b)[0] == rouge(a, b)
        outcomes.append(InstructionPool([a]).similar(b, 0.7) is not None)
        assert outcomes[-1] == (rouge(a, b) > 0.7)
    assert 500 < sum(outcomes) < 2000


def test_ties_at_the_threshold_fall_as_the_floats_of_rouge_score_do() -> None:
    fell = {True: 0, False: 0}
    for m in range(1, 90):
        for n in range(m, 90):
            lcs, rest = divmod(7 * (m + n), 20)
            if rest or lcs > m:
                continue
            shared = [f"s{i}" for i in range(lcs)]
            a = " ".join(shared + [f"a{i}" for i in range(m - lcs)])
            b = " ".join(shared + [f"b{i}" for i in range(n - lcs)])
            duplicate = InstructionPool([a]).similar(b, 0.7) is not None
            assert duplicate == (rouge(a, b) > 0.7)
            fell[duplicate] += 1
    assert min(fell.values()) >= 40, "both roundings must occur"


@pytest.mark.parametrize("script", SEEDS)
def test_an_exact_copy_is_found_in_every_script(script: str) -> None:
    pool = InstructionPool(SEEDS.values())
    place = list(SEEDS).index(script)
    for copy in (SEEDS[script], f"  {SEEDS[script].upper()}\n"):
        assert pool.nearest(copy) == (1.0, place)
        for threshold in (0.3, 0.7, 1.0):
            assert pool.similar(copy, threshold) == place


@pytest.mark.parametrize(
    ("script", "new"),
    [
        ("chinese", "火车每小时行驶八十公里,从北京到天津需要多长时间才能到达?"),
        ("arabic", "قطار يسير بسرعة ثمانين كيلومترا في الساعة، متى يصل إلى المدينة؟"),
        ("hindi", "एक रेलगाड़ी अस्सी किलोमीटर प्रति घंटा चलती है, वह दिल्ली कब पहुँचेगी?"),
        ("russian", "Поезд едет со скоростью восемьдесят километров в час. Когда он приедет в город?"),
        ("spanish", "Un tren viaja a ochenta kilómetros por hora. ¿Cuándo llegará a la ciudad más próxima?"),
        ("thai", "รถไฟวิ่งด้วยความเร็วแปดสิบกิโลเมตรต่อชั่วโมง จะถึงเชียงใหม่เมื่อใด"),
    ],
)
def test_another_problem_in_the_same_script_is_new_and_a_small_edit_is_not(script: str, new: str) -> None:
    pool = InstructionPool(SEEDS.values())
    assert pool.similar(new, 0.7) is None
    assert pool.similar(SEEDS[script] + " 7", 0.7) == list(SEEDS).index(script)


def test_empty_texts() -> None:
    pool = InstructionPool()
    assert pool.nearest("anything") == pool.nearest("") == (0.0, -1)
    assert pool.similar("", 0.7) is None
    pool.add("word")
    pool.add("")
    assert pool.nearest("?") == (0.0, 0)
    assert pool.nearest("other") == (0.0, 0)
    assert pool.nearest(" ") == (1.0, 1)
    assert len(pool) == 2


def test_options_are_part_of_a_problem() -> None:
    stem = "Which of the following is true?"
    seed = Instruction(stem, "a", meta={"choices": ["water boils at 100 degrees", "ice sinks"]})
    pool = InstructionPool([seed])
    other = Instruction(stem, "b", meta={"choices": ["iron rusts in dry argon", "gold is soft metal", "neon burns"]})
    assert pool.similar(seed, 0.7) == 0
    assert pool.similar(other, 0.7) is None
    assert pool.multiple_choice
    pool.add("An open question", "seed")
    assert not pool.multiple_choice


def test_statuses_labels_and_uids() -> None:
    pool = InstructionPool([Instruction("What is 1+1?", "s0", label="2"), "plain seed"])
    first = pool.add(Instruction("made one", "m0", label="9"))
    second = pool.add("made two")
    pool.mark_kept("m0")
    pool.mark_kept(second)
    pool.mark_kept("s0")
    third = pool.add("made three")
    assert (first, second, third) == (2, 3, 4)
    assert pool.statuses == ["seed", "seed", "kept", "kept", "accepted"]
    assert [i.prompt for i in pool.seeds] == ["What is 1+1?", "plain seed"]
    assert [i.uid for i in pool.kept] == ["m0", "pool-3"]
    assert all(i.label is None for i in pool.seeds + pool.kept)
    assert pool.texts[third] == "made three"
    with pytest.raises(ValueError, match="uid 'm0'"):
        pool.add(Instruction("again", "m0"))
    with pytest.raises(ValueError, match="status 'used'"):
        pool.add("again", "used")
    with pytest.raises(KeyError):
        pool.mark_kept("nobody")
    assert len(pool) == 5, "a refused instruction leaves no trace"


@pytest.mark.usefixtures("rows")
def test_only_entries_of_the_wanted_statuses_count() -> None:
    rng = random.Random(5)
    pool, found = InstructionPool(), 0
    for i in range(120):
        pool.add(Instruction(" ".join(words(rng, 6, 12)), f"m{i}"), STATUSES[i % 4])
    for _ in range(40):
        text = edit(rng, rng.choice(pool.texts))
        scores = [rouge(text, other) for other in pool.texts]
        for among in (("seed", "accepted"), ("kept",), ("spent", "seed")):
            wanted = [i for i, status in enumerate(pool.statuses) if status in among and scores[i] > 0.7]
            assert pool.similar(text, 0.7, among) == (wanted[0] if wanted else None)
            found += bool(wanted)
    assert 20 < found < 100
    pool.mark_spent(["m1"])
    copy = pool.texts[1].upper()
    assert pool.similar(copy, 0.99) == 1
    assert pool.similar(copy, 0.99, ("accepted",)) is None


def test_state_is_primitive_and_restores_every_decision() -> None:
    rng = random.Random(3)
    pool = InstructionPool(
        [*SEEDS.values(), Instruction("Pick", "mc", meta={"choices": ["a b", "c d"], "subject": "x"})]
    )
    for i in range(30):
        pool.add(Instruction(" ".join(words(rng, 9, 20)), f"m{i}", role="other" if i == 4 else "solve"))
    pool.mark_kept("m3")
    state = json.loads(json.dumps(pool.state_dict()))
    copy = InstructionPool(["something else"])
    copy.load_state_dict(state)
    assert copy.state_dict() == pool.state_dict()
    assert [i.uid for i in copy.kept] == ["m3"]
    assert copy.seeds[-1].meta == {"choices": ["a b", "c d"], "subject": "x"}
    for _ in range(50):
        text = " ".join(words(rng, 9, 20))
        assert copy.nearest(text) == pool.nearest(text)
        for among in (None, ("seed",), ("kept", "accepted")):
            assert copy.similar(text, 0.5, among) == pool.similar(text, 0.5, among)
        assert copy.add(text) == pool.add(text)


def test_hostile_texts_cost_little() -> None:
    pool = InstructionPool(["ordinary words here"])
    for text in ("\ud800 lone", "\x00\x00", "{" * 1_000_000, "1" * 100_000, "a " * 20_000, "字" * 20_000):
        assert pool.nearest(text)[0] < 0.7
        pool.add(text)
        assert pool.similar(text, 0.7) is not None


@pytest.mark.golden
def test_scores_of_the_recorded_problems(golden_dir: Path) -> None:
    seeds = [row["problem"] for row in read(golden_dir / "serl_seed_500.jsonl")]
    rows = read(golden_dir / "serl_generated_llama_iter4_sample.jsonl")
    seed_pool, accepted = InstructionPool(seeds), InstructionPool()
    assert len(rows) == 62
    for row in rows:
        assert seed_pool.nearest(row["problem"]) == (row["max_rougeL_vs_seeds"], row["argmax_seed"])
        before = row["max_rougeL_vs_accepted_before"]
        assert accepted.nearest(row["problem"])[0] == (0.0 if before is None else before)
        if row["accepted_in_sequence"]:
            accepted.add(row["problem"])


def test_problems_about_other_passages_are_no_repetitions():
    def about(text, place, uid="new"):
        return Instruction(text, uid, meta={"passage": {"file": "a.txt", "start": place, "end": place + 50}})

    pool = InstructionPool(["What is the color of Mira?"])
    pool.add(about("What is the home of Zorin of Lodo?", 0, "old"))
    for problem, repeated in (
        (about("What is the home of Zorin of Lodo?", 60), True),  # the same words
        (about("What is the home of Telin of Lodo?", 60), False),  # another passage
        (about("What is the food of Zorin of Lodo?", 0), False),  # another fact of the passage
        (about("What is the home of Zorin of Lodo now?", 0), True),  # one has no word of its own
        (about("What is the home of the Zorin of Lodo?", 0), True),
        (about("What is the color of Mira now?", 60), True),  # seeds have no passage
        (Instruction("What is the home of Telin of Lodo?", "plain"), True),
    ):
        assert (pool.similar(problem, 0.7) is not None) == repeated, problem
