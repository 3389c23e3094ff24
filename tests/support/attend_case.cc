#include "support/attend_case.h"

#include <algorithm>
#include <cmath>
#include <ostream>

#include "kernels/attend.h"
#include "regard/mask.h"
#include "support/random.h"
#include "support/rounding.h"

namespace regard::test {
namespace {

// Multiplications that the oracle may spend on a case.
constexpr int64_t kWork = 4'000'000;

// Skewed towards few, with every scale up to `most`.
int64_t any_length(int64_t most) {
  const auto scale = *rc::gen::element<int64_t>(8, 8, 40, 40, 40, 300, 300, 700, 2000);
  return *rc::gen::inRange<int64_t>(1, std::min(scale, most) + 1);
}

AttendCase::Sequence any_sequence(const AttentionConfig& config, int64_t work) {
  AttendCase::Sequence sequence;
  const int64_t length = any_length(2000);
  const int64_t work_per_query = length * config.num_attention_heads * (config.head_dim + config.v_head_dim);
  const int64_t most = std::clamp<int64_t>(work / work_per_query, 1, length);
  sequence.count = *rc::gen::inRange<int64_t>(1, most + 1);
  sequence.prefix = length - sequence.count;
  if (config.is_causal && *rc::gen::inRange(0, 3) == 0)
    sequence.mutual = *rc::gen::inRange<int64_t>(1, sequence.count + 1);
  if (*rc::gen::inRange(0, 4) == 0) sequence.padding = *rc::gen::inRange<int64_t>(0, length + 1);
  return sequence;
}

void any_mask(AttentionConfig& config) {
  config.is_causal = *rc::gen::inRange(0, 5) != 0;
  const auto kind = *rc::gen::inRange(0, 4);
  if (kind & 1) config.sliding_window = any_length(2100);
  if (kind & 2) config.attention_chunk_size = any_length(2100);
}

// Rows that a cache keeps exactly. Where tokens have scales, these have to be powers of two for that: the element of
// largest magnitude is the type's times one.
std::vector<float> cached_normals(Random& random, int64_t rows, int64_t width, double deviation, DType dtype) {
  std::vector<float> numbers = random.normals(rows * width, deviation);
  if (!kernels::has_token_scales(dtype)) {
    for (float& number : numbers) number = rounded(number, dtype);
    return numbers;
  }
  const double extreme = extreme_of(dtype);
  for (int64_t row = 0; row < rows; ++row) {
    float* x = numbers.data() + row * width;
    float* top = std::max_element(x, x + width, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
    const double size = std::max(1e-9, std::fabs(static_cast<double>(*top))) / std::fabs(extreme);
    const double scale = std::copysign(std::exp2(std::ceil(std::log2(size))), static_cast<double>(*top) * extreme);
    for (int64_t i = 0; i < width; ++i) {
      const auto scaled = static_cast<float>(static_cast<double>(x[i]) / scale);
      x[i] = static_cast<float>(static_cast<double>(rounded(scaled, dtype)) * scale);
    }
    *top = static_cast<float>(extreme * scale);
  }
  return numbers;
}

OracleMatrix matrix(const std::vector<float>& numbers, int64_t columns) {
  OracleMatrix result(static_cast<int64_t>(numbers.size()) / columns, columns);
  std::copy(numbers.begin(), numbers.end(), result.numbers.begin());
  return result;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const AttendCase& c) {
  const AttentionConfig& config = c.config;
  out << config.num_attention_heads << " heads on " << config.num_key_value_heads << ", head_dim " << config.head_dim
      << ", v_head_dim " << config.v_head_dim << (config.is_causal ? ", causal" : ", bidirectional") << ", window "
      << config.sliding_window << ", chunk " << config.attention_chunk_size << ", " << config.learned_sinks_size
      << " sinks, soft cap " << config.logit_soft_cap << ", scale " << config.softmax_scale << ", spread " << c.spread
      << ", cache " << name_of(c.cache_dtype) << " with " << c.spare_capacity << " to spare, " << c.threads
      << " threads, seed " << c.seed << ", sequences";
  for (const auto& s : c.sequences)
    out << " " << s.prefix << "+" << s.count << " (padding " << s.padding << ", prefix " << s.mutual << ")";
  return out;
}

rc::Gen<AttendCase> attend_cases() {
  return rc::gen::exec([] {
    AttendCase c;
    AttentionConfig& config = c.config;
    config.num_key_value_heads = *rc::gen::element<int64_t>(1, 2, 3, 4);
    config.num_attention_heads = config.num_key_value_heads * *rc::gen::element<int64_t>(1, 2, 3, 4, 5, 8);
    const auto widths = rc::gen::element<int64_t>(64, 128, 1, 7, 16, 32, 33, 80, 96, 100, 192, 256, 257, 600);
    config.head_dim = *widths;
    config.v_head_dim = *rc::gen::inRange(0, 3) == 0 ? *widths : config.head_dim;
    config.hidden_size = config.num_attention_heads;
    any_mask(config);
    config.learned_sinks_size = *rc::gen::element<int64_t>(0, 0, 1);
    config.softmax_scale = *rc::gen::element(0.0, 0.0, 0.25, 1.0);
    // Kernels take the scale in f32; what they make of it is not an error of theirs.
    config.softmax_scale = static_cast<double>(static_cast<float>(config.validated().softmax_scale));
    c.spread = *rc::gen::element(1.0, 1.0, 0.01, 3.0);
    const double score = c.spread * c.spread * std::sqrt(static_cast<double>(config.head_dim)) * config.softmax_scale;
    config.logit_soft_cap = static_cast<double>(static_cast<float>(score * *rc::gen::element(0.0, 0.0, 0.0, 1.0, 5.0)));
    c.cache_dtype =
        *rc::gen::element(DType::f32, DType::bf16, DType::f16, DType::i8, DType::i4, DType::f8_e4m3, DType::f8_e5m2);
    c.spare_capacity = *rc::gen::element<int64_t>(0, 40, 300);
    c.threads = *rc::gen::element(1, 2, 3);
    c.seed = *rc::gen::arbitrary<uint64_t>();
    const auto count = *rc::gen::element(1, 1, 2, 3);
    for (int i = 0; i < count; ++i) c.sequences.push_back(any_sequence(config, kWork / count));
    return c;
  });
}

AttendNumbers make_numbers(const AttendCase& c) {
  const AttentionConfig& config = c.config;
  Random random(c.seed);
  AttendNumbers numbers;
  for (const auto& s : c.sequences)
    numbers.sequences.push_back(
        {.queries = random.normals(s.count * config.num_attention_heads * config.head_dim, c.spread),
         .keys =
             cached_normals(random, s.length() * config.num_key_value_heads, config.head_dim, c.spread, c.cache_dtype),
         .values =
             cached_normals(random, s.length() * config.num_key_value_heads, config.v_head_dim, 1.0, c.cache_dtype)});
  numbers.sinks = random.normals(config.num_attention_heads * config.learned_sinks_size, 2.0);
  return numbers;
}

OracleAttendInput oracle_input(const AttendCase& c, const AttendNumbers& numbers, size_t sequence) {
  const AttentionConfig& config = c.config;
  const AttendNumbers::Sequence& from = numbers.sequences[sequence];
  return {.heads = config.num_attention_heads,
          .kv_heads = config.num_key_value_heads,
          .queries = matrix(from.queries, config.num_attention_heads * config.head_dim),
          .keys = matrix(from.keys, config.num_key_value_heads * config.head_dim),
          .values = matrix(from.values, config.num_key_value_heads * config.v_head_dim),
          .scale = config.softmax_scale,
          .soft_cap = config.logit_soft_cap,
          .sinks = numbers.sinks,
          .sees = [&c, sequence](int64_t query, int64_t key) { return c.sees(c.sequences[sequence], query, key); }};
}

std::vector<Attended> attend_by_kernels(const AttendCase& c, const AttendNumbers& numbers, int threads) {
  const AttentionConfig& config = c.config;
  const Mask mask = Mask::of(config);
  int64_t longest = 0;
  for (const auto& s : c.sequences) longest = std::max(longest, s.length());
  auto cache = KvCache::contiguous({.slots = static_cast<int64_t>(c.sequences.size()),
                                    .capacity = longest + c.spare_capacity,
                                    .dtype = c.cache_dtype},
                                   config);
  std::vector<kernels::AttendSpan> spans;
  std::vector<Interval> visible;
  std::vector<float> queries;
  int64_t tokens = 0;
  for (size_t i = 0; i < c.sequences.size(); ++i) {
    const AttendCase::Sequence& s = c.sequences[i];
    const AttendNumbers::Sequence& from = numbers.sequences[i];
    const auto slot = static_cast<int64_t>(i);
    cache.append({.slot = slot, .first_position = 0, .count = s.length()},
                 {from.keys.data(), {s.length(), config.num_key_value_heads, config.head_dim}},
                 {from.values.data(), {s.length(), config.num_key_value_heads, config.v_head_dim}});
    spans.push_back({.kv = cache.view(slot), .first_token = tokens, .count = s.count});
    for (int64_t query = 0; query < s.count; ++query)
      visible.push_back(
          mask.visible(s.prefix + query, s.length(), s.prefix + s.mutual).intersect({s.padding, s.length()}));
    queries.insert(queries.end(), from.queries.begin(), from.queries.end());
    tokens += s.count;
  }
  const int64_t out_width = config.num_attention_heads * config.v_head_dim;
  std::vector<float> out(static_cast<size_t>(tokens * out_width), NAN);
  std::vector<float> lse(static_cast<size_t>(tokens * config.num_attention_heads), NAN);
  kernels::AttendScratch scratch;
  kernels::attend({.shape = {.heads = config.num_attention_heads,
                             .kv_heads = config.num_key_value_heads,
                             .head_dim = config.head_dim,
                             .v_head_dim = config.v_head_dim,
                             .scale = static_cast<float>(config.softmax_scale),
                             .soft_cap = static_cast<float>(config.logit_soft_cap),
                             .sinks = numbers.sinks.empty() ? nullptr : numbers.sinks.data()},
                   .spans = spans,
                   .queries = reinterpret_cast<const std::byte*>(queries.data()),
                   .visible = visible.data(),
                   .out = reinterpret_cast<std::byte*>(out.data()),
                   .lse = lse.data()},
                  scratch, Threads(threads));
  std::vector<Attended> results;
  for (const auto& span : spans) {
    const auto rows = [&](const std::vector<float>& all, int64_t width) {
      return std::vector<float>(all.begin() + span.first_token * width,
                                all.begin() + (span.first_token + span.count) * width);
    };
    results.push_back({.out = rows(out, out_width), .lse = rows(lse, config.num_attention_heads)});
  }
  return results;
}

}  // namespace regard::test
