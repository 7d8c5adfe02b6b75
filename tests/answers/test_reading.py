"""Reading the answer off a response: thinking, boxes, announcements, letters, short texts."""

import time

import pytest

from lightning_serl.answers import ChoiceGrader, MathGrader, TextGrader, strip_thinking
from lightning_serl.answers.reading.announced import announced_answer, undisputed_number
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.last_formula import last_formula


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("a<think>b</think>c<think>d", "ac"),
        ("a</think>b", "b"),
        ("<think>only", ""),
        ("<think>a<think>b</think>c", "c"),
        ("a</think>b</think>c", "c"),
    ],
)
def test_thinking_is_no_answer(text, rest):
    assert strip_thinking(text) == rest


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1,2"),
        (r"\boxed{1} \quad \text{and} \quad \boxed{2}", "1,2"),
        (r"\boxed{3} = \boxed{3.0}", "3.0"),
        (r"\boxed{1}, cut off: \boxed{2", "1"),
        (r"\boxed{}", None),
        (r"\boxed{5} and \boxed{ }", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"$\\boxed{35 cm} ++ \\boxed{4}$", "35 cm,4"),
        (r"\\boxed{1}, \\boxed{\frac{1}{2}}", r"1,\frac{1}{2}"),
        ("no box", None),
        ("\\boxed{" + "{" * 10**6, None),
        ("\\boxed{" * 10**5, None),
    ],
)
def test_last_box(text, box):
    assert last_boxed(text) == box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("**Answer:** $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("the answer is $1,234 dollars", "1,234"),
        ("The answer is 4+3\\sqrt{2}.", "4+3\\sqrt{2}"),
        ("The answer is 5. No, the answer is \\(x=6\\).", "x=6"),
        ("The answer is $3$ or $-3$.", "3,-3"),
        ("The answer is $3$ or $-3$ or so.", None),
        ("The answer is the sum of both.", None),
        ("Nothing here", None),
        ("答案：42", "42"),
        ("答案为42", "42"),
        ("答案是42千克。", "42千克"),
        ("**答案：** $\\frac{1}{2}$。", "\\frac{1}{2}"),
        ("答案是1，2", "1,2"),
        ("答案是42，因为6×7=42。", "42"),
        ("答案是５。", "5"),
        ("答案是无法确定。", None),
        ("答案是5或6。", None),
        ("La respuesta es 42 porque 6 * 7 = 42 y no 43.", "42"),
        ("La respuesta es una suma de 3.", None),
        ("Die Antwort: 12 km. Das sind 12000 m.", "12 km"),
        ("الجواب: ٤٢", "42"),
        ("Answer：42", "42"),
        ("答案：41\n最终答案：42", "42"),
    ],
)
def test_announced_answer(text, answer):
    assert announced_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("A: 18", "18"),
        ("#### -1,234", "-1,234"),
        ("The final answer is $47$. I hope it is correct.", "47"),
        ("The answer is 18 as 3 * 6 = 18.", None),
        ("Answer: 3. But the answer is 4.", None),
        ("The answer is 18 percent.", None),
        ("The answer is $x$.", None),
        ("So it is 25%.", None),
        (r"It is 4. \boxed{", None),
    ],
)
def test_what_exact_mode_reads_without_help(text, answer):
    assert undisputed_number(text) == answer


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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hence $x = \\frac{1}{2}$ follows", "x = \\frac{1}{2}"),
        ("Then $a=2$ and $b=3$ hold", "a=2,b=3"),
        (r"Then \(P(2) = 3 + 4 = 7\) as said", "P(2) = 3 + 4 = 7"),
        ("It is $12-2=10$.\nThat is all.", "12-2=10"),
        ("Half of it is 50 percent.", r"50\%"),
        ("So it is 25%.", r"25\%"),
        ("It is 20 - 5 * 3", "20 - 5 * 3"),
        ("as 105 * 42 / ", "42"),
        ("He paid $77.00.", "77.00"),
        ("The total is 1,234 apples", "1234"),
        ("It weighs 3,5 kg", "3.5"),
        ("Here $x=3$, so $y = 4 + ", "4"),
        ("Here $x=3$, so\n\\[y = x + ", "x=3"),
        ("Hence\n\\[x^2 = 4\\]\nas was to be shown.", "x^2 = 4"),
        ("So the answer to this is that they found 7 shells. I counted 9.", "7"),
        ("The answer is 80 + 150 = 230 miles", "230"),
        ("Answer: they found 7.\nNo other answer is 8.", "7"),
        ("week 1: 1-2-3-4-5", "1-2-3-4-5"),
        ("costs $5. 1/4", "1/4"),
        (r"that is \frac{5}{8", None),
        (r"that is \frac{5}{8} =", r"\frac{5}{8}"),
        (r"The final answer is: $\boxed{___}$", ""),
        ("Nothing to see here.", None),
        ("", None),
    ],
)
def test_what_a_response_without_a_mark_comes_down_to(text, answer):
    assert last_formula(text) == answer


