// regard::attend without a causal mask, where queries are not of the sequence whose keys they see: against the oracle,
// with more queries than keys, fewer, and none of the latter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "regard/attend.h"
#include "support/attend_oracle.h"
#include "support/error_of.h"
#include "support/property.h"
#include "support/random.h"
#include "support/rounding.h"

namespace regard::test {
namespace {

using ::testing::HasSubstr;

// Decoder sequences that read encoder sequences. Sequence i of the encoder has keys[i] tokens, in slot i.
struct CrossCase {
  AttentionConfig config;
  KvStorage storage = KvStorage::contiguous;
  DType cache_dtype = DType::f32;
  std::vector<int64_t> keys;
  std::vector<Span> spans;  // positions are those of the decoder; several may read one slot
  uint64_t seed = 0;

  [[nodiscard]] int64_t queries() const {
    int64_t count = 0;
    for (const Span& span : spans) count += span.count;
    return count;
  }
};

std::ostream& operator<<(std::ostream& out, const CrossCase& c) {
  out << c.config.num_attention_heads << " heads on " << c.config.num_key_value_heads << ", head_dim "
      << c.config.head_dim << ", v_head_dim " << c.config.v_head_dim << ", " << c.config.learned_sinks_size
      << " sinks, cache " << name_of(c.cache_dtype) << ", storage " << static_cast<int>(c.storage) << ", seed "
      << c.seed << ", keys";
  for (const int64_t count : c.keys) out << ' ' << count;
  out << ", spans";
  for (const Span& span : c.spans) out << ' ' << span.count << '@' << span.first_position << " of " << span.slot;
  return out;
}

// From 0 on, skewed towards few.
int64_t any_count() { return *rc::gen::inRange<int64_t>(0, *rc::gen::element<int64_t>(2, 9, 40, 300) + 1); }

rc::Gen<CrossCase> cross_cases() {
  return rc::gen::exec([] {
    CrossCase c;
    AttentionConfig& config = c.config;
    config.num_key_value_heads = *rc::gen::element<int64_t>(1, 2, 3);
    config.num_attention_heads = config.num_key_value_heads * *rc::gen::element<int64_t>(1, 2, 5);
    config.head_dim = *rc::gen::element<int64_t>(64, 16, 33, 80);
    config.v_head_dim = *rc::gen::element<int64_t>(64, 16, 20);
    config.hidden_size = config.num_attention_heads;
    config.is_causal = false;
    config.learned_sinks_size = *rc::gen::element<int64_t>(0, 1);
    c.storage = *rc::gen::element(KvStorage::contiguous, KvStorage::paged);
    c.cache_dtype = *rc::gen::element(DType::f32, DType::bf16);
    const auto slots = *rc::gen::inRange<int64_t>(1, 4);
    for (int64_t slot = 0; slot < slots; ++slot) c.keys.push_back(any_count());
    const auto spans = *rc::gen::inRange(1, 5);
    for (int i = 0; i < spans; ++i)
      c.spans.push_back({.slot = *rc::gen::inRange<int64_t>(0, slots),
                         .first_position = *rc::gen::element<int64_t>(0, 5, 1000),
                         .count = 1 + any_count() / 4});
    c.seed = *rc::gen::arbitrary<uint64_t>();
    return c;
  });
}

OracleMatrix matrix(std::span<const float> numbers, int64_t columns) {
  OracleMatrix result(static_cast<int64_t>(numbers.size()) / columns, columns);
  std::copy(numbers.begin(), numbers.end(), result.numbers.begin());
  return result;
}

class CrossScene {
 public:
  explicit CrossScene(const CrossCase& c)
      : case_(c),
        config_(c.config.validated()),
        cache_(c.storage, {.slots = std::ssize(c.keys), .capacity = 400, .dtype = c.cache_dtype}, c.config),
        queries_(DType::f32, {c.queries(), config_.num_attention_heads, config_.head_dim}) {
    Random random(c.seed);
    for (float& number : queries_.elements<float>()) number = random.normal();
    sinks_ = random.normals(config_.num_attention_heads * config_.learned_sinks_size);
    for (int64_t slot = 0; slot < std::ssize(c.keys); ++slot) {
      const int64_t count = c.keys[static_cast<size_t>(slot)];
      keys_.push_back(rounded_normals(random, count * config_.num_key_value_heads * config_.head_dim));
      values_.push_back(rounded_normals(random, count * config_.num_key_value_heads * config_.v_head_dim));
      if (count == 0) continue;
      cache_.append({.slot = slot, .first_position = 0, .count = count},
                    {keys_.back().data(), {count, config_.num_key_value_heads, config_.head_dim}},
                    {values_.back().data(), {count, config_.num_key_value_heads, config_.v_head_dim}});
    }
  }

