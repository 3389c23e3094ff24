#include "regard/agreement.h"

#include <algorithm>
#include <cstring>

#include "tensor/fail.h"

namespace regard {
namespace {

using Field = std::pair<std::string, std::string>;

void append(std::string& bytes, const std::string& text) {
  const uint64_t size = text.size();
  bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
  bytes += text;
}

std::string take(std::string_view& bytes) {
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof(size));
  std::string text(bytes.substr(sizeof(size), size));
  bytes.remove_prefix(sizeof(size) + size);
  return text;
}

std::string to_bytes(std::span<const Field> fields) {
  std::string bytes;
  for (const auto& [name, value] : fields) {
    append(bytes, name);
    append(bytes, value);
  }
  return bytes;
}

std::vector<Field> from_bytes(std::string_view bytes) {
  std::vector<Field> fields;
  while (!bytes.empty()) {
    std::string name = take(bytes);
    fields.emplace_back(std::move(name), take(bytes));
  }
  return fields;
}

std::vector<std::string> gather_texts(Communicator& group, const std::string& own) {
  const std::vector<uint64_t> sizes = group.gather(uint64_t{own.size()});
  std::vector<std::string> texts(sizes.size());
  std::vector<std::span<std::byte>> places(sizes.size());
  for (size_t rank = 0; rank < sizes.size(); ++rank) {
    texts[rank].resize(sizes[rank]);
    places[rank] = std::as_writable_bytes(std::span(texts[rank]));
  }
  group.all_gather(std::as_bytes(std::span(own)), places);
  return texts;
}

void compare(std::span<const Field> first, std::span<const Field> other, size_t index, size_t rank) {
  const auto at = [&](std::span<const Field> fields) { return index < fields.size() ? fields[index] : Field(); };
  const auto [name, value] = at(first);
  const auto [other_name, other_value] = at(other);
  require(name == other_name, "ranks disagree: field {} is \"{}\" on rank 0, but \"{}\" on rank {}, expected the same",
          index, printable(name), printable(other_name), rank);
  require(value == other_value, "ranks disagree: {} is \"{}\" on rank 0, but \"{}\" on rank {}, expected the same",
          printable(name), printable(value), printable(other_value), rank);
}

}  // namespace

void check_agreement(Communicator& group, std::span<const Field> fields) {
  std::vector<std::vector<Field>> all(static_cast<size_t>(group.size()));
  std::ranges::transform(gather_texts(group, to_bytes(fields)), all.begin(), from_bytes);
  const size_t most = std::ranges::max(all, {}, &std::vector<Field>::size).size();
  for (size_t index = 0; index < most; ++index)
    for (size_t rank = 1; rank < all.size(); ++rank) compare(all.front(), all[rank], index, rank);
}

}  // namespace regard
