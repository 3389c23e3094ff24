#include "engine/stored_heads.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tensor/fail.h"

namespace regard {
namespace {

Shape with_heads(const Shape& shape, int64_t tokens, size_t heads) {
  std::vector<int64_t> sizes(shape.begin(), shape.end());
  sizes[0] = tokens;
  sizes[1] = static_cast<int64_t>(heads);
  return Shape(sizes);
}

std::vector<int64_t> counting(int64_t count) {
  std::vector<int64_t> all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// to[:, to_heads] = from[:, from_heads] of equally many tokens; where a head is -1 nothing is done.
void copy_heads(ConstTensorView from, std::span<const int64_t> from_heads, TensorView to,
                std::span<const int64_t> to_heads) {
  const int64_t all = from.size(0) * from.size(1);
  if (all == 0) return;
  const auto bytes = static_cast<size_t>(from.shape().elements() / all) * size_of(from.dtype());
  for (int64_t token = 0; token < from.size(0); ++token)
    for (size_t i = 0; i < from_heads.size(); ++i)
      if (from_heads[i] != -1 && to_heads[i] != -1)
        std::memcpy(to.data() + static_cast<size_t>(token * to.size(1) + to_heads[i]) * bytes,
                    from.data() + static_cast<size_t>(token * from.size(1) + from_heads[i]) * bytes, bytes);
}

std::span<std::byte> bytes_of(TensorView tensor) {
  return {tensor.data(), static_cast<size_t>(tensor.shape().elements()) * size_of(tensor.dtype())};
}

}  // namespace

StoredHeads::StoredHeads(const KvCache& cache)
    : count_(cache.num_key_value_heads()), own_(counting(count_)), given_{own_} {}

StoredHeads::StoredHeads(const Attention& attention)
    : count_(attention.config().num_key_value_heads), world_(&attention.ranks().world()) {
  require(!attention.shares_sequences(),
          "saved sequence: ranks divide the sequences of decode or their tokens, expected ranks that have all of them");
  const Ranks& ranks = attention.ranks();
  own_ = attention.kv_heads_of_rank(ranks.rank());
  std::vector<bool> is_given(static_cast<size_t>(count_));
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    Heads& given = given_.emplace_back();
    for (const int64_t head : attention.kv_heads_of_rank(rank)) {
      if (head == -1 || is_given[static_cast<size_t>(head)]) continue;
      is_given[static_cast<size_t>(head)] = true;
      given.push_back(head);
    }
  }
}

Tensor StoredHeads::all_of(const Tensor& own) const {
  if (world_ == nullptr || own.empty()) return own;
  const int64_t tokens = own.shape()[0];
  const auto part_of = [&](const Heads& heads) {
    return Tensor(own.dtype(), with_heads(own.shape(), tokens, heads.size()));
  };
  const auto rank = static_cast<size_t>(world_->rank());
  Heads places;
  for (const int64_t head : given_[rank]) places.push_back(std::ranges::find(own_, head) - own_.begin());
  const Tensor mine = part_of(given_[rank]);
  copy_heads(own, places, mine.view(), counting(std::ssize(places)));

  const auto ranks = static_cast<size_t>(world_->size());
  std::vector<std::span<const std::byte>> send(ranks);
  std::vector<std::span<std::byte>> receive(ranks);
  send[0] = bytes_of(mine.view());
  std::vector<Tensor> parts;
  for (size_t i = 0; rank == 0 && i < ranks; ++i) receive[i] = bytes_of(parts.emplace_back(part_of(given_[i])).view());
  world_->exchange(send, receive);
  if (rank != 0) return {};
  Tensor all = part_of(counting(count_));
  for (size_t i = 0; i < ranks; ++i) copy_heads(parts[i], counting(std::ssize(given_[i])), all.view(), given_[i]);
  return all;
}

Tensor StoredHeads::own_of(ConstTensorView all, int64_t first) const {
  if (all.empty()) return {};
  const ConstTensorView rows = all.slice(0, first, all.size(0) - first);
  Tensor own(rows.dtype(), with_heads(rows.shape(), rows.size(0), own_.size()));
  std::ranges::fill(bytes_of(own.view()), std::byte());
  copy_heads(rows, own_, own.view(), counting(std::ssize(own_)));
  return own;
}

}  // namespace regard
