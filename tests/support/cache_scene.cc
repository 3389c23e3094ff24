#include "support/cache_scene.h"

#include <algorithm>
#include <ostream>

#include "support/numbers.h"

namespace regard::test {
namespace {

KvFormat given(DType dtype, KvScaling scaling, std::vector<float> scales) {
  return {.dtype = dtype, .scaling = scaling, .scales = std::move(scales)};
}

// Widths that are no multiples of the panels' 16, and keys that differ from values.
const std::vector<CacheLayout>& layouts() {
  using enum DType;
  static const std::vector<CacheLayout> all = {
      {.kv_heads = 1, .head_dim = 3, .v_head_dim = 3, .keys = {}, .values = {}},
      {.kv_heads = 2, .head_dim = 5, .v_head_dim = 2, .keys = {.dtype = bf16}, .values = {.dtype = bf16}},
      {.kv_heads = 2, .head_dim = 2, .v_head_dim = 17, .keys = {.dtype = i8}, .values = {.dtype = f32}},
      {.kv_heads = 1, .head_dim = 17, .v_head_dim = 1, .keys = {.dtype = f16}, .values = {.dtype = i8}},
      {.kv_heads = 2,
       .head_dim = 3,
       .v_head_dim = 4,
       .keys = given(i8, KvScaling::per_tensor, {0.01F}),
       .values = given(i8, KvScaling::per_head, {0.02F, 0.007F})},
      {.kv_heads = 2,
       .head_dim = 3,
       .v_head_dim = 2,
       .keys = given(i8, KvScaling::per_channel, {0.01F, 0.005F, 0.1F}),
       .values = given(f8_e4m3, KvScaling::per_channel, {0.01F, 0.25F, 0.5F, 0.001F})},
      {.kv_heads = 1, .head_dim = 6, .v_head_dim = 6, .keys = {.dtype = f8_e5m2}, .values = {.dtype = f8_e4m3}},
      {.kv_heads = 1,
       .head_dim = 4,
       .v_head_dim = 4,
       .keys = given(f8_e4m3, KvScaling::per_tensor, {}),
       .values = {.dtype = bf16}},
      {.kv_heads = 2, .head_dim = 7, .v_head_dim = 18, .keys = {.dtype = i4}, .values = {.dtype = i4}},
      {.kv_heads = 2,
       .head_dim = 5,
       .v_head_dim = 3,
       .keys = given(i4, KvScaling::per_channel, {0.3F, 0.2F, 0.5F, 0.1F, 0.4F, 0.3F, 0.2F, 0.5F, 0.1F, 0.4F}),
       .values = given(i4, KvScaling::per_head, {0.3F, 0.7F})},
  };
  return all;
}

void print(std::ostream& out, const KvFormat& format) {
  out << name_of(format.dtype);
  if (format.scaling != KvScaling::per_token)
    out << " scaling " << static_cast<int>(format.scaling) << " of " << format.scales.size();
}

// RapidCheck's ranges grow with the size of a case; these are uniform.
template <class T>
T any(T first, T last) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<T>(first, last + 1));
}

CacheRules any_rules(bool is_long) {
  CacheRules rules;
  const int64_t longest = is_long ? 300 : 60;
  const int kind = any(0, 3);
  if (kind & 1) rules.window = any<int64_t>(1, longest);
  if (kind & 2) rules.chunk = any<int64_t>(1, longest);
  rules.is_causal = any(0, 3) != 0;
  using enum KvStorage;
  rules.storage = *rc::gen::element(paged, paged, contiguous, ring, chunk);
  if ((rules.storage == ring && rules.window == 0) || (rules.storage == chunk && rules.chunk == 0))
    rules.storage = paged;
  rules.slots = any<int64_t>(1, 4);
  rules.capacity = any<int64_t>(1, is_long ? 800 : 120);
  rules.page_size = is_long ? *rc::gen::element<int64_t>(16, 32, 128, 256) : *rc::gen::element<int64_t>(16, 16, 32, 64);
  rules.speculation_length = any<int64_t>(0, 3);
  // Often too few for all slots.
  if (rules.storage == paged && any(0, 2) != 0)
    rules.pages = any<int64_t>(1, rules.slots * rules.pages_of(rules.capacity));
  return rules;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const CacheLayout& layout) {
  out << layout.kv_heads << " KV heads, keys " << layout.head_dim << " of ";
  print(out, layout.keys);
  out << ", values " << layout.v_head_dim << " of ";
  print(out, layout.values);
  return out;
}

