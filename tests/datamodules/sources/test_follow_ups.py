"""Paraphrases and variations: what is asked, what is used of the texts, and what becomes of the rest."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lightning_serl.datamodules.option_values import parse_follow_ups, parse_source
from lightning_serl.datamodules.sources import Discussion, Paraphrase, PromptSet, Variations
from lightning_serl.datamodules.sources.paraphrase import keeps_meaning
from lightning_serl.errors import InputError
from lightning_serl.types import Completion, Group, Instruction, Link, Verdict

PROBLEM = Instruction("Tom has 3 pens and gets 4 more. How many?", "q", label="7", meta={"subject": "sums"})


class Writer:
    """A context that answers every request with these texts."""

    def __init__(self, *texts, finished=True):
        self.completions, self.asked = [Completion((), text, None, finished) for text in texts], []

    def generate(self, instructions, n, who="policy"):
        self.asked += [(i.prompt, i.uid, i.role, n, who) for i in instructions]
        return [Group(i, (), self.completions) for i in instructions]


def answered(problem, texts, scores, label, confidence):
    made = Group(problem, (), [Completion((), text, None, True) for text in texts])
    return made, Verdict(torch.tensor(scores), label, confidence)


def test_the_first_faithful_wording_is_the_second_view():
    new = "Tom owns 3 pens. Then he gets 4 more. How many has he?"
    made = Group(PROBLEM, (), [])
    derived = Group(Instruction("other", "q.view1", link=Link("view", "q")), (), [])
    for texts, finished, wanted in (
        (["Tom has 5 pens and 4 more. How many?", new], True, new),
        ([f"Sure! Here is the new wording:\n\n{new}"], True, new),
        ([PROBLEM.prompt], True, None),  # the same words
        (["Tom has some pens. How many?"], True, None),  # numbers are gone
        (["3 4?"], True, None),  # far shorter
        ([""], True, None),
        ([new], False, None),  # cut off
    ):
        ctx = Writer(*texts, finished=finished)
        (view,) = Paraphrase(who="policy", tries=3).follow([made, derived], [None, None], ctx)
        assert view.prompt == (wanted or PROBLEM.prompt), texts
        assert view.meta == {"subject": "sums", "view": "repeat" if wanted is None else "paraphrase"}
        assert (view.link, view.label, view.train, view.uid) == (Link("view", "q"), "7", True, "")
        ((asked, *rest),) = ctx.asked
        assert PROBLEM.prompt in asked
        assert rest == ["q.rephrase", "rephrase", 3, "policy"]
    assert not keeps_meaning("Add 1 and 2.", "Add 1, 2 and 3.")
    assert Paraphrase().needs == {"reference"}
    assert Paraphrase(who="policy").needs == frozenset()


def test_problems_of_middle_difficulty_are_varied():
    texts = [r"\boxed{1}", r"3 + 4 = 7 \boxed{7}", r"\boxed{7}", r"\boxed{2}"]
    scores = [0.0, 1.0, 1.0, 0.0]
    unlabelled = Instruction(PROBLEM.prompt, "u")
    for problem, confidence, varied in (
        (PROBLEM, 0.5, True), (PROBLEM, 0.1, False), (PROBLEM, 0.125, True), (PROBLEM, 0.75, False),
        (unlabelled, 0.5, True), (unlabelled, 0.8, True), (unlabelled, 0.4, False), (unlabelled, 0.9, False),
    ):  # fmt: skip
        made, verdict = answered(problem, texts, scores, "7", confidence)
        found = Variations(most=2).follow([made], [verdict], None)
        assert len(found) == varied, (problem.uid, confidence)
    (asked,) = Variations(most=2).follow(*([one] for one in answered(PROBLEM, texts, scores, "7", 0.5)), None)
    assert (asked.role, asked.label, asked.link) == ("propose", "7", Link("variation", "q", 1))
    assert PROBLEM.prompt in asked.prompt
    assert "3 + 4 = 7" in asked.prompt
    nobody = answered(PROBLEM, texts, [0.0] * 4, "7", 0.5)
    assert Variations(most=2).follow([nobody[0]], [nobody[1]], None) == []
    assert Variations(most=2).follow(*([one] for one in answered(PROBLEM, texts, scores, None, 0.5)), None) == []


def test_variations_inherit_the_answer_up_to_a_maximum():
    texts = [PROBLEM.prompt, "Ana has 7 cards. How many?", "", "Seven is what plus 3 when 4 is left?", "5 + 2 = ?"]
    asked = Instruction("...", "q.v", "propose", "7", Link("variation", "q", 1), meta={"varies": PROBLEM.prompt})
    made = Group(asked, (), [Completion((), text, None, True) for text in texts])
    verdict = Verdict(torch.zeros(5), confidence=0.0)
    found = Variations(most=2).follow([made], [verdict], None)
    assert [(f.prompt, f.link, f.label, f.role) for f in found] == [
        (texts[1], Link("problem", "q.v", 1), "7", "solve"),
        (texts[3], Link("problem", "q.v", 3), "7", "solve"),
    ]
    assert len(Variations(most=9).follow([made], [verdict], None)) == 3
    with pytest.raises(TypeError, match="most"):
        Variations()
    for options in ({"most": 0}, {"most": 1, "low": 2}, {"most": 1, "max_share": -1}):
        with pytest.raises(InputError, match="Variations"):
            Variations(**options)


def test_the_base_of_follow_ups_is_the_source():
    base, added = parse_follow_ups("Paraphrase")
    assert (base, type(added)) == ("self", Paraphrase)
    base, added = parse_follow_ups(Variations(most=1, base="mix:0.5"))
    assert (parse_source(base), type(added)) == (("mix:0.5", 0.5), Variations)
    assert parse_follow_ups("seeds") == ("seeds", None)
    own = PromptSet([PROBLEM])
    assert parse_follow_ups(Paraphrase(base=own))[0] is own
    source = Paraphrase().around(own)
    assert (source.filtered, source.lanes(3), source.state_dict()) == (False, [(own, 3)], {"position": 0})
    with pytest.raises(InputError, match="both add follow-ups"):
        parse_follow_ups(Paraphrase(base=Variations(most=1)))
    with pytest.raises(InputError, match=r"data\.source"):
        Paraphrase(who="teacher")


def test_solutions_are_evaluated_and_problems_put_again():
    source = Discussion(solutions=3)
    assert (source.roles, source.waves, source.follow_ups) == (("evaluate",), 3, 3)
    problem = Instruction("Is 7 prime?", "q", meta={"choices": ["yes", "no"], "subject": "primes"})
    solved = Group(
        problem, (), [Completion((), text) for text in ("Yes. {task}", "", "<think>no</think>No.", "Maybe.")]
    )
    ctx = SimpleNamespace(seeds=lambda uid, n: tuple(len(uid) + k for k in range(n)))
    asked = source.follow([solved], [None], ctx)
    # the second has no text, the fourth is beyond the three
    assert [(one.role, one.link, one.meta["solution"]) for one in asked] == [
        ("evaluate", Link("evaluation", "q", 0), "Yes. {task}"), ("evaluate", Link("evaluation", "q", 2), "No."),
    ]  # fmt: skip
    assert all("Is 7 prime?\nA. yes\nB. no\n\nThe solution" in one.prompt for one in asked)
    assert all("choices" not in one.meta and one.meta["subject"] == "primes" for one in asked)
    evaluated = [Group(replace(one, uid=f"e{k}"), (), [Completion((), f"fault {k}"), Completion((), "")])
                 for k, one in enumerate(asked)]  # fmt: skip
    (again,) = source.follow(evaluated, [None] * 2, ctx)
    assert (again.role, again.link, again.meta["choices"]) == ("solve", Link("discussion", "q"), ["yes", "no"])
    assert again.prompt.startswith("Is 7 prime?\n\n")
    for shown in ("Yes. {task}", "No.", "fault 0", "fault 1"):
        assert again.prompt.count(f"===\n{shown}\n===") == 1
    # what is put again is evaluated as the problem itself, and not put a third time
    (last,) = source.follow([Group(replace(again, uid="q.d"), (), [Completion((), "Yes.")])], [None], ctx)
    assert (last.link, last.meta["task"], last.meta["turn"]) == (Link("evaluation", "q.d", 0), asked[0].meta["task"], 2)
    assert source.follow([Group(replace(last, uid="e"), (), [Completion((), "none")])], [None], ctx) == []
    silent = [Group(one.instruction, (), [Completion((), "")]) for one in evaluated]
    assert source.follow(silent, [None] * 2, ctx) == []
    for name in ("solutions", "turns", "references"):
        with pytest.raises(InputError, match=f"data.source.{name} of Discussion"):
            Discussion(**{name: 0})
