"""The examples of docs/domains.md, and rounds in other scripts and domains: from a jsonl file to voted answers."""

import importlib.util
import json
import random
import re
from pathlib import Path

import pytest
from helpers.command_line import cli, rows, write_rows

from lightning_serl.rewards import VerifiableReward
from lightning_serl.types import Group

DOC = (Path(__file__).parents[2] / "docs" / "domains.md").read_text(encoding="utf-8")
SEEDS = [
    [json.loads(line) for line in block.splitlines()] for block in re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)
]


def predict(root, seeds, lists, responses, *options):
    """A round of the command ``predict`` with a script in the model's place: what it wrote, and its ledger."""
    engine = {"class_path": "helpers.engines.Scripted", "init_args": {"lists": lists, "responses": responses}}
    file = write_rows(root / "problems.jsonl", seeds)
    ended = cli(
        "predict", *options, "--data.seeds", file, "--data.engine", json.dumps(engine), "--data.predict_to",
        root / "look.jsonl", "--data.rounds_per_epoch", 1, "--data.writing.exemplars", 2, "--data.writing.from_kept", 0,
        "--data.writing.prompts_per_call", len(lists), "--data.round.samples_per_prompt", len(responses),
        "--data.round.max_attempts", 1, "--trainer.default_root_dir", root / "run",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    return rows(root / "look.jsonl"), rows(root / "run" / "ledger.jsonl"), ended


def listed(problems, first=3):
    return "".join(f"{i}. {p}\n" for i, p in enumerate(problems, first))


def reasons(ledger):
    """Of what was written; a script that has run out writes nothing, which is counted as empty."""
    return [e["reason"] for e in ledger if e["event"] == "rejected" and e["reason"] != "empty"]


# -- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_these_examples():
    assert [len(block) for block in SEEDS] == [3, 3, 3]


def test_numbers(tmp_path):
    made = [
        "A hose fills a pool of 90 litres in 6 minutes. How many litres per minute?",
        "Write $\\frac{1}{4}$ as a decimal.",
    ]
    responses = ["It is $\\boxed{\\frac{30}{2}}$.", "\\boxed{15.0}", "\\boxed{15\\text{ litres}}", "\\boxed{14}"]
    look, _, _ = predict(tmp_path, SEEDS[0], [listed(made)], responses, "-c", "preset:domain-math")
    assert [row["problem"] for row in look] == made
    assert {row["confidence"] for row in look} == {0.75}


def test_choices(tmp_path):
    made = [
        "Which vitamin prevents rickets?\nA. C\nB. D\nC. K",
        "Which organ makes insulin?",
        "Which nerve moves the diaphragm?\n(A) vagus\n(B) phrenic",
    ]
    responses = ["\\boxed{B}", "The answer is (B).", "\\boxed{\\text{b}}", "\\boxed{C}"]
    look, ledger, _ = predict(tmp_path, SEEDS[1], [listed(made)], responses, "-c", "preset:domain-choice")
    assert [(row["problem"], row["choices"], row["answer"]) for row in look] == [
        ("Which vitamin prevents rickets?", ["C", "D", "K"], "B"),
        ("Which nerve moves the diaphragm?", ["vagus", "phrenic"], "B"),
    ]
    assert [row["confidence"] for row in look] == [0.75, 0.75]
    assert reasons(ledger) == ["no_choices"]


def test_ten_letters(tmp_path):
    options = [f"option {i}" for i in range(10)]
    seeds = [{"problem": f"Which of these ten things is number {i} of all?", "choices": options} for i in range(2)]
    made = "Which of the following names the last thing?\n" + "\n".join(
        f"{'ABCDEFGHIJ'[i]}. thing {i}" for i in range(10)
    )
    look, _, _ = predict(
        tmp_path, seeds, [listed([made])], ["\\boxed{J}", "Answer: J", "K"], "-c", "preset:domain-choice"
    )
    assert [(row["answer"], row["choices"][9]) for row in look] == [("J", "thing 9")]
    assert look[0]["confidence"] == pytest.approx(2 / 3, abs=1e-5)


def test_words(tmp_path):
    made = [
        "Welches Gericht entscheidet in Deutschland über die Verfassung?",
        "元素周期表中原子序数为 29 的元素叫什么名字?",
    ]
    responses = ["\\boxed{Kupfer}", "Antwort: kupfer.", "\\boxed{ KUPFER }", "答案:铜"]
    look, _, ended = predict(tmp_path, SEEDS[2], [listed(made)], responses, "-c", "preset:domain-text")
    assert [(row["problem"], row["answer"], row["confidence"]) for row in look] == [(p, "kupfer", 0.75) for p in made]
    assert "error" not in ended.err


def test_a_grader_of_ones_own(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    (tmp_path / "codes.py").write_text(code[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = ["Which code stands for a non-ST elevation infarction of the heart?"]
    responses = ["I think I21.4 fits.", "So it is i214", "I21.9", "no idea"]
    look, _, _ = predict(tmp_path, SEEDS[2], [listed(made)], responses, "--data.grader", "codes.Codes")
    assert [(row["answer"], row["confidence"]) for row in look] == [("I214", 0.5)]
    spec = importlib.util.spec_from_file_location("codes", tmp_path / "codes.py")
    codes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(codes)
    labelled = Group.from_texts(made[0], responses, label="I21.4")
    assert VerifiableReward(codes.Codes())([labelled], None)[0].scores.tolist() == [1.0, 1.0, 0.0, 0.0]


# -- other scripts ----------------------------------------------------------------------------------------------------

WORDS = {
    "who": "tenant,landlord,baker,carrier,insurer,buyer,broker,surgeon,trustee,widow,guard,mayor,pilot,editor,founder",
    "did": "signed,returned,damaged,pledged,inspected,leased,refused,sold,painted,shipped,measured,buried,insured,hid",
    "what": "oven,deed,cargo,ledger,vineyard,orchard,statue,lorry,invoice,receipt,barge,piano,mortgage,patent,fence",
    "how": "in writing,by telephone,without notice,at night,under protest,for cash,before witnesses,on credit",
    "where": "near Ghent,at the harbour,behind the mill,in court,on the ferry,at an auction,in the cellar",
}


def vignette(number):
    """About 300 words of facts, other facts for every number, and a question."""
    draw = random.Random(number)
    text = ""
    while len(text.split()) < 290:
        who, did, what, how, where = (draw.choice(WORDS[k].split(",")) for k in WORDS)
        text += f"The {who} {did} the {what} {how} {where}. "
    return text + f"Which claim, if any, does the {draw.choice(WORDS['who'].split(','))} have?"


DOMAINS = {
    "chinese": (
        ["小明有五个苹果,又买了三个,现在一共有几个苹果?", "一辆汽车每小时行驶六十公里,三小时行驶多少公里?"],
        [
            "农场里有十二只鸡和七只鸭,一共有多少只家禽?",
            "一本书有二百页,小红每天读二十页,几天可以读完?",
            "长方形花园长九米,宽四米,它的面积是多少平方米?",
            "水池里有一百升水,每分钟流出五升,多久会流空?",
            "三个连续整数的和是三十六,最大的一个是多少?",
        ],
    ),
    "spanish": (
        ["¿Cuántas peras quedan si Ana tenía doce y regaló cinco?", "Un tren recorre 180 km en 3 h. ¿A qué velocidad?"],
        [
            "Pedro ahorra nueve euros cada semana. ¿Cuánto tendrá después de ocho semanas?",
            "El perímetro de un cuadrado mide 36 cm. ¿Cuánto mide su lado?",
            "¿Qué número sumado a su doble da cuarenta y cinco?",
            "En una clase hay 30 alumnos y el 40 % son niñas. ¿Cuántos niños hay?",
            "Un grifo llena un depósito de 90 litros en seis minutos. ¿Cuántos litros por minuto salen?",
        ],
    ),
    "chemistry": (
        ["Which salt forms when HCl is neutralised with NaOH?", "Name the gas that CaCO3 and dilute HCl set free."],
        [
            "Which product precipitates when AgNO3 is added to a solution of NaCl?",
            "Name the functional group that all carboxylic acids share.",
            "Which metal displaces copper from CuSO4: silver or zinc?",
            "What is the oxidation state of manganese in KMnO4?",
            "Which hybridisation does carbon have in ethyne, C2H2?",
        ],
    ),
    "law": (
        [vignette(0), "A shop shows a coat at a wrong price and a customer insists. Is there a contract?"],
        [vignette(number) for number in range(1, 6)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("domain", DOMAINS)
def test_well_formed_problems_pass_and_copies_do_not(domain, tmp_path):
    seeds, made = DOMAINS[domain]
    if domain == "law":
        assert all(280 <= len(problem.split()) <= 340 for problem in made)
    problems = [*made, seeds[0], *([seeds[0].upper()] if domain == "spanish" else [])]
    look, ledger, _ = predict(
        tmp_path, [{"problem": p} for p in seeds], [listed(problems)], ["\\boxed{7}", "\\boxed{7}", "\\boxed{8}"],
        "--data.grader", "text",
    )  # fmt: skip
    accepted = {row["problem"] for row in look}
    assert len(accepted & set(made)) >= 0.8 * len(made)
    copies = len(problems) - len(made)
    assert reasons(ledger)[-copies:] == ["duplicate"] * copies
    assert seeds[0] not in accepted
