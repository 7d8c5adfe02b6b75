"""The datamodule: its options, its setup and the streams for fit, validate, test and predict."""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks.defaults import announce_choice
from lightning_serl.callbacks.filters import NoveltyFilter, QualityFilter
from lightning_serl.callbacks.monitors import check_monitors
from lightning_serl.callbacks.rollout_hooks import InstructionFilter
from lightning_serl.callbacks.unsupported import check_callbacks
from lightning_serl.datamodules import checks
from lightning_serl.datamodules.option_values import (
    GraderLike,
    RewardLike,
    named_reward,
    parse_follow_ups,
    parse_grader,
    parse_paths,
    parse_reward,
    parse_role_rewards,
    parse_source,
)
from lightning_serl.datamodules.parts import Ground, Parts
from lightning_serl.datamodules.problems.documents import read_documents
from lightning_serl.datamodules.problems.files import read_pool, read_problems
from lightning_serl.datamodules.problems.hub import read_set
from lightning_serl.datamodules.problems.passages import Passage
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.rounds.setup import RoundOptions, RoundSetup, needs_of
from lightning_serl.datamodules.session import Session
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.documents import Reading
from lightning_serl.datamodules.sources.writing import Writing, check_exemplars
from lightning_serl.datamodules.spending import evaluation_sentence, planned_rounds, probe_sentence
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions, EvaluationStream
from lightning_serl.datamodules.streams.predictions import PredictionStream, check_target
from lightning_serl.datamodules.streams.training import SelfPlayStream
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.evaluation.grading import SetGrader, expectation, set_graders
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.rewards import FormatReward, LabelElseVote, RandomReward, VerifiableReward
from lightning_serl.rewards.serl import RuleReward
from lightning_serl.types import Instruction, Probed

# Rewards that compare with nothing: beside them, imitating answers that agree would be another signal.
_CONTROLS, _CONTROL_CLASSES = ("RandomReward", "FormatReward"), (RandomReward, FormatReward)
# The option of a filter that decides on a reason.
_LOOSEN = {
    "duplicate": ".threshold", "too_short": ".min_words", "too_long": ".max_words", "keyword": ".keywords",
    "no_choices": ".require_choices",
}  # fmt: skip


