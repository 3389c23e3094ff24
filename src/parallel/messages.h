#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "regard/communicator.h"

namespace regard {

// A message a rank, made or read piece by piece.
class Messages {
 public:
  explicit Messages(int64_t ranks)
      : sent_(static_cast<size_t>(ranks)), received_(sent_.size()), places_(sent_.size(), 0) {}

  void send(int64_t rank, const std::byte* data, int64_t bytes) {
    auto& message = sent_[static_cast<size_t>(rank)];
    message.insert(message.end(), data, data + bytes);
  }
  void expect(int64_t rank, int64_t bytes) {
    auto& message = received_[static_cast<size_t>(rank)];
    message.resize(message.size() + static_cast<size_t>(bytes));
  }
  void exchange(Communicator& ranks) {
    const std::vector<std::span<const std::byte>> send(sent_.begin(), sent_.end());
    const std::vector<std::span<std::byte>> receive(received_.begin(), received_.end());
    ranks.exchange(send, receive);
  }
  void take(int64_t rank, std::byte* to, int64_t bytes) {
    size_t& place = places_[static_cast<size_t>(rank)];
    std::memcpy(to, received_[static_cast<size_t>(rank)].data() + place, static_cast<size_t>(bytes));
    place += static_cast<size_t>(bytes);
  }

 private:
  std::vector<std::vector<std::byte>> sent_, received_;
  std::vector<size_t> places_;
};

}  // namespace regard
