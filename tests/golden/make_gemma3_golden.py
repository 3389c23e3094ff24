#!/usr/bin/env python3
"""Makes gemma3_greedy.json and gemma3_nll.json: what transformers says Gemma 3 270M should do.

    pip install -r requirements.txt
    ./make_gemma3_golden.py --model "$(../../run --model gemma3)" --out .

As make_text_golden.py does for a Llama model; every number is computed a second time, by the float64 forward pass of
plain_families.py. What transformers' reader of GGUF files can't find in them (which layers have windows, and the base
of their rotation) comes from its own defaults for Gemma 3, and is compared here with what is published of this model.
"""

from pathlib import Path

from make_text_golden import Setup, load_model, run
from make_tokenizer_kinds_golden import gemma3 as tokenizer_of
from plain_families import PlainModel
from prompts import PROMPTS

WINDOW, PATTERN = 512, 6
LOCAL_BASE, GLOBAL_BASE = 10_000, 1_000_000
NAMES = ["prose_lighthouse", "encyclopedia", "news", "recipe", "python", "sql", "list_counting", "maths_latex", "table",
         "french", "german"]


def check_config(config) -> None:
    types = ["sliding_attention" if (i + 1) % PATTERN else "full_attention" for i in range(18)]
    bases = {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()}
    assert config.layer_types == types, config.layer_types
    assert bases == {"sliding_attention": LOCAL_BASE, "full_attention": GLOBAL_BASE}, bases
    assert all(rope["rope_type"] == "default" for rope in config.rope_parameters.values()), config.rope_parameters
    assert config.sliding_window == WINDOW, config.sliding_window
    assert (config.bos_token_id, config.eos_token_id) == (2, 1), (config.bos_token_id, config.eos_token_id)


def plain_of(model) -> PlainModel:
    """In float64; the head is the embedding."""
    assert model.config.tie_word_embeddings
    tensors = {name: tensor.double().numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return PlainModel(model.config.to_dict(), tensors)


def prompts_of(tokenizer) -> list[tuple[str, str]]:
    """Short ones, and one that is longer than the window."""
    texts = dict(PROMPTS)
    longer = "\n\n".join(text for name, text in PROMPTS if not name.startswith("chat"))
    assert len(tokenizer.encode(longer).ids) > WINDOW
    return [(name, texts[name]) for name in NAMES] + [("longer_than_window", longer)]


def gemma3(path: Path) -> Setup:
    model, tokenizer = load_model(path), tokenizer_of(path)
    check_config(model.config)
    assert tokenizer.encode("").ids == [2]
    return Setup(name="gemma3", model=model, plain=plain_of(model), tokenizer=tokenizer, bos="BOS token in front",
                 prompts=prompts_of(tokenizer), nll_texts=["MPL-2.0", "Artistic"])


if __name__ == "__main__":
    run(__doc__, gemma3)
