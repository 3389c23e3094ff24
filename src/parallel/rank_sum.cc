#include "parallel/rank_sum.h"

#include <algorithm>
#include <cstring>

#include "tensor/fail.h"

namespace regard {
namespace {

// Elements that are added up at a time: intermediate results stay in the L1 cache.
constexpr int64_t kRun = 1024;

std::byte* grown(Buffer& buffer, int64_t bytes) {
  if (buffer.size() < static_cast<size_t>(bytes)) buffer = Buffer(static_cast<size_t>(bytes));
  return buffer.data();
}

void narrow(const float* from, int64_t count, std::byte* to) {
  auto* out = reinterpret_cast<BFloat16*>(to);
  for (int64_t i = 0; i < count; ++i) out[i] = BFloat16(from[i]);
}

void widen(const std::byte* from, int64_t count, float* to) {
  const auto* in = reinterpret_cast<const BFloat16*>(from);
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(in[i]);
}

}  // namespace

RankSum::RankSum(std::shared_ptr<Communicator> group, const SumTree& tree,
                 std::vector<std::vector<SumTree::Node>> nodes, DType wire)
    : group_(std::move(group)), nodes_(std::move(nodes)), wire_(wire) {
  for (const auto& of_rank : nodes_) given_.insert(given_.end(), of_rank.begin(), of_rank.end());
  compile(tree, tree.root());
  int64_t depth = 0;
  for (const int64_t step : program_) depth_ = std::max(depth_, depth += step == kAdd ? -1 : 1);
}

void RankSum::compile(const SumTree& tree, SumTree::Node node) {
  const auto found = std::find(given_.begin(), given_.end(), node);
  if (found != given_.end()) {
    program_.push_back(found - given_.begin());
    return;
  }
  require(!node.is_leaf(), "sum over ranks: nobody has term {}", node.first);
  compile(tree, tree.left(node));
  compile(tree, tree.right(node));
  program_.push_back(kAdd);
}

std::span<float> RankSum::Pending::partials(int64_t nodes, int64_t elements) {
  elements_ = elements;
  const int64_t count = nodes * elements;
  return {reinterpret_cast<float*>(grown(partials_, count * static_cast<int64_t>(sizeof(float)))),
          static_cast<size_t>(count)};
}

void RankSum::start(Pending& pending, std::span<const ElementRange> parts) const {
  const auto size = static_cast<int64_t>(size_of(wire_));
  const auto own_nodes = static_cast<int64_t>(this->own_nodes().size());
  const auto* partials = reinterpret_cast<const float*>(pending.partials_.data());
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
  // What goes to one rank has to lie together.
  const bool direct = own_nodes == 1 && wire_ == DType::f32;
  std::byte* packed = direct ? nullptr : grown(pending.sent_, own_nodes * pending.elements_ * size);
  for (const ElementRange& part : parts) {
    if (direct) {
      send.emplace_back(reinterpret_cast<const std::byte*>(partials + part.first),
                        static_cast<size_t>(bytes_of(1, part.count, wire_)));
      continue;
    }
    send.emplace_back(packed, static_cast<size_t>(bytes_of(own_nodes, part.count, wire_)));
    for (int64_t node = 0; part.count > 0 && node < own_nodes; ++node, packed += part.count * size) {
      const float* from = partials + node * pending.elements_ + part.first;
      if (wire_ == DType::f32)
        std::memcpy(packed, from, static_cast<size_t>(part.count * size));
      else
        narrow(from, part.count, packed);
    }
  }
  pending.own_count_ = parts[static_cast<size_t>(group_->rank())].count;
  std::byte* received = grown(pending.received_, static_cast<int64_t>(given_.size()) * pending.own_count_ * size);
  for (const auto& of_rank : nodes_) {
    const int64_t bytes = bytes_of(std::ssize(of_rank), pending.own_count_, wire_);
    receive.emplace_back(received, static_cast<size_t>(bytes));
    received += bytes;
  }
  pending.transfer_ = group_->start_exchange(send, receive);
}

void RankSum::finish(Pending& pending, std::span<float> out, const Threads& threads) const {
  pending.transfer_->wait();
  pending.transfer_.reset();
  const int64_t count = pending.own_count_;
  require(static_cast<int64_t>(out.size()) == count, "sum over ranks: {} numbers go to {}", count, out.size());
  const auto terms = static_cast<int64_t>(given_.size());
  threads.for_work(count * terms).for_each((count + kRun - 1) / kRun, [&](int64_t index, int) {
    const ElementRange run{.first = index * kRun, .count = std::min(kRun, count - index * kRun)};
    evaluate(pending.received_.data(), count, run, out.data() + run.first);
  });
}

void RankSum::evaluate(const std::byte* received, int64_t own_count, ElementRange run, float* out) const {
  constexpr int64_t kMostDepth = 16;
  require(depth_ <= kMostDepth, "sum over ranks: the tree is {} levels deep, expected {} at most", depth_, kMostDepth);
  float stack[kMostDepth][kRun];
  const auto size = static_cast<int64_t>(size_of(wire_));
  int64_t height = 0;
  for (const int64_t step : program_) {
    if (step == kAdd) {
      --height;
      float* sum = stack[height - 1];
      const float* term = stack[height];
      for (int64_t i = 0; i < run.count; ++i) sum[i] += term[i];
      continue;
    }
    const std::byte* from = received + (step * own_count + run.first) * size;
    if (wire_ == DType::f32)
      std::memcpy(stack[height++], from, static_cast<size_t>(run.count * size));
    else
      widen(from, run.count, stack[height++]);
  }
  std::memcpy(out, stack[0], static_cast<size_t>(run.count) * sizeof(float));
}

}  // namespace regard
