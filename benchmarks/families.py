"""Small random models of many architectures through whole runs: written, answered, trained, pushed, exported, resumed.

    python benchmarks/families.py [--only NAME ...] [--out DIR]

For each family, all weights and an adapter: a fit of three rounds with an engine that has a model of its own, which is
made from the directory and gets the policy's weights by name before each round; receipt, log-prob probe and canary of
``RolloutRefresh`` compare it with the policy. Then the same fit, ended by an error in the second round and resumed:
ledger and export must be equal to the byte, and the export loads again. Prints a table; exits 1 if a family did not get
through.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers

from lightning_serl import SelfPlayDataModule, SeRLModule, tiny
from lightning_serl.callbacks import Checkpoints, Export
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.sources import Writing
from lightning_serl.engines import Sampling, TransformersEngine
from lightning_serl.engines.base import Receipt
from lightning_serl.errors import SeRLError
from lightning_serl.objectives import Objective
from lightning_serl.policy import LoraOptions, Policy, load_policy
from lightning_serl.prompts import InstructionTemplate, SolveTemplate
from lightning_serl.rewards import RandomReward

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.architectures import _EXPERTS, _HEAD, _MAMBA, _MLA, GEMMA3_VISION, MIXTURES, SIZES, TRAINED

_GPT = {"vocab_size": 448, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
#: Families beyond those of the tests; what each one adds is in its configuration.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": 448, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gpt_neo": ("GPTNeoConfig", {
        "vocab_size": 448, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 6, **_ENDS,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128}),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4, **_ENDS}),
    "codegen": ("CodeGenConfig", {**_GPT, "rotary_dim": 4, **_ENDS}),
    "falcon": ("FalconConfig", {**SIZES, "multi_query": True}),
    "falcon_alibi": ("FalconConfig", {**SIZES, "alibi": True}),
    "mpt": ("MptConfig", {"vocab_size": 448, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128,
                          "eos_token_id": 0}),
    "xglm": ("XGLMConfig", {"vocab_size": 448, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
                            "max_position_embeddings": 128, "pad_token_id": 1, **_ENDS}),
    "stablelm": ("StableLmConfig", SIZES),
    "cohere": ("CohereConfig", SIZES),
    "cohere2": ("Cohere2Config", {**SIZES, "sliding_window": 6}),
    "granite": ("GraniteConfig", {**SIZES, "logits_scaling": 4.0}),
    "olmo": ("OlmoConfig", SIZES),
    "olmo3": ("Olmo3Config", {**SIZES, "sliding_window": 6}),
    "phi": ("PhiConfig", SIZES),
    "persimmon": ("PersimmonConfig", SIZES),
    "ernie": ("Ernie4_5Config", _HEAD),
    "smollm3": ("SmolLM3Config", SIZES),
    "helium": ("HeliumConfig", _HEAD),
    "glm": ("GlmConfig", _HEAD),
    "glm4": ("Glm4Config", _HEAD),
    "exaone4": ("Exaone4Config", _HEAD),
    "nemotron": ("NemotronConfig", SIZES),
    "apertus": ("ApertusConfig", SIZES),
    "arcee": ("ArceeConfig", SIZES),
    "hunyuan": ("HunYuanDenseV1Config", _HEAD),
    "seed_oss": ("SeedOssConfig", _HEAD),
    "gemma": ("GemmaConfig", _HEAD),
    "mistral": ("MistralConfig", {**_HEAD, "sliding_window": 6}),
    "ministral": ("MinistralConfig", {**_HEAD, "sliding_window": 6}),
    "bitnet": ("BitNetConfig", SIZES),
    "attention_dropout": ("LlamaConfig", {**SIZES, "attention_dropout": 0.3}),
    "residual_dropout": ("GPT2Config", {**_GPT, "resid_pdrop": 0.2}),
    "yarn": ("LlamaConfig", {**SIZES, "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}}),
    "dynamic_ntk": ("LlamaConfig", {**SIZES, "max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    "bamba": ("BambaConfig", {**SIZES, **_MAMBA, "attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1Config", {**_HEAD, **_MAMBA, "mamba_d_ssm": 64}),
    "qwen3_next": ("Qwen3NextConfig", {
        **_HEAD, **_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16}),
    "lfm2": ("Lfm2Config", {**SIZES, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "deepseek_v2": ("DeepseekV2Config", {
        **SIZES, **_EXPERTS, **_MLA, "num_key_value_heads": 4, "n_routed_experts": 4, "first_k_dense_replace": 1,
        "head_dim": 4}),
    "ernie_moe": ("Ernie4_5_MoeConfig", {**SIZES, **_EXPERTS, "moe_num_experts": 4, "moe_k": 2}),
    "dots1": ("Dots1Config", {**_HEAD, **_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
                              "topk_group": 1, "first_k_dense_replace": 1}),
    "glm4_moe": ("Glm4MoeConfig", {**_HEAD, **_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}),
    "gemma3_vision": GEMMA3_VISION,
}  # fmt: skip


class Separate(TransformersEngine):
    """An engine with a model of its own, made from the directory of the policy; weights reach it by name alone."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.held, self.pushes = where, -1, 0

    @property
    def version(self) -> int:
        """That of the last push."""
        return self.held

    def start(self, policy: Any, ranks: Any = None) -> None:
        """Load the directory a second time; the policy lends its tokenizer and temperature."""
        other = load_policy(self.where)
        super().start(Policy(other.causal_lm.eval(), policy.tokenizer, policy.temperature), ranks)

    def score(self, token_ids: Any, who: Any = "policy") -> list[torch.Tensor]:
        """Over all rows of the output layer, as engines of other packages score."""
        with self.policy.over_all_ids():
            return super().score(token_ids, who)

    def push(self, update: Any) -> Receipt:
        """Take the tensors by name; what the model has no place for is missing in the receipt."""
        sent = {name: tensor.clone() for name, tensor in update.tensors()}
        self.policy.causal_lm.load_state_dict(sent, strict=False)
        held = dict(self.policy.causal_lm.named_parameters(remove_duplicate=False))
        self.held, self.pushes = update.version, self.pushes + 1
        size = sum(t.numel() * t.element_size() for t in sent.values())
        return Receipt(self.held, frozenset(held) & frozenset(sent), size)


