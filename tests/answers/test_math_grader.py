"""The math grader: extraction, equality, hostile answers, budgets and cached verdicts."""

import json
import time

import pytest

from lightning_serl.answers import MathGrader, cluster
from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.errors import InputError

HOSTILE = [
    "9^{9^{9}}",
    "1000000!",
    r"\binom{1000000}{500000}",
    "{" * 900,
    "x\x00y",
    "\ud800\\frac{1}{2}",
    "(x+1)^{500}(x-1)^{400}",
    r"\frac{" * 200,
]


def processor_seconds():
    """Of this process and its worker; the clock would also count what else the machine does."""
    return time.process_time() + shared_client().seconds


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("½", "0.5", True),
        ("3½", "3.5", True),
        ("1⁄2", "0.5", True),
        ("10⁻³", "0.001", True),
        ("10⁻³", "0.01", False),
        ("1.5 × 10⁻³ m²", "0.0015 m^2", True),
        ("x²", "x^2", True),
        ("٣٫٥", "3.5", True),
        ("۴۲", "42", True),
        ("４２", "42", True),
        ("２０％", "20\\%", True),
        ("37 ℃", "37 °C", True),
        ("2π", r"2\pi", True),
        ("5 hours 3 minutes", "5", False),
        ("5 ft 3 in", "5", False),
        ("5 ft 3 in", "5 ft", False),
        ("2π", "2", False),
        ("2α", "2", False),
        ("5万", "5", False),
        ("3 千", "3", False),
        ("3成", "3", False),
        ("50 por ciento", "50 m", False),
        ("5 mil", "5", False),
        ("5 Millionen", "5", False),
        ("5 tausend", "5", False),
        ("5 y medio", "5", False),
        ("5 或 6", "5", False),
        ("5 milliards", "5", False),
        ("5 مليون", "5", False),
    ],
)
def test_other_scripts(a, b, equal):
    grader = MathGrader()
    assert grader.same(a, b) is equal
    assert grader.same(b, a) is equal


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("x+1", "1+x", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("(1,2)", "(2,1)", False),
        ("x=5", "5", True),
        (r"\frac{\pi}{2}", r"0.5\pi", True),
        ("1/2", "0.5", True),
        ("7", "8", False),
        (r"\{1,2\}", r"\{2,1\}", True),
    ],
)
def test_equality(mode, a, b, equal):
    grader = MathGrader(mode)
    assert grader.same(a, b) is equal
    assert grader.same(b, a) is equal


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("9, 18, 27, 36, ...", "36", False),
        ("9, 18, 27, 36, ...", "9, 18", False),
        (r"1, 4, \ldots", "1,4,...", True),
        (r"1, 2, \dots, 10", "1, 2, …, 10", True),
        (r"1,\ \ldots,\ 5", "1, 5", False),
        ("1, 2", "2, 1", True),
    ],
)
def test_a_list_that_leaves_members_out_equals_only_itself(mode, a, b, equal):
    grader = MathGrader(mode)
    assert grader.same(a, b) is equal
    assert grader.same(b, a) is equal


def test_unknown_mode_names_the_known_ones():
    with pytest.raises(InputError, match="fast or exact"):
        MathGrader("slow")


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_answer_costs_a_group_at_most_a_second(mode, hostile):
    grader = MathGrader(mode)
    grader.same("x+2", "2+x")  # the worker's start-up is not charged
    texts = [f"\\boxed{{{a}}}" for a in (hostile, "1", "2", "x+1", "1+x", r"\sqrt{2}", "3", r"\frac{x}{2}")]
    started = processor_seconds()
    answers, classes = cluster(texts, [True] * len(texts), grader)
    assert processor_seconds() - started < 1
    assert classes[3] == classes[4], "honest answers are still compared"
    assert classes.count(classes[0]) == 1 or answers[0] is None


@pytest.mark.parametrize(
    "text", ["{" * 10**6, "}" * 10**6, "\\boxed{" + "1" * 10**6 + "}", "$" * 10**5, "9" * 10**5, "\x00" * 1000]
)
def test_hostile_responses_cost_a_group_at_most_a_second(text):
    grader = MathGrader()
    grader.same("x+2", "2+x")
    texts = [text, text + " ", "so \\boxed{1}", "\\boxed{1.0}"]
    started = processor_seconds()
    _, classes = cluster(texts, [True] * 4, grader)
    assert processor_seconds() - started < 1
    assert classes[2] == classes[3] >= 0


