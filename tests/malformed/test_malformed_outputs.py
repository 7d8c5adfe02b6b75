"""Broken model outputs in whole rounds: what is written, what is answered, and a run that gets all of it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.counts import MALFORMED as COUNTS
from helpers.engines import Scripted
from helpers.malformed import one_sentence
from helpers.training import selfplay, trainer_for

from lightning_serl import tiny
from lightning_serl.answers import resolve_grader
from lightning_serl.callbacks import Checkpoints, DifficultyFilter, NoveltyFilter, QualityFilter, Summary, ZeroSpread
from lightning_serl.callbacks.run_folder.jsonl_file import RunFile
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.setup import RoundOptions, RoundSetup, RoundState
from lightning_serl.datamodules.sources import FewShotSelfInstruction, PromptSet, Writing
from lightning_serl.engines import ReplayEngine, Sampling
from lightning_serl.errors import EmptyRound
from lightning_serl.policy.loading import load_policy
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import SolveTemplate
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Instruction

SEEDS = [
    "Ann has three pears and eats two. How many has she left?",
    "A farm sells eggs by the dozen; what do 4 dozen cost at 2 each?",
    "Compute the product of the first three primes.",
    "What is the remainder of 17 divided by 5?",
]
GOOD = (
    "Nine loaves were baked today. How many of twenty remain?\n6. A train runs eighty miles per hour; how far in three "
    "hours?\n7. Which prime comes right after ninety seven?\n"
)
VOTES = ["\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "\\boxed{3}"]
KETTLES = "What is the weight of seven copper kettles?"


def box(content):
    return f"\\boxed{{{content}}}"


def listed(texts):
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 6))


FORMS = listed(f"What is the sum of {i} and {i * 7} over nine?" for i in range(200))
MANY = listed(f"Find {i * 31} and q{i} of r{i * 7} or w{i}?" for i in range(600))

# -- what is written ---------------------------------------------------------------------------------------------

#: (family, what, text or (text, finished), what becomes of the items in it: by reason, or ``accepted``).
LISTS = [
    ("nothing", "no text", "", {"empty": 1}),
    ("nothing", "thinking that never ends", "<think>6. What is the sum of two odd numbers?", {"empty": 1}),
    ("nothing", "thinking within thinking", "<think>" * 50_000, {"empty": 1}),
    ("nothing", "thinking ended 50,000 times", "</think>" * 50_000, {"empty": 1}),
    ("blanks", "two megabytes", " " * 2_000_000, {"empty": 1}),
    ("blanks", "a million lines", "\n" * 1_000_000, {"empty": 1}),
    ("blanks", "carriage returns", "\r" * 100_000, {"empty": 1}),
    ("blanks", "line separators", "\u2028" * 100_000, {"empty": 1}),
    ("blanks", "nothing to see", "\u200b" * 5000, {"punctuation": 1}),
    ("characters", "NUL", "\0" * 100, {"punctuation": 1}),
    ("characters", "a byte order mark", "\ufeff", {"punctuation": 1}),
    ("characters", "half of a surrogate pair", "\ud800", {"punctuation": 1}),
    ("characters", "halves among words", "What is \ud800 the sum of three \udfff numbers?", {"accepted": 1}),
    ("characters", "control characters in it", "\x1b[31m\x07 is \x01 what \x02 number \x03 here?", {"accepted": 1}),
    ("characters", "a letter with 100,000 accents", "a" + "\u0301" * 100_000, {"too_short": 1}),
    ("characters", "words under 500 accents each", " ".join(["e" + "\u0301" * 500] * 8) + "?", {"accepted": 1}),
    ("characters", "from right to left", "\u202eWhat is the sum of two and five?", {"accepted": 1}),
    ("characters", "faces", "🤯🤯 🤯 🤯 🤯 🤯🤯", {"punctuation": 1}),
    ("braces", "a box that never closes", "What is \\boxed{\\frac{1}{ plus two times three", {"solution_leak": 1}),
    ("braces", "20,000 of them", "\\boxed{" * 20_000, {"too_long": 1}),
    ("braces", "brackets", "[" * 100_000, {"punctuation": 1}),
    ("markup", "HTML", "<table>" * 20_000, {"too_long": 1}),
    ("markup", "stars", "**" * 100_000, {"punctuation": 1}),
    ("markup", "headings", "# " * 100_000, {"punctuation": 1}),
    ("markup", "bold numbers in a row", "**6.** " * 20_000, {"too_long": 1}),
    ("markup", "what may open a solution", ("*_# " * 20 + "\n") * 5000, {"punctuation": 1}),
    ("markup", "the places of a template", "What is {problem} of {i} and %s %d {0}?", {"accepted": 1}),
    ("markup", "special tokens", "<|im_end|><|endoftext|> What is one plus two now?", {"accepted": 1}),
    ("code", "a program", '```python\nimport os\nos.system("true")\nprint("What now is it?")\n```', {"accepted": 1}),
    ("code", "JSON", '{"problems": ["What is 1 + 2 plus three?", "How many?"]}', {"accepted": 1, "too_short": 1}),
    ("lists", "numbers without text", "\n".join(f"{i}." for i in range(6, 600)), {"empty": 594}),
    ("lists", "one number again and again", "5. \n" * 3000, {"empty": 3000}),
    ("lists", "one item again and again", listed([KETTLES] * 300), {"accepted": 1, "duplicate": 299}),
    ("lists", "one form again and again", FORMS, {"accepted": 1, "duplicate": 199}),
    ("lists", "six hundred items", MANY, {"accepted": 600}),
    ("lists", "a seed", SEEDS[0], {"duplicate": 1}),
    ("size", "a word of a megabyte", "a" * 1_000_000, {"too_short": 1}),
    ("size", "a number of 10,000 digits", "9" * 10_000, {"too_short": 1}),
    ("size", "stops", ". " * 200_000, {"punctuation": 1}),
    ("size", "questions", "?!" * 100_000, {"punctuation": 1}),
    ("repetition", "a token", "the the " * 50_000, {"too_long": 1}),
    ("repetition", "a phrase", "What is the sum of the " * 5000, {"too_long": 1}),
    ("cut off", "in the only item", ("What is the sum of two odd", False), {"truncated_item": 1}),
    ("cut off", "after a number", (f"{KETTLES}\n6.", False), {"accepted": 1, "truncated_item": 1}),
    ("cut off", "in a number", (f"6. {KETTLES}\n7", False), {"accepted": 1}),
    ("solutions", "after the problem", "What is 3 plus four in total? Answer: 7", {"accepted": 1}),
]  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny:base")


def setup_of(engine, source, grader, policy=None, **filters):
    vote = MajorityVote(grader)
    return RoundSetup(
        options=RoundOptions(2, 4, max_attempts=3),
        source=source,
        engine=engine,
        policy=policy,
        rewards={"solve": vote},
        gate=vote,
        grader=grader,
        grader_name="math",
        templates={"solve": SolveTemplate(plain="{problem}", answer_format="")},
        sampling=Sampling(max_tokens=20),
        **filters,
    )


def seeds():
    return [Instruction(text, f"seed-{i}") for i, text in enumerate(SEEDS)]


def written(texts, policy, answers=VOTES):
    """A round of what the policy writes and answers."""
    pool = InstructionPool(seeds())
    writing = Writing(exemplars=4, from_kept=0, prompts_per_call=1, sampling=Sampling(max_tokens=64))
    filters = {
        "instruction_filters": [QualityFilter(), NoveltyFilter()],
        "group_filters": [DifficultyFilter(), ZeroSpread()],
    }
    source = FewShotSelfInstruction(pool, writing)
    setup = setup_of(Scripted(texts, answers), source, resolve_grader("math"), policy, **filters)
    return play_round(setup, RoundState(pool), 0)


def ends(events):
    """How many items were accepted, or rejected for what; every item that was proposed came to one of these ends."""
    found = Counter(e.get("reason", "accepted") for e in events if e["event"] in ("accepted", "rejected"))
    assert found.total() == sum(e["event"] == "proposed" for e in events)
    return found


@pytest.mark.parametrize("with_policy", [False, True], ids=["replayed", "encoded"])
@pytest.mark.parametrize(("family", "what", "text", "expected"), LISTS, ids=[f"{c[0]}: {c[1]}" for c in LISTS])
def test_what_is_written_is_counted(tmp_path, policy, with_policy, family, what, text, expected):
    played = written([text, GOOD], policy if with_policy else None)
    found = ends(played.events)
    # the three good ones follow, unless what came before them filled the round
    assert found - Counter(accepted=3 * (found["accepted"] - expected.get("accepted", 0) == 3)) == Counter(expected)
    assert len(played.groups) == 2
    file = RunFile(tmp_path / "ledger.jsonl")
    file.append(played.events)
    assert [json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines()] == played.events
    COUNTS["model outputs: problems", family] += not with_policy


@pytest.mark.parametrize(("family", "what", "text", "expected"), LISTS[:10], ids=[c[1] for c in LISTS[:10]])
def test_when_nothing_else_is_written_the_round_ends_and_says_so(family, what, text, expected):
    with pytest.raises(EmptyRound) as caught:
        written([text] * 60, None)
    one_sentence(caught.value, "none could be used", "look at ledger.jsonl")
    assert ends(caught.value.played.events) == {reason: 8 * count for reason, count in expected.items()}
    COUNTS["model outputs: rounds of nothing else", family] += 1


# -- what is answered --------------------------------------------------------------------------------------------

#: (family, what, text, the graders to which it answers nothing: Math, Choice, Text).
ANSWERS = [
    ("nothing", "no text", "", "mct"),
    ("nothing", "no content", box(""), "mct"),
    ("nothing", "blanks in a box", box("  "), "mct"),
    ("nothing", "thinking that never ends", "<think>" + "5 " * 10_000, "mct"),
    ("nothing", "a box in such thinking", "<think>" + box("5"), "mct"),
    ("nothing", "thinking within thinking", "<think>" * 50_000, "mct"),
    ("nothing", "thinking ended 50,000 times", "</think>" * 50_000, "mct"),
    ("blanks", "two megabytes", " " * 2_000_000, "mct"),
    ("blanks", "a million lines", "\n" * 1_000_000, "mct"),
    ("blanks", "tabs", "\t" * 500_000, "mct"),
    ("blanks", "line separators", "\u2028" * 100_000, "mct"),
    ("blanks", "nothing to see", "\u200b" * 5000, "mct"),
    ("characters", "NUL", "\0" * 100, "mct"),
    ("characters", "control characters", "\x1b[31m\x07\x08\x1b[0m", "mc"),
    ("characters", "a byte order mark", "\ufeff", "mct"),
    ("characters", "half of a surrogate pair", "\ud800", "mct"),
    ("characters", "half of a pair in a box", box("\udfff"), "mct"),
    ("characters", "a letter with 100,000 accents", "a" + "\u0301" * 100_000, "mct"),
    ("characters", "a digit with 50 accents", box("6" + "\u0301" * 50), "c"),
    ("characters", "a box from right to left", "\u202e5}dexob\\", "mc"),
    ("characters", "a number from right to left", box("\u202e21"), "c"),
    ("characters", "faces", "🤯" * 10_000, "mct"),
    ("braces", "100,000 that open", "\\boxed" + "{" * 100_000, "mct"),
    ("braces", "100,000 that close", "}" * 100_000, "mct"),
    ("braces", "200,000 boxes without", "\\boxed" * 200_000, "mct"),
    ("braces", "boxes in boxes", "\\boxed{" * 1000 + "6" + "}" * 1000, "c"),
    ("braces", "20,000 boxes", box("9 ") * 20_000, "c"),
    ("depth", "braces", box("{" * 900 + "6" + "}" * 900), "ct"),
    ("depth", "parentheses", box("(" * 900 + "6" + ")" * 900), "ct"),
    ("depth", "fractions", box("\\frac{1}{" * 100 + "2" + "}" * 100), "ct"),
    ("depth", "too many fractions", box("\\frac{1}{" * 300 + "2" + "}" * 300), "mct"),
    ("depth", "roots", box("\\sqrt{" * 100 + "2" + "}" * 100), "ct"),
    ("depth", "signs", box("-" * 500 + "6"), "ct"),
    ("depth", "lists", "[" * 100_000, "mct"),
    ("numbers", "10,000 digits in a box", box("9" * 10_000), "mct"),
    ("numbers", "999 digits in a box", box("9" * 999), "ct"),
    ("numbers", "10,000 digits", "The answer is " + "9" * 10_000, "mct"),
    ("numbers", "900 decimals", box("0." + "3" * 900), "ct"),
    ("numbers", "a tower", box("9^{9^{9}}"), "c"),
    ("numbers", "a factorial", box("(10^9)!"), "c"),
    ("numbers", "a sum", box("\\sum_{n=1}^{10^9}\\frac{1}{n^n}"), "c"),
    ("numbers", "no number", box("nan"), "c"),
    ("numbers", "by nothing", box("\\frac{1}{0}"), "c"),
    ("markup", "HTML", "<html><body><p>5</p></body></html>", "mc"),
    ("markup", "tables", "<table>" * 10_000, "mct"),
    ("markup", "dollars", "$" * 100_000, "mct"),
    ("markup", "backslashes", "\\" * 100_001, "mct"),
    ("markup", "a matrix", box("\\begin{matrix}" + "1&" * 300 + "\\end{matrix}"), "ct"),
    ("code", "a program", '```python\nimport os\nos.system("true")\nprint(5)\n```', "mct"),
    ("code", "an expression", box('open("ran", "w")'), "c"),
    ("code", "an import", box('__import__("os").system("touch ran")'), "c"),
    ("code", "a file", box("\\input{/etc/passwd}"), "c"),
    ("code", "places", box("%s%n{0}"), "c"),
    ("repetition", "a token", "the the " * 50_000, "mct"),
    ("repetition", "an announcement", "The answer is " * 50_000, "mct"),
    ("cut off", "in an announcement", "The answer is", "mct"),
]  # fmt: skip
GRADERS = {
    "math": ("m", box("5"), box("7")),
    "choice": ("c", box("B"), box("C")),
    "text": ("t", box("pear"), box("plum")),
}
PROMPT = "Which of these is it? (A) a (B) b (C) c"


def is_half(text):
    """Whether a text holds half of a surrogate pair."""
    return any(0xD800 <= ord(c) < 0xE000 for c in text)


def answered(name, text, finished=True, recorded=True):
    """The first group of a round in which one of four responses is broken, and the round."""
    _, right, wrong = GRADERS[name]
    responses = [{"text": text, "finished": finished}, right, right, wrong]
    source = PromptSet([Instruction(PROMPT, "p"), Instruction(PROMPT + "?", "q")])
    texts = [(r["text"], finished) if isinstance(r, dict) else r for r in responses]
    engine = ReplayEngine({PROMPT: responses, PROMPT + "?": responses}) if recorded else Scripted([], texts)
    played = play_round(setup_of(engine, source, resolve_grader(name)), RoundState(), 0)
    return played.groups[0], played


@pytest.mark.parametrize("name", GRADERS)
@pytest.mark.parametrize(("family", "what", "text", "silent"), ANSWERS, ids=[f"{c[0]}: {c[1]}" for c in ANSWERS])
def test_what_is_answered_is_counted(tmp_path, monkeypatch, name, family, what, text, silent):
    monkeypatch.chdir(tmp_path)
    letter = GRADERS[name][0]
    # no recording may hold half of a surrogate pair, but an engine of a user's might
    group, played = answered(name, text, recorded=not is_half(text))
    assert (group.answers[0] is None) == (letter in silent), group.answers[0]
    assert group.cluster[1] == group.cluster[2] >= 0
    assert len({group.cluster[0], group.cluster[1], group.cluster[3]}) == 3, "equal to what it is not"
    assert played.stats["serl/vote/no_answer_frac"] == (letter in silent) / 4
    assert played.verdicts[0].scores.tolist() == [0, 1, 1, 0]
    assert not list(tmp_path.iterdir()), "text of a model was run"
    COUNTS[f"model outputs: answers ({name})", family] += 1


@pytest.mark.parametrize("name", GRADERS)
@pytest.mark.parametrize(
    "text", ["", "The answer is 5", "So \\boxed{", "So \\boxed{\\frac{1}{", "<think>" + box("5"), "5"]
)
def test_what_is_cut_off_answers_nothing(name, text):
    group, played = answered(name, text, finished=False)
    assert group.answers[0] is None
    assert played.stats["serl/vote/no_answer_frac"] == 1 / 4
    COUNTS[f"model outputs: answers ({name})", "cut off"] += 1


@pytest.mark.parametrize("name", GRADERS)
def test_when_nobody_answers_there_is_no_vote(name):
    silent = [t for _, _, t, s in ANSWERS if s == "mct" and len(t) < 200_000 and not is_half(t)]
    engine = ReplayEngine({PROMPT: silent})
    source = PromptSet([Instruction(PROMPT, "p")])
    setup = setup_of(engine, source, resolve_grader(name), group_filters=[ZeroSpread()])
    setup = replace(setup, options=RoundOptions(1, 16, max_attempts=1))
    with pytest.raises(EmptyRound) as caught:
        play_round(setup, RoundState(), 0)
    one_sentence(caught.value, "no_answer 1")
    assert [e["reason"] for e in caught.value.played.events if e["event"] == "dropped"] == ["no_answer"]


# -- a run that gets all of it -----------------------------------------------------------------------------------


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def broken_run(predict_to=None):
    """The parts of a small run whose engine writes every broken list and gives short broken answers in turn."""
    lists = [text for _, what, text, _ in LISTS if what != "six hundred items"]
    answers = [*VOTES, *(text for _, _, text, _ in ANSWERS if len(text) < 3000)]
    writing = Writing(exemplars=4, from_kept=0, prompts_per_call=len(lists), sampling=Sampling(max_tokens=64))
    return selfplay(
        engine=Scripted(lists, answers),
        writing=writing,
        round=RoundOptions(prompts_per_round=8, samples_per_prompt=len(answers), max_attempts=1),
        rounds_per_epoch=1,
        predict_to=predict_to,
    )


@pytest.fixture(scope="module")
def expected():
    found = Counter()
    for _, what, _, reasons in LISTS:
        found.update({} if what == "six hundred items" else reasons)
    return found


def test_a_whole_run_counts_what_it_left_out(tmp_path, expected):
    module, data = broken_run()
    filters = [QualityFilter(), NoveltyFilter()]
    trainer_for(tmp_path, [*filters, Summary(), Checkpoints(1)]).fit(module, data)
    ledger = rows(tmp_path / "ledger.jsonl")
    found = ends(ledger)
    # prompts beyond the context, and what resembles the seeds of this run, were good enough above
    assert found.total() == expected.total()
    assert found["accepted"] + found["over_long_prompt"] + found["duplicate"] >= expected["accepted"]
    for reason in ("empty", "punctuation", "too_long", "too_short", "solution_leak", "truncated_item"):
        assert found[reason] == expected[reason], reason
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["proposed"] == expected.total()
    assert summary["rejected"] == {r: n for r, n in sorted(found.items()) if r != "accepted"}
    assert summary["trained"] >= 1
    (metrics,) = [row for row in rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert metrics["loss"] == metrics["loss"]
    assert 0 < metrics["serl/vote/no_answer_frac"] < 1
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert any("\ud800" in prompt for prompt in state[type(data).__name__]["pool"]["prompts"])
    assert rows(tmp_path / "samples.jsonl")


def test_predictions_hold_what_was_written(tmp_path):
    module, data = broken_run(str(tmp_path / "p.jsonl"))
    trainer_for(tmp_path, [QualityFilter(), NoveltyFilter()]).predict(module, data)
    assert {"problem", "answer", "confidence", "round"} <= rows(tmp_path / "p.jsonl")[0].keys()


def test_the_lists_are_broken_from_a_sound_one(policy):
    assert ends(written([GOOD], policy).events) == Counter(accepted=3)
    assert tiny.path("base").is_dir()
