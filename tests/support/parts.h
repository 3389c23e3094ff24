#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "regard/communicator.h"

namespace regard::test {

// What a rank sends to, or gets from, each rank of its group.
using Parts = std::vector<std::vector<std::byte>>;

// Numbers that tell sender, receiver and place apart.
inline std::vector<std::byte> bytes_between(int sender, int receiver, size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i)
    bytes[i] = static_cast<std::byte>(static_cast<size_t>(sender) * 101 + static_cast<size_t>(receiver) * 37 + i * 7);
  return bytes;
}

inline std::vector<std::span<const std::byte>> views(const Parts& parts) { return {parts.begin(), parts.end()}; }
inline std::vector<std::span<std::byte>> places(Parts& parts) { return {parts.begin(), parts.end()}; }

// An exchange under way, with its buffers: sizes(sender, receiver) bytes for every pair.
class TestExchange {
 public:
  template <class Sizes>
  TestExchange(Communicator& group, Sizes&& sizes) : rank_(group.rank()) {
    for (int peer = 0; peer < group.size(); ++peer) {
      send_.push_back(bytes_between(rank_, peer, sizes(rank_, peer)));
      receive_.emplace_back(sizes(peer, rank_));
    }
    transfer_ = group.start_exchange(views(send_), places(receive_));
  }

  void wait() { transfer_->wait(); }
  // Whether every rank's part has come; false before `wait`.
  [[nodiscard]] bool came() const {
    for (size_t peer = 0; peer < receive_.size(); ++peer)
      if (receive_[peer] != bytes_between(static_cast<int>(peer), rank_, receive_[peer].size())) return false;
    return true;
  }

 private:
  int rank_;
  Parts send_, receive_;
  std::unique_ptr<Communicator::Transfer> transfer_;
};

// Three transfers under way at a time; even ranks wait for the first one first, odd ranks for the last.
template <class Sizes>
void expect_overlapping_transfers(Communicator& group, Sizes large, Sizes small) {
  TestExchange first(group, large);
  TestExchange second(group, small);
  TestExchange third(group, large);
  std::vector<TestExchange*> in_order = {&first, &second, &third};
  if (group.rank() % 2 != 0) std::swap(in_order.front(), in_order.back());
  for (TestExchange* exchange : in_order) exchange->wait();
  for (const TestExchange* exchange : in_order) EXPECT_TRUE(exchange->came());
}

}  // namespace regard::test
