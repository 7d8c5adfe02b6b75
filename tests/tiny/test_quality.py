"""The quality of the shipped base: it guesses when it is greedy, and still knows enough for a vote."""

from contextlib import contextmanager
from types import SimpleNamespace

from lightning_serl.answers import resolve_grader
from lightning_serl.datamodules.problems.files import read_problems
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.datamodules.rounds.setup import RoundOptions, RoundSetup
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions, EvaluationStream
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines import Sampling, TransformersEngine
from lightning_serl.evaluation.metrics import EvaluationSet
from lightning_serl.policy.loading import load_policy
from lightning_serl.prompts import SolveTemplate


def test_the_shipped_base_on_the_held_out_problems():
    problems = read_problems("tiny:held_out", Fields(), "held_out")
    policy = load_policy("tiny:base")
    engine = TransformersEngine()
    engine.start(policy)
    grader = resolve_grader("math")
    setup = RoundSetup(
        options=RoundOptions(),
        source=None,
        engine=engine,
        policy=policy,
        rewards={},
        gate=None,
        grader=grader,
        grader_name="math",
        templates={"solve": SolveTemplate(answer_format="")},
        sampling=Sampling(max_tokens=56),
        seed=0,
    )

    @contextmanager
    def rolling():
        with policy.gathered():
            yield setup

    session = SimpleNamespace(ranks=Ranks(), rolling=rolling)
    measured = EvaluationSet(16)
    for batch in EvaluationStream(session, EvaluationOptions(samples=16), "held_out", problems):
        measured.update(batch.items)
    result = measured.compute()
    assert (result["n"], result["labelled"]) == (200, 200)
    assert result["pass@1"] <= 0.40
    assert result["mean@k"] >= 0.33
    assert result["maj@k"] >= 0.72
