"""What is reported of a round: its ledger events, its numbers for the log, and why it is empty if it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning_serl.callbacks.filters import ZeroSpread
from lightning_serl.datamodules.rounds.setup import RoundSetup, RoundState
from lightning_serl.pool.words import count_words, unique_ngrams
from lightning_serl.types import OPEN_BOOK, Event, Group, Instruction, Round, Verdict

# The measures of variety look at this many of the problems written last.
_LATEST = 200
# Share of the answered problems whose responses must agree for a round without a group to be the end of learning.
_NEARLY_ALL = 0.75


# What to do about a reason that a reward gave for a whole group.
_ADVICE = {
    "low_consensus": (
        "too few answers agree, or can be read, to make a label: raise data.max_tokens or "
        "data.round.samples_per_prompt, lower min_share of data.reward (with documents, of data.reading), or take "
        "easier problems"
    ),
    "no_view": "the reward compares two views of a problem: set data.source Paraphrase and data.round.max_waves 1",
    "no_evaluation": (
        "the reward scores solutions by evaluations of them: set data.source Discussion, as preset:method-comas does"
    ),
    "answer_in_problem": "the written problems contain their answers: ask for others with data.reading.ask.text",
    "no_grade": (
        "the judge wrote no grade that can be read: raise max_tokens of data.reward, or take a stronger policy"
    ),
}


class RoundLog:
    """Collects the result of a round while it is played."""

    def __init__(self, number: int, step: int) -> None:
        self.round = Round(number, oldest=step)
        self.counts: Counter[str] = Counter()  # of events
        self.reasons: Counter[str] = Counter()  # of rejected and dropped instructions
        self.nearest: list[float] = []  # ROUGE-L of each accepted problem to the most similar one in the pool

    def event(self, uid: str, event: str, **facts: Any) -> None:
        """Add one row of the ledger."""
        self.counts[event] += 1
        if facts.get("reason"):
            self.reasons[facts["reason"]] += 1
        self.round.events.append({"uid": uid, "event": event, "round": self.round.number, **facts})


def proposal_facts(instruction: Instruction) -> Event:
    """What the ledger keeps of a proposal: enough to offer it to another run."""
    choices, role = instruction.meta.get("choices"), instruction.role
    facts: Event = {"prompt": instruction.prompt}
    if "passage" in instruction.meta:
        facts["passage"] = instruction.meta["passage"]
    return facts | ({"choices": list(choices)} if choices else {}) | ({"role": role} if role != "solve" else {})


def why_empty(setup: RoundSetup, log: RoundLog, attempts: int, tried: int) -> str:
    """The message of a round with nothing to train on: the most common reasons, and what to do about the first."""
    number, written = log.round.number + 1, log.counts["proposed"]  # counted from 1, as in the lines of a terminal
    common = ", ".join(f"{reason} {count}" for reason, count in log.reasons.most_common(4)) or "none"
    if not tried and not written:
        if not setup.engine.samples_policy:
            return (
                f"round {number}: the recording holds no unused proposals (rows without a problem); add some, or set "
                "data.source to seeds"
            )
        return (
            f"round {number}: no problem was proposed, not even one to reject; raise "
            "data.writing.sampling.max_tokens, or change data.writing.template or your own source"
        )
    if not tried:
        advice = "look at ledger.jsonl, then loosen that filter or change data.writing"
        if next(iter(log.reasons.most_common(1)), ("", 0))[0] == "over_long_prompt":
            advice = "lower data.max_tokens, which shares the context with them, or raise data.round.max_prompt_tokens"
        said = f"{written} problems were proposed and none could be used (rejected: {common})"
        return f"round {number}: {said}; {advice}"
    dropped = Counter(e["reason"] for e in log.round.events if e["event"] == "dropped")
    first = dropped.most_common(1)[0][0] if dropped else None
    if first == "no_answer":
        advice = (
            f"look at samples.jsonl, then check data.grader ({setup.grader_name}), the answer format that "
            "data.solve asks for, and data.max_tokens"
        )
    elif first in _ADVICE:
        advice = _ADVICE[first]
    elif first == "no_spread":
        advice = (
            "all responses to a problem got the same score, so there is nothing to learn from them: take other "
            "problems, or a reward that tells responses apart"
        )
    else:
        # a list of filters in trainer.callbacks replaces the default ones
        others = " and ".join(dict.fromkeys(type(f).__name__ for f in setup.instruction_filters))
        kept = f" (list {others} too, to keep them)" if others else ""
        names = dict.fromkeys(type(f).__name__ for f in setup.group_filters if not isinstance(f, ZeroSpread))
        widen = f"widen the {' and '.join(names)}{kept} or " if names else ""
        advice = f"look at samples.jsonl, then {widen}raise data.round.max_attempts"
    said = f"none of {tried} groups survived {attempts} attempts (dropped or rejected: {common})"
    return f"round {number}: {said}; {advice}"


def agreed(log: RoundLog) -> bool:
    """Whether the responses to nearly every problem of the round agree on a label: their mean score is above one half.

    Groups that were dropped for it have nothing left to teach; those without a label, or with low scores, are too hard
    or cannot be read.
    """
    answered = [verdict for _, verdict in log.round.answered]
    alike = [v for v in answered if v.label is not None and len(v.scores) and float(v.scores.mean()) > 0.5]
    return bool(answered) and len(alike) >= _NEARLY_ALL * len(answered)


def statistics(
    setup: RoundSetup, state: RoundState, log: RoundLog, attempts: int, tried: int, survived: int, fresh: int
) -> dict[str, float]:
    """The round's numbers for the log, under TRL's names where TRL has one.

    ``tried`` root groups were answered in ``attempts`` attempts, ``survived`` are trained on, ``fresh`` of them new.
    """
    answered = log.round.answered
    # answers with a passage in view are no measure of what the policy knows
    seen = [pair for pair in answered if pair[0].instruction.role != OPEN_BOOK] or answered
    lengths = [len(c.token_ids) for g, _ in seen for c in g.completions]
    finished = [c.finished for g, _ in seen for c in g.completions]
    scores = [s for _, v in seen for s in v.scores.tolist()]
    spreads = [float(v.scores.std()) if len(v.scores) > 1 else 0.0 for _, v in seen]
    groups, responses, proposed = max(1, len(seen)), max(1, len(finished)), log.counts["proposed"]
    out = {
        "reward": sum(scores) / max(1, len(scores)),
        "reward_std": sum(spreads) / max(1, len(spreads)),
        "frac_reward_zero_std": sum(s == 0 for s in spreads) / max(1, len(spreads)),
        "completions/mean_length": sum(lengths) / max(1, len(lengths)),
        "completions/min_length": float(min(lengths, default=0)),
        "completions/max_length": float(max(lengths, default=0)),
        "completions/clipped_ratio": finished.count(False) / responses,
        "serl/vote/agreement_mean": sum(v.confidence for _, v in seen) / groups,
        "serl/vote/no_answer_frac": sum(v.info.get("no_answer", 0) for _, v in seen) / responses,
        "serl/vote/unique_answers": sum(v.info.get("unique_answers", 0) for _, v in seen) / groups,
        "serl/filter/proposed": float(proposed),
        "serl/filter/accepted_rate": log.counts["accepted"] / max(1, proposed),
        "serl/filter/yield": fresh / max(1, tried),
        "serl/round/attempts": float(attempts),
        "serl/round/groups": float(survived),
        "serl/pool/size": float(len(state.pool)),
        "serl/pool/queue": float(len(state.queue)),
    }
    if setup.max_staleness:
        out["serl/round/carried"] = float(survived - fresh)
    out |= _role_rewards(seen) | _open_book(answered)
    out |= _variety(state, log)
    return out | {f"serl/reason/{reason}": float(count) for reason, count in sorted(log.reasons.items())}


def _role_rewards(seen: list[tuple[Group, Verdict]]) -> dict[str, float]:
    """The mean reward of each role, if there are several."""
    out: dict[str, float] = {}
    roles = dict.fromkeys(g.instruction.role for g, _ in seen)
    for role in roles if len(roles) > 1 else ():
        means = [float(v.scores.mean()) for g, v in seen if g.instruction.role == role and len(g)]
        out[f"serl/role/{role}/reward"] = sum(means) / max(1, len(means))
    return out


def _open_book(answered: list[tuple[Group, Verdict]]) -> dict[str, float]:
    """What came of the problems that were answered with a passage in view; empty without any."""
    opened = [verdict for group, verdict in answered if group.instruction.role == OPEN_BOOK]
    if not opened:
        return {}
    closed = [verdict for group, verdict in answered if "passage" in group.instruction.meta and group.instruction.link]
    imitated = sum(int((v.weight * v.scores > 0).sum()) for v in opened if v.centred)
    return {
        "serl/documents/agreement": sum(v.confidence for v in opened) / len(opened),
        "serl/documents/labelled_frac": sum(v.label is not None for v in opened) / len(opened),
        "serl/documents/closed_book": sum(float(v.scores.mean()) for v in closed) / max(1, len(closed)),
        "serl/documents/imitated": float(imitated),
    }


def _variety(state: RoundState, log: RoundLog) -> dict[str, float]:
    """How new and how varied the written problems are; empty if none was written."""
    pool = state.pool
    latest = pool.latest(_LATEST)
    if not latest:
        return {}
    out = {
        "serl/pool/unique_4grams": unique_ngrams(latest),
        "serl/pool/words_mean": sum(map(count_words, latest)) / len(latest),
    }
    if log.nearest:
        out["serl/pool/nearest_mean"] = sum(log.nearest) / len(log.nearest)
    ages = [log.round.number - i.meta["round"] for i in pool.kept if "round" in i.meta]
    return out | ({"serl/pool/exemplar_age": sum(ages) / len(ages)} if ages else {})
