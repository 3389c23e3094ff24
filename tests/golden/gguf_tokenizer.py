"""The tokenizer of a byte-level BPE model, rebuilt from a GGUF file with the `tokenizers` library.

A GGUF names its pre-tokenizer only by a word (`tokenizer.ggml.pre`). For "smollm" the rules are those of the model's
own tokenizer.json: every numeric character on its own (Digits), then the GPT-2 pattern on each stretch between them
(ByteLevel). transformers' own GGUF loader does not know that word and leaves the Digits step out, so it can't be used
here: "a  1" would become [a][ ][ 1] instead of [a][  ][1].

There is no unknown token in the BPE model itself: bytes that have no token of their own (21 of the 256 in SmolLM2's
vocabulary, for example 0x04 and 0xF1) are dropped from the output.
"""

import hashlib
from pathlib import Path

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3  # value of tokenizer.ggml.token_type for tokens such as <|im_start|>


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def pre_tokenizer_of(name: str) -> pre_tokenizers.PreTokenizer:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return gpt2
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    raise ValueError(f'tokenizer.ggml.pre is "{name}"; this script knows "gpt-2" and "smollm"')


def tokenizer_from_gguf(path: Path) -> Tokenizer:
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    if fields["tokenizer.ggml.model"].contents() != "gpt2" or fields["tokenizer.ggml.add_bos_token"].contents():
        raise ValueError("expected a byte-level BPE tokenizer that adds no BOS token")

    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer_of(fields["tokenizer.ggml.pre"].contents())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == CONTROL]
    )
    return tokenizer
