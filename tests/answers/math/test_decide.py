"""The rules that decide equality without algebra."""

import random

import pytest

from lightning_serl.answers import MathGrader
from lightning_serl.answers.math.decide import decide, decide_unambiguous


def test_nothing_is_equated_that_math_verify_separates():
    """Random pairs of short answers of every kind: whatever is decided here, exact mode says too."""
    rng, grader = random.Random(5), MathGrader("exact")

    def number():
        return rng.choice(
            [
                "2",
                "-3",
                "0.5",
                r"\frac{1}{2}",
                "1/2",
                r"\sqrt{2}",
                r"2\sqrt{3}",
                r"\pi",
                "10",
                r"\frac{3}{4}",
                "4",
                "x",
                "2x",
            ]
        )

    def answer():
        kind = rng.randrange(7)
        if kind == 0:
            return f"({number()},{number()})"
        if kind == 1:
            return f"x={number()}"
        if kind == 2:
            return f"{number()},{number()}"
        if kind == 3:
            return f"{number()}+{number()}"
        if kind == 4:
            return f"[{number()},{number()}]"
        if kind == 5:
            return f"\\frac{{{number()}}}{{3}}"
        return number()

    spellings = {r"\sqrt{2}": r"2^{1/2}", r"2\sqrt{3}": r"\sqrt{12}", r"\frac{1}{2}": r"\frac{3}{6}", "2x": "x+x"}
    decided, equal, differ = 0, 0, []
    for _ in range(200):
        a = answer()
        b = answer() if rng.random() < 0.7 else a
        for old, new in spellings.items():
            b = b.replace(old, new)
        ours = decide(a, b)
        if ours is None or a == b:
            continue
        grader.start_group()
        decided, equal = decided + 1, equal + ours
        if grader.same(a, b) != ours:
            differ.append((a, b, ours))
    assert decided > 130
    assert equal >= 15
    assert differ == []


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (r"\dfrac{1}{2}", "1/2", True),
        (r"\frac12", "0.5", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.3333", False),
        ("1,234", "1234", True),
        (r"1{,}234 \text{ cm}^2", "1234.0", True),
        ("2", "3", False),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        ("-\\frac{10}{9}", "-10/9", True),
        ("072", "72", True),
        (r"90^\circ", "90", True),
        (r"\text{Even}", "Even", True),
        ("Cannot be determined", "cannot be determined.", True),
        ("Cannot be determined", "4", False),
        ("x+1", "1+x", True),
        (r"5\text{ or }6", "5", False),
        (r"\sqrt{x^2}", "x", None),
        ("20\\%", "20", True),
        ("20\\%", "0.2", True),
        ("12.5%", "12.5", False),
        ("12.5%", "0.125", True),
        ("20\\%", "20.0%", True),
        ("81, 100", "81100", False),
        ("10 000", "10,000", True),
        ("3 1/2", "3.5", True),
        (r"\log_3 19", r"\log_{319} x", False),
        (r"\sin x", r"\sin  x", True),
        ("10 square meters", "10", True),
        ("sqrt(2)+sqrt(3)", r"\sqrt{2}+\sqrt{3}", True),
    ],
)
def test_plain_rules(a, b, verdict):
    assert decide(a, b) is verdict
    assert decide(b, a) is verdict


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("7", "7.0", True),
        ("-3", "3", False),
        ("1/3", "0.333333", None),
        ("0.333333", "0.3333334", None),
        (r"\frac{1}{2}", "3x", False),
        ("(1,2)", "(1,3)", False),
        ("Cannot be determined", "4", False),
        ("x+1", "1+x", None),
        ("1/2", "0.5", None),
        ("5 cm", "6", None),
        ("20\\%", "30", None),
        ("1000(26)", "3", None),
        ("81,100", "3", None),
        ("30_5", "17", None),
        ("5.", "6", None),
        ("3 1/2", "9", None),
        ("There are 5 of them", "5", None),
        ("5 m", "5 s", None),
        ("1.5e-3", "7", None),
    ],
)
def test_exact_mode_settles_only_what_hangs_on_no_reading(a, b, verdict):
    assert decide_unambiguous(a, b) is verdict
    assert decide_unambiguous(b, a) is verdict


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("3.5 mol/L", "3.5", True),
        ("3.5 mol/L", r"3.5\,\text{mol L}^{-1}", True),
        ("3.5 mol/L", r"$3.5\ \mathrm{mol\,L^{-1}}$", True),
        ("3.5 mol/L", "3.6 mol/L", False),
        ("3.5 mol/L", "3.5 g/L", False),
        ("12 cm", "12", True),
        ("12 cm", "12 m", False),
        ("12 cm", "12 centimeters", True),
        ("12 cm", "0.12 m", False),
        ("8.314 J/(mol K)", r"8.314\,\text{J mol}^{-1}\text{K}^{-1}", True),
        ("9.8 m/s^2", "9.8 m s^{-2}", True),
        ("60 miles per hour", "60", True),
        ("25 °C", r"25^\circ\text{C}", True),
        (r"5\,\mu\text{m}", "5 µm", True),
        ("10 ml", "10 mL", True),
        ("1,250 g", "1250", True),
        ("1 250 g", "1250", True),
        (r"1.5 \times 10^{-3}\,\text{mol}", "0.0015 mol", True),
        ("1.5e-3", "0.0015", True),
        (r"6.02\times10^{23}", "6.02e23", True),
        ("2e-3", "0.002", False),
        ("$5", "5 dollars", True),
        ("5 million", "5", None),
        ("5 % NaCl", "5", None),
        ("120J", "120", False),
        ("120 J", "120", True),
        ("5x", "5", False),
        ("5 or 6", "5", False),
        ("3 kg", "x", False),
        ("12 小时", "12", True),
        ("12小时", "12 个小时", True),
        ("12 小时", "12 hours", True),
        ("12 小时", "12 分钟", False),
        ("12 千克", "12", True),
        ("12 千克", "12 kg", True),
        ("12 千克", "12 克", False),
        ("60 千米每小时", "60 km/h", True),
        ("60 公里/小时", "60 km/h", True),
        ("5 平方米", "5 m^2", True),
        ("5 平方米", "5 米", False),
        ("5 个苹果", "5", True),
        ("5 años", "5", True),
        ("5 años", "5 meses", False),
        ("5 kilómetros", "5 km", True),
        ("5 Jahre", "5", True),
        ("5 Jahre", "5 years", True),
        ("5 Quadratmeter", "5 m^2", True),
        ("5 лет", "5 года", True),
        ("12 ساعة", "12", True),
        ("5 years", "5 months", False),
        ("5 years", "5 years old", True),
        ("5 years old", "5 months old", False),
        ("5 apples", "5 fruits", True),
        ("5 J (joules)", "5 J", True),
        ("5 J (joules)", "5 J^2", False),
        ("12 meters", "12 cm", False),
        ("12 km", "12 m", False),
        ("5 square meters", r"5\ \text{m}^2", True),
        ("5 meters squared", "5 m^2", True),
        ("60 miles per hour", "60 mph", True),
        ("60 miles per hour", "60 miles", False),
        ("20 km each day", "20 km", True),
        ("37 degrees Celsius", "37 °C", True),
        ("37 degrees Celsius", r"37^\circ\text{C}", True),
        ("37 grados Celsius", "37 °C", True),
        ("37 °C", "37 °F", False),
        ("37 degrees", "37 °C", True),
        ("50 €", "50", True),
        ("50 €", "€50", True),
        ("50 €", "50 euros", True),
        ("50 €", r"\$50", False),
        ("$50", "50 dollars", True),
        ("$50", "€50", False),
        ("1.5 x 10^-3", "0.0015", True),
        ("1.5 × 10^-3", "0.0015", True),
        ("6.02 x 10^23", "6.02e23", True),
        ("10^{-3} m", "0.001 m", True),
        ("5 hours 3 minutes", "5", None),
        ("5 小时 3 分钟", "5", None),
    ],
)
def test_quantities(a, b, equal):
    assert decide(a, b) is equal
    assert decide(b, a) is equal
