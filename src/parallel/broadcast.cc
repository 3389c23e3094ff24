#include "parallel/broadcast.h"

#include <algorithm>
#include <vector>

namespace regard {

void broadcast(Communicator& group, std::span<std::byte> bytes) {
  const auto ranks = static_cast<size_t>(group.size());
  std::vector<std::span<const std::byte>> send(ranks);
  std::vector<std::span<std::byte>> receive(ranks);
  if (group.rank() == 0)
    std::fill(send.begin() + 1, send.end(), bytes);
  else
    receive[0] = bytes;
  group.exchange(send, receive);
}

std::string from_first(Communicator& group, std::string text) {
  if (group.size() == 1) return text;
  uint64_t size = text.size();
  broadcast(group, std::as_writable_bytes(std::span(&size, 1)));
  text.resize(size);
  if (size > 0) broadcast(group, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace regard
