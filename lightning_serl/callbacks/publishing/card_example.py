"""The example of an export's model card: a script that asks the model a problem as it was asked in training."""

from __future__ import annotations

import json
from typing import Any

from lightning_serl.policy.export import Form
from lightning_serl.prompts.chat import chat_text
from lightning_serl.protocols import SelfPlay
from lightning_serl.types import Instruction

#: The line of the example that names the model; a push puts the repository in its place.
NAME_LINE = 'name = "."  # this directory'
# Problems that fit the graders; none of the user's own, which may be private.
_PROBLEMS = {
    "choice": ("Which of these numbers is even?", ["3", "5", "8", "9"]),
    "text": ("What is the capital of France?", []),
}


def example(data: SelfPlay, tokenizer: Any, form: Form) -> list[str]:
    """The lines of a Python script that opens the export and prints its answer to one problem."""
    solve: Any = data.solve
    problem, choices = _PROBLEMS.get(data.grader_name, ("Compute 3 + 4.", []))
    instruction = Instruction(problem, "", meta={"choices": choices} if choices else {})
    asked = solve.render(instruction, data.grader_name, solve.uses_chat(tokenizer))
    kind = "AutoPeftModelForCausalLM" if form == "adapter" else "AutoModelForCausalLM"
    imports = (
        ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        if form == "adapter"
        else ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    )
    stop = solve.stop_strings(tokenizer)
    stopping = f", stop_strings={json.dumps(stop, ensure_ascii=False)}, tokenizer=tokenizer" if stop else ""
    return [
        *imports,
        "",
        NAME_LINE,
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f'model = {kind}.from_pretrained(name, dtype="auto")',
        *_inputs(solve, tokenizer, asked),
        f"out = model.generate(**inputs, max_new_tokens={data.sampling.longest}, do_sample=False{stopping})",
        'print(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _inputs(solve: Any, tokenizer: Any, asked: str) -> list[str]:
    """The lines that make ``inputs`` of the prompt."""
    if not solve.uses_chat(tokenizer):
        whole = asked if solve.system is None else f"{solve.system}\n\n{asked}"
        return [
            f"prompt = {json.dumps(whole, ensure_ascii=False)}",
            'inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)',
        ]
    options = solve.chat_kwargs or {}
    turns = [{"role": "user", "content": asked}]
    if solve.system is not None:
        turns.insert(0, {"role": "system", "content": solve.system})
    text = chat_text(tokenizer, asked, solve.system, options)
    if _template_gives(tokenizer, turns, options, text):
        more = "".join(f", {name}={value!r}" for name, value in options.items())
        given = ["    " + json.dumps(turn, ensure_ascii=False) + "," for turn in turns]
        return [
            "turns = [",
            *given,
            "]",
            "inputs = tokenizer.apply_chat_template(",
            f'    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"{more}',
            ")",
        ]
    return [  # a template without a system role, or one that takes the turns in another form
        f"prompt = {json.dumps(text, ensure_ascii=False)}",
        'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)',
    ]


def _template_gives(tokenizer: Any, turns: list[dict[str, str]], options: dict[str, Any], text: str) -> bool:
    """Whether the chat template prints this text for the turns as they are."""
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options) == text
    except Exception:  # a template is a program, which may raise anything
        return False
