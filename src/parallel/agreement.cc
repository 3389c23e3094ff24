#include "regard/agreement.h"

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
  const std::string text(bytes.substr(sizeof(size), size));
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

// What each rank has: first how much, then the bytes.
std::vector<std::string> gather(Communicator& group, const std::string& own) {
  const uint64_t own_size = own.size();
  std::vector<uint64_t> sizes(static_cast<size_t>(group.size()));
  std::vector<std::span<std::byte>> places;
  for (uint64_t& size : sizes) places.push_back(std::as_writable_bytes(std::span(&size, 1)));
  group.all_gather(std::as_bytes(std::span(&own_size, 1)), places);
  std::vector<std::string> all;
  for (const uint64_t size : sizes) all.emplace_back(size, '\0');
  places.clear();
  for (std::string& bytes : all) places.push_back(std::as_writable_bytes(std::span(bytes)));
  group.all_gather(std::as_bytes(std::span(own)), places);
  return all;
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
  std::vector<std::vector<Field>> all;
  size_t most = 0;
  for (const std::string& bytes : gather(group, to_bytes(fields))) {
    all.push_back(from_bytes(bytes));
    most = std::max(most, all.back().size());
  }
  for (size_t index = 0; index < most; ++index)
    for (size_t rank = 1; rank < all.size(); ++rank) compare(all.front(), all[rank], index, rank);
}

}  // namespace regard
