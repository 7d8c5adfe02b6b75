"""Chat templates as models bring them: without a system role, with parts, with other ends of turns, with thoughts."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightning_serl.answers import strip_thinking
from lightning_serl.errors import InputError
from lightning_serl.prompts import InstructionTemplate, SolveTemplate
from lightning_serl.prompts.chat import open_thought, turn_end, turn_end_id
from lightning_serl.types import Instruction

SYSTEM, PROBLEM = "Answer in one word.", "What is 2 + 3, if {x} < \\frac{1}{2}?"


def byte_level(chat=None, special=("<s>", "</s>"), added=(), adds="", **names):
    """A byte-level tokenizer whose end token is ``</s>``; ``adds`` is what it writes around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens(list(special))
    base.add_tokens([AddedToken(t, normalized=False) for t in added])
    return _wrapped(base, chat, adds, names)


def sentencepiece(chat=None, special=("<s>", "</s>"), added=(), adds="<s> $A", **names):
    """A tokenizer as Llama 2 has it: blanks are underlines, one is put before the text, other characters are bytes."""
    pieces = [
        "<unk>",
        *special,
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
        "▁the",
        "▁a",
    ]
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = [("▁", "a")]
    del vocab["▁the"]
    vocab = {p: i for i, p in enumerate(vocab)}
    base = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    base.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    base.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    base.add_tokens([AddedToken(t, normalized=False) for t in added])
    return _wrapped(base, chat, adds, names)


def _wrapped(base, chat, adds, names):
    if adds:
        pairs = [(t, base.token_to_id(t)) for t in ("<s>", "</s>")]
        base.post_processor = processors.TemplateProcessing(single=adds, special_tokens=pairs)
    names = {"eos_token": "</s>", "bos_token": "<s>"} | names
    names = {k: v for k, v in names.items() if v}
    return PreTrainedTokenizerFast(tokenizer_object=base, chat_template=chat, **names)


def turns(body, before="", after="<|assistant|>"):
    return before + f"{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{after}{{% endif %}}"


STRING = "<|{{ m.role }}|>{{ m.content }}"
PARTS = "<|{{ m.role }}|>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
NAMED = (
    "<|{{ m['role'] }}|>{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
)
EITHER = "<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% endfor %}"
)
OWN_TURN, IN_USER = "own turn", "in the user turn"

SYSTEM_ROLES = {
    "a system role": (turns(STRING), OWN_TURN),
    "parts": (turns(PARTS), OWN_TURN),
    "parts by key": (turns(NAMED), OWN_TURN),
    "string or parts": (turns(EITHER), OWN_TURN),
    "first part by index": (turns("<|{{ m.role }}|>{{ m.content[0]['text'] }}"), OWN_TURN),
    "a list would be printed": (turns("<|{{ m.role }}|>{{ m['content'] }}"), OWN_TURN),
    "the user alone in parts": (
        turns("{% if m.role == 'system' %}<|system|>{{ m.content }}{% else %}" + PARTS + "{% endif %}"),
        OWN_TURN,
    ),
    "the system alone in parts": (
        turns("{% if m.role != 'system' %}<|user|>{{ m.content.strip() }}{% else %}" + PARTS + "{% endif %}"),
        OWN_TURN,
    ),
    "raises": (NO_SYSTEM + turns(STRING), IN_USER),
    "raises for roles that do not alternate": (ALTERNATE + turns(STRING), IN_USER),
    "raises for parts too": (NO_SYSTEM + turns(PARTS), IN_USER),
    "skips": (turns("{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endif %}"), IN_USER),
    "skips by else": (turns("{% if m.role == 'system' %}{% else %}" + STRING + "{% endif %}"), IN_USER),
    "skips, in parts": (turns("{% if m.role == 'user' %}" + PARTS + "{% endif %}"), IN_USER),
    "filters": ("{% for m in messages if m.role != 'system' %}" + STRING + "{% endfor %}<|assistant|>", IN_USER),
    "prints it with tools alone": (
        turns(
            "{% if m.role == 'system' and tools %}{{ m.content }}{% elif m.role == 'user' %}" + STRING + "{% endif %}"
        ),
        IN_USER,
    ),
    "its own default": (
        turns(STRING, "{% if messages[0].role != 'system' %}<|system|>Be kind.{% endif %}"),
        OWN_TURN,
    ),
    "puts it into the user turn itself": (
        "{% if messages[0].role == 'system' %}"
        "{% set first = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}<|{{ m.role }}|>{{ first if loop.first else '' }}{{ m.content | trim }}{% endfor %}"
        "<|assistant|>",
        IN_USER,
    ),
    "one variable before": (
        "{% set s = '' %}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}<|system|>{{ s }}" + turns(STRING),
        OWN_TURN,
    ),
}