std::ostream& operator<<(std::ostream& out, const CacheScene& scene) {
  const CacheRules& rules = scene.rules;
  return out << "storage " << static_cast<int>(rules.storage) << ", " << rules.slots << " slots of " << rules.capacity
             << " in " << rules.pages << " pages of " << rules.page_size << ", window " << rules.window << ", chunk "
             << rules.chunk << (rules.is_causal ? "" : ", bidirectional") << ", speculation "
             << rules.speculation_length << ", " << scene.formats();
}

const CacheLayout& CacheScene::formats() const { return layouts()[layout]; }

AttentionConfig CacheScene::config() const {
  const CacheLayout& sizes = formats();
  AttentionConfig config{.hidden_size = 8,
                         .num_attention_heads = 2 * sizes.kv_heads,
                         .num_key_value_heads = sizes.kv_heads,
                         .head_dim = sizes.head_dim};
  config.v_head_dim = sizes.v_head_dim;
  config.is_causal = rules.is_causal;
  config.sliding_window = rules.window;
  config.attention_chunk_size = rules.chunk;
  config.inference.seq_len = 1024;
  return config;
}

KvCacheOptions CacheScene::options() const {
  return {.slots = rules.slots,
          .capacity = rules.capacity,
          .keys = formats().keys,
          .values = formats().values,
          .page_size = rules.page_size,
          .pages = rules.pages,
          .speculation_length = rules.speculation_length};
}

rc::Gen<CacheScene> cache_scenes(bool is_long) {
  return rc::gen::exec(
      [is_long] { return CacheScene{.rules = any_rules(is_long), .layout = any<size_t>(0, layouts().size() - 1)}; });
}

std::ostream& operator<<(std::ostream& out, const CacheOperation& operation) {
  constexpr const char* kNames[] = {"append", "call",   "roll back", "fork",  "truncate", "free",    "accept",
                                    "trim",   "retain", "release",   "share", "reserve",  "restore", "read"};
  return out << kNames[static_cast<size_t>(operation.kind)] << ' ' << operation.seed;
}

rc::Gen<std::vector<CacheOperation>> cache_operations() {
  using enum CacheOperation::Kind;
  const auto kinds = rc::gen::weightedElement<CacheOperation::Kind>({{6, append},
                                                                     {4, call},
                                                                     {2, roll_back},
                                                                     {3, fork},
                                                                     {2, truncate},
                                                                     {2, free},
                                                                     {2, accept},
                                                                     {3, trim},
                                                                     {2, retain},
                                                                     {2, release},
                                                                     {3, share},
                                                                     {1, reserve},
                                                                     {1, restore},
                                                                     {1, read}});
  return rc::gen::container<std::vector<CacheOperation>>(
      rc::gen::construct<CacheOperation>(kinds, rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, 100'000))));
}

TokenNumbers::TokenNumbers(const CacheLayout& layout)
    : layout_(layout),
      key_width_(layout.kv_heads * layout.head_dim),
      value_width_(layout.kv_heads * layout.v_head_dim) {
  Numbers numbers(611);
  keys_ = numbers.floats(kDifferent * key_width_);
  values_ = numbers.floats(kDifferent * value_width_);
  std::vector<Token> all(kDifferent);
  for (Token token = 0; token < kDifferent; ++token) all[static_cast<size_t>(token)] = token;
  AttentionConfig config{.hidden_size = 8,
                         .num_attention_heads = layout.kv_heads,
                         .num_key_value_heads = layout.kv_heads,
                         .head_dim = layout.head_dim};
  config.v_head_dim = layout.v_head_dim;
  auto cache =
      KvCache::contiguous({.slots = 1, .capacity = kDifferent, .keys = layout.keys, .values = layout.values}, config);
  const auto [keys, values] = of(all);
  cache.append({.slot = 0, .count = kDifferent}, keys, values);
  const auto [stored_keys, stored_values] = cache.read(0, 0, kDifferent);
  stored_keys_ = floats_of(stored_keys);
  stored_values_ = floats_of(stored_values);
}

std::pair<Tensor, Tensor> TokenNumbers::of(std::span<const Token> tokens) const {
  const auto count = static_cast<int64_t>(tokens.size());
  Tensor keys(DType::f32, {count, layout_.kv_heads, layout_.head_dim});
  Tensor values(DType::f32, {count, layout_.kv_heads, layout_.v_head_dim});
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] == kUnknownToken) continue;
    std::ranges::copy(row(keys_, key_width_, tokens[i]),
                      keys.elements<float>().begin() + static_cast<int64_t>(i) * key_width_);
    std::ranges::copy(row(values_, value_width_, tokens[i]),
                      values.elements<float>().begin() + static_cast<int64_t>(i) * value_width_);
  }
  return {keys, values};
}

const TokenNumbers& numbers_of(size_t layout) {
  static std::map<size_t, TokenNumbers> made;
  return made.try_emplace(layout, layouts()[layout]).first->second;
}

}  // namespace regard::test
