#pragma once

#include <string>

#include "text/normalizer.h"
#include "text/pre_tokenizer.h"

namespace regard {

// What a GGUF file's `tokenizer.ggml.pre` stands for: the steps before byte-level BPE, as the tokenizer.json of the
// models under that name has them, and llama.cpp's defaults for what a file leaves out.
struct GgufPreTokenizer {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  bool whole_words = false;
  bool add_bos = false;
};

// Throws Error for a name that is not known.
[[nodiscard]] GgufPreTokenizer gguf_pre_tokenizer(const std::string& name, bool add_prefix_space);

}  // namespace regard
