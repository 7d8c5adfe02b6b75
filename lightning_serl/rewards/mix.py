"""A weighted sum of rewards."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_serl.errors import InputError
from lightning_serl.rewards.base import check_reward
from lightning_serl.types import Group, Verdict


class Mix:
    """Adds up the scores of several rewards, each times its weight.

    Label, confidence and facts are those of the first reward that gives a label; a response that any reward leaves out
    of the loss (weight 0) is left out. Scores are added before the advantage is taken, so that one baseline is
    subtracted from the sum.

    Args:
        rewards: Weights by name: a reward of this package (``MajorityVote``), the class path of your own, whose class
            is called without arguments, or with an object in place of the name. In YAML:
            ``rewards: {MajorityVote: 1.0, SelfAligned: 0.2}``.
        options: Arguments of rewards that are given by name, such as ``{SelfJudge: {scale: 1}}``.

    Raises:
        InputError: for no rewards, an unknown name or option, a weight that is not a finite number, and on a call that
            mixes scores with finished advantages (``Verdict.centred``).
    """

    def __init__(self, rewards: Mapping[Any, float], options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        if not rewards:
            raise InputError("Mix needs rewards with their weights, as in {MajorityVote: 1.0, SelfAligned: 0.2}")
        for name in (one for one in options or () if one not in rewards):
            raise InputError(f"Mix: options are given for {name!r}, which is none of the rewards")
        self.parts: list[tuple[str, Callable[..., list[Verdict]], float]] = []
        for reward, weight in rewards.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise InputError(f"Mix: the weight of {reward} must be a number, got {weight!r}")
            name = reward if isinstance(reward, str) else type(reward).__name__
            self.parts.append((name, check_reward(_made(reward, (options or {}).get(name, {}))), float(weight)))
        self.needs = frozenset(one for _, part, _ in self.parts for one in getattr(part, "needs", ()))

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``info`` also holds the mean score of each part under its name."""
        columns = [part(groups, ctx) for _, part, _ in self.parts]
        return [self._sum(list(verdicts)) for verdicts in zip(*columns, strict=True)]

    def _sum(self, verdicts: list[Verdict]) -> Verdict:
        if len({verdict.centred for verdict in verdicts}) > 1:
            kinds = ", ".join(name for (name, _, _), v in zip(self.parts, verdicts, strict=True) if v.centred)
            raise InputError(f"Mix cannot add scores and finished advantages; leave out {kinds}")
        led = next((verdict for verdict in verdicts if verdict.label is not None), verdicts[0])
        scores, weight = verdicts[0].scores * 0, verdicts[0].weight
        for (_, _, share), verdict in zip(self.parts, verdicts, strict=True):
            scores, weight = scores + share * verdict.scores, weight.minimum(verdict.weight)
        means = {name: float(v.scores.mean()) for (name, _, _), v in zip(self.parts, verdicts, strict=True)}
        info = {**led.info, **means}
        return Verdict(scores, led.label, led.confidence, weight, centred=verdicts[0].centred, info=info)


def _made(reward: Any, options: Mapping[str, Any]) -> Any:
    """The reward of a name or class path, made with these arguments; an object stays as it is."""
    if not isinstance(reward, str):
        return reward
    path = reward if "." in reward else f"lightning_serl.rewards.{reward}"
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"Mix: there is no reward {reward!r} ({' '.join(str(error).split())[:100]})") from error
    try:
        return found(**options) if isinstance(found, type) else found
    except TypeError as error:
        raise InputError(f"Mix: {reward} cannot be made with these options ({str(error)[:100]})") from error
