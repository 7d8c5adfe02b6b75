"""Real families of models, small and random, from a directory through writing, answering, training and export."""

import json

import pytest
import torch
from helpers.architectures import GEMMA3_VISION, LONG_ROPE, MIXTURES, RECURRENT, TRAINED, config
from helpers.small_models import tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lightning_serl import SeRLModule
from lightning_serl.engines import Request, Sampling, TransformersEngine
from lightning_serl.errors import InputError
from lightning_serl.policy import Policy
from lightning_serl.policy.export import export
from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import Work, plan
from lightning_serl.policy.vocabulary import TextDecoder
from lightning_serl.prompts import InstructionTemplate, SolveTemplate
from lightning_serl.types import Group, Instruction, Verdict, pad_rows

CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\nSolution:"
    "{% else %}{{ m.content }}<turn>{% endif %}{% endfor %}"
)


def model_of(kind, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(kind), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    return model


def saved(folder, kind, tokenizer=None, model=None):
    model = model or model_of(kind)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def chat_tokenizer():
    """Without pad and BOS; its template ends a turn with a token that neither tokenizer nor configuration names."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.chat_template = CHAT
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "[THINK]", "[/THINK]"]})
    return tokenizer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", TRAINED)
def test_from_a_directory_to_an_export(work, name):
    """The output layer is padded beyond the tokenizer; every second family trains an adapter."""
    tokenizer, kind = chat_tokenizer(), TRAINED[name]
    rows = max(464, kind[1]["vocab_size"])
    kind = (kind[0], {**kind[1], "vocab_size": rows})
    lora = LoraOptions(r=2) if list(TRAINED).index(name) % 2 else None
    where = saved(work / name, kind, tokenizer)
    module = SeRLModule(where, lora=lora, optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2))
    policy = module.policy
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert turn in policy.end_ids
    assert policy.spare_ids == list(range(len(tokenizer), rows))

    # write and answer
    problem = Instruction("What is 3 + 4?", "u")
    prompts = [
        SolveTemplate(answer_format="").encode(policy.tokenizer, problem, "math"),
        InstructionTemplate(header="New:").encode(policy.tokenizer, [problem]),
    ]
    assert tokenizer.decode(prompts[0]) == "Question: What is 3 + 4?\nSolution:"
    engine = TransformersEngine()
    engine.start(policy)
    sampling = Sampling(max_tokens=4 if rows > 1000 else 12, temperature=1.0)
    requests = [Request(tuple(p), tuple(range(4)), sampling) for p in prompts]
    with policy.gathered():
        written = dict(engine.generate(requests))
        for request, completions in zip(requests, (written[0], written[1]), strict=True):
            whole = [(request.prompt_ids + c.token_ids, len(request.prompt_ids)) for c in completions]
            for completion, stats in zip(completions, policy.stats(whole), strict=True):
                torch.testing.assert_close(torch.tensor(completion.logprobs), stats.logp, rtol=1e-3, atol=1e-3)
                assert max(completion.token_ids) < len(tokenizer)

    # train
    group = Group(problem, requests[0].prompt_ids, written[0])
    before = {n: t.clone() for n, t in policy.merged_weights()}
    (batch,) = module.experience([group], [Verdict(torch.tensor([1.0, 0.0, 1.0, 0.0]))])
    module.training_step(batch, 0).backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert sum(float(p.grad.abs().sum()) for p in trained) > 0
    module.configure_optimizers().step()
    assert policy.version == 1
    after = dict(policy.merged_weights())
    assert set(after) == set(before)
    assert any(not torch.equal(t, before[n]) for n, t in after.items())

    # export and reload
    export(policy, work / f"{name}-out")
    again = load_policy(str(work / f"{name}-out"))
    row = [(list(requests[0].prompt_ids) + list(range(5, 40)), 3)]
    with policy.gathered(), again.gathered():
        torch.testing.assert_close(again.stats(row)[0].logp, policy.stats(row)[0].logp, rtol=1e-3, atol=1e-3)
    assert again.end_ids == policy.end_ids


# --- text and ids ----------------------------------------------------------------------------------------------------

MARKS = ("[THINK]", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|im_start|>", "<pad>")


@pytest.mark.parametrize(
    ("special", "written", "text"),
    [
        ((), " 3 + 4 .", " 3 + 4 ."),
        (("[THINK]", "[/THINK]"), "[THINK]3?[/THINK]4", "[THINK]3?[/THINK]4"),
        (("[THINK]", "<|im_start|>"), "[THINK]3?<|im_start|>4", "[THINK]3?4"),
        (("<|im_start|>",), "3<|im_start|> 4", "3 4"),
        (("<|end|>",), "3<|end|>", "3"),
        (("◁think▷", "◁/think▷"), "◁think▷3◁/think▷ 4", "◁think▷3◁/think▷ 4"),
        (("<|START_THINKING|>",), "<|START_THINKING|>3", "<|START_THINKING|>3"),
        (("<|begin_of_thought|>",), "<|begin_of_thought|> 3", "<|begin_of_thought|> 3"),
        (("<|inner_prefix|>", "<|inner_suffix|>"), "<|inner_prefix|>3<|inner_suffix|>4", None),
        (("<|channel>", "<channel|>", "<turn|>"), "<|channel>3<channel|>4<turn|>", "<|channel>3<channel|>4"),
        (MARKS, "<|channel|>final<|message|>4<|return|>", "<|channel|>final<|message|>4"),
        (MARKS, "<|message|>3<|end|><|start|>a<|im_start|>", "<|message|>3<|end|><|start|>a"),
        (MARKS, "3<|endoftext|>", "3"),
        (MARKS, "3<pad><pad>", "3"),
        (("<reasoning>",), " 3 + 4 .<reasoning> 3 ?", " 3 + 4 .<reasoning> 3 ?"),
    ],
)  # fmt: skip
def test_marks_of_thoughts_stay_in_the_text(special, written, text):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if "<pad>" in special:
        tokenizer.pad_token = "<pad>"
    ends = (0, tokenizer.convert_tokens_to_ids("<|return|>")) if "<|return|>" in special else (0,)
    ids = tokenizer.encode(written)
    assert TextDecoder(tokenizer, ends)([ids, []]) == [written if text is None else text, ""]


def test_the_end_of_a_turn_ends_a_completion():
    """Neither the tokenizer's end token nor the generation config names it."""
    tokenizer = chat_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    model = model_of(("LlamaConfig", {**TRAINED["llama"][1], "vocab_size": 512, "tie_word_embeddings": False}))
    with torch.no_grad():
        model.lm_head.weight[turn] = 30 * model.lm_head.weight[turn].sign()
        model.lm_head.weight[500] = model.lm_head.weight[turn]  # as likely, but no token
    policy = Policy(model.eval(), tokenizer)
    assert model.generation_config.eos_token_id == 0
    assert policy.end_ids == (0, turn)
    engine = TransformersEngine()
    engine.start(policy)
    requests = [Request((i, i + 1, i + 2), (0, 1), Sampling(24)) for i in range(5, 25)]
    with policy.gathered():
        completions = [c for _, cs in engine.generate(requests) for c in cs]
    ended = [c for c in completions if turn in c.token_ids]
    assert ended
    for completion in ended:
        assert completion.finished
        assert completion.token_ids.index(turn) == len(completion.token_ids) - 1
        assert "<turn>" not in completion.text
    assert all(max(c.token_ids) < len(tokenizer) for c in completions)
    tokenizer.chat_template = None
    assert policy.end_ids == (0,)


# --- experts ---------------------------------------------------------------------------------------------------------


def adapted(policy):
    names = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert all(".lora_" in n for n in names)
    assert not any(part in n for n in names for part in (".experts.", "router", ".gate.", "_gate."))
    return {n.partition(".lora_")[0].rpartition(".")[2] for n in names}


@pytest.mark.parametrize("name", MIXTURES)
def test_an_adapter_on_a_mixture_of_experts(work, name, caplog):
    kind = MIXTURES[name]
    policy = load_policy(saved(work / f"moe-{name}", kind), LoraOptions(r=2))
    assert adapted(policy) == kind[2]
    policy(pad_rows([[5, 6, 7, 8, 9]], [2], 0)).logp.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    assert policy.adapter_config()["rank_pattern"] == {}
    listed = LoraOptions(r=2, target_modules=["o_proj", "gate_proj", "up_proj", "down_proj"])
    assert adapted(load_policy(str(work / f"moe-{name}"), listed)) <= kind[2]


def test_what_an_adapter_leaves_out_is_said(work, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_serl.policy.lora.rank_zero_info", said.append)
    where = saved(work / "said", MIXTURES["qwen3_moe"])
    load_policy(where, LoraOptions(r=2))
    assert said == [
        "model.lora adapts k_proj, o_proj, q_proj, v_proj; without an adapter stay experts and routers of 2 layers"
    ]
    for targets in (["gate_proj", "down_proj"], ".*experts.*", ["gate"], ["experts"]):
        with pytest.raises(InputError, match="names only experts"):
            load_policy(where, LoraOptions(r=2, target_modules=targets))
    with pytest.raises(InputError, match="'nope' matches no layer"):
        load_policy(where, LoraOptions(r=2, target_modules=["q_proj", "nope"]))
    dense = load_policy("tiny:base", LoraOptions(r=2))
    assert dense.adapter_config()["target_modules"] == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert len(said) == 1


def test_the_memory_of_experts_is_planned_in_every_precision(caplog, capfd):
    work, kind = Work(rows=2, length=24, sampled=2), MIXTURES["gpt_oss"]
    whole, half = (plan(config(kind), dtype, work) for dtype in (torch.float32, torch.bfloat16))
    assert whole.gradients == 2 * half.gradients
    assert half.activations < whole.activations
    assert "Traceback" not in caplog.text + capfd.readouterr().err


# --- what is refused at load -----------------------------------------------------------------------------------------


def refusal(where, lora=None):
    with pytest.raises(InputError) as caught:
        load_policy(where, lora)
    message = str(caught.value)
    assert len(message) <= 300
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_are_refused_in_one_sentence(work, name):
    message = refusal(saved(work / name, RECURRENT[name]))
    assert ("cannot be sampled" in message) != (name == "xlstm")  # that one caps its logits, too
    assert message.endswith(("give a model with attention", "give a model of another architecture"))


def test_hybrids_whose_cache_works_are_taken(work):
    for name in ("jamba", "granite_hybrid"):
        assert load_policy(saved(work / f"hybrid-{name}", MIXTURES[name])).training


@pytest.mark.parametrize(
    ("tokens", "special", "said"),
    [
        (["compute"], False, "ids up to 448 but the model's embedding has 448 rows (no row for 'compute')"),
        (["<calc>", "</calc>"], True, "ids up to 449 but the model's embedding has 448 rows (no row for '<calc>')"),
        (["<|im_end|>"], True, "no row for '<|im_end|>'"),
        (["<image_soft_token>"], False, "no row for '<image_soft_token>'"),
        (["<image_soft_token>", "x+"], True, "no row for 'x+'"),
        (["<image_soft_token>"], True, None),
        (["<|video|>", "<|audio_start|>"], True, None),
    ],
)
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows(work, tokens, special, said):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(tokens, special_tokens=special)
    where = saved(work / "larger", TRAINED["llama"], tokenizer)
    if said is None:
        assert load_policy(where).spare_ids == []
    else:
        assert said in refusal(where)


def test_a_pad_token_without_a_row(work):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    policy = load_policy(saved(work / "pad", TRAINED["llama"], tokenizer))
    assert policy.tokenizer.pad_token_id == 448
    assert policy.pad_id == 0


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_named(work, name, value):
    model = model_of(TRAINED["llama"])
    model.get_parameter(name).data.view(-1)[7] = value
    message = refusal(saved(work / "broken", None, model=model))
    assert f"1 of 20 tensors hold NaN or infinity (first {name})" in message


def test_numbers_that_overflow_on_the_way_and_broken_adapters(work):
    model = model_of(TRAINED["llama"])
    model.model.layers[0].mlp.up_proj.weight.data.fill_(3e38)
    assert "logits of model" in refusal(saved(work / "huge", None, model=model))
    where = saved(work / "whole", TRAINED["llama"])
    policy = load_policy(where, LoraOptions(r=2, target_modules=["q_proj"]))
    export(policy, work / "broken-adapter", "adapter")  # which would refuse to write what is not finite
    file = work / "broken-adapter" / "adapter_model.safetensors"
    state = load_file(file)
    next(tensor for name, tensor in state.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(state, file)
    message = refusal(where, LoraOptions(start_from=str(work / "broken-adapter")))
    assert "the adapter of model.lora.start_from" in message
    assert "lora_B" in message


# --- vision, positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2), LoraOptions(r=2, target_modules=["q_proj", "fc1"])])
def test_every_trained_weight_of_a_vision_model_gets_a_gradient(work, lora):
    policy = load_policy(saved(work / "vision", GEMMA3_VISION), lora)
    policy(pad_rows([[15, 16, 17, 18, 19], [30, 31, 32]], [2, 1], 0)).logp.sum().backward()
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None for p in trained.values())
    assert not any("vision_tower" in n or "multi_modal_projector" in n for n in trained)
    frozen = {n for n, p in policy.named_parameters() if not p.requires_grad}
    assert any("vision_tower" in n for n in frozen)
    export(policy, work / "vision-out")
    kept = json.loads((work / "vision-out" / "config.json").read_text())
    assert kept["vision_config"]["image_size"] == 28


def test_rows_never_cross_the_length_at_which_positions_change(work):
    policy = load_policy(saved(work / "longrope", LONG_ROPE))
    assert policy.context_length == policy.steady_length == 32
    row = [(i * 7) % 400 + 1 for i in range(32)]
    with policy.gathered():
        alone = policy.stats([(row[:9], 2)])[0].logp
        beside = policy.stats([(row[:9], 2), (row, 2)])[0].logp
        torch.testing.assert_close(alone, beside)
        with pytest.raises(InputError, match=r"a row of 33 tokens is longer than 32.*data\.max_tokens"):
            policy.stats([(row[:9], 2), ([*row, 5], 2)])
        engine = TransformersEngine()
        engine.start(policy)
        with pytest.raises(InputError, match="longer than 32"):
            list(engine.generate([Request(tuple(row[:20]), (0,), Sampling(max_tokens=14, temperature=0.0))]))
        assert len(dict(engine.generate([Request(tuple(row[:20]), (0,), Sampling(max_tokens=12))]))) == 1
    assert load_policy(saved(work / "plain", TRAINED["phi3"])).steady_length is None
