"""The protocol of rewards, the check of a user's reward, and the reading of a group's answers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning_serl.answers import AnswerGrader, cluster, resolve_grader
from lightning_serl.errors import InputError
from lightning_serl.types import Group, Verdict

#: Per-token statistics of the policy that a reward may ask for.
STATISTICS = frozenset({"entropy", "certainty"})
#: Further policies that a reward may ask to generate or score.
POLICIES = frozenset({"reference", "teacher"})
_PARAMETERS = ("groups", "ctx")


@runtime_checkable
class Reward(Protocol):
    """Scores groups; a plain function with the same two parameters is a reward too.

    Attributes:
        needs: Names from :data:`STATISTICS`, which are then in ``Group.stats``, and from :data:`POLICIES`, which can
            then be ``who`` in ``ctx.generate`` and ``ctx.score``; a function may lack the attribute.

    A reward of a role may also have ``answered_by``: ``reference`` has the frozen reference write the responses of that
    role in place of the policy. It must then be in ``needs``.
    """

    needs: frozenset[str]

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, in order; ``ctx`` may be ``None`` outside a run."""
        ...


def check_reward(reward: object) -> Callable[[Sequence[Group], Any], list[Verdict]]:
    """The user's reward, if it is an object that can be called as ``reward(groups, ctx)`` and ``needs`` known names.

    Raises :class:`InputError` otherwise, naming the parameter or the name at fault.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    wanted = f"a reward is called as {name}(groups, ctx)"
    if isinstance(reward, type):
        raise InputError(f"the reward is the class {name}; pass an object, as in {name}()")
    if not callable(reward):
        raise InputError(f"the reward {name} cannot be called; {wanted}")
    needs: Any = getattr(reward, "needs", frozenset())
    if isinstance(needs, str) or not set(needs) <= STATISTICS | POLICIES:
        known = ", ".join(sorted(STATISTICS | POLICIES))
        raise InputError(f"needs of the reward {name} is {needs!r}; it must be a set of names out of {known}")
    _check_signature(name, inspect.signature(reward), wanted)
    return reward


def _check_signature(name: str, signature: inspect.Signature, wanted: str) -> None:
    """Refuse all but two positional parameters ``groups`` and ``ctx``, and further ones with a default."""
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    for place, expected in enumerate(_PARAMETERS):
        if place >= len(positional) and takes_any:
            break
        if place >= len(positional):
            raise InputError(f"the reward {name} lacks the parameter {expected!r}; {wanted}")
        given = positional[place].name
        if given.lstrip("_") not in (expected, ""):  # a leading underscore marks an unused parameter
            raise InputError(f"parameter {place + 1} of the reward {name} is {given!r}, not {expected!r}; {wanted}")
    for parameter in parameters:
        extra = parameter not in positional[: len(_PARAMETERS)]
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if extra and not variable and parameter.default is parameter.empty:
            raise InputError(f"the reward {name} requires the parameter {parameter.name!r}; {wanted}")


def grader_of(own: AnswerGrader, named: bool, ctx: Any) -> AnswerGrader:
    """The grader that a reward reads with: its own if the user named one, else the run's, without a run its own."""
    return own if named else getattr(ctx, "grader", None) or own


class AnswerVote(ABC):
    """A reward that scores the responses of each group by the classes of their answers, one group by itself.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`.
        mode: Of the math grader.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, grader: str | AnswerGrader | None = None, mode: str = "fast") -> None:
        self.grader = resolve_grader("math" if grader is None else grader, mode)
        self.named = grader is not None or mode != "fast"

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; fills ``answers`` and ``cluster``."""
        fill_answers(groups, grader_of(self.grader, self.named, ctx))
        return [self.vote(group, group.answers or [], group.cluster or []) for group in groups]

    @abstractmethod
    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """The verdict on a group from the (n,) answers and the (n,) numbers of their classes, -1 for no answer."""


def facts_of(classes: Sequence[int]) -> dict[str, Any]:
    """What every vote reports: whether the largest classes are of one size, their number, and missing answers."""
    sizes = Counter(number for number in classes if number >= 0)
    tie = list(sizes.values()).count(max(sizes.values(), default=0)) > 1
    return {"tie": tie, "unique_answers": len(sizes), "no_answer": len(classes) - sum(sizes.values())}


def fill_answers(groups: Sequence[Group], grader: AnswerGrader) -> None:
    """Set ``answers`` and ``cluster`` of every group that lacks them.

    Groups read by the same kind of grader, or created with answers, are left alone. Groups read here by another kind of
    grader are read again, because a vote must count the answers that its grader reads.
    """
    kind = (type(grader), getattr(grader, "mode", None))
    for group in groups:
        if group.answers is not None and group.cluster is not None and group.read_by in (None, kind):
            continue
        finished = [completion.finished for completion in group.completions]
        choices = group.instruction.meta.get("choices") or None
        group.answers, group.cluster = cluster(group.texts, finished, grader, choices, group.instruction.prompt)
        group.read_by = kind