@pytest.mark.parametrize("piece", ["\\[", "$", "$$", "\\(", "answer", "1 ", "1,111 ", "(1+", "answer = 1 ", "\n$x$,"])
def test_long_texts_are_read_at_their_end(piece):
    # Longer texts are cut to their end; what is read there must not depend on where they began.
    short, long = (piece * (n // len(piece)) for n in (20_000, 200_000))
    assert last_formula(short) == last_formula(long)


def test_truncated_math_abstains_without_a_box():
    grader = MathGrader()
    assert grader.extract_truncated("we get 3 and then 4") is None
    assert grader.extract_truncated(r"\boxed{3}, checking: 3 =") == "3"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"),
        ("the answer is: **B**", "B"),
        (r"\boxed{\text{(D)}}", "D"),
        (r"\boxed{b}", "B"),
        ("Answer: A. Paris", "A"),
        ("Because of it.\n\nJ", "J"),
        ("答案是 C。", "C"),
        ("答案：B", "B"),
        ("Therefore it must be (E).", "E"),
        ("The answer is a dog.", None),
        ("I think so", None),
        ("<think>The answer is (A).</think>", None),
        ("The answer is (A). Wait, the answer is (D).", "D"),
        ("The answer is A because it is.", "A"),
        ("La opción correcta es B.", "B"),
        ("La respuesta correcta es la C", "C"),
        ("La opción B es correcta.", "B"),
        ("Respuesta: B) hígado", "B"),
        ("La bonne réponse est la D.", "D"),
        ("La réponse correcte est B.", "B"),
        ("Die richtige Antwort ist B.", "B"),
        ("Die Antwort lautet: C", "C"),
        ("A alternativa correta é a letra B.", "B"),
        ("La risposta corretta è B.", "B"),
        ("选择B。", "B"),
        ("所以选 B", "B"),
        ("故选：C。", "C"),
        ("正确答案是D", "D"),
        ("因此应选A选项。所以答案为 D。", "D"),
        ("正确选项为（B）。", "B"),
        ("选项B正确。", "B"),
        ("الجواب: B", "B"),
        ("الإجابة الصحيحة هي C.", "C"),
        ("الخيار الصحيح هو B", "B"),
        ("不选B。", None),
        ("Option B is not right.", None),
        ("La respuesta es una célula.", None),
        ("", None),
    ],
)
def test_choice_extraction(text, letter):
    assert ChoiceGrader().extract(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{A, B, C, D}",
        r"\boxed{A,C}",
        r"\boxed{a, c}",
        r"\boxed{(A), (C)}",
        r"\boxed{A/B}",
        r"\boxed{A\ \text{or}\ B}",
        r"\boxed{\text{A and C}}",
        r"\boxed{\{A, C\}}",
        r"\boxed{A C}",
        r"\boxed{ABCD}",
        r"\boxed{A. iron, C. gold}",
        r"\boxed{(A) iron or (B) neon}",
        r"\boxed{A、C}",
        r"\boxed{A或C}",
        r"Either \boxed{A} or \boxed{B}",
        r"\boxed{A}, \boxed{C}",
        r"$\boxed{A}$ and $\boxed{\text{(C)}}$",
        r"\boxed{A} (iron) or perhaps \boxed{B}",
        r"\boxed{A}或\boxed{B}",
        r"\boxed{A} oder \boxed{B}",
        r"The answer is A. No: \boxed{A, C}",
        "The answer is A, C.",
        "The answer is (A) or (B).",
        "Answer: A, B, C, D",
        "答案：A、C",
        "So it is (A) or (C).",
    ],
)
def test_whoever_names_several_options_chooses_none(text):
    assert ChoiceGrader().extract(text) is None
    assert ChoiceGrader().extract_truncated(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{A. iron}", "A"),
        (r"\boxed{A: iron}", "A"),
        (r"\boxed{A) iron}", "A"),
        (r"\boxed{(A) iron}", "A"),
        (r"\boxed{\text{A}}", "A"),
        (r"\boxed{\textbf{(A)}\ 5}", "A"),
        (r"\boxed{A. vitamins A, B and C}", "A"),
        (r"\boxed{D. Both A and B}", "D"),
        (r"\boxed{D. A and B}", "D"),
        (r"\boxed{(D) both (A) and (B)}", "D"),
        (r"\boxed{A, a noble gas}", "A"),
        (r"\boxed{A, since B is wrong}", "A"),
        (r"\boxed{C. 3, 5}", "C"),
        (r"It is \boxed{A}. Wait, that is wrong: \boxed{B}", "B"),
        (r"It is not \boxed{A} but \boxed{B}", "B"),
        (r"\boxed{A}. So the answer is \boxed{A}", "A"),
        (r"\boxed{A} and \boxed{\text{A}}", "A"),
        ("The answer is (A), not (B).", "A"),
        ("The answer is B; A, C and D are wrong.", "B"),
        ("The answer is C. A and B are wrong.", "C"),
        ("The answer is A, B is wrong.", "A"),
    ],
)
def test_who_speaks_of_other_options_chooses_one(text, letter):
    assert ChoiceGrader().extract(text) == letter


