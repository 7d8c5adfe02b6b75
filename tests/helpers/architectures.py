"""Configurations of small models beyond those of ``small_models``: other families, experts, recurrence, vision."""

import transformers

SIZES = {
    "vocab_size": 448,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_HEAD = {**SIZES, "head_dim": 8}
_GEMMA = {**_HEAD, "pad_token_id": 0, "query_pre_attn_scalar": 8, "sliding_window": 6}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_BARE = {k: v for k, v in SIZES.items() if k.endswith("_id") or k in ("vocab_size", "hidden_size", "num_hidden_layers")}
_MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
_ROPE = {"rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [3.0, 5.0, 7.0, 9.0]}

#: Name of the configuration's class and its arguments.
TRAINED = {
    "gpt2": ("GPT2Config", {"vocab_size": 448, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 1}),
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {**SIZES, "hidden_size": 16, "vocab_size": 150_000, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _HEAD),
    "gemma2": ("Gemma2Config", {**_GEMMA, "final_logit_softcapping": 1.5, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "phi3": ("Phi3Config", SIZES),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
    "olmo2": ("Olmo2Config", SIZES),
    "starcoder2": ("Starcoder2Config", SIZES),
}
#: Mixtures of experts: configuration, what ``all-linear`` adapts.
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_SHARED = {"gate_proj", "up_proj", "down_proj"}
MIXTURES = {
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEAD, **_EXPERTS, "decoder_sparse_step": 1}, _ATTENTION),
    "qwen2_moe": ("Qwen2MoeConfig", {**SIZES, **_EXPERTS, "shared_expert_intermediate_size": 16}, _ATTENTION | _SHARED),
    "mixtral": (*TRAINED["mixtral"], _ATTENTION),
    "gpt_oss": ("GptOssConfig", {**_HEAD, **_EXPERTS}, _ATTENTION),
    "granite": ("GraniteMoeConfig", {**SIZES, **_EXPERTS}, _ATTENTION),
    "olmoe": ("OlmoeConfig", {**SIZES, **_EXPERTS}, _ATTENTION),
    "phimoe": ("PhimoeConfig", {**SIZES, **_EXPERTS}, _ATTENTION),
    "deepseek": (
        "DeepseekV3Config",
        {**SIZES, **_EXPERTS, **_MLA, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
         "first_k_dense_replace": 1},
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    ),
    "llama4": (
        "Llama4TextConfig",
        {**_HEAD, **_EXPERTS, "intermediate_size_mlp": 32},
        _ATTENTION | _SHARED,
    ),
    "jamba": (
        "JambaConfig",
        {**SIZES, **_EXPERTS, **_JAMBA, "mamba_d_state": 8, "mamba_dt_rank": 4},
        _ATTENTION | _SHARED | {"in_proj", "x_proj"},
    ),
    "granite_hybrid": (
        "GraniteMoeHybridConfig",
        {**SIZES, **_EXPERTS, **_MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
        _ATTENTION | {"in_proj", "input_linear", "output_linear"},
    ),
}  # fmt: skip
#: Models without a cache of keys and values that rows can leave.
RECURRENT = {
    "mamba": ("MambaConfig", {**_BARE, "state_size": 8}),
    "mamba2": ("Mamba2Config", {**_BARE, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1}),
    "falcon_mamba": ("FalconMambaConfig", {**_BARE, "state_size": 8}),
    "rwkv": ("RwkvConfig", {**_BARE, "bos_token_id": 0, "attention_hidden_size": 32, "context_length": 128}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**_HEAD, "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "minimax": ("MiniMaxConfig", {**_HEAD, **_EXPERTS, "block_size": 16}),
    "xlstm": ("xLSTMConfig", {**_BARE, "bos_token_id": 0, "pad_token_id": 0, "num_blocks": 2, "num_heads": 4}),
}
GEMMA3_VISION = (
    "Gemma3Config",
    {"text_config": _GEMMA, "vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 5,
     "boi_token_index": 6, "eoi_token_index": 7},
)  # fmt: skip
LONG_ROPE = (
    "Phi3Config",
    {**SIZES, "original_max_position_embeddings": 32,
     "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32, **_ROPE}},
)  # fmt: skip


def config(kind):
    """The configuration of one of the pairs above."""
    name, arguments = kind[:2]
    return getattr(transformers, name)(**arguments)
