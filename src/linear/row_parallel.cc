#include "linear/row_parallel.h"

#include <algorithm>

#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "tensor/fail.h"

namespace regard {
namespace {

void add_all(std::span<const float> from, std::span<float> to, const Threads& threads) {
  constexpr int64_t kRun = 4096;
  const auto count = static_cast<int64_t>(to.size());
  threads.for_work(count).for_each((count + kRun - 1) / kRun, [&](int64_t run, int) {
    const float* term = from.data();
    float* sum = to.data();
    for (int64_t i = run * kRun; i < std::min((run + 1) * kRun, count); ++i) sum[i] += term[i];
  });
}

}  // namespace

RowParallel::RowParallel(const std::shared_ptr<Communicator>& group, const SumTree& tree,
                         std::span<const ElementRange> leaves, int64_t leaf_width, DType wire)
    : tree_(tree), first_leaf_(leaves[static_cast<size_t>(group->rank())].first), leaf_width_(leaf_width) {
  std::vector<std::vector<SumTree::Node>> nodes;
  for (const ElementRange& of_rank : leaves) nodes.push_back(tree.cover(of_rank.first, of_rank.first + of_rank.count));
  sum_.emplace_back(group, tree, std::move(nodes), wire);
}

void RowParallel::multiply(int64_t columns, const Shape& shape, const MultiplyLeaf& leaf, std::span<float> partials,
                           Workspace& workspace) const {
  int64_t index = 0;
  for (const SumTree::Node& node : sum().own_nodes()) {
    float* of_node = partials.data() + index++ * shape.elements();
    multiply_node(columns, leaf, node, TensorView(of_node, shape), 0, workspace);
  }
}

void RowParallel::multiply(const PackedMatrix& weight, ConstTensorView x, std::span<float> partials,
                           Workspace& workspace) const {
  const auto leaf = [&](int64_t first, int64_t count, TensorView out) {
    apply_columns(weight, x, first, count, out, workspace);
  };
  multiply(weight.columns(), {x.size(0), weight.rows()}, leaf, partials, workspace);
}

void RowParallel::multiply_node(int64_t columns, const MultiplyLeaf& leaf, SumTree::Node node, TensorView out,
                                int level, Workspace& workspace) const {
  if (node.is_leaf()) {
    const int64_t first = (node.first - first_leaf_) * leaf_width_;
    return leaf(first, std::min(leaf_width_, columns - first), out);
  }
  multiply_node(columns, leaf, tree_.left(node), out, level, workspace);
  std::vector<Buffer>& terms = workspace.memory().terms;
  if (terms.size() <= static_cast<size_t>(level)) terms.resize(static_cast<size_t>(level) + 1);
  const auto bytes = static_cast<size_t>(out.shape().elements()) * sizeof(float);
  if (terms[static_cast<size_t>(level)].size() < bytes) terms[static_cast<size_t>(level)] = Buffer(bytes);
  const TensorView term(terms[static_cast<size_t>(level)].data(), DType::f32, out.shape());
  multiply_node(columns, leaf, tree_.right(node), term, level + 1, workspace);
  add_all(term.elements<float>(), out.elements<float>(), workspace.threads());
}

SummedRows::SummedRows(const RowParallel& parallel, const Linear& linear, Workspace& workspace)
    : parallel_(parallel), weight_(&linear.weight()), bias_(linear.bias()), workspace_(workspace) {}

SummedRows::SummedRows(const RowParallel& parallel, Workspace& workspace)
    : parallel_(parallel), weight_(nullptr), workspace_(workspace) {}

std::vector<ElementRange> SummedRows::elements_of(std::span<const ElementRange> tokens, int64_t width) {
  std::vector<ElementRange> parts;
  parts.reserve(tokens.size());
  for (const ElementRange& of_rank : tokens)
    parts.push_back({.first = of_rank.first * width, .count = of_rank.count * width});
  return parts;
}

void SummedRows::add(ConstTensorView x, TensorView out) {
  Piece& now = next(even_parts(out.shape().elements(), parallel_.sum().group().size()), out, true);
  multiply(now, x);
  travel(now);
}

void SummedRows::scatter(ConstTensorView x, std::span<const ElementRange> tokens, TensorView out) {
  Piece& now = next(elements_of(tokens, out.size(1)), out, false);
  multiply(now, x);
  travel(now);
}

SummedRows::Piece& SummedRows::next(std::vector<ElementRange> parts, TensorView out, bool gathers) {
  Piece& now = piece(started_++);
  now.gathers = gathers;
  now.out = out;
  now.parts = std::move(parts);
  return now;
}

void SummedRows::multiply(Piece& piece, ConstTensorView x) {
  const auto nodes = static_cast<int64_t>(parallel_.sum().own_nodes().size());
  const auto partials = piece.pending.partials(nodes, x.size(0) * weight_->rows());
  parallel_.multiply(*weight_, x, partials, workspace_);
}

void SummedRows::travel(Piece& now) {
  parallel_.sum().start(now.pending, now.parts);
  if (started_ >= 2) complete_sum(piece(started_ - 2));
  if (started_ >= 3) complete(piece(started_ - 3));
}

void SummedRows::finish() {
  if (started_ >= 1) complete_sum(piece(started_ - 1));
  if (started_ >= 2) complete(piece(started_ - 2));
  if (started_ >= 1) complete(piece(started_ - 1));
  started_ = 0;
}

// The bias is added once, by the rank that has the sum [PROJ-17].
void SummedRows::complete_sum(Piece& piece) {
  const RankSum& sum = parallel_.sum();
  const ElementRange part = piece.parts[static_cast<size_t>(sum.group().rank())];
  own_.resize(static_cast<size_t>(part.count));
  sum.finish(piece.pending, own_, workspace_.threads());
  if (!bias_.empty()) {
    const auto width = static_cast<int64_t>(bias_.size());
    for (int64_t i = 0; i < part.count; ++i)
      own_[static_cast<size_t>(i)] += bias_[static_cast<size_t>((part.first + i) % width)];
  }
  const DType dtype = piece.out.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  std::byte* to = piece.out.data() + (piece.gathers ? part.first * size : 0);
  kernels::store_floats(own_.data(), part.count, dtype, to);
  if (!piece.gathers) return;
  std::vector<std::span<const std::byte>> send(piece.parts.size(), {to, static_cast<size_t>(part.count * size)});
  std::vector<std::span<std::byte>> receive;
  for (const ElementRange& of_rank : piece.parts)
    receive.emplace_back(piece.out.data() + of_rank.first * size, static_cast<size_t>(of_rank.count * size));
  send[static_cast<size_t>(sum.group().rank())] = {};
  receive[static_cast<size_t>(sum.group().rank())] = {};
  piece.gather = sum.group().start_exchange(send, receive);
}

void SummedRows::complete(Piece& piece) {
  if (piece.gather) piece.gather->wait();
  piece.gather.reset();
}

}  // namespace regard