def test_a_label_of_several_letters_is_none():
    assert [ChoiceGrader().label(x) for x in ("A, C", "C. 42", "(b)", "A. vitamin B")] == [None, "C", "B", "A"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is in Europe.\nAnswer: **Paris**.", "paris"),
        (r"\boxed{\text{Acute  Appendicitis}}", "acute appendicitis"),
        ("因此，答案是：北京。", "北京"),
        ("La respuesta es: Sí.", "sí"),
        ("ответ: Москва!", "москва"),
        ("Explanation.\nＮａＣｌ", "nacl"),
        (r"\boxed{\ce{H2O}}", "h2o"),
        ("x" * 5000, None),
        ("...", None),
        ("", None),
    ],
)
def test_text_extraction(text, answer):
    assert TextGrader().extract(text) == answer


def test_text_keeps_the_order_of_letters():
    grader = TextGrader()
    assert not grader.same(grader.extract("NaCl"), grader.extract("ClNa"))


@pytest.mark.parametrize("grader", [MathGrader(), ChoiceGrader(), TextGrader()], ids=lambda g: g.name)
@pytest.mark.parametrize("label", ["C", "(C)", "$C$", r"\boxed{C}"])
def test_labels_bare_and_boxed(grader, label):
    read = grader.label(label)
    assert read is not None
    if grader.name == "choice" or "(" not in label:
        assert grader.same(grader.extract(r"\boxed{C}"), read)


@pytest.mark.parametrize("piece", ["A, ", "(A) ", " \n", "选", "answer is ", "\\boxed{A} or ", "\\boxed{"])
def test_a_hostile_choice_costs_little(piece):
    started = time.process_time()
    for text in (piece * 30_000, "answer is" + piece * 1000 + "x", f"\\boxed{{{piece * 200}x}}"):
        ChoiceGrader().extract(text)
    assert time.process_time() - started < 2