@pytest.mark.parametrize("name", SYSTEM_ROLES)
def test_system_prompt_and_problem_are_in_the_prompt_as_written(name):
    template, where = SYSTEM_ROLES[name]
    for tok in (byte_level(template), sentencepiece(template, adds="")):
        solve = SolveTemplate(system=SYSTEM, answer_format="")
        text = tok.decode(solve.encode(tok, Instruction(PROBLEM, "u"), "math"))
        assert text.count(PROBLEM) == text.count(SYSTEM) == 1
        assert (f"{SYSTEM}\n\n{PROBLEM}" in text) == (where == IN_USER)
        bare = tok.decode(SolveTemplate(answer_format="").encode(tok, Instruction(PROBLEM, "u"), "math"))
        assert bare.count(PROBLEM) == 1
        assert SYSTEM not in bare
        assert "'text'" not in text + bare
        shown = tok.decode(InstructionTemplate(system=SYSTEM).encode(tok, [Instruction(PROBLEM, "u")]))
        assert f"1. {PROBLEM}\n2." in shown
        assert SYSTEM in shown


@pytest.mark.parametrize(
    "template",
    [
        turns("<|{{ m.role }}|>{% for p in m.content %}{{ p.body }}{% endfor %}"),
        turns("<|{{ m.role }}|>{{ m.text }}"),
        turns("{% if m.role == 'human' %}{{ m.content }}{% endif %}"),
        "<|assistant|>",
    ],
)
def test_a_template_that_never_prints_the_problem_is_refused(template):
    with pytest.raises(InputError, match=r"does not print the user's turn, .* set chat to false"):
        SolveTemplate().encode(byte_level(template), Instruction(PROBLEM, "u"), "math")


def ended(by, between=False):
    last = " and not loop.last" if between else ""
    return turns("{{ m.role }}: {{ m.content }}{% if m.role == 'assistant'" + last + " %}" + by + "{% endif %}")


ENDS = [
    # template, special tokens, added tokens, end of turn, whether it is one token
    (ended("{{ eos_token }}"), (), (), "</s>", True),
    (ended(" {{ eos_token }}"), (), (), "</s>", True),
    (ended("<|im_end|>\n"), ("<|im_end|>",), (), "<|im_end|>", True),
    (ended("<end_of_turn>\n"), ("<end_of_turn>",), (), "<end_of_turn>", True),
    (ended("<|eot_id|>"), ("<|eot_id|>", "<|eot|>"), (), "<|eot_id|>", True),
    (ended("<|eot|>"), ("<|eot_id|>", "<|eot|>"), (), "<|eot|>", True),
    (ended("\n<|end|>\n"), (), ("<|end|>",), "<|end|>", True),
    (ended("<|end|>"), (), (), "<|end|>", False),
    (ended("[/REPLY]"), (), (), "[/REPLY]", False),
    (ended("</assistant>\n"), (), (), "</assistant>", False),
    (ended("<|end|>", between=True), ("<|end|>",), (), "<|end|>", True),
    (ended("<|{{ 'return' if loop.last else 'end' }}|>"), ("<|return|>", "<|end|>"), (), "<|return|>", True),
    (turns("<|{{ m.role }}|>{{ m.content }}"), ("<|user|>", "<|assistant|>"), (), "<|user|>", True),
    (turns("{{ m.role }}: {{ m.content }}\n"), (), (), "", False),
    (turns("{% if m.role == 'user' %}{{ m.content }}{% endif %}"), (), (), "", False),
    (turns("{% if m.role != 'user' %}{{ raise_exception('once') }}{% endif %}{{ m.content }}"), (), (), "", False),
    (turns("{% for p in m.content %}{{ p.text }}{% endfor %}<|stop|>"), ("<|stop|>",), (), "<|stop|>", True),
    (None, ("<|im_end|>",), (), "", False),
]  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_the_end_of_a_turn(case):
    template, special, added, end, single = case
    for make in (byte_level, sentencepiece):
        tok = make(template, ("<s>", "</s>", *special), added)
        assert turn_end(tok) == end
        assert turn_end_id(tok) == (tok.convert_tokens_to_ids(end) if single else None)
        if template is not None:
            assert SolveTemplate().stop_strings(tok) == ([] if single or not end else [end])
            assert SolveTemplate(stop=[]).stop_strings(tok) == []


