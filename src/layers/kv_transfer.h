#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "parallel/context_plan.h"
#include "regard/communicator.h"

namespace regard {

// Keys and values on their way between the ranks of a group, as caches store them: one exchange.
class KvTransfer {
 public:
  // `moves`: those in which rank `rank` takes part. members[i]: the i-th rank of the group. `bytes`: of a head of a
  // token. get(move, index of the position in the move, position, head of the giver, to) writes one.
  template <class Get>
  KvTransfer(std::vector<KvMove> moves, int64_t rank, std::vector<int64_t> members, int64_t bytes, Get get)
      : moves_(std::move(moves)),
        rank_(rank),
        members_(std::move(members)),
        bytes_(bytes),
        sent_(members_.size()),
        received_(members_.size()) {
    make_room();
    std::vector<size_t> at(members_.size(), 0);
    for (const KvMove& move : moves_)
      if (move.giver == rank_) visit(move, place_of(move.taker), sent_, at, move.giver_head, get);
  }

  // All ranks of the group start together, and finish together.
  void start(Communicator& group);
  // put(move, index, position, head of the taker, from) takes one that has come.
  template <class Put>
  void finish(Put put) {
    transfer_->wait();
    std::vector<size_t> at(members_.size(), 0);
    for (const KvMove& move : moves_)
      if (move.taker == rank_) visit(move, place_of(move.giver), received_, at, move.taker_head, put);
  }

 private:
  void make_room();
  [[nodiscard]] size_t place_of(int64_t rank) const;

  template <class Visit>
  void visit(const KvMove& move, size_t place, std::vector<std::vector<std::byte>>& messages, std::vector<size_t>& at,
             int64_t first_head, Visit visit) {
    int64_t index = 0;
    move.for_each_position([&](int64_t position) {
      for (int64_t head = first_head; head < first_head + move.heads; ++head) {
        visit(move, index, position, head, messages[place].data() + at[place]);
        at[place] += static_cast<size_t>(bytes_);
      }
      ++index;
    });
  }

  std::vector<KvMove> moves_;
  int64_t rank_;
  std::vector<int64_t> members_;
  int64_t bytes_;
  std::vector<std::vector<std::byte>> sent_, received_;
  std::unique_ptr<Communicator::Transfer> transfer_;  // last: what is under way uses the memory above
};

}  // namespace regard
