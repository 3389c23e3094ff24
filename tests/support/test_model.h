#pragma once

#include <memory>
#include <vector>

#include "regard/checkpoint.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard::test {

// A tiny model with its tokenizer, ready to serve.
class TestModel {
 public:
  explicit TestModel(const TinyLlama& llama = {.context = 256}) : TestModel(llama.gguf()) {}
  explicit TestModel(const GgufBuilder& gguf)
      : folder_(std::make_unique<TempFolder>()),
        checkpoint_(Checkpoint::open(folder_->write("model.gguf", gguf.build()))),
        tokenizer_(Tokenizer::from(checkpoint_)),
        decoder_(Model::load(checkpoint_, Threads(1))) {}

  [[nodiscard]] const Checkpoint& checkpoint() const { return checkpoint_; }
  [[nodiscard]] const Model& decoder() const { return decoder_; }
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }
  [[nodiscard]] std::vector<int32_t> end_tokens() const {
    const auto ends = tokenizer_.end_tokens();
    return {ends.begin(), ends.end()};
  }
  // What a request gives by itself.
  [[nodiscard]] GeneratedText text_of(const GenerationRequest& request, DType cache_dtype = DType::f32) const {
    Workspace workspace(1);
    return generate(decoder_, request, {.tokenizer = &tokenizer_, .cache_dtype = cache_dtype}, workspace);
  }

 private:
  std::unique_ptr<TempFolder> folder_;
  Checkpoint checkpoint_;
  Tokenizer tokenizer_;
  Model decoder_;
};

}  // namespace regard::test
