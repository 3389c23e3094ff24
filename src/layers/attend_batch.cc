#include <cstring>
#include <limits>
#include <vector>

#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "layers/span_rows.h"
#include "regard/attend.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

// Tokens whose keys and values are packed at a time.
constexpr int64_t kTokensAtOnce = 512;

void check_tensor(const char* name, ConstTensorView view, const Shape& shape) {
  require(view.shape() == shape, "attend: {} has shape {}, expected {}", name, view.shape(), shape);
}

void check_activation(const char* name, ConstTensorView view) {
  require(view.shape().rank() == 4, "attend: {} has shape {}, expected [batch, heads, tokens, width]", name,
          view.shape());
  require(is_activation(view.dtype()), "attend: {} has dtype {}, expected f32, bf16 or f16", name,
          name_of(view.dtype()));
}

void check(const AttendBatchInput& input) {
  const ConstTensorView& q = input.queries;
  const ConstTensorView& k = input.keys;
  check_activation("queries", q);
  check_activation("keys", k);
  check_activation("values", input.values);
  require(k.size(1) >= 1 && k.size(3) >= 1 && input.values.size(3) >= 1,
          "attend: keys has shape {} and values {}, expected heads and widths of 1 or more", k.shape(),
          input.values.shape());
  check_tensor("queries", q, {k.size(0), q.size(1), q.size(2), k.size(3)});
  check_tensor("values", input.values, {k.size(0), k.size(1), k.size(2), input.values.size(3)});
  check_tensor("output", input.output, {q.size(0), q.size(1), q.size(2), input.values.size(3)});
  require(input.output.dtype() == q.dtype(), "attend: output has dtype {}, expected {}", name_of(input.output.dtype()),
          name_of(q.dtype()));
  if (input.lse.empty()) return;
  check_tensor("lse", input.lse, {q.size(0), q.size(1), q.size(2)});
  require(input.lse.dtype() == DType::f32, "attend: lse has dtype {}, expected f32", name_of(input.lse.dtype()));
}

int64_t first_position(const AttendBatchInput& input) {
  const int64_t queries = input.queries.size(2);
  const int64_t keys = input.keys.size(2);
  const int64_t first = input.first_position.value_or(keys - queries);
  const int64_t end = input.mask.is_causal ? keys : std::numeric_limits<int64_t>::max();
  require(first >= 0 && first <= end - queries, "attend: first_position is {}, expected 0 to {}, with {} queries",
          first, end - queries, queries);
  return first;
}

// The elements of `row`, wherever they are, as f32.
void load_row(ConstTensorView row, float* out) {
  const int64_t width = row.size(0);
  if (width == 1 || row.stride(0) == 1) return kernels::load_floats(row.data(), row.dtype(), width, out);
  const int64_t step = row.stride(0) * static_cast<int64_t>(size_of(row.dtype()));
  for (int64_t i = 0; i < width; ++i) kernels::load_floats(row.data() + i * step, row.dtype(), 1, out + i);
}

// Elements of one row to the places of another one, of the same type and width.
void copy_row(ConstTensorView from, TensorView to) {
  const auto size = static_cast<int64_t>(size_of(from.dtype()));
  const int64_t width = from.size(0);
  if (width == 1 || (from.stride(0) == 1 && to.stride(0) == 1)) {
    std::memcpy(to.data(), from.data(), static_cast<size_t>(width * size));
    return;
  }
  for (int64_t i = 0; i < width; ++i)
    std::memcpy(to.data() + i * to.stride(0) * size, from.data() + i * from.stride(0) * size,
                static_cast<size_t>(size));
}

