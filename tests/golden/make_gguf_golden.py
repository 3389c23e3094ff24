#!/usr/bin/env python3
"""Makes gguf_blocks.gguf and gguf_blocks.safetensors: weights of every block format, and what they decode to.

    ./make_gguf_golden.py --out .

The PyPI package `gguf` writes the file and decodes the weights. Blocks hold random bits; only their f16 factors are
random numbers of everyday size. The decoded values are f32, computed with a rounding after every operation.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

SEED = 20240301
ROWS = 3
COLUMNS = 512

# The type, and the byte offsets of the f16 factors in a block.
TYPES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def random_blocks(name, rng):
    quant = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[quant]
    blocks = rng.integers(0, 256, (ROWS, COLUMNS // values, size), dtype=np.uint8)
    for at in TYPES[name]:
        factors = rng.normal(0, 0.02, blocks.shape[:2]).astype("<f2")
        blocks[..., at : at + 2] = factors[..., None].view(np.uint8)
    return quant, blocks.reshape(ROWS, -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(out / "gguf_blocks.gguf", "llama")
    writer.add_name("every block format")
    writer.add_block_count(7)
    writer.add_rope_freq_base(10000.5)
    writer.add_add_bos_token(True)
    writer.add_token_list(["a", "bé", ""])
    writer.add_token_types([1, -2, 3])
    decoded = {}
    for name in TYPES:
        quant, blocks = random_blocks(name, rng)
        writer.add_tensor(name, blocks, raw_dtype=quant)
        decoded[name] = gguf.quants.dequantize(blocks, quant).astype(np.float32)
    for name, dtype in (("F32", np.float32), ("F16", np.float16), ("F64", np.float64), ("I32", np.int32)):
        values = (rng.normal(0, 1000, (ROWS, 5))).astype(dtype)
        writer.add_tensor(name, values)
        decoded[name] = values.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(decoded, out / "gguf_blocks.safetensors")


if __name__ == "__main__":
    main()
