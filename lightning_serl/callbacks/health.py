"""Signs of a run's health that need no labels, the bands they should stay in, and the callback that warns of them.

``docs/health.md`` says what each sign means and what to do when it leaves its band.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.callbacks.probe_signs import CLEAR, LEAST_PROMPTS, ProbeHistory, entropy_of, vote_of
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.protocols import data_of, module_of
from lightning_serl.report.signs import Sign
from lightning_serl.rewards.majority import majority
from lightning_serl.types import Group, Round, Vote

# Number of first rounds or steps whose mean later ones are compared with.
_FIRST = 3
#: Least and greatest number of steps whose KL divergence :func:`slope` is computed over.
SLOPE_STEPS = (4, 6)


class Health(RolloutHooks):
    """Logs label-free signs as ``serl/health/*`` and warns once when one of them leaves its band.

    It changes nothing in the run; ``docs/health.md`` says what each sign means and what to do. The signs of a round are
    computed from all its answered groups, ``same_vote_share`` from the datamodule's probe, ``kl_slope`` and
    ``entropy_ratio`` from the metrics of the optimizer steps. All ranks compute the same values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signs: dict[str, Sign] = {}
        self._probes = ProbeHistory()
        self._start: dict[str, Vote] = {}  # votes of the starting policy on the probe problems
        self._lengths: list[float] = []  # of the first rounds
        self._entropies: list[float] = []  # of the first steps
        self._kl: list[float] = []  # of the last steps
        self._previous: dict[str, Any] | None = None  # state before the current round
        self._last_step: int | None = None

    @property
    def outside(self) -> list[str]:
        """The warnings of all signs that are outside their bands now."""
        return [s.outside for s in self._signs.values() if s.outside is not None]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move before the ledger in the Trainer's list, since the ledger writes the signs."""
        others = [c for c in trainer.callbacks if c is not self]
        place = next((i for i, c in enumerate(others) if isinstance(c, Ledger)), len(others))
        trainer.callbacks = [*others[:place], self, *others[place:]]
        self._last_step = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting steps."""
        self._last_step = trainer.global_step

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Compute the signs of a round, and of the probe where one was made."""
        if not played.stats:
            return  # a failed round
        self._previous = self.state_dict()
        groups = [g for g, _ in played.answered]
        signs = round_signs(groups)
        if "length" in signs:
            signs["length_ratio"] = _ratio(self._lengths, signs.pop("length"))
        if played.probe:
            votes = {uid: vote_of(probed.answers) for uid, probed in played.probe.items()}
            self._start = self._start or votes
            grader = data_of(trainer).grader
            same = same_share(self._start, votes, grader.same)
            if same is not None:
                signs["same_vote_share"] = same
            reading = self._probes.enter(played.probe, grader.same)
            if reading.change is not None:
                signs["probe_fall"] = -reading.change if reading.fell(0.0) else 0.0
            played.stats.update({f"serl/probe/{name}": value for name, value in reading.signs.items()})
        played.stats.update(self._enter(signs, len(groups), f"round {played.number + 1}"))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compute and log the signs of an optimizer step."""
        signs = self._enter_step(trainer)
        if signs:
            pl_module.log_dict(signs, on_step=True, on_epoch=False, batch_size=1)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Go back to the state before a round that is played again; add a step made before another callback raised."""
        if data_of(trainer).playing and self._previous is not None:
            self.load_state_dict(self._previous)
        elif trainer.state.fn == "fit":
            self._enter_step(trainer)

    def _enter_step(self, trainer: pl.Trainer) -> dict[str, float]:
        if self._last_step is None or trainer.global_step == self._last_step:
            return {}
        self._last_step, self._previous = trainer.global_step, None
        metrics, signs = module_of(trainer).step_metrics, {}
        if "entropy" in metrics:
            signs["entropy_ratio"] = _ratio(self._entropies, metrics["entropy"])
        if "kl" in metrics:
            least, most = SLOPE_STEPS
            self._kl = [*self._kl, metrics["kl"]][-most:]
            if len(self._kl) >= least:
                signs["kl_slope"] = slope(self._kl)
        logged = self._enter(signs, 1, f"step {trainer.global_step}")
        if logged:
            metrics.update(logged)  # which the ledger writes
        return logged

    def _enter(self, signs: dict[str, float], weight: int, where: str) -> dict[str, float]:
        """Add values to their signs and warn of those that left their bands; the values under their metric names."""
        for name, value in signs.items():
            warning = self._signs.setdefault(name, Sign(name)).enter(value, weight)
            if warning is not None:
                rank_zero_warn(f"health, {where}: {warning}")
        return {f"serl/health/{name}": value for name, value in signs.items()}

    def state_dict(self) -> dict[str, Any]:
        """First and latest values of every sign, and the starting policy's votes, as primitives."""
        state = {
            "watches": {name: sign.state_dict() for name, sign in self._signs.items()},
            "start": self._start,
            "lengths": self._lengths,
            "entropies": self._entropies,
            "kl": self._kl,
            "probes": self._probes.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        state = copy.deepcopy(state_dict)
        self._signs = {name: Sign(name) for name in state["watches"]}
        for name, sign in self._signs.items():
            sign.load_state_dict(state["watches"][name])
        self._start, self._kl = state["start"], state["kl"]
        self._lengths, self._entropies = state["lengths"], state["entropies"]
        if "probes" in state:  # checkpoints of earlier versions have none
            self._probes.load_state_dict(state["probes"])


def _ratio(first: list[float], value: float) -> float:
    """A value divided by the mean of the first values, to which it is added while they are few."""
    if len(first) < _FIRST:
        first.append(value)
    start = sum(first) / len(first)
    return value / start if start else 1.0


def vote_entropy(classes: Sequence[int]) -> float | None:
    """:func:`entropy_of` the (n,) answer classes of a group; class -1 is no answer, and so no vote."""
    return entropy_of(Counter(c for c in classes if c >= 0).values(), len(classes))


def unanimous(classes: Sequence[int]) -> bool:
    """Whether every response gives the same answer."""
    return len(set(classes)) == 1 and classes[0] >= 0


def repeated_ngrams(tokens: Sequence[Hashable], n: int = 4) -> tuple[int, int]:
    """Number of n-grams that occurred earlier in the same sequence, and number of all its n-grams."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def round_signs(groups: Sequence[Group]) -> dict[str, float]:
    """The signs of one round, by names from :data:`BANDS`, and ``length``, the mean number of tokens (else of words).

    ``groups`` are all that were answered, dropped ones too. Those of other roles than ``solve``, which need not answer
    anything, enter the signs of tokens alone.
    """
    out: dict[str, float] = {}
    voted = [(g.answers, g.cluster) for g in groups if g.answers and g.cluster and g.instruction.role == "solve"]
    entropies = [h for _, classes in voted if (h := vote_entropy(classes)) is not None]
    if entropies:
        out["vote_entropy"] = sum(entropies) / len(entropies)
    if voted:
        out["unanimous_share"] = sum(unanimous(classes) for _, classes in voted) / len(voted)
        out["no_answer_share"] = _share(a is None for answers, _ in voted for a in answers)
    tops = Counter(top[0] for answers, classes in voted if (top := majority(answers, classes)) is not None)
    if tops.total() >= LEAST_PROMPTS:
        out["top_answer_share"] = max(tops.values()) / tops.total()
    written = [c for g in groups for c in g.completions]
    if written:
        tokens: list[Sequence[Hashable]] = [c.token_ids or c.text.split() for c in written]
        counts = [repeated_ngrams(t) for t in tokens]
        out["truncated_share"] = _share(not c.finished for c in written)
        out["repeated_4gram_share"] = sum(r for r, _ in counts) / max(1, sum(total for _, total in counts))
        out["length"] = sum(map(len, tokens)) / len(tokens)
    return out


def same_share(start: Mapping[str, Vote], now: Mapping[str, Vote], same: Callable[[str, str], bool]) -> float | None:
    """Share of the problems with a clear vote at the start on which the vote, by uid, is still the same.

    Only clear votes count, since a policy that learns changes its unclear ones; ``None`` if fewer than
    :data:`LEAST_PROMPTS` were clear.
    """
    clear = {uid: label for uid, (label, share) in start.items() if label is not None and share >= CLEAR}
    pairs = [(then, now[uid][0]) for uid, then in clear.items() if uid in now]
    if len(pairs) < LEAST_PROMPTS:
        return None
    return _share(new is not None and (then == new or same(then, new)) for then, new in pairs)


def slope(values: Sequence[float]) -> float:
    """Median slope over all pairs of values (Theil-Sen estimator), which is robust to a single outlier."""
    size = len(values)
    return median((values[j] - values[i]) / (j - i) for i in range(size) for j in range(i + 1, size))


def _share(flags: Any) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)