// Keys or values [heads, keys, width] of one row of the batch from `first` on, as [count, heads, width].
TensorView gather(ConstTensorView tokens, int64_t first, int64_t count, Memory::Piece piece, Workspace& workspace) {
  const int64_t heads = tokens.size(0);
  const int64_t width = tokens.size(2);
  const TensorView rows = workspace.memory().matrix(piece, count, heads * width);
  workspace.threads().for_work(count * heads * width).for_each(count, [&](int64_t i, int) {
    for (int64_t head = 0; head < heads; ++head)
      load_row(tokens[head][first + i], rows.as<float>() + (i * heads + head) * width);
  });
  return rows.reshape({count, heads, width});
}

// One slot for each row of the batch.
KvCache packed(const AttendBatchInput& input, Workspace& workspace) {
  const ConstTensorView& k = input.keys;
  KvCache cache = KvCache::contiguous({.slots = std::max<int64_t>(k.size(0), 1),
                                       .capacity = std::max<int64_t>(k.size(2), 1),
                                       .keys = KvFormat{.dtype = k.dtype()},
                                       .values = KvFormat{.dtype = input.values.dtype()}},
                                      {.num_key_value_heads = k.size(1),
                                       .head_dim = k.size(3),
                                       .v_head_dim = input.values.size(3),
                                       .mask = input.mask});
  for (int64_t row = 0; row < k.size(0); ++row)
    for (int64_t first = 0; first < k.size(2); first += kTokensAtOnce) {
      const int64_t count = std::min(kTokensAtOnce, k.size(2) - first);
      cache.append({.slot = row, .first_position = first, .count = count},
                   gather(k[row], first, count, Memory::Piece::keys, workspace),
                   gather(input.values[row], first, count, Memory::Piece::values, workspace), workspace.threads());
    }
  return cache;
}

// Calls `copy` with each row [width] of a batch [batch, heads, tokens, width] and of packed tokens [batch * tokens,
// heads, width].
template <class Batch, class Packed, class Copy>
void for_each_row(const Batch& batch, const Packed& tokens, const Threads& threads, Copy copy) {
  const int64_t heads = batch.size(1);
  const int64_t count = batch.size(2);
  threads.for_work(batch.shape().elements()).for_each(batch.size(0) * count, [&](int64_t token, int) {
    for (int64_t head = 0; head < heads; ++head) copy(batch[token / count][head][token % count], tokens[token][head]);
  });
}

}  // namespace

void attend(const AttendBatchInput& input) {
  check(input);
  const int64_t first = first_position(input);
  const ConstTensorView& q = input.queries;
  const int64_t tokens = q.size(0) * q.size(2);
  std::optional<Workspace> own;
  if (input.workspace == nullptr) own.emplace();
  Workspace& workspace = own ? *own : *input.workspace;
  const Tensor queries(q.dtype(), {tokens, q.size(1), q.size(3)});
  const Tensor output(q.dtype(), {tokens, q.size(1), input.values.size(3)});
  const Tensor lse = input.lse.empty() ? Tensor() : Tensor(DType::f32, {tokens, q.size(1)});
  for_each_row(q, queries.view(), workspace.threads(), copy_row);
  const KvCache cache = packed(input, workspace);
  std::vector<Span> spans;
  for (int64_t row = 0; row < q.size(0) && q.size(2) > 0; ++row)
    spans.push_back({.slot = row, .first_position = first, .count = q.size(2)});
  attend({.queries = queries,
          .spans = spans,
          .cache = &cache,
          .mask = input.mask,
          .softmax_scale = input.softmax_scale,
          .logit_soft_cap = input.logit_soft_cap,
          .sinks = input.sinks,
          .output = output,
          .lse = lse.view(),
          .workspace = &workspace});
  for_each_row(input.output, output.view(), workspace.threads(),
               [](TensorView to, TensorView from) { copy_row(from, to); });
  if (input.lse.empty()) return;
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t head = 0; head < q.size(1); ++head)
      *input.lse[token / q.size(2)][head][token % q.size(2)].as<float>() =
          lse.elements<float>()[static_cast<size_t>(token * q.size(1) + head)];
}

}  // namespace regard
