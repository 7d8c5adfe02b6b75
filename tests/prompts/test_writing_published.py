"""The published few-shot prompt and parser, against the published rules written out once more."""

import random
import re

import pytest
from helpers.command_line import write_rows

from lightning_serl.answers import MathGrader
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources import FewShotSelfInstruction, Writing
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines import ReplayEngine, Sampling
from lightning_serl.policy.loading import load_policy
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import InstructionTemplate, parse_instructions
from lightning_serl.prompts import serl as writing


def published_regex(text):
    """The published expression as it stands, without our guard against long runs of digits."""
    return [item.strip() for item in re.findall(r"\d+\.\s+(.*?)(?=\n\d+\.\s+|$)", text, re.DOTALL)]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (" What is 2 + 2?\n10. What is 3 + 3?", ["What is 3 + 3?"]),  # text before the first number is lost
        ("9. Tom is 12. How old is Ann?", ["Tom is 12. how old is ann?"]),  # a number inside an item ends nothing
        ("Tom is 12. How old", ["How old"]),  # and without another it begins one
        ("9. Cut off in the mid", ["Cut off in the mid"]),
        ("9.Glued", []),
        ("9. A\n10.\nB", ["A", "B"]),
        ("9. Let F(x) = \\SIN x.\n\nSolve it", ["Let f(x) = \\sin x. solve it"]),
        ("1) A\n2) B", []),
        ("9.  \n10. B", ["10. b"]),
        ("", []),
    ],
)
def test_the_parser(text, problems):
    assert parse_instructions(text, "serl") == problems
    assert [" ".join(p.split()).capitalize() for p in published_regex(text)] == problems


def test_the_parser_equals_the_published_expression_on_any_text():
    draw = random.Random(0)
    pieces = ["1. ", "12. ", "\n", "3.", " ", "a", "Ab.", "\n10. ", "7", ".\n", "\t", "$x$"]
    for _ in range(3000):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(14)))
        assert writing.read_list(text) == [" ".join(p.split()).capitalize() for p in published_regex(text)], text


def test_exemplars():
    assert writing.exemplar("  Find\n\tx:: ") == "Find x"
    assert writing.exemplar("Ratio 3:4 of what") == "Ratio 3:4 of what"


def context(engine, policy=None):
    sampling = Sampling(max_tokens=50)
    return Context(engine, policy, Ranks(), 0, 0, "instruction", sampling, {}, "math", MathGrader())


def test_a_source_of_this_style_reads_lists_so(tmp_path):
    text = " a lost one\n4. Tom's FIRST one\n5. cut off in"
    recording = write_rows(tmp_path / "proposals.jsonl", [{"responses": [{"text": text, "finished": False}]}] * 2)
    engine = ReplayEngine(str(recording))
    engine.start(None)
    pool = InstructionPool(["a", "b", "c"])
    written = {}
    for style in ("serl", "default"):
        source = FewShotSelfInstruction(pool, Writing(exemplars=3, from_kept=0, prompts_per_call=1, style=style))
        written[style] = [(i.prompt, "truncated" in i.meta) for i in source.propose(1, context(engine))]
    assert written["serl"] == [("Tom's first one", False), ("Cut off in", False)]
    assert written["default"] == [("Tom's FIRST one", False), ("cut off in", True)]


def test_few_shot_prompts_are_cut_where_the_published_ones_are():
    policy = load_policy("tiny:base")
    policy.causal_lm.config.max_position_embeddings = 2048
    long = [f"Compute {' + '.join(str(n) for n in range(300))}:" for _ in range(3)]
    template = InstructionTemplate(header="Come up with a series of questions:")
    source = FewShotSelfInstruction(
        InstructionPool(long),
        Writing(
            exemplars=3,
            from_kept=0,
            prompts_per_call=1,
            style="serl",
            template=template,
            sampling=Sampling(max_tokens=1024),
        ),
    )
    request = source.request(source.pool.seeds, (0,), context(ReplayEngine({"": []}), policy))
    assert len(request.prompt_ids) == writing.PROMPT_TOKENS == 2048 - 1024
    shown = policy.tokenizer.decode(request.prompt_ids)
    assert shown.startswith("Come up with a series of questions:\n1. Compute 0 + 1 + 2")
    assert ":\n2." not in shown
    policy.causal_lm.config.max_position_embeddings = 1100
    assert len(source.request(source.pool.seeds, (0,), context(ReplayEngine({"": []}), policy)).prompt_ids) == 76


def test_only_this_style_puts_the_list_into_a_chat_by_itself():
    policy = load_policy("tiny:base")
    policy.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    pool, shown = InstructionPool(["a b c d", "e f g h"]), {}
    for style, chat in (("serl", None), ("serl", False), ("default", None), ("default", True)):
        template = InstructionTemplate(header="H", chat=chat)
        writes = Writing(exemplars=2, from_kept=0, style=style, template=template, sampling=Sampling(max_tokens=50))
        source = FewShotSelfInstruction(pool, writes)
        request = source.request(pool.seeds, (0,), context(ReplayEngine({"": []}), policy))
        text = policy.tokenizer.decode(request.prompt_ids)
        shown[style, chat] = "user" in text, list(request.sampling.stop)
    chat, plain = (True, []), (False, ["\n\n\n"])
    assert shown == {("serl", None): chat, ("serl", False): plain, ("default", None): plain, ("default", True): chat}