class SelfPlayDataModule(pl.LightningDataModule):
    """Streams rounds of self-play to any module that offers ``policy`` and ``experience(groups, verdicts)``.

    In each round the policy writes problems, the Trainer's filter callbacks select some, the policy answers each one
    several times, the reward scores the answers, and the module turns the scored groups into micro-batches.

    Args:
        seeds: Problem file (jsonl) to start from; ``tiny:seeds`` is the embedded one.
        source: ``self`` writes new problems after the seeds, ``seeds`` trains on the seeds themselves,
            ``mix:RATIO`` takes that share of each round from the seeds and writes the rest; a method of this package
            by name (``Proposer``, ``CategoryBandit`` ...); or your own source.
        documents: Folder of text and Markdown files, one such file, or jsonl passages (``text``, perhaps ``title``).
            With ``self`` and ``mix:RATIO`` new problems are written from their passages in place of the seeds; seeds
            are then optional.
        reading: How documents are read.
        fields: Names of the fields of the seed file.
        reward: A reward of this package by name (``MajorityVote``, ``RandomReward`` ...), your own as a class path or
            object, or one for each role in the order in which they are called. By default the gold label where a
            problem has one (only seeds can), else the majority vote.
        role_rewards: Rewards of further roles, such as ``propose`` of a source that trains its proposals, by role in
            the order in which they are called after ``reward``; each as ``reward`` is given.
        grader: How answers are read and compared: ``math``, ``choice``, ``text``, your own object or class path, or
            ``auto``, which reads each problem's answers as options, numbers and formulas, or words by what they are.
            Evaluation sets of multiple-choice problems are always read by letters.
        engine: Writes completions; by default the live policy itself.
        round: The size of a round.
        writing: How new problems are written.
        solve: How problems are put to the policy.
        templates: Solve templates of further roles; a role without one gets its bare prompt.
        max_tokens: Longest answer, in tokens; null for 1,024, or for half of the context of model and engine where
            1,024 would leave too little room for prompts, which is logged.
        rounds_per_epoch: Rounds of one Lightning epoch.
        evaluation: What is measured by ``validate``, ``test`` and during ``fit``.
        probe: Which seeds are answered repeatedly to watch the health of the run.
        max_staleness: 0 trains every group with the weights that wrote it. 1 carries groups that a round had no room
            for to the next one, and lets an engine that runs in parallel to the trainer (a server) write the next round
            while this one trains; the objective's correction is compulsory then. Several processes only carry.
        pool_from: Folders of earlier runs whose problems count as written already; the kept ones serve as exemplars.
        predict_to: File for the problems and voted answers of ``predict``; by default ``predictions.jsonl`` in the run
            folder. At the end they are written as parquet with a card too, into a directory beside it that
            ``datasets.load_dataset`` opens (``predictions/``). A name that ends in ``.parquet`` gets the parquet alone,
            and the jsonl beside it.
        seed: Seed of every random choice of the rounds; by default that of ``seed_everything``, else 0.

    Raises:
        InputError: in ``__init__`` or ``setup``, before any model loads, if an option or file cannot be used.
    """

    def __init__(
        self,
        seeds: str | None = None,
        source: InstructionSource | str = "self",
        fields: Fields = Fields(),  # noqa: B008 - frozen, and jsonargparse reads its fields for --help
        reward: RewardLike | dict[str, RewardLike] | str | None = None,
        grader: GraderLike | str = "auto",
        engine: RolloutEngine | None = None,
        round: RoundOptions = RoundOptions(),  # noqa: B008
        writing: Writing = Writing(),  # noqa: B008
        solve: SolveTemplate = SolveTemplate(),  # noqa: B008
        templates: dict[str, SolveTemplate] | None = None,
        max_tokens: int | None = None,
        rounds_per_epoch: int = 20,
        evaluation: EvaluationOptions = EvaluationOptions(),  # noqa: B008
        predict_to: str | None = None,
        seed: int | None = None,
        pool_from: str | list[str] | None = None,
        probe: Probe = Probe(),  # noqa: B008
        max_staleness: Literal[0, 1] = 0,
        role_rewards: dict[str, RewardLike] | None = None,
        documents: str | None = None,
        reading: Reading = Reading(),  # noqa: B008
    ) -> None:
        super().__init__()
        check_range("data.rounds_per_epoch", rounds_per_epoch, at_least=1)
        check_range("data.max_tokens", max_tokens, at_least=1)
        self.sampling = Sampling(max_tokens=max_tokens)
        hint = "the upper limit is data.max_tokens"
        check_range("data.round.overlong_buffer", round.overlong_buffer, at_most=self.sampling.longest, hint=hint)
        check_choice("data.max_staleness", max_staleness, (0, 1))
        check_range("data.seed", seed, at_least=0)
        # path objects are accepted too; with them in the annotation, the command line would read null as the path None
        self.seeds = None if seeds is None else os.fspath(seeds)
        self.fields = fields
        base, self.follow_ups = parse_follow_ups(source)
        self.source, self.mix_ratio = parse_source(base)
        self.reward_name, self.rewards = parse_reward(reward)
        self.role_rewards = parse_role_rewards(role_rewards)
        self.grader, self.grader_name = parse_grader(grader)
        self.engine: RolloutEngine = engine if engine is not None else TransformersEngine()
        self.round_options, self.writing, self.solve = round, writing, solve
        self.templates = templates or {}
        self.documents, self.reading = None if documents is None else os.fspath(documents), reading
        if documents is not None:  # problems are answered with their passage, and in a second wave without
            self.round_options = replace(round, max_waves=max(1, round.max_waves))
        self.rounds_per_epoch, self.max_staleness = rounds_per_epoch, max_staleness
        self.evaluation, self.predict_to, self.probe = evaluation, predict_to, probe
        self.pool_from = parse_paths(pool_from)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed

        #: The problems of ``seeds``, once a stage has read them.
        self.seed_problems: list[Instruction] = []
        #: The passages of ``documents``, once a stage has read them.
        self.passages: list[Passage] = []
        self.evaluation_problems: dict[str, list[Instruction]] = {}
        self.evaluation_graders: dict[str, SetGrader] = {}
        #: Plays the rounds and keeps their state.
        self.session = Session()
        self._earlier: list[list[tuple[Instruction, str]]] = []

    # -- what the run needs ------------------------------------------------------------------------------------------

    @property
    def _own_source(self) -> InstructionSource | None:
        return self.source if isinstance(self.source, InstructionSource) else None

    @property
    def _labelled_only(self) -> bool:
        """Whether the reward scores labelled problems only; the default reward votes on the others."""
        named = self.reward_name in ("VerifiableReward", "RuleReward")
        return named or isinstance(self.rewards.get("solve"), (VerifiableReward, RuleReward))

    @property
    def needs(self) -> frozenset[str]:
        """What rewards and source use besides the policy (``reference``, ``teacher``, ``certainty`` ...)."""
        own = needs_of(self._own_source, self.follow_ups, *self.rewards.values(), *self.role_rewards.values())
        return own if self.documents is None else own | needs_of(self._reading.vote())

    @property
    def _reading(self) -> Reading:
        """``data.reading``; ``predict`` trains nothing, so that the policy itself is the reference there."""
        predicts = self.trainer is not None and self.trainer.predicting
        return replace(self.reading, reader="policy") if predicts else self.reading

    @property
    def writes(self) -> bool:
        """Whether the policy writes new problems after the seeds."""
        own = self._own_source
        ground = self.seeds is not None or self.documents is not None
        return ground and (self.mix_ratio < 1 if own is None else own.writes)

    @property
    def rounds(self) -> int:
        """Rounds played so far."""
        return self.session.progress.rounds

    @property
    def playing(self) -> bool:
        """Whether a round was begun and is not committed; a resumed run plays it again."""
        return self.session.playing

    def ask_probe(self) -> dict[str, Probed]:
        """Responses of the present weights to the health probe, by uid; none where the run has no probe."""
        return self.session.ask_probe()

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Set pool, queue and source back to those of this datamodule's part of a checkpoint; counters go on."""
        self.session.rewind(state)

    # -- setup -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read and check every file, choose the graders and log them; no model is loaded yet."""
        self.check_trainer(self.trainer, stage)
        checks.check_module(self.trainer, stage)
        self._choose_graders()
        self.session.attach(self.trainer, self._parts())
        if stage == "fit":
            self.session.begin_fit()
        if stage == "predict":
            check_target(self._target)
        if stage in ("fit", "predict"):
            self._announce(stage)
        elif self.evaluation_problems and self.engine.samples_policy:
            rank_zero_info(evaluation_sentence(self.evaluation_problems, self.evaluation, self.sampling.longest))

    def check_trainer(self, trainer: pl.Trainer, stage: str) -> None:
        """Read the files of a stage and refuse options or a Trainer that it cannot use; no model is loaded."""
        self.check_files(stage)
        if stage == "fit":
            check_callbacks(trainer)
            checks.check_schedule(trainer, self.rounds_per_epoch)
            check_monitors(trainer, self.evaluation.sets or {})
            checks.check_probe(trainer, self.probe, len(self.seed_problems), self.engine)
            checks.check_staleness(trainer, self.max_staleness, self.round_options, self.engine)
            if self._own_source is None:  # the user's own may bring groups of any size
                checks.check_minibatches(trainer, self.round_options)

    def check_files(self, stage: str) -> None:
        """Read the problem files that a stage needs; raises :class:`InputError` with file and line."""
        if stage in ("fit", "predict"):
            self._read_documents()
            self._read_seeds()
        if stage == "fit" and self._labelled_only:
            trained = self.mix_ratio > 0 or not self.writes or self._own_source is not None
            checks.check_labels(self.seed_problems, trained)
        if stage in ("validate", "test") and not self.evaluation.sets:
            what = getattr(stage, "value", stage)
            raise InputError(f"{what} has nothing to measure; set --data.evaluation.sets.NAME to a problem set")
        if not self.evaluation_problems and stage != "predict":
            self.evaluation_problems = {
                name: read_set(os.fspath(spec), self.evaluation.fields, name)
                for name, spec in sorted((self.evaluation.sets or {}).items())
            }

    def _read_documents(self) -> None:
        """Read documents, unless they were read before, and log what was found and what was left out."""
        if self.documents is None or self.passages:
            return
        checks.check_documents(self.source, self.follow_ups, self.mix_ratio, self.engine)
        found = read_documents(self.documents, self.reading.passage_chars)
        self.passages = found.passages
        for sentence in found.sentences():
            rank_zero_info(sentence)
        checks.warn_of_votes(self.reward_name, self.rewards.get("solve"))
        self.session.discard_parts()

    def _read_seeds(self) -> None:
        """Read seeds and earlier runs, unless they were read before."""
        if self.seeds is None and self._own_source is None and (self.documents is None or self.mix_ratio):
            said = "no seeds were given; set --data.seeds to a jsonl file of problems (or tiny:seeds)"
            raise InputError(f"{said}, or --data.documents to a folder of text")
        if self.seeds is not None and not self.seed_problems:
            self.seed_problems = read_problems(self.seeds, self.fields, "seed")
            if self.writes and self.documents is None:
                check_exemplars(self.writing.exemplars, len(self.seed_problems), self.seeds)
                if self.writing.by_subject:
                    checks.check_subjects(self.seed_problems)
            self.session.discard_parts()
        for source in (one for one in (self._own_source, self.follow_ups) if one is not None):
            roles = {*(self.rewards or ("solve",)), *self.role_rewards}
            checks.check_source(source, self.seed_problems, self.round_options, roles)
        if self.pool_from and not self._earlier:
            self._earlier = [read_pool(name) for name in self.pool_from]
            self.session.discard_parts()

    def _choose_graders(self) -> None:
        """Choose the grader of each evaluation set and log how answers are read."""
        if not self.evaluation_graders:
            run = SetGrader(self.grader, self.grader_name)
            self.evaluation_graders, said = set_graders(self.evaluation_problems, run)
            for sentence in said:
                rank_zero_info(sentence)
        problems = self.seed_problems or [p for one in self.evaluation_problems.values() for p in one]
        if self.grader_name == "auto" and problems:
            rank_zero_info(expectation(problems))

    def _announce(self, stage: str) -> None:
        """Log what the seeds mean for the run."""
        seeds = self.seed_problems
        labelled = sum(p.label is not None for p in seeds)
        if stage == "fit":
            said = f"labels: {labelled} of {len(seeds)} seeds have one and are scored against it; others vote"
            if labelled and not self.rewards and self.reward_name is None and self.mix_ratio > 0:
                rank_zero_info(said)
            without = len(seeds) - labelled
            if without and self._labelled_only:
                said = f"labels: {without} of {len(seeds)} seeds have none and are left out"
                rank_zero_info(f"{said}: data.reward needs labels")
            announce_choice(self.trainer.callbacks, self.writes)
            if seeds and self.engine.samples_policy and self.probe.every != 0:
                rounds, probe = planned_rounds(self.trainer, self.rounds_per_epoch), self.session.parts.probe
                longest = self.sampling.longest
                rank_zero_info(probe_sentence(probe, len(seeds), rounds, self.round_options, longest))
        if self.writes:
            _announce_filters(seeds, [c for c in self.trainer.callbacks if isinstance(c, InstructionFilter)])

    def _parts(self) -> Parts:
        gate = LabelElseVote(self.grader)
        default = gate if self.reward_name is None else named_reward(self.reward_name, self.grader, self.seed)
        controlled = self.reward_name in _CONTROLS or isinstance(self.rewards.get("solve"), _CONTROL_CLASSES)
        ground = Ground(self.passages, self._reading, imitates=not controlled, solve=self.solve)
        setup = RoundSetup(
            options=self.round_options,
            source=None,
            engine=self.engine,
            policy=None,
            rewards=(self.rewards or {"solve": default}) | self.role_rewards | ground.rewards,
            gate=gate,
            grader=self.grader,
            grader_name=self.grader_name,
            templates={"solve": self.solve, **ground.templates, **self.templates},
            sampling=self.sampling,
            seed=self.seed,
            max_staleness=self.max_staleness,
        )
        return Parts(
            setup=setup,
            source=self._own_source,
            follow_ups=self.follow_ups,
            needs=self.needs,
            mix_ratio=self.mix_ratio,
            labelled_only=self._labelled_only,
            seeds=self.seed_problems,
            ground=ground,
            earlier=self._earlier,
            writing=self.writing if self.writes else None,
            probe=self.probe.fitted(
                planned_rounds(self.trainer, self.rounds_per_epoch),
                self.round_options.prompts_per_round * self.round_options.samples_per_prompt,
                len(self.seed_problems),
                acted_on=any(getattr(c, "asks_probe", False) for c in self.trainer.callbacks),
            ),
        )

    # -- streams -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> SelfPlayStream:
        """The stream of training micro-batches."""
        return SelfPlayStream(self.session, self.rounds_per_epoch)

    def val_dataloader(self) -> list[EvaluationStream]:
        """One stream for each evaluation set."""
        if not self.evaluation_problems:  # a run without evaluation sets is a choice, of which Lightning warns
            warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")
        return [
            EvaluationStream(self.session, self.evaluation, name, problems, self.evaluation_graders.get(name))
            for name, problems in self.evaluation_problems.items()
        ]

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> PredictionStream:
        """The stream of written problems with voted answers, saved to ``predict_to`` round by round."""
        with self.session.ranks.stage("opening the prediction file"):
            if self.session.ranks.leads:
                check_target(self._target, make=True)
        return PredictionStream(self.session, self._target, self.rounds_per_epoch)

    @property
    def _target(self) -> Path:
        return Path(self.predict_to or Path(self.trainer.default_root_dir) / "predictions.jsonl")

    # -- checkpoints and end -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Session.state_dict`."""
        return self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`Session.load_state_dict`."""
        self.session.load_state_dict(state_dict)

    def on_exception(self, exception: BaseException) -> None:
        """Release the engine: Lightning skips ``teardown`` after an exception."""
        self.close()

    def teardown(self, stage: str) -> None:
        """Release the engine."""
        self.close()

    def close(self) -> None:
        """Release the engine; the next stream starts it again."""
        self.session.close()


def _announce_filters(seeds: Sequence[Instruction], filters: Sequence[InstructionFilter]) -> None:
    """Log what the filters would reject among the seeds, because new problems will be like them."""
    rejected: dict[str, list[str]] = {}
    options: dict[str, str] = {}
    seen = InstructionPool()
    seen.judge_by(seeds)
    whole = InstructionPool(seeds)
    for rule in filters:
        if isinstance(rule, NoveltyFilter) and (said := rule.frames_found(seen)):
            rank_zero_info(said)
    for seed in seeds:
        found = (
            (f, reason)
            for f in filters
            if (reason := f.reject(seed, whole if isinstance(f, QualityFilter) else seen)) is not None
        )
        by, reason = next(found, (None, None))
        seen.add(seed, "seed")
        if reason is not None:
            rejected.setdefault(reason, []).append(seed.prompt)
            options[reason] = f"{type(by).__name__}{_LOOSEN.get(reason, '')}"
    bad = sum(map(len, rejected.values()))
    if not bad:
        return
    ranked = sorted(rejected, key=lambda reason: (-len(rejected[reason]), reason))
    counts = ", ".join(f"{reason} {len(rejected[reason])}" for reason in ranked)
    examples = "; ".join(f"{reason}: {reprlib.repr(rejected[reason][0])}" for reason in ranked[:2])
    message = f"the filters would reject {bad} of your {len(seeds)} seeds ({counts}), such as {examples}"
    loosen = " and ".join(dict.fromkeys(options[reason] for reason in ranked[:2]))
    if 2 * bad > len(seeds):
        said = f"the seeds are used anyway, but problems like them will be rejected: change {loosen}"
        rank_zero_warn(f"{message}; {said} (trainer.callbacks; list the other filters too)")
    else:
        rank_zero_info(f"{message}; the seeds are used anyway ({loosen})")
