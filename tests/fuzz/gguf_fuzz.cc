// A GGUF file of any bytes is read or refused; what is read is run as a model where it is one.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checkpoint/parsed_file.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"

namespace regard {
namespace {

// The bytes as a file that has a path.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const std::byte> bytes) : file_(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (file_ < 0 || write(file_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) std::abort();
  }
  ~MemoryFile() { close(file_); }
  [[nodiscard]] std::string path() const { return fmt::format("/proc/self/fd/{}", file_); }

 private:
  int file_;
};

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
