"""Makes a model that knows the form of a task and nothing else, to try a configuration in seconds without a download.

    python examples/word_chain.py SEEDS.jsonl OUT --answers ANSWER ANSWER ...

The model is a chain of words: it draws the next word by the last one alone, as often as it follows there in the seeds.
So it writes problems out of pieces of the seeds and answers each with one of ``--answers``, whatever is asked:
there is no accuracy to gain. It is a Llama of one layer whose attention and MLP add nothing at first. The embedding of
word i is unit vector i, and column i of the output layer holds the log-probabilities of the words after i.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, UNKNOWN = "<end>", "<unknown>"
#: What no text of the chain holds: this log-probability is practically never drawn.
NEVER = -30.0
#: Most problems of a few-shot prompt, plus the one that is written.
LONGEST_LIST = 12


def texts(seeds: Path, answers: list[str]) -> list[str]:
    """The ends of few-shot prompts with the problem that follows, and of solve prompts with the answer."""
    ends = ["\nSolution: \\boxed{" + answer + "}" + END for answer in answers]
    made = [end for i, end in enumerate(ends) for _ in ends[i:]]
    for row in map(json.loads, seeds.read_text(encoding="utf-8").splitlines()):
        options = "".join(
            f"\n{letter}. {text}" for letter, text in zip("ABCDEFGHIJ", row.get("choices", []), strict=False)
        )
        made += [f"\n{number}. {row['problem']}{options}{END}" for number in range(1, LONGEST_LIST)]
    return made


def build(seeds: Path, out: Path, answers: list[str]) -> None:
    """Write the model and its tokenizer, whose tokens are words, and whole lines of options."""
    words = Regex(rf"{END}|\n[A-J]\. [^\n<]+|\\boxed\{{|\}}|\s*[^\s{{}}<]+|\s+")
    split = pre_tokenizers.Split(words, behavior="isolated")
    chains = [[word for word, _ in split.pre_tokenize_str(text)] for text in texts(seeds, answers)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([END, UNKNOWN, *(w for c in chains for w in c)]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.Fuse()
    size = len(vocabulary) + len(vocabulary) % 2
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=size, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), size))
        model.lm_head.weight.fill_(NEVER / math.sqrt(size))  # the last norm makes unit vectors sqrt(size) long
        pairs = Counter(pair for chain in chains for pair in pairwise(chain))
        begun = Counter(first for chain in chains for first in chain[:-1])
        for (first, second), count in pairs.items():
            log_prob = math.log(count / begun[first])
            model.lm_head.weight[vocabulary[second], vocabulary[first]] = log_prob / math.sqrt(size)
    model.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN
    ).save_pretrained(out)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=Path, help="problems, one JSON object a line")
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--answers", nargs="+", required=True, help="what it answers, the first most often")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    build(args.seeds, args.out, args.answers)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
