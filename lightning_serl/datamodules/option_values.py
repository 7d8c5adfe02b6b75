"""From what a user wrote for ``reward`` to rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_serl.answers import AnswerGrader
from lightning_serl.datamodules import class_paths
from lightning_serl.errors import InputError
from lightning_serl.rewards.base import Reward, check_reward
from lightning_serl.rewards.format import FormatReward
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.pairwise import PairwiseVote
from lightning_serl.rewards.random import RandomReward
from lightning_serl.rewards.rule import RuleReward
from lightning_serl.rewards.verifiable import VerifiableReward

_MAKERS: dict[str, Callable[[str | AnswerGrader, int], Reward]] = {
    "MajorityVote": lambda grader, seed: MajorityVote(grader),
    "VerifiableReward": lambda grader, seed: VerifiableReward(grader),
    "RandomReward": lambda grader, seed: RandomReward(seed),
    "FormatReward": lambda grader, seed: FormatReward(),
    "PairwiseVote": lambda grader, seed: PairwiseVote(),
    # the published training files carry their labels bare
    "RuleReward": lambda grader, seed: RuleReward(boxed=False),
}


def check_reward_name(name: str) -> str | Callable[..., Any]:
    """The name, if a reward of this package has it; what a class path such as ``package.module.Name`` leads to.

    A class is made into an object without arguments; one with arguments is written as ``class_path`` and
    ``init_args``.

    Raises:
        InputError: if there is no such reward; the message lists the names.
    """
    if name in _MAKERS:
        return name
    known = f"use {', '.join(_MAKERS)}, or the class path of your own"
    if name.lstrip().startswith("{"):
        raise InputError(
            "data.reward: this class takes other options, or is called in another way than reward(groups, ctx); "
            "see rewards.Reward"
        )
    return check_reward(class_paths.load(name, "data.reward", known))


def named_reward(name: str, grader: str | AnswerGrader, seed: int) -> Reward:
    """A reward asked for by its bare name, with the run's grader and seed."""
    return _MAKERS[name](grader, seed)


def rewards_by_role(reward: Any) -> dict[str, Callable[..., Any]]:
    """Rewards by role, each checked; a single one is for role ``solve``, none gives an empty dict.

    Raises:
        InputError: for an empty mapping or a reward that cannot be called as one.
    """
    if reward is None:
        return {}
    if isinstance(reward, Mapping):
        if not reward:
            raise InputError("data.reward is an empty mapping; give one reward per role, such as solve")
        return {str(role): check_reward(one) for role, one in reward.items()}
    return {"solve": check_reward(reward)}
