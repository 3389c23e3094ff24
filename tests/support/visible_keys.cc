#include "support/visible_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "regard/attend.h"
#include "regard/attention.h"
#include "support/test_layer.h"
#include "support/thread_ranks.h"

namespace regard::test {

Positions members(Interval interval) {
  Positions positions;
  for (int64_t position = interval.first; position <= interval.last; ++position) positions.push_back(position);
  return positions;
}

Positions seen(const Mask& mask, int64_t position, int64_t length) { return members(mask.visible(position, length)); }

std::vector<Positions> by_rule(int64_t length, const Rule& rule) {
  std::vector<Positions> rows(static_cast<size_t>(length));
  for (int64_t query = 0; query < length; ++query)
    for (int64_t key = 0; key < length; ++key)
      if (rule(query, key)) rows[static_cast<size_t>(query)].push_back(key);
  return rows;
}

AttentionConfig revealing(int64_t columns) {
  return {.num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1, .v_head_dim = columns};
}

Tensor one_hot_rows(const AttentionConfig& config, int64_t first, int64_t count) {
  const auto tokens = static_cast<size_t>(count);
  std::vector<float> values(tokens * static_cast<size_t>(config.v_head_dim));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i * config.v_head_dim + first + i)] = 1.0F;
  return hidden_rows(config, std::vector<float>(tokens), std::vector<float>(tokens), values);
}

std::vector<Positions> non_zeros(const AttentionConfig& config, const Tensor& output) {
  std::vector<Positions> rows(static_cast<size_t>(output.shape()[0]));
  const auto heads = attended_heads(config, output);
  for (size_t i = 0; i < heads.size(); ++i)
    if (heads[i] != 0.0F)
      rows[i / static_cast<size_t>(config.v_head_dim)].push_back(static_cast<int64_t>(i) % config.v_head_dim);
  return rows;
}

namespace {

// One sequence in one call, whose first `prefix` tokens see each other.
class OneCall {
 public:
  OneCall(const AttentionConfig& mask, int64_t length, int64_t prefix) : length_(length), prefix_(prefix) {
    AttentionConfig config = mask;
    config.inference.seq_len = length + 2;
    layer_ = transparent_layer(config);
    hidden_ = one_hot_rows(layer_.config, 0, length);
  }

  [[nodiscard]] std::vector<Positions> without_cache() const { return run(layer_.load(), nullptr); }
  [[nodiscard]] std::vector<Positions> through(KvStorage storage) const {
    KvCache cache(storage, {.capacity = length_, .page_size = 16}, layer_.config);
    return run(layer_.load(), &cache);
  }
  // A row between a row of another length and one without tokens, with padding on the left.
  [[nodiscard]] std::vector<Positions> padded() const {
    const int64_t width = layer_.config.hidden_size;
    Tensor rows(DType::f32, {3, length_ + 2, width});
    Tensor real(DType::i32, {3, length_ + 2});
    *real.view()[0][0].as<int32_t>() = 1;
    for (int64_t i = 0; i < length_; ++i) {
      std::ranges::copy(hidden_.view()[i].elements<float>(), rows.view()[1][i + 2].as<float>());
      *real.view()[1][i + 2].as<int32_t>() = 1;
    }
    const std::vector<int64_t> prefixes = {0, prefix_, 0};
    PaddedAttentionInput input;
    input.hidden_states = rows;
    input.attention_mask = real;
    input.prefixes = prefixes;
    const Tensor out = layer_.load().forward(input).hidden_states;
    Tensor packed(DType::f32, {length_, width});
    std::ranges::copy(out.view()[1].slice(0, 2, length_).elements<float>(), packed.elements<float>().begin());
    return non_zeros(layer_.config, packed);
  }
  // Without projections.
  [[nodiscard]] std::vector<Positions> attended() const {
    const AttentionConfig& c = layer_.config;
    KvCache cache = KvCache::paged({.capacity = length_, .page_size = 16}, c);
    Tensor values(DType::f32, {length_, 1, c.v_head_dim});
    for (int64_t i = 0; i < length_; ++i) values.view()[i][0].as<float>()[i] = 1.0F;
    cache.append({.count = length_}, Tensor(DType::f32, {length_, 1, 1}), values);
    const Tensor queries(DType::f32, {length_, 1, 1});
    const Tensor out(DType::f32, {length_, 1, c.v_head_dim});
    const Span span{.count = length_, .prefix = prefix_};
    attend({.queries = queries, .spans = {&span, 1}, .cache = &cache, .mask = Mask::of(c), .output = out.view()});
    std::vector<Positions> rows(static_cast<size_t>(length_));
    for (int64_t i = 0; i < length_; ++i)
      for (int64_t j = 0; j < c.v_head_dim; ++j)
        if (out.view()[i][0].as<float>()[j] != 0.0F) rows[static_cast<size_t>(i)].push_back(j);
    return rows;
  }
  // Both ranks see the same.
  [[nodiscard]] std::vector<Positions> over_ranks(const ParallelConfig& parallel, KvStorage storage) const {
    std::vector<std::vector<Positions>> of_ranks(static_cast<size_t>(parallel.tp_degree));
    run_ranks(static_cast<int>(parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
      const Attention attention = Attention::load(layer_.views(), layer_.config, Threads(1), Ranks(world, parallel));
      KvCache cache = attention.make_cache(storage, {.capacity = length_, .page_size = 16});
      of_ranks[static_cast<size_t>(world->rank())] = run(attention, &cache);
    });
    for (const auto& rows : of_ranks) EXPECT_EQ(rows, of_ranks.front());
    return of_ranks.front();
  }

 private:
  [[nodiscard]] std::vector<Positions> run(const Attention& attention, KvCache* cache) const {
    const Span span{.count = length_, .prefix = prefix_};
    Workspace workspace(1);
    AttentionInput input;
    input.hidden_states = hidden_;
    input.spans = {&span, 1};
    input.cache = cache;
    input.workspace = &workspace;
    return non_zeros(layer_.config, attention.forward(input).hidden_states);
  }

  int64_t length_;
  int64_t prefix_;
  TestLayer layer_;
  Tensor hidden_;
};

}  // namespace

void expect_every_path_follows(const AttentionConfig& mask, int64_t length, int64_t prefix, const Rule& rule) {
  const std::vector<Positions> expected = by_rule(length, rule);
  const OneCall call(mask, length, prefix);
  EXPECT_EQ(call.without_cache(), expected);
  EXPECT_EQ(call.padded(), expected);
  EXPECT_EQ(call.attended(), expected);
  std::vector<KvStorage> storages = {KvStorage::contiguous, KvStorage::paged};
  if (mask.sliding_window > 0) storages.push_back(KvStorage::ring);
  if (mask.attention_chunk_size > 0) storages.push_back(KvStorage::chunk);
  for (const KvStorage storage : storages) {
    SCOPED_TRACE("storage " + std::to_string(static_cast<int>(storage)));
    EXPECT_EQ(call.through(storage), expected);
    using enum ContextSplit;
    for (const ContextSplit split : {contiguous, strided})
      EXPECT_EQ(call.over_ranks({.tp_degree = 2, .cp_degree = 2, .context_split = split}, storage), expected);
    EXPECT_EQ(call.over_ranks({.tp_degree = 3, .cp_degree = 3, .context_split = strided}, storage), expected);
    EXPECT_EQ(call.over_ranks({.tp_degree = 2}, storage), expected);
    EXPECT_EQ(call.over_ranks({.tp_degree = 2, .flash_decoding_enabled = true, .prefill_tokens = 100}, storage),
              expected);
  }
}

}  // namespace regard::test