def test_a_hostile_answer_is_remembered():
    grader = MathGrader()
    grader.same("9^{9^{9}}", "x+2")
    assert grader.timeouts > 0
    before = shared_client().requests
    assert not grader.same("9^{9^{9}}", "y+z")
    assert shared_client().requests == before


def test_spent_budget_is_no_verdict_to_remember():
    grader = MathGrader()
    grader.start_group(0.0)
    assert not grader.same(r"\int_0^2 x dx", r"2")
    grader.start_group()
    assert grader.same(r"\int_0^2 x dx", r"2")


def test_too_little_budget_costs_the_worker_nothing():
    grader = MathGrader("exact")
    grader.start_group(0.01)
    before = shared_client().requests
    assert not grader.same(r"\sin c+\cos d", r"\cos d+\sin c")
    assert grader.extract(r"It is $c+d$, as $\oint 7$ and nothing else says.") == r"\oint 7", "as in fast mode"
    assert (grader.timeouts, shared_client().requests) == (0, before)


@pytest.mark.golden
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_recorded_pairs(golden_dir, mode):
    grader, differ = MathGrader(mode), []
    for line in (golden_dir / "answer_pairs_math_verify.jsonl").read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        grader.start_group()
        gold, pred = grader.extract(pair["gold"]), grader.extract(pair["pred"])
        equal = gold is not None and pred is not None and grader.same(gold, pred)
        if equal != pair["ref090"]["equal"]:
            differ.append(pair["id"])
            assert equal == pair["expected_equal"], pair["id"]
    assert len(differ) <= 3, differ


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"... so \boxed{42}.", "42"),
        (r"\boxed{1}</think>Therefore $\boxed{2}$", "2"),
        ("First 3 apples, then 4, which makes 7 apples.", "7"),
        ("A: 610", "610"),
        ("nothing to see", None),
        (r"\boxed{___}", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_math_extraction(text, answer, mode):
    assert MathGrader(mode).extract(text) == answer


DERIVED = "First we double the four apples and then we add two more: 2 * 4 + 2 = 10. So there are 10 apples."


DOUBTFUL = "The first part of it is 12 cm long. Therefore the whole of it has a length of 2 * 12 = 24 cm."


SILENT = "The closed form of this sum cannot be found without doing all of the work by hand."


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_box_full_of_sentences_is_read_where_readings_agree(mode):
    grader = MathGrader(mode)
    answer = grader.extract(f"Complete the square. The final answer is: $\\boxed{{{DERIVED}}}$")
    assert answer == "10"


def test_a_box_full_of_doubtful_sentences_is_its_own_answer():
    response = f"There are two. The final answer is: $\\boxed{{{DOUBTFUL}}}$"
    assert MathGrader("fast").extract(response) == DOUBTFUL
    assert MathGrader("exact").extract(response) == "12", "as math-verify has it"
    response = f"There are $n=3$ parts. The final answer is: $\\boxed{{{SILENT}}}$"
    assert MathGrader("fast").extract(response) == SILENT, "a formula before the box is none of its answers"


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("It follows that $x + 1 = x^2 = 5$ ends it", "x + 1 = x^2 = 5"),
        (r"thus $\text{M} \begin{pmatrix} 1 \\ 3 \end{pmatrix} = 2 + \begin{pmatrix} 7", "7"),
        ("so 105 * 42 / ", "42"),
    ],
)
def test_what_math_verify_finds_is_spelled_so_that_it_reads_back(text, spelling):
    assert MathGrader("exact").extract(text) == spelling


def test_truncated_math_abstains_without_a_box():
    grader = MathGrader()
    assert grader.extract_truncated("we get 3 and then 4") is None
    assert grader.extract_truncated(r"\boxed{3}, checking: 3 =") == "3"


def test_calculations_are_equal_if_their_results_are():
    grader = MathGrader()
    for a, b, equal in (
        ("7 + 7 = 15", "7 + 7 = 14", False),
        ("0 + 9 = 9", "1 + 9 = 10", False),
        ("7 + 7 = 15", "8 + 7 = 15", True),
        (r"3 \times 4 = 12", "12", True),
        ("1 + 2 = 3 = 2 + 1 = 4", "4", True),
        ("x = 5", "5", True),
    ):
        assert grader.same(a, b) is grader.same(b, a) is equal, (a, b)
