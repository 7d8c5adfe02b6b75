"""Small random-weight models of several architectures, in memory or saved beside the tiny tokenizer."""

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from lightning_serl import tiny
from lightning_serl.policy import Policy

VOCABULARY = 448
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GEMMA = {**_COMMON, "head_dim": 8, "query_pre_attn_scalar": 8}

CONFIGS = {
    "llama_tied": LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "llama_untied": LlamaConfig(**_COMMON, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**_COMMON),
    "gemma2": Gemma2Config(**_GEMMA, final_logit_softcapping=1.5, sliding_window=64),
    "gemma2_window": Gemma2Config(**_GEMMA, final_logit_softcapping=3.0, sliding_window=6),
    "mistral_window": MistralConfig(**_COMMON, sliding_window=6),
    "cohere": CohereConfig(**_COMMON, logit_scale=0.25),
    "granite": GraniteConfig(**_COMMON, logits_scaling=3.0),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=0
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=16,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    ),
    # attention in one layer, a recurrent state in the other
    "qwen3_next": Qwen3NextConfig(
        **_COMMON,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "falcon_h1": FalconH1Config(**_COMMON, lm_head_multiplier=0.5, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_state=8),
}


def small_model(name, seed=0, scale=8.0):
    """A model whose weights are scaled up, so that its distributions are far from flat."""
    config = copy.deepcopy(CONFIGS[name])
    config.use_cache = True
    config._attn_implementation = "eager" if name.startswith("gemma2") else "sdpa"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_tokenizer():
    return AutoTokenizer.from_pretrained(tiny.path("base"))


def small_policy(name, seed=0, **options):
    return Policy(small_model(name, seed), tiny_tokenizer(), **options)


def save_model(folder, name="llama_tied", seed=0):
    """A directory as a user would bring it."""
    model = small_model(name, seed)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def with_lora(model, targets="all-linear", seed=0, **options):
    """A LoRA model whose adapter already does something (peft starts with zeros)."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return wrapped


# -- log-probs of a few rows, computed without the package ------------------------------------------------------

ROWS = [list(range(40, 49)), [7, 300, 7, 12, 9, 55], [11, 12, 13]]
STARTS = [4, 1, 2]


def plain_stats(model, rows, starts, temperature):
    """Each row on its own, without padding, through ``model(...).logits``."""
    for row, start in zip(rows, starts, strict=True):
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1].double() / temperature
        p = torch.log_softmax(logits, -1)[start - 1 :]
        labels = torch.tensor(row[start:])
        certainty = -p.mean(-1)
        yield p[torch.arange(len(labels)), labels], -(p.exp() * p).sum(-1), certainty
