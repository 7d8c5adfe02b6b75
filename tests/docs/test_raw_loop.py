"""``examples/raw_loop.py`` is SeRL without the package: both give the same votes and the same loss on one round."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_serl import Group, Instruction, SeRLModule, tiny
from lightning_serl.objectives import Objective
from lightning_serl.pool import InstructionPool
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Completion

SCRIPT = Path(__file__).parents[2] / "examples" / "raw_loop.py"


@pytest.fixture(scope="module")
def raw_loop():
    spec = importlib.util.spec_from_file_location("raw_loop", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["raw_loop"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["raw_loop"]


@pytest.fixture(scope="module")
def answered(raw_loop):
    """One round of the script: problems that the policy wrote, answered and voted on."""
    torch.manual_seed(0)
    base = tiny.resolve("tiny:base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    seeds = ["What is 3 + 4?", "Find the value of 14 + 5.", "What is 22 + 4 * 5 - 12?", "Compute 5 * 3."]
    problems = raw_loop.write_problems(model, tokenizer, seeds, raw_loop.random.Random(0))
    groups = raw_loop.answer(model, tokenizer, [p for p in problems if p][:4])
    for group in groups:
        raw_loop.vote(group)
    assert len(groups) == 4
    assert sum(0 < sum(g.scores) < len(g.scores) for g in groups) >= 2
    return groups


def test_it_is_short_and_uses_nothing_of_the_package():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert "import lightning" not in text
    assert "from lightning" not in text


def test_its_votes_are_the_package_s(answered, raw_loop):
    ties = raw_loop.Group(
        "?", [], [], [r"\boxed{12}", r"\boxed{7}", r"\boxed{6/2}", "none", r"\boxed{12.0}", r"\boxed{3}"]
    )
    raw_loop.vote(ties)
    groups = [*answered, ties]
    verdicts = MajorityVote()([Group.from_texts(g.problem, g.texts) for g in groups], None)
    assert [v.label for v in verdicts] == [g.label for g in groups]
    assert [v.scores.tolist() for v in verdicts] == [g.scores for g in groups]
    assert ties.label == "12"


def test_its_loss_and_gradient_are_the_package_s(answered, raw_loop):
    module = SeRLModule("tiny:base", objective=Objective(beta=raw_loop.BETA))
    assert module.policy.frozen.keys() == {"reference"}
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.policy.parameters():  # away from the reference, so that the divergence counts
            weight += 0.02 * torch.randn_like(weight)
    base = tiny.resolve("tiny:base")
    model, reference = (AutoModelForCausalLM.from_pretrained(base) for _ in range(2))
    model.load_state_dict(module.policy.causal_lm.state_dict())

    chosen = [g for g in answered if 0 < sum(g.scores) < len(g.scores)]
    groups = [
        Group(
            Instruction(g.problem, f"{i}"),
            tuple(g.prompt),
            [Completion(tuple(ids), text) for ids, text in zip(g.responses, g.texts, strict=True)],
        )
        for i, g in enumerate(chosen)
    ]
    batches = module.experience(groups, MajorityVote()(groups, None))
    theirs = sum(module.training_step(batch, i) for i, batch in enumerate(batches))
    theirs.backward()

    rows = [(g.prompt, r, a) for g in chosen for r, a in zip(g.responses, raw_loop.advantages(g), strict=True)]
    loss = raw_loop.grpo_loss(model, reference, rows, sum(len(response) for _, response, _ in rows))
    loss.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-6)
    divergence = loss.item() - raw_loop.grpo_loss(model, model, rows, sum(len(r) for _, r, _ in rows)).item()
    assert divergence > 100 * abs(loss.item() - theirs.item())
    ours = dict(model.named_parameters())
    for name, weight in module.policy.causal_lm.named_parameters():
        torch.testing.assert_close(ours[name].grad, weight.grad, rtol=1e-3, atol=1e-5)


def test_its_similarity_is_the_package_s(raw_loop):
    texts = ["Tom has five apples and eats two of them.", "Tom has five pears and eats two.", "What is 3 + 4?"]
    pool = InstructionPool([texts[0]])
    for text in texts[1:]:
        nearest, _ = pool.nearest(text)
        ours = raw_loop.rouge_l(*(raw_loop.re.findall(r"\w+", t.lower()) for t in (text, texts[0])))
        assert ours == pytest.approx(nearest)
