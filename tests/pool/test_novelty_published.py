"""Novelty as published: seeds and waiting problems only, ties decided by the order of float operations."""

from itertools import product

from rouge_score.rouge_scorer import RougeScorer

from lightning_serl.callbacks import NoveltyFilter
from lightning_serl.pool import InstructionPool
from lightning_serl.types import Instruction

TEXT = "Tom has five apples and buys three. How many has he?"


def test_what_was_answered_is_forgotten():
    pool = InstructionPool(["Ann sells nine pears. How many are left of twenty?"])
    pool.add(Instruction(TEXT, "r0-1"))
    default, published = NoveltyFilter(), NoveltyFilter(style="serl")
    assert default.reject(TEXT, pool) == published.reject(TEXT, pool) == "duplicate"
    pool.mark_spent(["r0-1", "seed-of-nobody"])
    assert (default.reject(TEXT, pool), published.reject(TEXT, pool)) == ("duplicate", None)
    pool.mark_kept("r0-1")
    assert (default.reject(TEXT, pool), published.reject(TEXT, pool)) == ("duplicate", None)
    seed = "Ann sells nine pears. How many are left of twenty?"
    assert published.reject(seed, pool) == "duplicate", "seeds are never forgotten"


def test_texts_without_words_equal_nothing():
    pool = InstructionPool(["!!!"])
    assert NoveltyFilter().reject("!!!", pool) == "duplicate"
    assert NoveltyFilter(style="serl").reject("!!!", pool) is None


def test_exact_ties_fall_as_in_the_published_scorer():
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    ties = above = 0
    for m, n in product(range(1, 60), repeat=2):
        if 7 * (m + n) % 20:
            continue
        lcs = 7 * (m + n) // 20
        if lcs > min(m, n):
            continue
        shared = [f"w{i}" for i in range(lcs)]
        ours = " ".join(shared + [f"a{i}" for i in range(m - lcs)])
        other = " ".join(shared + [f"b{i}" for i in range(n - lcs)])
        score = scorer.score(ours, other)["rougeL"].fmeasure
        assert abs(score - 0.7) < 1e-12
        rejected = NoveltyFilter(0.7, style="serl").reject(ours, InstructionPool([other])) is not None
        assert rejected == (score > 0.7), (m, n, score)
        ties, above = ties + 1, above + rejected
    assert ties > 50
    assert 0 < above < ties, "both outcomes occur"
