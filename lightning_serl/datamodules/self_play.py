"""The datamodule: streams freshly written, answered and voted problems, and evaluation sets."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.answers import AnswerGrader, detect_grader, resolve_grader
from lightning_serl.callbacks.defaults import announce_choice
from lightning_serl.callbacks.filters.base import GroupFilter, InstructionFilter
from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.callbacks.rollout_hooks import phase_of
from lightning_serl.checkpoints.checks import check_stream_state
from lightning_serl.checkpoints.serialize import instruction_state, load_instruction, load_pair, pair_state
from lightning_serl.datamodules import checks, class_paths
from lightning_serl.datamodules.announcements import (
    announce_filters,
    announce_labels,
    announce_unlabelled,
    warn_of_truncation,
)
from lightning_serl.datamodules.option_values import check_reward_name, named_reward, rewards_by_role
from lightning_serl.datamodules.problems.earlier_run import read_pool
from lightning_serl.datamodules.problems.files import read_problems
from lightning_serl.datamodules.problems.hub import read_set
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.datamodules.rounds.health_probe import Probe, probe_votes
from lightning_serl.datamodules.rounds.options import RoundOptions
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.prefetch import Ahead, Memo, RememberingEngine
from lightning_serl.datamodules.rounds.setup import Carried, Table
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.few_shot import FewShotSelfInstruction, Writing
from lightning_serl.datamodules.sources.prompt_set import Mixture, PromptSet
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions, EvaluationStream
from lightning_serl.datamodules.streams.predictions import PredictionStream
from lightning_serl.datamodules.streams.training import SelfPlayStream
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.errors import EmptyRound, InputError, PushMismatch
from lightning_serl.evaluation.graders import SetGrader, set_graders
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.rewards import LabelElseVote, Reward, VerifiableReward
from lightning_serl.rewards.rule import RuleReward
from lightning_serl.types import Instruction, RolloutBatch, Round, Vote

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy


class SelfPlayDataModule(pl.LightningDataModule):
    """Streams rounds of self-play to any module that offers ``policy`` and ``experience(groups, verdicts)``.

    Each round: the policy writes problems, filters (callbacks of the Trainer) sort them, the policy answers each one
    several times, the reward grades the answers, and the module turns the graded groups into micro-batches.

    Args:
        seeds: Problem file (jsonl) to start from; ``tiny:seeds`` is the embedded one.
        source: ``self`` writes new problems after the seeds, ``seeds`` trains on the seeds themselves,
            ``mix:RATIO`` takes that share of each round from the seeds and writes the rest; or your own source.
        fields: Names of the fields of the seed file.
        reward: A reward of this package by name (``MajorityVote``, ``RandomReward`` ...), your own as a class path or
            object, or one per role in the order they are asked; by default the gold label where a problem carries
            one (only seeds can), else the majority vote.
        grader: How answers are read and compared: ``math``, ``choice``, ``text``, your own object or class path, or
            ``auto``, which looks at the problems, at each evaluation set by itself, and says what it found. Evaluation
            sets of multiple-choice problems are read by letters in any case.
        engine: What writes completions; by default the live policy itself.
        round: The size of a round.
        writing: How new problems are written.
        solve: How problems are put to the policy.
        templates: The same for roles of your own beside ``solve``; a role without one is asked its bare prompt.
        max_tokens: Longest answer, in tokens.
        rounds_per_epoch: Rounds of one Lightning epoch.
        evaluation: What is measured by ``validate``, ``test`` and during ``fit``.
        probe: Which seeds are answered again and again to watch the health of the run.
        max_staleness: 0 trains every group by the weights that wrote it. 1 lets an engine that works beside the trainer
            (a server) write the next round while this one trains, and carries groups that a round written by its own
            weights had no room for to the next; the objective's correction is compulsory then. Processes that train
            together only carry.
        pool_from: Folders of earlier runs whose problems count as written already, the kept ones as exemplars.
        predict_to: File that ``predict`` writes self-made problems with voted answers to; by default
            ``predictions.jsonl`` in the run folder.
        seed: Seed of every random choice of the stream; by default the one of ``seed_everything``, else 0.

    Raises:
        InputError: in ``__init__`` or ``setup``, before any model loads, if an option or file cannot be used.
    """

    def __init__(
        self,
        seeds: str | None = None,
        source: str | InstructionSource = "self",
        fields: Fields = Fields(),  # noqa: B008 - frozen, and jsonargparse reads its fields for --help
        reward: Reward | dict[str, Reward] | str | None = None,
        grader: AnswerGrader | str = "auto",
        engine: RolloutEngine | None = None,
        round: RoundOptions = RoundOptions(),  # noqa: B008
        writing: Writing = Writing(),  # noqa: B008
        solve: SolveTemplate = SolveTemplate(),  # noqa: B008
        templates: dict[str, SolveTemplate] | None = None,
        max_tokens: int = 1024,
        rounds_per_epoch: int = 20,
        evaluation: EvaluationOptions = EvaluationOptions(),  # noqa: B008
        predict_to: str | None = None,
        seed: int | None = None,
        pool_from: str | list[str] | None = None,
        probe: Probe = Probe(),  # noqa: B008
        max_staleness: Literal[0, 1] = 0,
    ) -> None:
        super().__init__()
        if rounds_per_epoch < 1:
            raise InputError(f"data.rounds_per_epoch must be at least 1, got {rounds_per_epoch}")
        if max_tokens < 1:
            raise InputError(f"data.max_tokens must be at least 1, got {max_tokens}")
        if round.overlong_buffer > max_tokens:
            raise InputError(
                f"data.round.overlong_buffer is {round.overlong_buffer}, more than data.max_tokens ({max_tokens}); "
                "give the last tokens that cost score, or 0"
            )
        if max_staleness not in (0, 1):
            raise InputError(f"data.max_staleness must be 0 or 1, got {max_staleness}")
        if seed is not None and seed < 0:
            raise InputError(f"data.seed must be 0 or above, got {seed}")
        # path objects do, too; named in the signature, the command line would read null as the path None
        self.seeds = None if seeds is None else os.fspath(seeds)
        self.source, self.fields = source, fields
        self.mix_ratio = _parse_source(source)
        asked = check_reward_name(reward) if isinstance(reward, str) else reward
        self._reward_name = asked if isinstance(asked, str) else None
        self.rewards = {} if isinstance(asked, str) else rewards_by_role(asked)
        if isinstance(grader, str) and "." in grader:
            grader = class_paths.load(grader, "data.grader", "use math, choice, text, or the class path of your own")
        self.grader = grader if grader == "auto" else resolve_grader(grader, option="data.grader")
        self.grader_name = grader if isinstance(grader, str) else getattr(grader, "name", type(grader).__name__)
        self.engine: RolloutEngine = engine if engine is not None else TransformersEngine()
        self.round_options, self.writing, self.solve = round, writing, solve
        self.templates = templates or {}
        self.sampling = Sampling(max_tokens=max_tokens)
        self.rounds_per_epoch, self.max_staleness = rounds_per_epoch, max_staleness
        self.evaluation, self.predict_to, self.probe = evaluation, predict_to, probe
        pools = [pool_from] if isinstance(pool_from, (str, os.PathLike)) else list(pool_from or ())
        self.pool_from = [os.fspath(one) for one in pools]
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed

        self.seed_problems: list[Instruction] = []
        self.evaluation_problems: dict[str, list[Instruction]] = {}
        self.evaluation_graders: dict[str, SetGrader] = {}
        self._detects = self.grader == "auto"
        self._earlier: list[list[tuple[Instruction, str]]] = []
        self._table: Table | None = None
        self._started_for: Policy | str | None = "not started"
        self._restored: dict[str, Any] | None = None
        #: The number of rounds played, and the micro-batches of the last one, by rank.
        self.rounds = 0
        self._pending: list[list[RolloutBatch]] = []
        self._before: dict[str, Any] | None = None
        self._ahead: Ahead | None = None
        self._memo: Memo | None = None  # of the next round, from a checkpoint taken while it was written ahead
        self._first_step: int | None = None
        self._first_round = 0
        self._warned = False

    # -- what the run needs ------------------------------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """What rewards and source ask for beyond the policy itself (``reference``, ``teacher``, ``certainty`` ...)."""
        out = frozenset(getattr(self.source, "needs", frozenset()))
        for reward in self.rewards.values():  # the named ones need nothing
            out |= frozenset(getattr(reward, "needs", frozenset()))
        return out

    @property
    def writes(self) -> bool:
        """Whether the policy writes problems of its own after the seeds."""
        return self.mix_ratio < 1 and self.seeds is not None and not isinstance(self.source, InstructionSource)

    @property
    def reward_name(self) -> str | None:
        """Name of the reward, if it was given by name."""
        return self._reward_name

    @property
    def _needs_labels(self) -> bool:
        """Whether the reward can say nothing of a problem without a label; the default one votes there."""
        named = self._reward_name in ("VerifiableReward", "RuleReward")
        return named or isinstance(self.rewards.get("solve"), (VerifiableReward, RuleReward))

    @property
    def ranks(self) -> Ranks:
        """This process among its peers."""
        return Ranks.of(self.trainer)

    def setup(self, stage: str) -> None:
        """Read and check every file, choose the grader, and say so; no model is loaded yet."""
        self.check_files(stage)
        self._choose_graders()
        if stage == "fit":
            checks.check_trainer(self.trainer, len(SelfPlayStream(self)))
            self.check_staleness()
            if not isinstance(self.source, InstructionSource):  # one's own may bring groups of any size
                checks.check_minibatches(self.trainer.lightning_module, self.round_options)
            if self._before is not None:  # an earlier fit ended in mid-round: its uids would be given a second time
                self._restored, self._before, self._table = self._before, None, None
                self.rounds = self._restored["rounds"]
                self._restored |= {"pending": [], "first_step": None, "first_round": self.rounds, "ahead": None}
                self._restored["carried"] = []  # of another Trainer's clock
            elif self._table is not None:
                self._table.carried.clear()
            # another fit in the same process goes on after the rounds played so far, on its own Trainer's clock
            self._first_step, self._first_round, self._pending = None, self.rounds, []
        if stage in ("fit", "predict"):
            if not self.rewards and self._reward_name is None and self.mix_ratio > 0 and stage == "fit":
                announce_labels(self.seed_problems)
            if self._needs_labels and stage == "fit":
                announce_unlabelled(self.seed_problems)
            if stage == "fit":
                announce_choice(self.trainer.callbacks, self.writes)
            if self.writes:
                announce_filters(self.seed_problems, self.trainer.callbacks)

    def check_staleness(self) -> None:
        """Refuse what cannot go with ``max_staleness``.

        Raises:
            InputError: see :func:`checks.check_staleness`.
        """
        module = self.trainer.lightning_module
        checks.check_staleness(module, self.max_staleness, self.round_options.style, self.engine)

    def _choose_graders(self) -> None:
        """The run's grader by the seeds and that of each evaluation set by its own problems, unless one was named."""
        if not self.evaluation_graders:
            run = None if self._detects else SetGrader(self.grader, self.grader_name)  # type: ignore[arg-type]
            self.evaluation_graders, said = set_graders(self.evaluation_problems, run)
            for sentence in said:
                rank_zero_info(sentence)
        if not self._detects:
            return
        if self.seed_problems:
            name, sentence = detect_grader(
                [p.prompt for p in self.seed_problems],
                [p.label for p in self.seed_problems],
                [p.meta.get("choices") for p in self.seed_problems],
            )
            rank_zero_info(sentence)
            self.grader, self.grader_name, self._detects = resolve_grader(name), name, False
        elif self.evaluation_graders:  # nothing is trained on, or later: the seeds of a fit to come decide anew
            self.grader, self.grader_name = next(iter(self.evaluation_graders.values()))
        else:
            raise InputError("data.grader is auto but there are no problems to look at; set it to math, choice or text")

    def check_files(self, stage: str) -> None:
        """Read the problem files that a stage needs.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            InputError: with file and line.
        """
        wanted = stage in ("fit", "predict")
        if self.seeds is None and wanted and not isinstance(self.source, InstructionSource):
            raise InputError("no seeds were given; set --data.seeds to a jsonl file of problems (or tiny:seeds)")
        if self.seeds is not None and not self.seed_problems and wanted:
            self.seed_problems = read_problems(self.seeds, self.fields, "seed")
            if self.writes:
                checks.check_exemplars(self.seeds, len(self.seed_problems), self.writing.exemplars)
                if self.writing.by_subject:
                    checks.check_subjects(self.seed_problems)
            self._table = None  # one made by an earlier validation knows no seeds
        if wanted and self.pool_from and not self._earlier:
            self._earlier = [read_pool(name) for name in self.pool_from]
            self._table = None
        if stage == "fit" and self._needs_labels:
            checks.check_labels(self.seed_problems, trained=self.mix_ratio > 0 or not self.writes)
        if stage in ("validate", "test") and not self.evaluation.sets:
            what = getattr(stage, "value", stage)
            raise InputError(f"{what} has nothing to measure; set --data.evaluation.sets.NAME to a problem set")
        if not self.evaluation_problems and stage != "predict":
            self.evaluation_problems = {
                name: read_set(os.fspath(spec), self.evaluation.fields, name)
                for name, spec in sorted(self.evaluation.sets.items())
            }

    # -- the run's parts ---------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """The parts of the rounds; made once, when the policy and the callbacks exist."""
        trainer = self.trainer
        policy = self._policy()
        if self._table is None:
            pool = self._make_pool()
            default = LabelElseVote(self.grader)
            solve_reward = (
                default if self._reward_name is None else named_reward(self._reward_name, self.grader, self.seed)
            )
            self._table = Table(
                options=self.round_options,
                source=self._make_source(pool),
                pool=pool,
                engine=self.engine,
                policy=policy,
                rewards=self.rewards or {"solve": solve_reward},
                gate=default,
                grader=self.grader,  # type: ignore[arg-type]
                grader_name=self.grader_name,
                templates={"solve": self.solve, **self.templates},
                sampling=self.sampling,
                seed=self.seed,
                max_staleness=self.max_staleness,
            )
        table = self._table
        table.policy, table.ranks = policy, self.ranks
        table.instruction_filters = [c for c in trainer.callbacks if isinstance(c, InstructionFilter)]
        table.group_filters = [c for c in trainer.callbacks if isinstance(c, GroupFilter)]
        table.phase = partial(phase_of, trainer.callbacks)
        if policy is not None:
            table.sampling = Sampling(max_tokens=self.sampling.max_tokens, temperature=policy.temperature)
        if self._restored is not None:
            self._restore(table, self._restored)
            self._restored = None  # only now: a checkpoint written after an error holds what could not be restored
        return table

    def _make_pool(self) -> InstructionPool:
        pool = InstructionPool(self.seed_problems)
        # a run on its seeds has proposed them too, and one that was given an earlier run's pool may be given as well
        held = {(i.prompt, tuple(i.meta.get("choices") or ())) for i in pool.seeds}
        for place, problems in enumerate(self._earlier):
            for problem, status in problems:
                key = problem.prompt, tuple(problem.meta.get("choices") or ())
                if key not in held:
                    held.add(key)
                    pool.add(replace(problem, uid=f"earlier-{place}-{problem.uid}"), status)
        return pool

    def _policy(self) -> Policy | None:
        module = self.trainer.lightning_module
        if not self.engine.samples_policy and not getattr(module, "has_policy", True):
            return None
        return module.policy

    def _make_source(self, pool: InstructionPool) -> InstructionSource | None:
        if isinstance(self.source, InstructionSource):
            return self.source
        if not self.seed_problems:
            return None
        if self.mix_ratio == 1.0:
            return PromptSet(self._fixed())
        made = FewShotSelfInstruction(pool, self.writing)
        return made if self.mix_ratio == 0.0 else Mixture(made, PromptSet(self._fixed()), self.mix_ratio)

    def _source_kind(self) -> str | None:
        """What kind of source the problems come from; ``None`` without one."""
        if isinstance(self.source, InstructionSource):
            return type(self.source).__name__
        if not self.seed_problems:
            return None
        return {1.0: PromptSet, 0.0: FewShotSelfInstruction}.get(self.mix_ratio, Mixture).__name__

    def _fixed(self) -> list[Instruction]:
        """The seeds as prompts, where the reward needs labels those that carry one.

        What ``predict`` writes is voted, so labels stay out of it.
        """
        if self.trainer.state.fn != "predict":
            labelled = [p for p in self.seed_problems if p.label is not None]
            return labelled if self._needs_labels else self.seed_problems
        return [replace(p, label=None) for p in self.seed_problems]

    @contextmanager
    def rolling(self) -> Iterator[Table]:
        """The run's parts with the engine started and up to date, inside the policy's gathered context.

        Raises:
            PushMismatch: if the engine still holds other weights than the policy after ``RolloutRefresh`` had its turn.
        """
        if self._ahead is not None:
            self._ahead.wait()  # its completions must come from one version of the weights
        trainer, table = self.trainer, self.table()
        policy, engine = table.policy, self.engine
        if self._started_for is not policy:
            chats = {f"data.templates.{role}.chat": one.chat for role, one in self.templates.items()}
            chats["data.solve.chat"] = self.solve.chat
            if self.writes:
                chats["data.writing.template.chat"] = self.writing.template.chat
            checks.check_chat(policy, chats)
            checks.check_lengths(policy, engine, self.sampling, self.writing.sampling if self.writes else None)
            engine.folder, engine.poll = Path(trainer.default_root_dir), self._poll
            with table.ranks.stage("starting the engine"):
                engine.start(policy, table.ranks)
            atexit.register(engine.close)
            # some engines know their own context only now
            checks.check_lengths(policy, engine, self.sampling, self.writing.sampling if self.writes else None)
            self._started_for = policy
        engine.poll = self._poll
        with table.ranks.stage("waking the engine"):
            engine.wake()
        self._refresh()
        if policy is None:
            yield table
            return
        asking = "asking the engine for its version"
        with table.ranks.stage(asking):
            stale = self._stale_engine(policy) is not None
        if table.ranks.any(stale):
            self._refresh()  # a server that came back during the push was only seen now
            with table.ranks.stage(asking):
                if (held := self._stale_engine(policy)) is not None:
                    raise PushMismatch(
                        f"the rollout engine holds weights of version {held}, the policy is at {policy.version}; keep "
                        "a RolloutRefresh callback in the Trainer"
                    )
        with policy.gathered(trainer):
            yield table

    def _refresh(self) -> None:
        """Let the callbacks bring the engine up to date."""
        for callback in self.trainer.callbacks:
            hook = getattr(callback, "on_rollout_start", None)
            if hook is not None:
                hook(self.trainer, self.trainer.lightning_module, self.engine)

    def _stale_engine(self, policy: Policy) -> int | None:
        """The version that the engine holds, if it is not the policy's."""
        held = self.engine.version if self.engine.samples_policy else policy.version
        return held if held != policy.version else None

    def _poll(self) -> None:
        if self.trainer.received_sigterm:
            raise SIGTERMException
        for watch in self._watches():
            watch.poll(self.trainer)

    def _watches(self) -> list[Preemption]:
        return [c for c in self.trainer.callbacks if isinstance(c, Preemption)]

    def heed_sigterm(self) -> None:
        """Between micro-batches: end on all ranks if one was told to. On one rank Lightning looks itself."""
        if self.ranks.size == 1:
            return
        for watch in self._watches():
            watch.check_ranks()
        if self.ranks.any(any(watch.heard(self.trainer) for watch in self._watches())):
            error = SIGTERMException()
            error.on_every_rank = True
            raise error

    # -- streams -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> SelfPlayStream:
        """The stream of training micro-batches."""
        return SelfPlayStream(self)

    def val_dataloader(self) -> list[EvaluationStream]:
        """One stream per evaluation set."""
        return [
            EvaluationStream(self, name, problems, self.evaluation_graders.get(name))
            for name, problems in self.evaluation_problems.items()
        ]

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> PredictionStream:
        """Self-made problems with voted answers, written to ``predict_to`` round by round."""
        target = self.predict_to or str(Path(self.trainer.default_root_dir) / "predictions.jsonl")
        return PredictionStream(self, Path(target))

    def play(self, filter_groups: bool = True) -> Round:
        """Play the next round, or take the one that was played ahead; the state before it stays until its commit."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            try:
                ahead.wait()
            finally:
                ahead.stop()
                self._before = self._state_with(ahead)
        with self.rolling() as table:
            if ahead is None:
                self._before = self._live_state(table)
            memo, self._memo = self._memo, None
            if not filter_groups:
                table.group_filters = []
            try:
                votes = self._probe(table)
                table.step = self.trainer.global_step
                if ahead is not None:
                    played = ahead.result()
                elif memo is not None:
                    again = replace(table, engine=RememberingEngine(self.engine, memo), step=memo.step, age=1)
                    played = play_round(again, self.rounds)
                else:
                    played = play_round(table, self.rounds)
                played.probe = votes
                return played
            except EmptyRound as error:
                self._tell(error.played)
                raise

    def work_ahead(self) -> None:
        """Have the next round written while this one trains, if the engine and the options allow it.

        Not where ranks would have to keep step in the thread, nor where a reward or source needs the policy's own
        passes, nor in a precision that changes torch's default dtype under the thread's feet while the policy trains.
        """
        trainer = self.trainer
        if not (self.max_staleness and self.engine.concurrent) or self.ranks.size > 1 or self.needs:
            return
        if str(trainer.precision) in ("16-true", "bf16-true", "64-true"):
            return
        begins = (self._first_step or 0) + (self.rounds - self._first_round) * self._steps_per_round()
        if begins >= trainer.estimated_stepping_batches:
            return  # this was the last one
        with self.rolling() as table:
            pass  # the engine holds the weights that this round starts from
        memo = Memo(trainer.global_step)
        self._ahead = Ahead(table, self.rounds, self._live_state(table), memo, self._poll)
        self._ahead.start()

    def _probe(self, table: Table) -> dict[str, Vote]:
        """Votes on the health probe where one is due: first with the weights that the fit began with."""
        due = self.probe.every and (self.rounds - self._first_round) % self.probe.every == 0
        if not due or self.trainer.state.fn != "fit" or not self.engine.samples_policy:
            return {}
        return probe_votes(table, self.probe.choose(self.seed_problems, self.seed), self.probe.samples)

    def commit(self, played: Round, batches: list[RolloutBatch]) -> None:
        """A round is done: tell the callbacks, count it, and keep its micro-batches for the steps to come."""
        pending = self.ranks.gather(batches)
        played.stats["serl/rollout/policy_version_lag"] = float(self.trainer.global_step - played.oldest)
        with self.ranks.stage("closing the round"):
            self._tell(played)
        clipped = played.stats["completions/clipped_ratio"]
        self._warned = self._warned or warn_of_truncation(clipped, self.sampling.max_tokens)
        # in one go and last, so that whatever fails above leaves a round that is played again
        self._pending, self.rounds, self._before = pending, played.number + 1, None

    def _tell(self, played: Round) -> None:
        for callback in self.trainer.callbacks:
            hook = getattr(callback, "on_round_end", None)
            if hook is not None:
                hook(self.trainer, self.trainer.lightning_module, played)

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def playing(self) -> bool:
        """Whether a round was begun and is not committed; a resumed run plays it again."""
        return self._before is not None

    def state_dict(self) -> dict[str, Any]:
        """Pool, queue, source, counters and micro-batches not yet trained on: primitives and tensors, no collective.

        While a round is being played this is the state before it, so that an interrupted round is played again.
        """
        if self._restored is not None:
            return self._restored
        if self._table is None:
            return {}
        if self._before is not None:
            return self._before
        if self._ahead is None:
            return self._live_state(self._table)
        # A checkpoint waits for the round ahead, so that whoever resumes trains on the same completions. Lightning
        # saves after an exception from inside its handler: then what was written so far has to do.
        if sys.exc_info()[0] is None:
            self._ahead.wait()
        return self._state_with(self._ahead)

    def _state_with(self, ahead: Ahead) -> dict[str, Any]:
        """The state before a round ahead, and what was written for it since."""
        return {**ahead.before, "pending": self._pending_state(), "ahead": ahead.memo.state_dict()}

    def _pending_state(self) -> list[Any]:
        """Micro-batches not yet trained on, by rank."""
        done = self._steps_done() >= (self.rounds - self._first_round) * self._steps_per_round()
        return [] if done else [[b.state_dict() for b in one] for one in self._pending]

    def _live_state(self, table: Table) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "rounds": self.rounds,
            "steps_per_round": self._steps_per_round(),
            "first_step": self._first_step,
            "first_round": self._first_round,
            "ranks": self.ranks.size,
            "engine": type(self.engine).__name__,
            "pool": table.pool.state_dict(),
            "source": {} if table.source is None else table.source.state_dict(),
            "source_kind": self._source_kind(),
            "queue": [instruction_state(i) for i in table.queue],
            "pending": self._pending_state(),
            "carried": [
                {"round": c.round, "step": c.step, "pairs": [pair_state(g, v) for g, v in c.pairs]}
                for c in table.carried
            ],
            "ahead": None if self._memo is None else self._memo.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; applied when the run's parts exist."""
        if state_dict:
            check_stream_state(state_dict)
            self._check_source(state_dict.get("source_kind"))
        self._restored = state_dict or None
        self._table = None

    def _check_source(self, theirs: str | None) -> None:
        ours = self._source_kind()
        if (
            self.trainer is not None
            and self.trainer.state.fn == "fit"
            and None not in (ours, theirs)
            and ours != theirs
        ):
            raise InputError(
                f"the checkpoint's problems came from {theirs}, this run's come from {ours}; give the data.source that "
                "the run had, or begin a new one with another --trainer.default_root_dir"
            )

    def _restore(self, table: Table, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            rank_zero_warn(
                f"data.seed is {self.seed} but the checkpoint was made with {state['seed']}; "
                "new rounds draw from the new seed"
            )
        here = {"ranks": self.ranks.size, "engine": type(self.engine).__name__}
        for name, value in here.items():
            if state.get(name, value) != value:
                rank_zero_warn(
                    f"{name}: {value} here, {state[name]} where the checkpoint was made; the run continues, but from "
                    "here on it equals the undisturbed one only up to rounding and what is sampled from it"
                )
        given = [i.prompt for i in table.pool.seeds]
        table.pool.load_state_dict(state["pool"])
        if given != [i.prompt for i in table.pool.seeds]:
            rank_zero_warn(
                "data.seeds holds other problems than where the checkpoint was made, and the run goes on with those of "
                "the checkpoint; begin a new run to change them"
            )
        if table.source is not None:
            table.source.load_state_dict(state["source"])
        table.queue[:] = map(load_instruction, state["queue"])
        self.rounds, self._first_step, self._first_round = state["rounds"], state["first_step"], state["first_round"]
        self._pending = [[RolloutBatch.from_state_dict(b) for b in one] for one in state["pending"]]
        carried = state.get("carried", ())
        table.carried[:] = [Carried([load_pair(p) for p in c["pairs"]], c["round"], c["step"]) for c in carried]
        ahead = state.get("ahead")
        self._memo = None if ahead is None else Memo.from_state_dict(ahead)
        steps = self._steps_per_round()
        sizes = [steps * self.trainer.accumulate_grad_batches] * self.ranks.size
        if state["steps_per_round"] != steps or (self._pending and [len(one) for one in self._pending] != sizes):
            # these micro-batches cannot be shared out as they are; the clock starts anew at the next round
            if self._pending:
                rank_zero_warn(
                    "the checkpoint was made in mid-round with another number of processes, accumulate_grad_batches, "
                    "inner_epochs or minibatches; what is left of that round is skipped"
                )
            self._pending, self._first_step, self._first_round = [], self.trainer.global_step, self.rounds

    def _steps_per_round(self) -> int:
        return int(getattr(self.trainer.lightning_module, "steps_per_round", 1))

    def _steps_done(self) -> int:
        """Optimizer steps since the stream's first: the only clock there is."""
        return self.trainer.global_step - (self._first_step or 0)

    # -- ends --------------------------------------------------------------------------------------------------------

    def on_exception(self, exception: BaseException) -> None:
        """Lightning skips ``teardown`` after an exception."""
        self.close()

    def teardown(self, stage: str) -> None:
        """Release the engine."""
        self.close()

    def close(self) -> None:
        """Release the engine; the next stream starts it again."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.stop()
            # whoever goes on plays it again
            self._before = self._state_with(ahead)
        if self._started_for != "not started":
            self.engine.close()
            atexit.unregister(self.engine.close)
            self._started_for = "not started"


def _parse_source(source: str | InstructionSource) -> float:
    """The share of each round that comes from the seeds themselves."""
    if isinstance(source, InstructionSource):
        return 0.0
    if source in ("self", "seeds"):
        return float(source == "seeds")
    if isinstance(source, str) and source.startswith("mix:"):
        try:
            ratio = float(source[4:])
        except ValueError:
            ratio = -1.0
        if 0 < ratio < 1:
            return ratio
        raise InputError(f"data.source {source!r}: the ratio must be a number between 0 and 1, as in mix:0.5")
    raise InputError(f"data.source must be self, seeds or mix:RATIO, got {source!r}")
