#include "layers/kv_transfer.h"

#include <algorithm>
#include <span>

namespace regard {

void KvTransfer::make_room() {
  for (const KvMove& move : moves_) {
    const auto bytes = static_cast<size_t>(move.tokens() * move.heads * bytes_);
    const auto grow = [&](std::vector<std::byte>& message) { message.resize(message.size() + bytes); };
    if (move.giver == rank_) grow(sent_[place_of(move.taker)]);
    if (move.taker == rank_) grow(received_[place_of(move.giver)]);
  }
}

size_t KvTransfer::place_of(int64_t rank) const {
  return static_cast<size_t>(std::ranges::find(members_, rank) - members_.begin());
}

void KvTransfer::start(Communicator& group) {
  const std::vector<std::span<const std::byte>> send(sent_.begin(), sent_.end());
  const std::vector<std::span<std::byte>> receive(received_.begin(), received_.end());
  transfer_ = group.start_exchange(send, receive);
}

}  // namespace regard
