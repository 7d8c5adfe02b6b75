"""Solve prompts and few-shot prompts: text, chat templates, token ids and stop strings."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightning_serl.errors import InputError
from lightning_serl.prompts import (
    InstructionTemplate,
    SolveTemplate,
)
from lightning_serl.types import Instruction

BOS, EOS = "<s>", "</s>"


CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


NO_BOS_CHAT = CHAT.replace("{{ bos_token }}", "")


NO_SYSTEM_CHAT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


def tokenizer(chat: str | None = None, adds: str = "", bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; ``adds`` is the post-processor's template around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens([BOS, EOS])
    if adds:
        special = [(t, base.token_to_id(t)) for t in (BOS, EOS)]
        base.post_processor = processors.TemplateProcessing(single=adds, special_tokens=special)
    names = {"eos_token": EOS} | ({"bos_token": BOS} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=base, chat_template=chat, **names)


PLAIN = tokenizer(bos=False)


ADDS_BOS = tokenizer(adds=f"{BOS} $A")


CHATS = tokenizer(CHAT, adds=f"{BOS} $A")


PROBLEM = Instruction("Solve $\\frac{x}{2} = {answer_format} \\{problem}$.", "u")


CHOICE = Instruction("Which is a noble gas?", "c", meta={"choices": ["iron", "neon\n gas", 3]})


def shown(tok: PreTrainedTokenizerFast, ids: list[int]) -> str:
    assert all(type(i) is int for i in ids)
    return tok.decode(ids)


def test_base_model_prompt_and_braces_survive() -> None:
    prompt = shown(PLAIN, SolveTemplate().encode(PLAIN, PROBLEM, "math"))
    assert prompt == (
        f"Question: {PROBLEM.prompt}\nReason step by step and put the final answer in \\boxed{{}}.\nSolution:"
    )


def test_the_tiny_language_prompt() -> None:
    tiny = SolveTemplate(chat=False, answer_format="")
    assert shown(PLAIN, tiny.encode(PLAIN, Instruction("12 + 5?", "u"), "math")) == "Question: 12 + 5?\nSolution:"


def test_the_answer_format_fits_the_grader_or_is_the_users() -> None:
    sentences = {g: SolveTemplate().render(Instruction("P", "u"), g, True) for g in ("math", "choice", "text", "mine")}
    assert all(s.startswith("P\n") and "\\boxed{}" in s for s in sentences.values())
    assert "letter" in sentences["choice"]
    assert "short" in sentences["text"]
    assert SolveTemplate(answer_format="Say it.").render(Instruction("P", "u"), "math", True) == "P\nSay it."


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{problem}\n{answer_format}", "P"),
        ("{problem}\n\n{answer_format}\n\nGo:", "P\n\nGo:"),
        ("{problem} {answer_format}\nGo:", "P\nGo:"),
        ("{answer_format}\n\n{problem}\n", "P\n"),
        ("{problem}", "P"),
    ],
)
def test_without_an_answer_format_no_blank_line_stays(template: str, prompt: str) -> None:
    assert SolveTemplate(text=template, answer_format="").render(Instruction("P", "u"), "math", True) == prompt


def test_options_are_listed_below_the_problem() -> None:
    text = SolveTemplate(answer_format="").render(CHOICE, "choice", True)
    assert text == "Which is a noble gas?\nA. iron\nB. neon gas\nC. 3"
    many = Instruction("Which?", "m", meta={"choices": list("abcdefghijklmnopqrstuvwxyz!")})
    with pytest.raises(InputError, match="'m' has 27 options"):
        SolveTemplate().render(many, "choice", True)


@pytest.mark.parametrize(
    ("tok", "bos"),
    [
        (PLAIN, 0),
        (tokenizer(), 0),
        (ADDS_BOS, 1),
        (tokenizer(adds=f"{BOS} $A {EOS}"), 1),
        (CHATS, 1),
        (tokenizer(CHAT), 1),
        (tokenizer(NO_BOS_CHAT, adds=f"{BOS} $A"), 1),
        (tokenizer(NO_BOS_CHAT), 0),
        (tokenizer(NO_BOS_CHAT, bos=False), 0),
        (tokenizer(CHAT + "{# twice #}", adds=f"{BOS} {BOS} $A"), 1),
    ],
)
@pytest.mark.parametrize("chat", [None, False])
def test_never_two_beginnings_and_never_an_end(tok: PreTrainedTokenizerFast, bos: int, chat: bool | None) -> None:
    for ids in (
        SolveTemplate(chat=chat).encode(tok, Instruction("P", "u"), "math"),
        InstructionTemplate(chat=bool(tok.chat_template) if chat is None else chat).encode(
            tok, [Instruction("P", "u")]
        ),
    ):
        begins = tok.convert_tokens_to_ids(BOS)
        printed = chat is None and tok.chat_template and "bos_token" in tok.chat_template
        adds = tok("")["input_ids"][:1] == [begins]
        assert ids.count(begins) == ids[:1].count(begins) == int(bool(printed or adds))
        assert chat is False or ids.count(begins) == bos
        assert ids[-1] != tok.eos_token_id


def test_a_prompt_without_its_beginning() -> None:
    begins = ADDS_BOS.convert_tokens_to_ids(BOS)
    problem = Instruction("P", "u")
    bare = SolveTemplate(plain="{problem}", answer_format="", bos=False)
    assert bare.encode(ADDS_BOS, problem, "math") == ADDS_BOS("P", add_special_tokens=False)["input_ids"]
    assert SolveTemplate(plain="{problem}", answer_format="").encode(ADDS_BOS, problem, "math")[0] == begins
    assert bare.encode(tokenizer(bos=False), problem, "math") == tokenizer(bos=False)("P")["input_ids"]


def test_a_problem_that_opens_with_the_token_does_not_double_it() -> None:
    ids = SolveTemplate(plain="{problem}").encode(ADDS_BOS, Instruction(f"{BOS}P", "u"), "math")
    assert shown(ADDS_BOS, ids).startswith(f"{BOS}P")


def test_chat_turns() -> None:
    solve = SolveTemplate(system="Be brief.", answer_format="", chat_kwargs={"enable_thinking": True})
    assert shown(CHATS, solve.encode(CHATS, Instruction("P", "u"), "math")) == (
        "<s>[system]Be brief.</s>[user]P</s>[assistant]<think>"
    )
    refuses = tokenizer(NO_SYSTEM_CHAT)
    assert shown(refuses, SolveTemplate(system="S", answer_format="").encode(refuses, Instruction("P", "u"), "")) == (
        "<s>[user]S\n\nP</s>[assistant]"
    )
    base = SolveTemplate(system="S", plain="Q: {problem}\nA:")
    assert shown(PLAIN, base.encode(PLAIN, Instruction("P", "u"), "math")) == "S\n\nQ: P\nA:"


def test_a_chat_that_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match="has no chat template"):
        SolveTemplate(chat=True).encode(PLAIN, PROBLEM, "math")
    with pytest.raises(InputError, match="has no chat template"):
        SolveTemplate(chat=True).stop_strings(PLAIN)
    broken = tokenizer("{{ raise_exception('users must be polite') }}")
    with pytest.raises(InputError, match="users must be polite"):
        SolveTemplate().encode(broken, PROBLEM, "math")
    with pytest.raises(InputError, match="check chat_kwargs"):
        SolveTemplate(chat_kwargs={"tokenize": True}).encode(CHATS, PROBLEM, "math")


def test_half_characters_do_not_break_a_prompt() -> None:
    for tok in (PLAIN, CHATS):
        ids = SolveTemplate(answer_format="").encode(tok, Instruction("a \ud800 b \x00", "u"), "math")
        assert "a \ufffd b" in shown(tok, ids)


def test_stop_strings() -> None:
    assert SolveTemplate().stop_strings(PLAIN) == ["\nQuestion:"]
    assert SolveTemplate().stop_strings(CHATS) == []
    assert SolveTemplate(chat=False).stop_strings(CHATS) == ["\nQuestion:"]
    assert SolveTemplate(plain="Try.\n\nProblem: {problem}\nSolution:").stop_strings(PLAIN) == ["\nProblem:"]
    assert SolveTemplate(plain="{problem}\n").stop_strings(PLAIN) == ["\n\n\n"]
    assert SolveTemplate(stop=["END"]).stop_strings(CHATS) == ["END"]
    assert SolveTemplate(stop=[]).stop_strings(PLAIN) == []
    assert InstructionTemplate(chat=True).stop_strings(CHATS) == []
    assert InstructionTemplate().stop_strings(CHATS) == ["\n\n\n"]
    assert InstructionTemplate().stop_strings(PLAIN) == ["\n\n\n"]
    assert InstructionTemplate(stop=["\n9."]).stop_strings(PLAIN) == ["\n9."]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SolveTemplate(text="Solve."), "data.solve.text has no place {problem}"),
        (lambda: SolveTemplate(plain="{problem} {hint}"), "unknown place {hint}"),
        (lambda: SolveTemplate(text="{probelm}"), "unknown place {probelm}"),
        (lambda: SolveTemplate(stop=["a", ""]), "data.solve.stop must be a list"),
        (lambda: SolveTemplate(stop="END"), "stop must be a list"),
        (lambda: InstructionTemplate(item="- {problem}\n"), "no place {i}"),
        (lambda: InstructionTemplate(item="{i}. {question}\n"), "unknown place {question}"),
        (lambda: InstructionTemplate(stop=[""]), "stop must be a list"),
    ],
)
def test_bad_templates_are_refused_in_one_sentence(make, said: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_latex_in_a_template_is_no_place() -> None:
    template = SolveTemplate(text="{problem} Write \\boxed{answer} or {}.")
    assert template.render(Instruction("P", "u"), "math", True) == "P Write \\boxed{answer} or {}."


def test_the_tiny_language_list() -> None:
    tiny = InstructionTemplate(header="Write new math questions.", chat=False)
    exemplars = [Instruction(f"q{i}", str(i)) for i in range(1, 5)]
    prompt = "Write new math questions.\n1. q1\n2. q2\n3. q3\n4. q4\n5."
    assert tiny.render(exemplars) == prompt
    assert shown(PLAIN, tiny.encode(PLAIN, exemplars)) == prompt
    assert tiny.first_number(exemplars) == 5


def test_items_are_one_line_with_options_below() -> None:
    template = InstructionTemplate(header="New:", item="{i}) {problem}\n")
    exemplars = [Instruction(" a\n\n b {i} ", "a"), CHOICE]
    assert template.render(exemplars) == ("New:\n1) a b {i}\n2) Which is a noble gas?\nA. iron\nB. neon gas\nC. 3\n3)")
    still = InstructionTemplate(header="", dangling=False)
    assert still.render([Instruction("q", "q")]) == "1. q"
    assert still.first_number([]) is None


def test_the_list_as_a_chat_turn() -> None:
    template = InstructionTemplate(header="H", system="S", chat=True)
    plain = InstructionTemplate(header="H", system="S")
    assert shown(CHATS, plain.encode(CHATS, [Instruction("q", "q")])) == "<s>S\n\nH\n1. q\n2."
    assert shown(CHATS, template.encode(CHATS, [Instruction("q", "q")])) == (
        "<s>[system]S</s>[user]H\n1. q\n2.</s>[assistant]"
    )
    assert InstructionTemplate().render([Instruction("q", "q")]).endswith("\n1. q\n2.")
