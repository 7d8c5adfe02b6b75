"""Tokens and word counts in any script."""

import random
import unicodedata

import pytest
from rouge_score.tokenize import tokenize

from lightning_serl.pool.words import count_words, tokenise


def test_tokens_of_latin_text_are_those_of_rouge_score() -> None:
    rng = random.Random(9)
    letters = [c for c in map(chr, range(0x20, 0x250)) if unicodedata.category(c) != "Cs"]
    letters += list("ẞỳ€’“”–…×÷≤√∑∫ℝℓπ²³½ªº\u0301\u200b")
    for _ in range(500):
        # Greek letters stand alone in Latin text: two in a row would be a word.
        text = " ".join("".join(rng.choice(letters) for _ in range(rng.randrange(8))) for _ in range(8)).replace(
            "ππ", "π"
        )
        assert tokenise(text) == tokenize(text, None), text
    sentence = "Where sin α = 1/2 and Δx = π²/6, find ∠ABC in ℝ to 3 µm; señor Müller's café 𝑥+𝟏"
    assert tokenise(sentence) == tokenize(sentence, None)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Сколько 5кг яблок?", ["сколько", "5", "кг", "яблок"]),
        ("πόσα μήλα", ["πόσα", "μήλα"]),
        ("苹果 5个", ["苹", "果", "5", "个"]),
        ("りんごを", ["り", "ん", "ご", "を"]),
        ("사과 세 개", ["사과", "세", "개"]),
        ("كم تفاحة؟ ٣٤", ["كم", "تفاحة", "٣٤"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("กี่ผล", ["กี่", "ผ", "ล"]),
        ("می\u200cشود", ["می\u200cشود"]),
        ("é\u0301 x̄ n", ["x", "n"]),
        ("１２個", ["12", "個"]),
        ("", []),
        ("🍎 !?", []),
    ],
)
def test_tokens_of_other_scripts(text: str, tokens: list[str]) -> None:
    assert tokenise(text) == tokens


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Compute $\\frac{3}{4} + 1$.", 5),
        ("I don't know", 3),
        ("¿Cuántas manzanas tiene según tú?", 5),
        ("小明有五个苹果", 7),
        ("हिन्दी में", 2),
        ("  \n ", 0),
        ("!? 🍎", 0),
    ],
)
def test_count_words(text: str, count: int) -> None:
    assert count_words(text) == count
