"""Exemplars by subject, against everything the source shows and reads."""

from collections import Counter

import pytest
from helpers.command_line import cli, write_rows

from lightning_serl.answers import MathGrader
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources import FewShotSelfInstruction, Writing
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.pool import InstructionPool
from lightning_serl.types import Completion, Instruction

SUBJECTS = {"law": 12, "chemistry": 6, "music": 2, None: 2}


def seeds():
    return [
        Instruction(
            f"Problem {i} of {subject}, please.", f"{subject}-{i}", meta={"subject": subject} if subject else {}
        )
        for subject, count in SUBJECTS.items()
        for i in range(count)
    ]


class Echo(RolloutEngine):
    """Writes one problem per few-shot prompt."""

    samples_policy = False
    version = -1

    def start(self, policy, ranks=None):
        pass

    def push(self, update):
        pass

    def score(self, token_ids, who="policy"):
        raise NotImplementedError

    def generate(self, requests, who="policy"):
        for i, _ in enumerate(requests):
            yield i, [Completion((), "5. A new problem.")]


def context():
    return Context(Echo(), None, Ranks(), 0, 0, "instruction", Sampling(), {}, "math", MathGrader())


def source(**options):
    pool = InstructionPool(seeds())
    for i in range(3):
        pool.add(Instruction(f"Own problem {i} of law.", f"own-{i}", meta={"subject": "law"}), "kept")
    return FewShotSelfInstruction(pool, Writing(exemplars=4, from_kept=2, **options))


def test_each_prompt_shows_one_subject_and_what_is_written_belongs_to_it(monkeypatch):
    made = source(by_subject=True, prompts_per_call=400)
    shown = []
    monkeypatch.setattr(
        made, "request", lambda s, seeds, ctx, ask=made.request: shown.append(list(s)) or ask(s, seeds, ctx)
    )
    written = made.propose(1, context())
    assert len(shown) == len(written) == 400
    subjects = Counter()
    for exemplars, new in zip(shown, written, strict=True):
        assert len({e.uid for e in exemplars}) == 4
        subject = new.meta.get("subject")
        subjects[subject] += 1
        theirs = [e.meta.get("subject") == subject for e in exemplars]
        if subject in ("law", "chemistry"):
            assert all(theirs)
            assert sum(e.uid.startswith("own") for e in exemplars) == (2 if subject == "law" else 0)
        elif subject == "music":  # two seeds only, shown last
            assert theirs == [False, False, True, True]
    for subject, count in SUBJECTS.items():
        assert subjects[subject] == pytest.approx(400 * count / 22, abs=45)


def test_without_the_option_subjects_are_mixed():
    made = source(prompts_per_call=50)
    assert all("subject" not in i.meta for i in made.propose(1, context()))


def test_seeds_without_a_subject_are_refused_at_the_start(tmp_path):
    file = write_rows(tmp_path / "seeds.jsonl", [{"problem": f"Compute {i} + 1."} for i in range(9)])
    run = ["-c", "preset:quickstart", "--data.seeds", file, "--trainer.default_root_dir", tmp_path / "run"]
    ended = cli("fit", *run, "--data.writing.by_subject", "true")
    assert ended.status == 2
    assert "no seed has a subject; name its field with --data.fields.subject" in ended.error
