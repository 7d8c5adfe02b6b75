"""Chooses the grader of each evaluation set, and scores groups of answers: which are right, and is the vote right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_serl.answers import AnswerGrader, detect_grader, resolve_grader
from lightning_serl.rewards import MajorityVote, PairwiseVote, VerifiableReward
from lightning_serl.rewards.serl import RuleReward
from lightning_serl.types import Group, Instruction, Verdict


class SetGrader(NamedTuple):
    """How the answers of one set are read and compared; ``name`` chooses the sentence on the answer format."""

    grader: AnswerGrader
    name: str


def set_graders(
    sets: Mapping[str, Sequence[Instruction]], run: SetGrader | None
) -> tuple[dict[str, SetGrader], list[str]]:
    """The grader of each set, and for the log a sentence for each set with another than the run's (``data.grader``).

    It is ``choice`` for a set whose problems all have choices, else the run's, or without one the detected one.
    """
    made: dict[str, SetGrader] = {} if run is None else {run.name: run}
    out: dict[str, SetGrader] = {}
    sentences: list[str] = []
    for name, problems in sets.items():
        chosen = run.name if run is not None else None
        if chosen is None or all("choices" in p.meta for p in problems):
            choices = [p.meta.get("choices") for p in problems]
            found, sentence = detect_grader([p.prompt for p in problems], [p.label for p in problems], choices)
            if found != chosen:
                sentences.append(f"{name}: {sentence if run is None else sentence.partition(';')[0]}")
            chosen = found
        if chosen not in made:
            made[chosen] = SetGrader(resolve_grader(chosen), chosen)
        out[name] = made[chosen]
    return out, sentences


class Scores(NamedTuple):
    """Scores of one group of answers; ``right`` is empty and ``vote_right`` is ``None`` without a label."""

    answers: list[str | None]
    right: tuple[bool, ...]
    vote: str | None = None
    vote_right: bool | None = None
    agreement: float = 0.0
    no_answer: int = 0


class DefaultScoring:
    """Reads answers from the responses alone; the vote is the largest class of equal answers."""

    def __init__(self, grader: AnswerGrader) -> None:
        self.verify, self.vote = VerifiableReward(grader), MajorityVote(grader)

    def __call__(self, group: Group) -> Scores:
        """Score one group; a response without a readable answer is wrong."""
        vote, problem = self.vote([group], None)[0], group.instruction
        assert group.answers is not None
        right = _flags(self.verify([group], None)[0], group)
        scores = Scores(group.answers, right, vote.label, None, vote.confidence, int(vote.info["no_answer"]))
        if vote.label is None or problem.label is None:
            return scores
        choices = problem.meta.get("choices")
        voted = Group.from_texts(problem.prompt, [f"\\boxed{{{vote.label}}}"], problem.label, choices=choices)
        return scores._replace(vote_right=_flags(self.verify([voted], None)[0], voted)[0])


class SerlScoring:
    """SeRL's published rules; the vote is right if the response that it chose is right."""

    def __init__(self) -> None:
        self.rule, self.vote = RuleReward(), PairwiseVote()

    def __call__(self, group: Group) -> Scores:
        """Score one group by the published rules."""
        rule, vote = self.rule([group], None)[0], self.vote([group], None)[0]
        winner, answers, right = int(vote.info["majority_index"]), list(rule.info["answers"]), _flags(rule, group)
        vote_right = right[winner] if right else None
        return Scores(answers, right, answers[winner], vote_right, vote.confidence, answers.count(None))


def _flags(verdict: Verdict, group: Group) -> tuple[bool, ...]:
    """Which answers are right; empty without a label."""
    return () if group.instruction.label is None else tuple(bool(s > 0) for s in verdict.scores)
