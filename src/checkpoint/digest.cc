#include <algorithm>
#include <type_traits>

#include "regard/checkpoint.h"
#include "tensor/checksum.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// FNV-1a of 64 bits: tells files apart, and is no proof against those who want two to look alike.
class Digest {
 public:
  // Values of variable length bring their length along, so that no two sequences of values are the same bytes.
  void add(std::span<const std::byte> bytes) {
    add(static_cast<int64_t>(bytes.size()));
    mix(bytes);
  }
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void add(Number number) { mix(std::as_bytes(std::span(&number, 1))); }
  template <class Element>
  void add(const std::vector<Element>& list) {
    add(static_cast<int64_t>(list.size()));
    for (const Element& element : list) add(element);
  }

  [[nodiscard]] std::string text() const { return fmt::format("{:016x}", state_); }

 private:
  void mix(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) state_ = (state_ ^ static_cast<uint64_t>(byte)) * 0x100000001B3;
  }

  uint64_t state_ = 0xCBF29CE484222325;
};

// The beginning, the middle and the end of a tensor's bytes: three pages of the file at most.
void add_samples(Digest& digest, std::span<const std::byte> bytes) {
  const size_t size = std::min<size_t>(64, bytes.size());
  for (const size_t first : {size_t{0}, (bytes.size() - size) / 2, bytes.size() - size})
    digest.add(bytes.subspan(first, size));
}

void add_tensors(Digest& digest, const Checkpoint& checkpoint, DigestScope scope) {
  digest.add(checkpoint.file_bytes());
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    digest.add(tensor.name);
    digest.add(name_of(tensor.type));
    digest.add(tensor.shape.to_string());
    add_samples(digest, tensor.bytes);
    if (scope == DigestScope::whole) digest.add(static_cast<int64_t>(checksum(tensor.bytes)));
  }
}

}  // namespace

std::string digest_of(const Checkpoint& checkpoint, DigestScope scope) {
  Digest digest;
  if (checkpoint.shard())
    digest.add(static_cast<int64_t>(checkpoint.shard()->whole));
  else
    add_tensors(digest, checkpoint, scope);
  for (const auto& [key, value] : checkpoint.metadata()) {
    digest.add(key);
    std::visit([&](const auto& content) { digest.add(content); }, value);
  }
  for (const std::string* text :
       {&checkpoint.config_json(), &checkpoint.tokenizer_json(), &checkpoint.tokenizer_config_json(),
        &checkpoint.chat_template(), &checkpoint.generation_config_json()})
    digest.add(*text);
  return digest.text();
}

}  // namespace regard
