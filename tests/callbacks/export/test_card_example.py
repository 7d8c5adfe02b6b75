"""The example of a model card gives the model the token ids that it got in training."""

from types import SimpleNamespace

from prompts.test_chat import NO_SYSTEM, PARTS, STRING, byte_level, turns  # templates as models bring them

from lightning_serl.callbacks.publishing.card_example import NAME_LINE, example
from lightning_serl.callbacks.publishing.card_head import Measured, base_of
from lightning_serl.callbacks.publishing.push_to_hub import published_card
from lightning_serl.engines import Sampling
from lightning_serl.prompts import SolveTemplate
from lightning_serl.types import Instruction

THINKING = turns("{% if enable_thinking %}<think>{% endif %}" + STRING)
PROBLEMS = {"math": ("Compute 3 + 4.", None), "choice": ("Which of these numbers is even?", ["3", "5", "8", "9"])}


def data_for(solve, grader):
    """As much of a datamodule as an example is made of."""
    return SimpleNamespace(solve=solve, grader_name=grader, sampling=Sampling(max_tokens=9))


def test_the_inputs_are_those_of_training():
    table = [
        (None, SolveTemplate(), "math"),
        (None, SolveTemplate(system='Say "yes" or\nno.', answer_format="", stop=["\n\n", "Q:"]), "choice"),
        (turns(STRING), SolveTemplate(), "choice"),
        (turns(STRING), SolveTemplate(system="Be short."), "math"),
        (NO_SYSTEM + turns(STRING), SolveTemplate(system="Be short."), "math"),
        (turns(PARTS), SolveTemplate(), "math"),
        (THINKING, SolveTemplate(chat_kwargs={"enable_thinking": True}), "math"),
        (turns(STRING), SolveTemplate(chat=False), "math"),
    ]
    for template, solve, grader in table:
        tokenizer = byte_level(template)
        lines = example(data_for(solve, grader), tokenizer, "full")
        start = next(i for i, line in enumerate(lines) if line.startswith(("prompt =", "turns =")))
        end = next(i for i, line in enumerate(lines) if line.startswith("out ="))
        found = {"tokenizer": tokenizer}
        exec("\n".join(lines[start:end]), found)
        problem, choices = PROBLEMS[grader]
        asked = Instruction(problem, "", meta={"choices": choices} if choices else {})
        assert found["inputs"]["input_ids"][0].tolist() == solve.encode(tokenizer, asked, grader), template
        compile("\n".join(lines), "card", "exec")
        assert ("stop_strings=" in lines[-2]) == bool(solve.stop_strings(tokenizer))
        assert all(len(line) <= 200 for line in lines)


def test_a_card_for_a_repository():
    ours = f"---\ndatasets: [me/old]\nmodel-index:\n- name: x\n---\n\n{NAME_LINE}\n"
    found = published_card(ours, "me/new", "me/made")
    assert found.splitlines()[-1] == 'name = "me/new"'
    for part in ("- me/made", "- me/old", "- name: new"):
        assert part in found
    for own in ("# Mine\n", "---\n[a\n---\nx\n", "---\nno head", "---\n- a\n---\nx"):
        assert published_card(own, "me/new", "me/made") == own


def test_what_is_known_of_the_base(tmp_path):
    """A path of this machine is never shown; a licence of one's own name keeps its link."""
    cards = {
        "plain": "---\nlicense: mit\n---\n# x\n",
        "own": "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENCE\nbase_model: org/parent\n---\n",
        "none": "# x\n",
        "broken": "---\n[a\n---\n",
        "odd": "---\nlicense:\n  a: 1\nbase_model: 3\n---\n",
    }
    found = {}
    for name, text in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(text)
        shown, on_hub, licence = base_of(str(tmp_path / name))
        assert shown == name
        found[name] = on_hub, dict(licence)
    own = {"license": "other", "license_name": "ours", "license_link": "LICENCE"}
    nothing = None, {}
    assert found == {
        "plain": (None, {"license": "mit"}), "own": ("org/parent", own),
        "none": nothing, "broken": nothing, "odd": nothing,
    }  # fmt: skip
    assert base_of("tiny:base") == ("tiny:base", None, {"license": "apache-2.0"})
    assert base_of(None) == (None, None, {})
    sources = {"hub:org/set/main@test": "org/set", "hub:gsm8k": None, "mine.jsonl": None, "hub:org/set": "org/set"}
    for source, name in sources.items():
        assert Measured("set", "pass@1", None, 0.5, None, 1, source).hub_name == name
