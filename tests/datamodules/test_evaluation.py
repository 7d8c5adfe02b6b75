"""Evaluation streams on a scripted engine, against numbers made by hand."""

from contextlib import contextmanager

import pytest
from small_models import tiny_tokenizer

from lightning_serl.answers import resolve_grader
from lightning_serl.datamodules.evaluation import EvaluationBatch, EvaluationOptions, EvaluationStream
from lightning_serl.datamodules.round import RoundOptions, Table
from lightning_serl.engines import RolloutEngine, Sampling
from lightning_serl.metrics import EvaluationSet
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import SolveTemplate
from lightning_serl.ranks import Ranks
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


class Data:
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

        self.table = Table(
            options=RoundOptions(),
            source=None,
            pool=InstructionPool([]),
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
        yield self.table


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


def measure(data, problems):
    out = EvaluationSet(data.evaluation.samples)
    for batch in EvaluationStream(data, "set", problems):
        assert isinstance(batch, EvaluationBatch)
        assert (batch.set_name, batch.k) == ("set", data.evaluation.samples)
        assert batch.to("cpu") is batch
        out.update(batch.items)
    return out


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_by_hand(batch_size):
    data = Data(ScriptedEngine(SCRIPT), samples=4, batch_size=batch_size)
    assert measure(data, PROBLEMS).compute() == pytest.approx(EXPECTED)
    assert data.entered == len(EvaluationStream(data, "set", PROBLEMS))


def test_the_too_long_prompt_is_never_asked():
    data = Data(ScriptedEngine(SCRIPT), samples=4)
    (items,) = [b.items for b in EvaluationStream(data, "set", PROBLEMS[-1:])]
    assert data.table.engine.asked == []
    assert (items[0].greedy, items[0].right, items[0].labelled, items[0].samples) == (False, (), True, 0)
    result = measure(data, PROBLEMS[-1:]).compute()
    assert [result[name] for name in ("n", "pass@1", "mean@k", "maj@k", "pass@k")] == [1, 0, 0, 0, 0]


def test_each_request_is_sampled_as_asked():
    data = Data(ScriptedEngine(SCRIPT), samples=4, temperature=0.6, top_p=0.95)
    measure(data, PROBLEMS[:2])
    ways = {(r.prompt, r.n, r.sampling.temperature, r.sampling.top_p) for r in data.table.engine.asked}
    assert ways == {("a", 4, 0.6, 0.95), ("b", 4, 0.6, 0.95), ("a", 1, 0.0, 1.0), ("b", 1, 0.0, 1.0)}
    assert {r.sampling.max_tokens for r in data.table.engine.asked} == {16}
    seeds = [s for r in data.table.engine.asked for s in r.seeds]
    assert len(set(seeds)) == len(seeds) == 10
    again = Data(ScriptedEngine(SCRIPT), samples=4, temperature=0.6, top_p=0.95, batch_size=1)
    measure(again, PROBLEMS[1::-1])
    assert {(r.prompt, r.seeds) for r in again.table.engine.asked} == {
        (r.prompt, r.seeds) for r in data.table.engine.asked
    }
    assert (data.name, data.total, data.ticks) == ("evaluating", 10, 10)


def test_greedy_answers_alone():
    data = Data(ScriptedEngine({p: (g, []) for p, (g, _) in SCRIPT.items()}), samples=0)
    result = measure(data, PROBLEMS).compute()
    assert (result["pass@1"], result["correct"], result["n"]) == (2 / 5, 2, 6)
    assert result["mean@k"] is result["maj@k"] is result["pass@k"] is result["agreement"] is None
    assert {r.sampling.temperature for r in data.table.engine.asked} == {0.0}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_share_a_set(size):
    # metrics and batches of each rank, without a process group: nothing here talks to the others
    shares, lengths = [], set()
    for rank in range(size):
        data = Data(ScriptedEngine(SCRIPT), Ranks(rank, size), samples=4, batch_size=2)
        data.table.ranks = Ranks()
        lengths.add(len(EvaluationStream(data, "set", PROBLEMS[:5])))
        shares.append(measure(data, PROBLEMS[:5]))
    assert len(lengths) == 1
    merged = shares[0]
    for share in shares[1:]:
        merged.merge_state(share)
    assert merged.compute() == measure(Data(ScriptedEngine(SCRIPT), samples=4), PROBLEMS[:5]).compute()


def test_more_ranks_than_problems_still_keep_step():
    data = Data(ScriptedEngine(SCRIPT), Ranks(3, 4), samples=4)
    data.table.ranks = Ranks()
    batches = list(EvaluationStream(data, "set", PROBLEMS[:1]))
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
    data = Data(ScriptedEngine(script), grader=grader, samples=4)
    first, second = (item for b in EvaluationStream(data, "set", problems) for item in b.items)
    assert (first.greedy, first.right, first.vote_right) == (True, (True, False, True, True), True)
    assert (second.greedy, second.right, second.vote_right) == (False, (False, False, True, False), False)
    assert first.agreement == second.agreement == 0.75


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"samples": -1}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_options_refuse(options, name):
    with pytest.raises(ValueError, match=name):
        EvaluationOptions(**options)
