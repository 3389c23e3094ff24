#pragma once

#include <string>

#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard::test {

// A folder with a tiny model as model.gguf.
struct ModelFolder : TempFolder {
  explicit ModelFolder(const TinyLlama& model = {}) : gguf(write("model.gguf", model.gguf().build())) {}

  const std::string gguf;
};

}  // namespace regard::test
