// A GGUF file of any bytes is read or refused; what is read is run as a model where it is one.
#include "checkpoint/parsed_file.h"
#include "fuzz/memory_file.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"

namespace regard {
namespace {

void run_model(std::span<const std::byte> bytes) {
  const MemoryFile file(bytes);
  const auto checkpoint = Checkpoint::open(file.path());
  const auto tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  const auto prompt = tokenizer.encode("the inn, 12 \xC3\xA9");
  const auto tokens =
      generate(decoder, {.prompt = prompt, .max_tokens = 2}, {.end_tokens = tokenizer.end_tokens()}, workspace).tokens;
  (void)tokenizer.decode(tokens);
}

}  // namespace
}  // namespace regard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    for (const auto& tensor : regard::parse_gguf(bytes, "fuzz").tensors) (void)tensor.matrix();
    regard::run_model(bytes);
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