class Broken(pl.Callback):
    """Ends a fit in its second round."""

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Raise when the first step was made."""
        if trainer.global_step == 1:
            raise RuntimeError("ended in the second round")


def fit(
    where: str, root: Path, lora: bool, callbacks: tuple[pl.Callback, ...] = (), ckpt: Path | None = None
) -> Separate:
    """A fit of three rounds."""
    pl.seed_everything(0, verbose=False)
    engine = Separate(where)
    module = SeRLModule(
        where,
        objective=Objective(beta=0.01),
        lora=LoraOptions(r=2) if lora else None,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
    )
    data = SelfPlayDataModule(
        seeds="tiny:seeds",
        source="mix:0.5",
        reward=RandomReward(seed=0),
        engine=engine,
        round=RoundOptions(prompts_per_round=2, samples_per_prompt=4),
        max_tokens=8,
        solve=SolveTemplate(answer_format=""),
        writing=Writing(exemplars=2, prompts_per_call=2, template=InstructionTemplate(header="New:"),
                        sampling=Sampling(max_tokens=12)),
        probe=Probe(every=0),
        rounds_per_epoch=3,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, callbacks=[Checkpoints(1), Export(), *callbacks],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt)
    return engine


def through(name: str, kind: tuple[Any, ...], lora: bool, work: Path) -> str:
    """What became of a family: ``ok``, or the first thing that went wrong."""
    where, runs = work / "model", [work / "whole", work / "resumed"]
    torch.manual_seed(0)
    config = getattr(transformers, kind[0])(**kind[1])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(where)
    transformers.AutoTokenizer.from_pretrained(tiny.path("base")).save_pretrained(where)
    engine = fit(str(where), runs[0], lora)
    if engine.pushes < 3:
        return f"{engine.pushes} pushes"
    try:
        fit(str(where), runs[1], lora, (Broken(),))
        return "was not ended"
    except RuntimeError as error:
        if "ended in the second round" not in str(error):
            raise
    fit(str(where), runs[1], lora, ckpt=runs[1] / "checkpoints" / "last.ckpt")
    for file in ("ledger.jsonl", "export/model.safetensors"):
        if (runs[0] / file).read_bytes() != (runs[1] / file).read_bytes():
            return f"resumed run differs in {file}"
    load_policy(str(runs[0] / "export"))
    return "ok"


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "transformers"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    work, wrong = args.out or Path(tempfile.mkdtemp(prefix="families-")), 0
    kinds = TRAINED | {f"{name}_experts": kind for name, kind in MIXTURES.items()} | MORE
    for name in args.only or kinds:
        for lora in (False, True):
            began, folder = time.monotonic(), work / f"{name}-{'lora' if lora else 'full'}"
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    said = through(name, kinds[name], lora, folder)
            except SeRLError as error:
                said = f"{type(error).__name__}: {error}"
            except Exception as error:
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            wrong += said != "ok"
            took = time.monotonic() - began
            print(f"{name:<22} {'adapter' if lora else 'all weights':<12} {took:4.0f} s  {said}", flush=True)
            if said == "ok":
                shutil.rmtree(folder)
    print(f"\n- {'MISSED' if wrong else 'met'}: every family gets through ({wrong} did not)")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
