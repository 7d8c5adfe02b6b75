"""Problems that the policy writes from passages of documents, answers with them, and is trained to answer without."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lightning_serl.datamodules.problems.passages import Passage
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.engines.base import Request
from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.prompts.encoding import check_places
from lightning_serl.prompts.passages import QuestionTemplate
from lightning_serl.prompts.proposals import split_items
from lightning_serl.prompts.self_contained import needs_passage
from lightning_serl.rewards.open_book import CLOSED_BOOK, OpenBookVote
from lightning_serl.types import OPEN_BOOK, Group, Instruction, Link, Reason, Verdict

# Chance, beside those that are not known, that a problem whose answers were all right is asked again.
_KNOWN = 0.05
# What a draw is for, the first counter of its seed.
_SHARE, _AGAIN, _ORDER = 0, 1, 2


@dataclass(frozen=True)
class Reading:
    """How documents are read: passages, the problems about them, and what their answers are used for.

    Args:
        passage_chars: Characters of a passage, at most, without the headings above it.
        questions: Problems that are read from one list about a passage, at most.
        min_share: Least share of the answers with the passage in view that must agree to be the label.
        imitate: Factor of the advantage of the agreed answers when they are trained on without the passage; 0 for none.
        reader: Whose weights answer with the passage in view. ``reference`` is the model as training began: a policy
            that learns to answer without passages reads them less and less, and its mistakes would become labels.
        again: Share of each round that asks problems of earlier rounds again, those that are not known yet first.
        ask: How the policy is asked for problems.
        frame: The prompt with the passage in view, with the places ``{passage}`` and ``{problem}``; the latter is the
            prompt of ``data.solve``.

    Raises:
        InputError: for a number out of range or a template without its places.
    """

    passage_chars: int = 1500
    questions: int = 3
    min_share: float = 0.6
    imitate: float = 1.0
    reader: Literal["reference", "policy"] = "reference"
    again: float = 0.5
    ask: QuestionTemplate = field(default_factory=QuestionTemplate)
    frame: str = "{passage}\n\n{problem}"

    def __post_init__(self) -> None:
        check_range("data.reading.passage_chars", self.passage_chars, at_least=100)
        check_range("data.reading.questions", self.questions, at_least=1)
        check_choice("data.reading.reader", self.reader, ("reference", "policy"))
        hint = "some problems must be new"
        check_range("data.reading.again", self.again, at_least=0, below=1, hint=hint)
        check_places("data.reading.frame", self.frame, ("passage", "problem"), ())
        self.vote()

    def vote(self, imitate: bool = True) -> OpenBookVote:
        """The reward of the answers with the passage in view."""
        return OpenBookVote(self.min_share, self.imitate if imitate else 0.0, self.reader)


class DocumentQuestions(InstructionSource):
    """Writes problems from passages; each is answered with its passage in view, and then without.

    The shape of SPICE (arXiv 2510.24684) and GATES (2602.20574). A root of a round is a problem of role ``open_book``:
    ``samples_per_prompt`` answers with the passage in view, whose vote is the label, see
    :class:`~lightning_serl.rewards.open_book.OpenBookVote`. Where there is one, :meth:`derive` asks the problem without
    the passage (role ``solve``), and ``data.reward`` scores those answers against the label. SPICE trains the writer
    too, by how often answers without the document are right; here the writer is not trained.

    Passages come in a random order, another in every pass. Instruction filters judge the problems, and
    :meth:`reject` those that need the passage. Since one answer does not teach a fact, part of each round asks problems
    of earlier rounds again.

    Args:
        passages: At least one.
        reading: Options.
        writing: How lists of problems are sampled.
        answered: Whether problems are also asked without the passage; ``predict``, which only writes them, does not.
        imitates: Whether answers with the passage are trained on; not beside a control such as ``RandomReward``.
    """

    writes = True
    waves = 1
    follow_ups = 1

    def __init__(
        self, passages: Sequence[Passage], reading: Reading, writing: Writing, answered: bool = True,
        imitates: bool = True,
    ) -> None:  # fmt: skip
        self.passages, self.reading, self.writing, self.answered = list(passages), reading, writing, answered
        self.vote = reading.vote(imitates)
        # a group that is never trained on would not count as one of the round
        self._trained = not answered or bool(self.vote.imitate)
        #: A digest of all passages: a checkpoint can only be continued with the same ones.
        self.corpus = _digest(passages)
        self._position = self._calls = 0
        self._order = -1, list[int]()  # of the passages, in the pass of that number
        self._known: dict[str, dict[str, Any]] = {}  # problems with a label by their text: meta, and the share right
        self._round, self._taken = -1, set[str]()  # problems of this round that are asked again

    # -- problems ----------------------------------------------------------------------------------------------------

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Return problems of earlier rounds for a share of ``k``, and the lists that are written for the rest."""
        number, self._calls = self._calls, self._calls + 1
        rng = rng_for(ctx.seed, "documents", _SHARE, number)
        wanted = int(self.reading.again * k + rng.random()) if self.answered else 0
        known = self._asked_again(wanted, ctx)
        missing = k - len(known)
        return known + (self._written(-(-missing // self.reading.questions), number, ctx) if missing else [])

    def _asked_again(self, count: int, ctx: Context) -> list[Instruction]:
        """Up to ``count`` earlier problems, none twice in a round."""
        if ctx.round != self._round:
            self._round, self._taken = ctx.round, set()
        rng = rng_for(ctx.seed, "documents", _AGAIN, self._calls)
        waiting = [text for text in self._known if text not in self._taken]
        # the first of weighted random keys are a weighted sample without replacement (Efraimidis and Spirakis)
        keys = {text: rng.random() ** (1 / (1 - self._known[text]["right"] + _KNOWN)) for text in waiting}
        chosen = sorted(waiting, key=lambda text: -keys[text])[:count]
        self._taken.update(chosen)
        return [self._problem(text, {**self._known[text]["meta"], "again": True}) for text in chosen]

    def _written(self, count: int, number: int, ctx: Context) -> list[Instruction]:
        """The problems in one list for each of the next ``count`` passages."""
        if ctx.policy is None:
            raise InputError("data.documents needs a policy that writes; recordings (ReplayEngine) hold no passages")
        asked: list[tuple[Passage, Request]] = []
        for place in range(max(count, len(self.passages))):  # passages that are too long are passed over
            if len(asked) == count:
                break
            passage = self._next(ctx)
            request = self._request(passage, ctx.seeds(f"document {number} {place}", 1), ctx)
            if request is not None:
                asked.append((passage, request))
        if not asked:
            raise InputError(
                f"data.reading.passage_chars is {self.reading.passage_chars}, and such passages leave no room for "
                "problems in the model's context; lower it, or data.writing.sampling.max_tokens"
            )
        out: list[Instruction] = []
        opening = self.reading.ask.opening(ctx.policy.tokenizer)
        for (passage, _), completions in zip(asked, ctx.complete([r for _, r in asked]), strict=True):
            for completion in completions:
                out += self._read(passage, opening + completion.text, completion.finished)
        return out

    def _next(self, ctx: Context) -> Passage:
        turn, place = divmod(self._position, len(self.passages))
        if self._order[0] != turn:
            self._order = turn, list(range(len(self.passages)))
            rng_for(ctx.seed, "documents", _ORDER, turn).shuffle(self._order[1])
        self._position += 1
        return self.passages[self._order[1][place]]

    def _request(self, passage: Passage, seeds: tuple[int, ...], ctx: Context) -> Request | None:
        """The prompt that asks for problems, ``None`` if the context has no room for them."""
        assert ctx.policy is not None
        ask, tokenizer, context = self.reading.ask, ctx.policy.tokenizer, ctx.engine.shared_context(ctx.policy)
        sampling = self.writing.sampling.fitted(context)
        stops = [*ask.stop_strings(tokenizer), f"\n{self.reading.questions + 1}."]
        ids = tuple(ask.encode(tokenizer, passage.text))
        fits = context is None or len(ids) + sampling.longest <= context
        return Request(ids, seeds, sampling.with_stop(stops), passage.key) if fits else None

    def _read(self, passage: Passage, text: str, finished: bool) -> list[Instruction]:
        """The problems in a list; a text without any becomes an empty proposal, so that the ledger counts it."""
        items = split_items(text, first=1, finished=finished)[: self.reading.questions]
        meta = {"origin": "self", "passage": passage.citation}
        found = [self._problem(one.text, meta | ({"truncated": True} if one.truncated else {})) for one in items]
        return found or [self._problem("", meta)]

    def _problem(self, text: str, meta: dict[str, Any]) -> Instruction:
        return Instruction(text, "", role=OPEN_BOOK, train=self._trained, meta=meta)

    def reject(self, instruction: Instruction) -> Reason | None:
        """``needs_passage`` for a problem that cannot be understood without its passage."""
        return "needs_passage" if "passage" in instruction.meta and needs_passage(instruction.prompt) else None

    # -- answers -----------------------------------------------------------------------------------------------------

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Iterator[Instruction]:
        """Yield each problem with a label again, to be answered without its passage."""
        opened = [group for group in groups if group.instruction.role == OPEN_BOOK and self.answered]
        for group, verdict in zip(opened, self.vote.labels(opened, ctx), strict=True):
            if verdict.label is not None:
                root = group.instruction
                link = Link(CLOSED_BOOK, root.uid)
                yield replace(root, uid="", role="solve", label=verdict.label, link=link, train=True)

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Keep the problems with a label, with the share of answers without the passage that were right."""
        for group, verdict in zip(groups, verdicts, strict=True):
            problem = group.instruction
            if problem.link is not None and problem.link.relation == CLOSED_BOOK:
                meta = {name: value for name, value in problem.meta.items() if name not in ("again", "round")}
                right = float(verdict.scores.clamp(0, 1).mean())
                self._known[problem.prompt] = {"meta": meta, "right": right}

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Places, the problems with a label, and the digest of the passages."""
        known = {text: {"meta": dict(one["meta"]), "right": one["right"]} for text, one in self._known.items()}
        return {"position": self._position, "calls": self._calls, "known": known, "corpus": self.corpus}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`; an InputError if the checkpoint was made with other passages."""
        if state["corpus"] != self.corpus:
            raise InputError(
                "the passages of data.documents are not those of the checkpoint's run (files, or "
                "data.reading.passage_chars, changed); restore them, or begin a new run with another "
                "--trainer.default_root_dir"
            )
        self._position, self._calls = state["position"], state["calls"]
        self._known = {text: {"meta": dict(one["meta"]), "right": one["right"]} for text, one in state["known"].items()}


def _digest(passages: Sequence[Passage]) -> str:
    whole = hashlib.blake2b(digest_size=12)
    for one in passages:
        whole.update(f"{one.key}:{one.end}\n{one.text}\n".encode())
    return whole.hexdigest()