  // Output and log-sum-exp of consecutive spans, whose first token is `first` of the call.
  [[nodiscard]] std::pair<Tensor, Tensor> attend_to(std::span<const Span> spans, int64_t first) const {
    int64_t count = 0;
    for (const Span& span : spans) count += span.count;
    std::pair<Tensor, Tensor> results{Tensor(DType::f32, {count, config_.num_attention_heads, config_.v_head_dim}),
                                      Tensor(DType::f32, {count, config_.num_attention_heads})};
    attend({.queries = queries_.view().slice(0, first, count),
            .spans = spans,
            .cache = &cache_,
            .mask = Mask::of(config_),
            .sinks = sinks_,
            .output = results.first,
            .lse = results.second});
    return results;
  }

  [[nodiscard]] OracleAttendInput oracle_input(const Span& span, int64_t first) const {
    const ConstTensorView rows = queries_.view().slice(0, first, span.count);
    const auto slot = static_cast<size_t>(span.slot);
    return {.heads = config_.num_attention_heads,
            .kv_heads = config_.num_key_value_heads,
            .queries = matrix(rows.elements<float>(), config_.num_attention_heads * config_.head_dim),
            .keys = matrix(keys_[slot], config_.num_key_value_heads * config_.head_dim),
            .values = matrix(values_[slot], config_.num_key_value_heads * config_.v_head_dim),
            .scale = static_cast<double>(static_cast<float>(config_.softmax_scale)),
            .sinks = sinks_,
            .sees = [](int64_t, int64_t) { return true; }};
  }

 private:
  [[nodiscard]] std::vector<float> rounded_normals(Random& random, int64_t count) const {
    auto numbers = random.normals(count);
    for (float& number : numbers) number = rounded(number, case_.cache_dtype);
    return numbers;
  }

  const CrossCase& case_;
  AttentionConfig config_;
  KvCache cache_;
  Tensor queries_;
  std::vector<float> sinks_;
  std::vector<std::vector<float>> keys_, values_;  // by slot
};

// Each span against the oracle, and, bit for bit, against a call of its own.
void check(const CrossCase& c) {
  const CrossScene scene(c);
  const auto [out, lse] = scene.attend_to(c.spans, 0);
  int64_t first = 0;
  for (const Span& span : c.spans) {
    const auto own_out = out.view().slice(0, first, span.count).elements<float>();
    const auto own_lse = lse.view().slice(0, first, span.count).elements<float>();
    const std::string found = difference_from_oracle(scene.oracle_input(span, first), own_out, own_lse);
    if (!found.empty()) RC_FAIL(found);
    const auto alone = scene.attend_to({&span, 1}, first);
    RC_ASSERT(std::ranges::equal(own_out, alone.first.elements<float>()));
    RC_ASSERT(std::ranges::equal(own_lse, alone.second.elements<float>()));
    first += span.count;
  }
}

TEST(CrossAttention, EqualsTheOracleOnRandomCases) {
  check_property(400, [] { check(*cross_cases()); });
}

AttentionConfig small_layer() {
  AttentionConfig config{.hidden_size = 64, .num_attention_heads = 4, .num_key_value_heads = 2};
  config.is_causal = false;
  return config;
}

// [KV-70], [MASK-6]: one query or many, one key or many, at positions before and past the keys.
TEST(CrossAttention, EqualsTheOracleAtAllCornersOfQueriesAndKeys) {
  check_property(1, [] {
    for (const int64_t queries : {1, 17})
      for (const int64_t keys : {1, 300})
        for (const int64_t position : {0, 7, 100'000}) {
          CrossCase c{.config = small_layer(), .keys = {keys}, .spans = {{0, position, queries}}, .seed = 5};
          check(c);
        }
  });
}

// [MATH-7]
TEST(CrossAttention, QueriesOfAnEmptySlotSeeNothing) {
  const CrossCase c{.config = small_layer(), .keys = {0}, .spans = {{0, 3, 2}}};
  const auto [out, lse] = CrossScene(c).attend_to(c.spans, 0);
  for (const float number : out.elements<float>()) EXPECT_EQ(number, 0.0F);
  for (const float number : lse.elements<float>()) EXPECT_EQ(number, -std::numeric_limits<float>::infinity());
}

TEST(CrossAttention, ACausalMaskNeedsTheKeysOfItsQueries) {
  CrossCase c{.config = small_layer(), .keys = {3}, .spans = {{0, 1, 3}}};
  c.config.is_causal = true;
  EXPECT_THAT(error_of([&] { (void)CrossScene(c).attend_to(c.spans, 0); }),
              HasSubstr("a span ends at position 4, but slot 0 holds 3 tokens"));
  c.spans[0].first_position = -1;
  EXPECT_THAT(error_of([&] { (void)CrossScene(c).attend_to(c.spans, 0); }), HasSubstr("first_position is -1"));
}

}  // namespace
}  // namespace regard::test
