"""The session: plays the rounds of a run and keeps their state, for the streams that a Trainer iterates over."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks.rollout_hooks import hooks, span_of
from lightning_serl.checkpoints.checks import check_stream_state
from lightning_serl.datamodules.engine_session import EngineSession, poll
from lightning_serl.datamodules.parts import Parts, with_trainer
from lightning_serl.datamodules.rounds.health_probe import answer_probe
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.prefetch import Prefetch, from_cache
from lightning_serl.datamodules.rounds.setup import RoundSetup, RoundState
from lightning_serl.datamodules.session_state import Progress, restore, restore_problems, save_state, without_batches
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.distributed.strategies import precision_of
from lightning_serl.errors import EmptyRound, InputError
from lightning_serl.evaluation.reading_report import reading_shares, unread_form
from lightning_serl.protocols import module_of
from lightning_serl.types import Probed, RolloutBatch, Round


class Session:
    """One run's rounds: played in order, committed one by one, saved and resumed.

    It lives as long as the datamodule and serves all its streams, so that ``validate``, ``fit`` and ``predict`` use the
    same engine, and a second ``fit`` continues after the rounds of the first.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self._trainer: pl.Trainer | None = None
        self._parts: Parts | None = None
        self._engine = EngineSession()
        self._made: tuple[RoundSetup, RoundState] | None = None  # at the first rollout, when the policy exists
        self._restored: dict[str, Any] | None = None  # a loaded state that is applied at the next rollout
        self._before: dict[str, Any] | None = None  # the state before a round that is not committed yet
        self._prefetch: Prefetch | None = None
        self._warned_of_truncation = self._warned_of_reading = self._reported_reading = False

    # -- setup -------------------------------------------------------------------------------------------------------

    def attach(self, trainer: pl.Trainer, parts: Parts) -> None:
        """Serve a Trainer, until another one is attached."""
        self._trainer, self._parts = trainer, parts

    def discard_parts(self) -> None:
        """Make pool and source again at the next rollout, because the problems they were made of have changed."""
        self._made = None

    def begin_fit(self) -> None:
        """Continue with the next round, for another fit of the same process: its Trainer counts steps from 0."""
        if self._before is not None:  # an earlier fit ended during a round, whose uids must not be given twice
            self._restored, self._before, self._made = without_batches(self._before), None, None
            self.progress.rounds = self._restored["rounds"]
        elif self._made is not None:
            self._made[1].carried.clear()
        rounds = self.progress.rounds
        self.progress.first_step, self.progress.first_round, self.progress.pending = None, rounds, []

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer that is served."""
        assert self._trainer is not None, "setup comes first"
        return self._trainer

    @property
    def parts(self) -> Parts:
        """What the rounds are made of."""
        assert self._parts is not None, "setup comes first"
        return self._parts

    @property
    def ranks(self) -> Ranks:
        """This process among the others."""
        return Ranks.of(self.trainer)

    @property
    def playing(self) -> bool:
        """Whether a round was begun and is not committed; a resumed run plays it again."""
        return self._before is not None

    @property
    def state(self) -> RoundState:
        """Pool, queue and carried groups."""
        return self._current()[1]

    def _current(self) -> tuple[RoundSetup, RoundState]:
        """The inputs of the next round and the state of the rounds. They are made once; a loaded state is applied."""
        trainer = self.trainer
        if self._made is None:
            state = self.parts.make_state()
            source = self.parts.make_source(state.pool, labels=trainer.state.fn != "predict")
            self._made = replace(self.parts.setup, source=source), state
        setup, state = with_trainer(self._made[0], trainer), self._made[1]
        if self._restored is not None:
            self.progress = restore(self._restored, setup, state, trainer)
            # only now: a checkpoint saved after an error above must contain the state that could not be restored
            self._restored = None
        return setup, state

    # -- rounds ------------------------------------------------------------------------------------------------------

    @contextmanager
    def rolling(self) -> Iterator[RoundSetup]:
        """Context in which completions can be written: the engine is started and holds the policy's weights."""
        if self._prefetch is not None:
            with span_of(self.trainer.callbacks, "waiting"):
                self._prefetch.wait()  # its completions must come from one version of the weights
        setup, _ = self._current()
        with self._engine.ready(self.trainer, setup, self.parts.writing, self.parts.setup.sampling):
            yield self._current()[0]  # some engines know the length of their context only now

    def begin_stream(self) -> int:
        """Begin or resume the training stream: returns the optimizer steps done since it began."""
        self._current()  # a loaded state says when it began
        if self.progress.first_step is None:
            self.progress.first_step = self.trainer.global_step
        return self.progress.steps_done(self.trainer)

    def pending_batch(self, place: int) -> RolloutBatch:
        """Micro-batch number ``place`` of this rank in the round that was committed last."""
        return self.progress.pending[self.ranks.rank][place]

    def must_play(self, number: int) -> bool:
        """Whether the micro-batches of a round are not here; then it is the one that :meth:`play` plays next."""
        if number == self.progress.rounds - 1 and self.progress.pending:
            return False
        self.progress.rounds = number
        return True

    def play(self, filter_groups: bool = True) -> Round | None:
        """Play the next round, or take the prefetched one. The state before it is kept until :meth:`commit`.

        ``None`` if the fit ends before it: by what the health probe shows, or where nothing is left to train on and
        this is no failure. Otherwise an :class:`EmptyRound` is raised after the callbacks got its events.
        """
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is not None:
            try:
                with span_of(self.trainer.callbacks, "waiting"):
                    prefetch.wait()
            finally:
                prefetch.stop()
                self._before = self._state_during(prefetch)
        probed: dict[str, Probed] = {}
        if self._probe_is_due():
            if prefetch is None:
                with self.rolling():
                    self._before = self._save()
            probed = self._probe()
            if self.trainer.should_stop:
                return None
        with self.rolling() as setup:
            if prefetch is None:
                self._before = self._save()
            cache, self.progress.cache = self.progress.cache, None
            if not filter_groups:
                setup = replace(setup, group_filters=())
            try:
                if prefetch is not None:
                    played = prefetch.result()
                else:
                    used = setup if cache is None else from_cache(setup, cache)
                    played = play_round(used, self.state, self.progress.rounds)
                played.probe = probed
                return played
            except EmptyRound as error:
                self._end_round(error.played)
                if not self._may_end(error):
                    raise
                rank_zero_warn(_ended_early(error))
                self.trainer.should_stop = True
                return None

    def _may_end(self, error: EmptyRound) -> bool:
        """Whether an empty round ends the fit as its last round would.

        Either the responses to nearly all problems agree, so that nothing failed, or a callback decides which weights
        are kept.
        """
        acting = any(getattr(c, "asks_probe", False) for c in self.trainer.callbacks)
        return (acting or error.agreed) and self.trainer.global_step > 0 and self.trainer.state.fn == "fit"

    def commit(self, played: Round, batches: list[RolloutBatch]) -> None:
        """Finish a round: tell the callbacks, count it, and keep this rank's micro-batches for the steps to come."""
        pending = self.ranks.gather(batches)
        played.stats["serl/rollout/policy_version_lag"] = float(self.trainer.global_step - played.oldest)
        with self.ranks.stage("closing the round"):
            self._end_round(played)
        clipped, longest = played.stats["completions/clipped_ratio"], self._current()[0].sampling.longest
        if clipped > 0.5 and not self._warned_of_truncation:  # then votes mean nothing
            self._warned_of_truncation = True
            rank_zero_warn(
                f"{100 * clipped:.0f} % of the answers were cut off at {longest} tokens; raise data.max_tokens"
            )
        self._report_reading(played)
        # last and together: if anything above fails, the round is played again
        self.progress.pending, self.progress.rounds, self._before = pending, played.number + 1, None

    def _report_reading(self, played: Round) -> None:
        """Log how the answers of the first round were read; warn once of a form of answer that often goes unread."""
        setup, groups = self.parts.setup, [group for group, _ in played.answered]
        if setup.grader_name == "auto" and not self._reported_reading:
            shares = reading_shares(groups, setup.grader)
            rank_zero_info(f"grader: auto; round {played.number + 1}: {shares}")
        self._reported_reading = True
        found = None if self._warned_of_reading else unread_form(groups)
        if found is not None:
            self._warned_of_reading = True
            rank_zero_warn(
                f"round {played.number + 1}: {found}; ask for another form with data.solve.answer_format, or change "
                f"data.grader ({setup.grader_name})"
            )

    def prefetch(self) -> None:
        """Start to write the next round while this one trains, if the engine and the options allow it.

        Not with several ranks, whose threads would have to make collective calls; not where a reward or source uses the
        policy's own passes; and not in a precision that sets torch's default dtype, which is shared with the thread.
        """
        trainer, fixed, progress = self.trainer, self.parts.setup, self.progress
        if not (fixed.max_staleness and fixed.engine.concurrent) or self.ranks.size > 1 or self.parts.needs:
            return
        if precision_of(trainer).weights is not None:
            return
        steps = (progress.rounds - progress.first_round) * module_of(trainer).steps_per_round
        if (progress.first_step or 0) + steps >= trainer.estimated_stepping_batches:
            return  # no further round will be trained
        with self.rolling() as setup:
            pass  # now the engine holds the weights that write the next round
        self._prefetch = Prefetch(setup, self.state, progress.rounds, self._save(), partial(poll, trainer))
        self._prefetch.start()

    def _probe_is_due(self) -> bool:
        """Whether the round begins with the health probe; the first round of a fit does."""
        probe, rounds = self.parts.probe, self.progress.rounds - self.progress.first_round
        if not probe.every or rounds % probe.every or self.trainer.state.fn != "fit":
            return False
        return self.parts.setup.engine.samples_policy

    def ask_probe(self) -> dict[str, Probed]:
        """Responses of the present weights to the health probe, by uid; none where the run has no probe."""
        if not self.parts.probe.every or not self.parts.setup.engine.samples_policy:
            return {}
        probe = self.parts.probe
        with self.rolling() as setup:
            return answer_probe(setup, probe.choose(self.parts.seeds, setup.seed), probe.samples or 2)

    def _probe(self) -> dict[str, Probed]:
        """Answer the health probe and show it to the callbacks; where they restore other weights, these answer too."""
        policy = module_of(self.trainer).policy
        while True:
            version, probed = policy.version, self.ask_probe()
            for hook in hooks(self.trainer.callbacks, "on_probe"):
                hook(self.trainer, self.trainer.lightning_module, probed)
            if policy.version == version:
                return probed
            self._before = self._save()

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Set pool, queue and source back to those of a checkpoint; the numbers of rounds and steps go on."""
        setup, now = self._current()
        restore_problems(state, setup, now)
        now.carried.clear()

    def _end_round(self, played: Round) -> None:
        for hook in hooks(self.trainer.callbacks, "on_round_end"):
            hook(self.trainer, self.trainer.lightning_module, played)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Pool, queue, source, counters and micro-batches not yet trained on: primitives and tensors, no collective.

        During a round this is the state before it, so that an interrupted round is played again.
        """
        if self._restored is not None:
            return self._restored
        if self._made is None:
            return {}
        if self._before is not None:
            return self._before
        if self._prefetch is None:
            return self._save()
        # A checkpoint waits for the prefetched round, so that a resumed run trains on the same completions. After an
        # exception Lightning saves from inside its handler; then the checkpoint has what was written so far.
        if sys.exc_info()[0] is None:
            self._prefetch.wait()
        return self._state_during(self._prefetch)

    def _save(self) -> dict[str, Any]:
        assert self._made is not None
        return save_state(self.progress, *self._made, self.parts.source_kind, self.trainer)

    def _state_during(self, prefetch: Prefetch) -> dict[str, Any]:
        """The state before a prefetched round, and the completions written for it since."""
        pending = self.progress.pending_state(self.trainer)
        return {**prefetch.before, "pending": pending, "ahead": prefetch.cache.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; applied at the next rollout, when policy and callbacks exist."""
        if state:
            check_stream_state(state)
            self._check_source(state.get("source_kind"))
        self._restored, self._made = state or None, None

    def _check_source(self, theirs: str | None) -> None:
        if self._trainer is None or self._trainer.state.fn != "fit":
            return
        ours = self.parts.source_kind
        if None not in (ours, theirs) and ours != theirs:
            raise InputError(
                f"the checkpoint's problems came from {theirs}, this run's come from {ours}; set data.source as in "
                "that run, or begin a new one with another --trainer.default_root_dir"
            )

    def close(self) -> None:
        """Release the engine; the next rollout starts it again."""
        if self._prefetch is not None:
            self._prefetch.stop()
            self._before = self._state_during(self._prefetch)  # a fit that continues plays it again
            self._prefetch = None
        self._engine.close()


def _ended_early(error: EmptyRound) -> str:
    """The warning of a fit that ends since there is nothing to train on."""
    if not error.agreed:
        return f"{error}; the run ends here, with what was learnt so far"
    return (
        f"{str(error).partition(';')[0]}: the responses to nearly all problems agree, so nothing is left to learn from "
        "them and training ends here; for more, take other or harder problems (data.seeds, data.source self)"
    )
