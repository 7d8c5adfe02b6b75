"""Evaluation streams on a scripted engine, against numbers made by hand."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
from helpers.command_line import cli, rows, small, write_rows
from helpers.small_models import save_model, tiny_tokenizer

from lightning_serl.answers import AutoGrader, ChoiceGrader, MathGrader, resolve_grader
from lightning_serl.datamodules.rounds.setup import RoundOptions, RoundSetup
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions, EvaluationStream, strata_of
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines import RolloutEngine, Sampling
from lightning_serl.evaluation.grading import SetGrader, expectation, set_graders
from lightning_serl.evaluation.metrics import EvaluationSet
from lightning_serl.evaluation.results import EvaluationBatch
from lightning_serl.prompts import SolveTemplate
from lightning_serl.types import Completion, Instruction


class ScriptedEngine(RolloutEngine):
    """Answers from a table: prompt to (greedy answer, sampled answers)."""

    def __init__(self, script):
        super().__init__()
        self.script, self.asked, self.closed = script, [], False

    version = 0

    def start(self, policy, ranks):
        pass

    def push(self, update):
        pass

    def score(self, token_ids, who="policy"):
        raise AssertionError

    def generate(self, requests, who="policy"):
        for i, request in reversed(list(enumerate(requests))):
            self.asked.append(request)
            greedy, sampled = self.script[request.prompt]
            texts = [greedy] if request.sampling.temperature == 0 else sampled
            assert len(texts) == request.n
            yield i, [Completion((5,), t if isinstance(t, str) else t[0], None, isinstance(t, str)) for t in texts]


class Policy:
    """As much of a policy as prompts need."""

    tokenizer = tiny_tokenizer()
    context_length = 40


class Rolling:
    """As much of a session as an evaluation stream needs, and the options."""

    def __init__(self, engine, ranks=None, grader="math", **options):
        self.ranks = ranks or Ranks()
        self.evaluation = EvaluationOptions(**options)
        self.entered = 0
        self.ticks = 0

        @contextmanager
        def phase(name, total):
            self.name, self.total = name, total

            def tick(done):
                self.ticks += done

            yield tick

        self.setup = RoundSetup(
            options=RoundOptions(),
            source=None,
            engine=engine,
            policy=Policy,
            rewards={},
            gate=None,
            grader=resolve_grader(grader),
            grader_name=grader,
            templates={"solve": SolveTemplate(answer_format="")},
            sampling=Sampling(max_tokens=16),
            seed=3,
            phase=phase,
        )

    @contextmanager
    def rolling(self):
        self.entered += 1
        yield self.setup


def box(answer):
    return f"so \\boxed{{{answer}}}"


LONG = "word " * 60
SCRIPT = {
    # greedy right; 3 of 4 right, written in three ways; the vote right
    "a": (box("1/2"), [box("0.5"), box("\\frac{1}{2}"), box("1/2"), box("7")]),
    # greedy wrong; 1 of 4 right; the vote wrong
    "b": (box("9"), [box("4"), box("8"), box("8"), "no idea"]),
    # greedy silent; nobody answers
    "c": ("no idea", ["?", "none", ("\\boxed{4", False), "I give up"]),
    # a tie goes to the smaller answer, which is right here
    "d": (box("2"), [box("3"), box("3"), box("2"), box("2")]),
    # no label
    "e": (box("2"), [box("2"), box("2"), box("2"), box("5")]),
}
PROBLEMS = [
    Instruction("a", "1", label="0.5"),
    Instruction("b", "2", label="4"),
    Instruction("c", "3", label="4"),
    Instruction("d", "4", label="2"),
    Instruction("e", "5"),
    Instruction(LONG, "6", label="4"),
]
EXPECTED = {
    "n": 6,
    "labelled": 5,
    "k": 4,
    "correct": 2,
    "pass@1": 2 / 5,
    "mean@k": (3 / 4 + 1 / 4 + 0 + 2 / 4 + 0) / 5,
    "maj@k": 2 / 5,
    "pass@k": 3 / 5,
    "agreement": (3 / 4 + 2 / 4 + 0 + 2 / 4 + 3 / 4) / 5,
    "no_answer": 5 / 20,
    "vote_accuracy": 2 / 3,
}


def measure(session, problems, grader=None):
    out = EvaluationSet(session.evaluation.samples, strata_of(problems))
    for batch in EvaluationStream(session, session.evaluation, "set", problems, grader):
        assert isinstance(batch, EvaluationBatch)
        assert (batch.set_name, batch.k, batch.strata) == ("set", session.evaluation.samples, strata_of(problems))
        assert batch.to("cpu") is batch
        out.update(batch.items)
    return out


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_by_hand(batch_size):
    session = Rolling(ScriptedEngine(SCRIPT), samples=4, batch_size=batch_size)
    result = measure(session, PROBLEMS).compute()
    assert set(result.pop("intervals")) == {"pass@1", "mean@k", "maj@k", "pass@k"}
    assert list(result.pop("pass_at")) == ["1", "2", "4"]
    assert result == pytest.approx(EXPECTED)
    assert session.entered == len(EvaluationStream(session, session.evaluation, "set", PROBLEMS))


def test_the_too_long_prompt_is_never_asked():
    session = Rolling(ScriptedEngine(SCRIPT), samples=4)
    (items,) = [b.items for b in EvaluationStream(session, session.evaluation, "set", PROBLEMS[-1:])]
    assert session.setup.engine.asked == []
    assert (items[0].greedy, items[0].right, items[0].labelled, items[0].samples) == (False, (), True, 0)
    result = measure(session, PROBLEMS[-1:]).compute()
    assert [result[name] for name in ("n", "pass@1", "mean@k", "maj@k", "pass@k")] == [1, 0, 0, 0, 0]


def test_each_request_is_sampled_as_asked():
    session = Rolling(ScriptedEngine(SCRIPT), samples=4, temperature=0.6, top_p=0.95)
    measure(session, PROBLEMS[:2])
    ways = {(r.prompt, r.n, r.sampling.temperature, r.sampling.top_p) for r in session.setup.engine.asked}
    assert ways == {("a", 4, 0.6, 0.95), ("b", 4, 0.6, 0.95), ("a", 1, 0.0, 1.0), ("b", 1, 0.0, 1.0)}
    assert {r.sampling.max_tokens for r in session.setup.engine.asked} == {16}
    seeds = [s for r in session.setup.engine.asked for s in r.seeds]
    assert len(set(seeds)) == len(seeds) == 10
    again = Rolling(ScriptedEngine(SCRIPT), samples=4, temperature=0.6, top_p=0.95, batch_size=1)
    measure(again, PROBLEMS[1::-1])
    assert {(r.prompt, r.seeds) for r in again.setup.engine.asked} == {
        (r.prompt, r.seeds) for r in session.setup.engine.asked
    }
    assert (session.name, session.total, session.ticks) == ("evaluating", 10, 10)


def test_greedy_answers_alone():
    session = Rolling(ScriptedEngine({p: (g, []) for p, (g, _) in SCRIPT.items()}), samples=0)
    result = measure(session, PROBLEMS).compute()
    assert (result["pass@1"], result["correct"], result["n"]) == (2 / 5, 2, 6)
    assert result["mean@k"] is result["maj@k"] is result["pass@k"] is result["agreement"] is None
    assert {r.sampling.temperature for r in session.setup.engine.asked} == {0.0}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_share_a_set(size):
    # metrics and batches of each rank, without a process group: nothing here talks to the others
    shares, lengths = [], set()
    for rank in range(size):
        session = Rolling(ScriptedEngine(SCRIPT), Ranks(rank, size), samples=4, batch_size=2)
        session.setup = replace(session.setup, ranks=Ranks())
        lengths.add(len(EvaluationStream(session, session.evaluation, "set", PROBLEMS[:5])))
        shares.append(measure(session, PROBLEMS[:5]))
    assert len(lengths) == 1
    merged = shares[0]
    for share in shares[1:]:
        merged.merge_state(share)
    assert merged.compute() == measure(Rolling(ScriptedEngine(SCRIPT), samples=4), PROBLEMS[:5]).compute()


def test_more_ranks_than_problems_still_keep_step():
    session = Rolling(ScriptedEngine(SCRIPT), Ranks(3, 4), samples=4)
    session.setup = replace(session.setup, ranks=Ranks())
    batches = list(EvaluationStream(session, session.evaluation, "set", PROBLEMS[:1]))
    assert [b.items for b in batches] == [[]]


@pytest.mark.parametrize(
    ("grader", "label", "choices", "right", "wrong"),
    [
        ("choice", "B", ["x", "y"], "The answer is (B).", "The answer is (A)."),
        ("text", "NaCl", None, "\\boxed{NaCl}", "\\boxed{ClNa}"),
        ("math", "\\{1, 2\\}", None, box("\\{1, 2\\}"), box("\\{1, 3\\}")),
    ],
)
def test_the_vote_is_graded_by_every_grader(grader, label, choices, right, wrong):
    meta = {} if choices is None else {"choices": choices}
    script = {"q": (right, [right, wrong, right, right]), "r": (wrong, [wrong, wrong, right, wrong])}
    problems = [Instruction(p, p, label=label, meta=meta) for p in script]
    session = Rolling(ScriptedEngine(script), grader=grader, samples=4)
    first, second = (item for b in EvaluationStream(session, session.evaluation, "set", problems) for item in b.items)
    assert (first.greedy, first.right, first.vote_right) == (True, (True, False, True, True), True)
    assert (second.greedy, second.right, second.vote_right) == (False, (False, False, True, False), False)
    assert first.agreement == second.agreement == 0.75


# --- levels, subjects, items -----------------------------------------------------------------------------------------


def leveled(problem, **meta):
    return Instruction(problem.prompt, problem.uid, label=problem.label, meta=meta)


def test_results_per_level_and_subject():
    problems = [
        leveled(PROBLEMS[0], level="10", subject="Algebra"),
        leveled(PROBLEMS[1], level="9"),
        leveled(PROBLEMS[2], level="10", subject="Geometry"),
        leveled(PROBLEMS[3], subject="Algebra"),
    ]
    result = measure(Rolling(ScriptedEngine(SCRIPT), samples=4, batch_size=3), problems).compute()
    assert {k: (v["n"], v["pass@1"], v["mean@k"]) for k, v in result["by_level"].items()} == {
        "9": (1, 0.0, 1 / 4),
        "10": (2, 1 / 2, 3 / 8),
    }
    assert list(result["by_level"]) == ["9", "10"]  # as numbers
    assert {k: (v["n"], v["correct"]) for k, v in result["by_subject"].items()} == {
        "Algebra": (2, 2),
        "Geometry": (1, 0),
    }
    assert "by_group" not in result
    assert set(measure(Rolling(ScriptedEngine(SCRIPT), samples=4), PROBLEMS).compute()) == {
        *EXPECTED,
        "intervals",
        "pass_at",
    }


def test_every_item_tells_what_was_read():
    session = Rolling(ScriptedEngine(SCRIPT), samples=4, batch_size=4)
    items = [item for batch in EvaluationStream(session, session.evaluation, "set", PROBLEMS) for item in batch.items]
    assert [item.index for item in items] == list(range(6))
    assert items[1].facts == {
        "uid": "2",
        "label": "4",
        "answers": ["4", "8", "8", None],
        "right": [True, False, False, False],
        "vote": "8",
        "vote_right": False,
        "greedy": "9",
        "greedy_right": False,
        "distinct": 2,
    }
    assert items[4].facts | {"answers": 0} == {
        "uid": "5", "label": None, "answers": 0, "right": [], "vote": "2", "vote_right": None, "greedy": "2",
        "greedy_right": None, "distinct": 2,
    }  # fmt: skip
    # a prompt that does not fit is wrong and says so
    assert items[5].facts == {
        "uid": "6", "label": "4", "answers": [], "right": [], "vote": None, "vote_right": None, "greedy": None,
        "greedy_right": False, "distinct": 0,
    }  # fmt: skip


# --- scoring as published --------------------------------------------------------------------------------------------


def test_published_scoring_reads_prompt_and_response():
    script = {
        # silence answers with the prompt's last number, and a box that was cut off is read all the same
        "2 + 2 = 4, so what is 2 + 2?": (box("4"), ["no idea", "none", box("4"), ("it is $5", False)]),
        # three silent responses agree on 12 and outvote the answer
        "How many months are 12 months?": (box("12"), ["?", "?", "!", box("12")]),
    }
    problems = [
        Instruction(p, str(i), label=label) for i, (p, label) in enumerate(zip(script, ("2", "12"), strict=True))
    ]

    def graded(**options):
        session = Rolling(ScriptedEngine(script), samples=4, **options)
        stream = EvaluationStream(session, session.evaluation, "set", problems)
        return [item for batch in stream for item in batch.items]

    published, ours = graded(scoring="serl"), graded()
    assert [item.right for item in published] == [(True, True, False, False), (True, True, True, True)]
    assert [item.vote_right for item in published] == [True, True]
    assert [item.agreement for item in published] == [0.5, 1.0]
    assert [item.no_answer for item in published] == [0, 0]
    assert [item.facts["vote"] for item in published] == ["2", "12"]
    assert [item.greedy for item in published] == [False, True]
    assert [item.right for item in ours] == [(False,) * 4, (False, False, False, True)]
    assert [item.no_answer for item in ours] == [3, 3]


def test_published_scoring_leaves_multiple_choice_alone():
    script = {"q": ("The answer is (B).", ["The answer is (B)."])}
    problems = [Instruction("q", "1", label="B", meta={"choices": ["x", "y"]})]
    session = Rolling(ScriptedEngine(script), grader="choice", samples=1, scoring="serl")
    (item,) = [item for batch in EvaluationStream(session, session.evaluation, "set", problems) for item in batch.items]
    assert (item.greedy, item.right, item.facts["vote"]) == (True, (True,), "B")


def test_published_scoring_without_labels_or_answers():
    script = {"e": ("", ["it is 3", "it is 3"]), LONG: ("", [])}
    problems = [Instruction("e", "1"), Instruction(LONG, "2", label="3")]
    result = measure(Rolling(ScriptedEngine(script), samples=2, scoring="serl"), problems).compute()
    assert (result["n"], result["labelled"], result["mean@k"], result["agreement"]) == (2, 1, 0.0, 1.0)


# --- graders ---------------------------------------------------------------------------------------------------------

CHOICES = [Instruction("Which?", "1", label="B", meta={"choices": ["x", "y"]})] * 3
NUMBERS = [Instruction("How many?", "1", label="7")] * 3
WORDS = [Instruction("Who?", "1", label="Ada Lovelace")] * 3


def test_each_set_has_its_grader():
    mine = SetGrader(MathGrader("exact"), "math")
    graders, said = set_graders({"c": CHOICES, "n": NUMBERS, "w": WORDS}, mine)
    assert {name: g.name for name, g in graders.items()} == {"c": "choice", "n": "math", "w": "math"}
    assert isinstance(graders["c"].grader, ChoiceGrader)
    assert graders["n"].grader is graders["w"].grader is mine.grader
    assert said == ["c: grader: choice (all 3 problems come with choices)"]
    auto = SetGrader(AutoGrader(), "auto")
    graders, _ = set_graders({"c": CHOICES, "n": NUMBERS, "w": WORDS}, auto)
    assert {name: g.name for name, g in graders.items()} == {"c": "choice", "n": "auto", "w": "auto"}
    assert "of 9 problems, 3 have options, 3 ask for numbers or formulas, 3 for words" in expectation(
        [*CHOICES, *NUMBERS, *WORDS]
    )
    # some problems with choices do not make a set of multiple choice
    assert set_graders({"both": [*CHOICES[:1], *NUMBERS]}, mine)[0]["both"] is mine


def test_a_set_of_choices_in_a_run_on_mathematics():
    script = {"Which?": ("The answer is (B).", ["\\boxed{B}", "The answer is (A)."])}
    problems = [Instruction("Which?", "1", label="B", meta={"choices": ["x", "y"]})]
    session = Rolling(ScriptedEngine(script), samples=2)
    session.setup = replace(session.setup, templates={"solve": SolveTemplate()})
    Policy.context_length, was = 400, Policy.context_length
    try:
        result = measure(session, problems, SetGrader(ChoiceGrader(), "choice")).compute()
    finally:
        Policy.context_length = was
    assert (result["pass@1"], result["mean@k"]) == (1.0, 0.5)
    prompts = {Policy.tokenizer.decode(r.prompt_ids) for r in session.setup.engine.asked}
    assert all("letter of the right option" in prompt for prompt in prompts)
    assert session.setup.grader_name == "math"  # training goes on as before


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"samples": -1}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"scoring": "upstream"}, "scoring"),
    ],
)
def test_options_refuse(options, name):
    with pytest.raises(ValueError, match=name):
        EvaluationOptions(**options)


# --- the command line ------------------------------------------------------------------------------------------------

RESPONSES = [
    "math_qwen_8x",
    pytest.param("math_l5_16models", marks=pytest.mark.slow),
    "gsm8k_10x",
    pytest.param("math500_rho_4x", marks=pytest.mark.slow),
    "addsub_chatgpt_10x",
]


def replayed(root, path, *options):
    """``validate`` on recorded responses, without any model."""
    return [
        "validate", "--trainer.default_root_dir", root, "--trainer.accelerator", "cpu",
        "--data.engine", "ReplayEngine", "--data.engine.recordings", path, "--data.evaluation.sets.x", path,
        "--data.evaluation.fields.answer", "gold", *options,
    ]  # fmt: skip


def report(root):
    return json.loads((root / "evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.golden
@pytest.mark.usefixtures("asked_once")
@pytest.mark.parametrize("name", RESPONSES)
def test_published_scoring_gives_the_recorded_results(tmp_path, golden_dir, name):
    path = golden_dir / f"responses_{name}.jsonl"
    recorded = rows(path)
    k = max(len(row["responses"]) for row in recorded)
    options = ["--data.evaluation.samples", k, "--data.evaluation.scoring", "serl"]
    ended = cli(*replayed(tmp_path, path, *options))
    assert ended.status == 0, ended.err
    result, items = report(tmp_path)["x"], rows(tmp_path / "evaluation_items.jsonl")
    assert [item["right"] for item in items] == [[bool(r) for r in row["ref090"]["rule"]] for row in recorded]
    votes = [row["ref090"]["rule"][row["ref090"]["majority_index"]] for row in recorded]
    assert [item["vote_right"] for item in items] == [bool(v) for v in votes]
    assert result["correct"] == sum(sum(row["ref090"]["rule"]) for row in recorded)
    assert result["vote_accuracy"] == result["maj@k"] == sum(votes) / len(votes)
    assert result["n"] == len(recorded)
    assert result["no_answer"] == sum(len(row["ref090"]["unparsed"]) for row in recorded) / sum(
        len(row["responses"]) for row in recorded
    )


RECORDED = [
    {"problem": "1 + 1 = ?", "gold": 2, "level": "Level 2", "responses": ["\\boxed{2}", "\\boxed{3}", "2"]},
    {"problem": "3 + 4 = ?", "gold": "7", "level": "Level 10", "responses": ["\\boxed{7}"]},  # fewer than asked for
    {"problem": "9 - 1 = ?", "gold": "8", "level": "Level 2", "responses": []},
    {"problem": "2 * 2 = ?", "gold": "4", "level": "Level 2", "responses": ["\\boxed{4}", "\\boxed{5}", "\\boxed{5}"]},
]


@pytest.mark.parametrize("scoring", ["default", "serl"])
def test_validate_writes_intervals_levels_and_items(tmp_path, scoring):
    path = write_rows(tmp_path / "r.jsonl", RECORDED)
    options = ["--data.evaluation.samples", 3, "--data.evaluation.scoring", scoring]
    ended = cli(*replayed(tmp_path / "run", path, *options))
    assert ended.status == 0, ended.err
    result = report(tmp_path / "run")["x"]
    assert (result["n"], result["correct"], result["maj@k"], result["pass@k"]) == (4, 4, 2 / 4, 3 / 4)
    assert result["mean@k"] == pytest.approx((2 / 3 + 1 + 0 + 1 / 3) / 4)
    assert result["vote_accuracy"] == 2 / 3
    assert list(result["by_level"]) == ["2", "10"]
    assert result["by_level"]["10"]["pass@1"] == 1
    assert all(low <= result[name] <= high for name, (low, high) in result["intervals"].items())
    items = rows(tmp_path / "run" / "evaluation_items.jsonl")
    assert [(i["set"], i["uid"], i["label"]) for i in items] == [
        ("x", f"x-{n:05d}", label) for n, label in enumerate("2784", 1)
    ]
    assert [i["right"] for i in items] == [[True, False, True], [True], [], [True, False, False]]
    low, high = result["intervals"]["pass@1"]
    assert f"x: pass@1 50.0 % [{100 * low:.1f}, {100 * high:.1f}], mean@3 50.0 %" in ended.out


def test_two_ranks_measure_what_one_does(tmp_path, pair):
    path = write_rows(tmp_path / "r.jsonl", RECORDED[:3])
    options = ["--data.evaluation.samples", 3, "--data.evaluation.batch_size", 1, "--trainer.devices"]
    ended = cli(*replayed(tmp_path / "one", path, *options, 1))
    assert ended.status == 0, ended.err
    two = replayed(tmp_path / "two", path, *options, 2, "--trainer.strategy", "ddp")
    for status, _, err in pair.run("command", arguments=two):
        assert status == 0, err
    for name in ("evaluation.json", "evaluation_items.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def mmlu_pro(folder):
    """Two problems in the layout of MMLU-Pro."""
    folder.mkdir()
    row = {"question": "Compute 3 + 4.", "options": ["6", "7"], "answer": "B", "answer_index": 1, "category": "math"}
    write_rows(folder / "test.jsonl", [row, {**row, "category": "law"}])
    return folder


def test_training_on_mathematics_and_measuring_choices(tmp_path):
    held_out = write_rows(tmp_path / "held.jsonl", [{"problem": "Compute 3 + 4.", "answer": "7"}] * 3)
    sets = {"choices": str(mmlu_pro(tmp_path / "mmlu")), "numbers": str(held_out)}
    ended = cli("fit", *small(tmp_path / "run", rounds=1), "--data.evaluation.sets", json.dumps(sets))
    assert ended.status == 0, ended.err
    assert "choices: grader: choice (all 2 problems come with choices)" in ended.err
    row = [r for r in rows(tmp_path / "run" / "metrics.jsonl") if "val/choices/pass@1" in r][-1]
    assert row["val/numbers/n"] == 3
    assert not [k for k, v in row.items() if isinstance(v, (dict, list))], "metrics are flat"
    result = report(tmp_path / "run")["choices"]
    assert {k: v["n"] for k, v in result["by_group"].items()} == {"Humanities": 1, "STEM": 1}


def test_any_model_directory_and_any_checkpoint(tmp_path):
    held_out = write_rows(
        tmp_path / "held.jsonl", [{"problem": f"Compute {i} + 4.", "answer": i + 4} for i in range(6)]
    )
    sets = ["--data.evaluation.sets.x", held_out, "--data.evaluation.samples", 2, "--data.max_tokens", 8]
    model = save_model(tmp_path / "model", "llama_untied")
    options = ["--model.model_name_or_path", model, "--trainer.accelerator", "cpu"]
    ended = cli("validate", *options, *sets, "--trainer.default_root_dir", tmp_path / "directory")
    assert ended.status == 0, ended.err
    result = report(tmp_path / "directory")["x"]
    assert (result["n"], result["labelled"], result["k"]) == (6, 6, 2)
    assert len(rows(tmp_path / "directory" / "evaluation_items.jsonl")) == 6

    run = tmp_path / "run"
    more = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 5.0]  # far enough to see
    ended = cli("fit", *small(run, held_out, samples=2), *more)
    assert ended.status == 0, ended.err
    summary = json.loads((run / "summary.json").read_text())
    after = summary["after"]
    assert after != summary["before"]
    checkpoint = run / "checkpoints" / "last.ckpt"
    ended = cli("validate", *small(tmp_path / "again", held_out, samples=2), "--ckpt_path", checkpoint)
    assert ended.status == 0, ended.err
    again = report(tmp_path / "again")["held_out"]
    assert {"pass@1": again["pass@1"], "mean@2": again["mean@k"], "maj@2": again["maj@k"], "n": again["n"]} == after
    exported = ["--model.model_name_or_path", run / "export"]
    ended = cli("validate", *small(tmp_path / "export", held_out, samples=2), *exported)
    assert ended.status == 0, ended.err
    assert report(tmp_path / "export")["held_out"] == again