THINKS = [
    ("<|assistant|>", {}, ""),
    ("<|assistant|><think>\n", {}, "<think>\n"),
    ("<|assistant|>{% if enable_thinking %}<think>{% endif %}", {"enable_thinking": True}, "<think>"),
    ("<|assistant|>{% if enable_thinking %}<think>{% endif %}", {"enable_thinking": False}, ""),
    ("<|assistant|>{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}", {"enable_thinking": False}, ""),
    ("<|assistant|>{% if thinking %}[THINK]{% endif %}", {"thinking": True}, "[THINK]"),
    ("<|assistant|>◁think▷", {}, "◁think▷"),
    ("<|assistant|><reasoning>\n", {}, "<reasoning>\n"),
    ("<|assistant|><thinking>", {}, "<thinking>"),
    ("<|assistant|><seed:think>", {}, "<seed:think>"),
    ("<|assistant|><think> </think>", {}, ""),
    ("<|assistant|></think>", {}, ""),
    ("<think> is a tag<|assistant|>", {}, ""),
    ("<|assistant|>{% if reasoning_effort == 'high' %}<think>\n{% endif %}", {"reasoning_effort": "high"}, "<think>\n"),
    ("<|assistant|>{% if reasoning_effort == 'high' %}<think>\n{% endif %}", {"reasoning_effort": "low"}, ""),
]  # fmt: skip


@pytest.mark.parametrize("case", THINKS)
def test_a_prompt_that_opens_a_thought(case):
    after, options, opening = case
    tok = byte_level(turns(STRING, after=after))
    template = SolveTemplate(chat_kwargs=options)
    assert template.opening(tok) == open_thought(tok, options) == opening
    assert SolveTemplate(chat=False, chat_kwargs=options).opening(tok) == ""
    prompt = tok.decode(template.encode(tok, Instruction("<think>", "u"), "math"))
    assert prompt.endswith(opening)
    if opening.startswith("<think>"):  # a thought that was cut off holds no answer
        assert strip_thinking(opening + "so \\boxed{3}, no").strip() == ""


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize(
    "text", ["  two  blanks ", "a\n\n b\t", "2:30 pm — £5 ≠ 日本 🎉", " the a", "x </s", "e.g. 'do n't' ."]
)
def test_texts_come_back_as_written(make, text):
    """Through prompts with and without a template; neither beginning nor end is doubled."""
    for chat in (None, turns(STRING), "{{ bos_token }}" + turns(STRING), "\n{{ bos_token }}" + turns(STRING)):
        for names in ({}, {"pad_token": "</s>"}):
            tok = make(chat, **names)
            ids = SolveTemplate(text="{problem}", plain="{problem}", answer_format="").encode(
                tok, Instruction(text, "u"), ""
            )
            begins = ids.count(tok.convert_tokens_to_ids("<s>"))
            assert begins == ids[:1].count(tok.convert_tokens_to_ids("<s>"))
            assert begins == int("bos_token" in (chat or "") or make is sentencepiece)
            assert tok.convert_tokens_to_ids("</s>") not in ids
            assert text in tok.decode(ids, clean_up_tokenization_spaces=False)


def test_a_tokenizer_without_a_beginning():
    tok = byte_level(turns(STRING), special=("</s>",), bos_token=None)
    assert tok.bos_token is None
    assert (
        tok.decode(SolveTemplate(answer_format="").encode(tok, Instruction("P", "u"), "")) == "<|user|>P<|assistant|>"
    )
