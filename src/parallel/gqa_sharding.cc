#include "parallel/gqa_sharding.h"

#include "tensor/fail.h"

namespace regard {
namespace {

// Far beyond any model or cluster, and small enough that no product of counts overflows.
constexpr int64_t kMostHeads = 1 << 20;
constexpr int64_t kZeroHead = -1;

void check_count(const char* name, int64_t value) {
  require(value >= 1 && value <= kMostHeads, "sharding: {} is {}, expected 1 to {}", name, value, kMostHeads);
}

GQA possible(GQA requested, int64_t kv_heads, int64_t tp) {
  const bool replicates = tp % kv_heads == 0;
  const bool splits = kv_heads % tp == 0;
  return requested == GQA::REPLICATE_TO_TP_DEGREE && !replicates && !splits ? GQA::CONVERT_TO_MHA : requested;
}

// Heads 0..count-1, `times` times each, and `zeros` zero heads behind every `run` of the source's heads.
std::vector<int64_t> laid_out(int64_t count, int64_t times, int64_t run, int64_t zeros) {
  std::vector<int64_t> sources;
  for (int64_t head = 0; head < count; ++head) {
    sources.insert(sources.end(), static_cast<size_t>(times), head);
    if ((head + 1) % run == 0) sources.insert(sources.end(), static_cast<size_t>(zeros), kZeroHead);
  }
  return sources;
}

std::span<const int64_t> part(std::span<const int64_t> sources, int64_t shard, int64_t tp) {
  require(shard >= 0 && shard < tp, "sharding: shard is {}, expected 0 to {}", shard, tp - 1);
  const size_t count = sources.size() / static_cast<size_t>(tp);
  return sources.subspan(static_cast<size_t>(shard) * count, count);
}

}  // namespace

std::string_view name_of(GQA strategy) {
  return strategy == GQA::REPLICATE_TO_TP_DEGREE ? "replicate-to-tp-degree" : "convert-to-mha";
}

GqaSharding::GqaSharding(int64_t heads, int64_t kv_heads, int64_t tp, GQA requested)
    : heads_(heads), kv_heads_(kv_heads), tp_(tp), strategy_(requested) {
  check_count("num_attention_heads", heads);
  check_count("num_key_value_heads", kv_heads);
  check_count("tp_degree", tp);
  require(heads % kv_heads == 0, "sharding: num_key_value_heads is {}, expected a divisor of num_attention_heads {}",
          kv_heads, heads);
  strategy_ = possible(requested, kv_heads, tp);
  const int64_t padding = (tp - heads % tp) % tp;
  if (kv_heads % tp == 0) {
    // Then so is the number of query heads, and whole groups go to each rank.
    q_sources_ = laid_out(heads, 1, heads, 0);
    kv_sources_ = laid_out(kv_heads, 1, kv_heads, 0);
  } else if (strategy_ == GQA::REPLICATE_TO_TP_DEGREE) {
    // Zeros go behind each KV group and not to the tail: a rank's query heads then never straddle two groups.
    q_sources_ = laid_out(heads, 1, heads / kv_heads, padding / kv_heads);
    kv_sources_ = laid_out(kv_heads, tp / kv_heads, kv_heads, 0);
  } else {
    q_sources_ = laid_out(heads, 1, heads, padding);
    kv_sources_ = laid_out(kv_heads, heads / kv_heads, kv_heads, padding);
  }
}

int64_t GqaSharding::kv_copies() const {
  return strategy_ == GQA::REPLICATE_TO_TP_DEGREE && !splits() ? tp_ / kv_heads_ : 1;
}

std::span<const int64_t> GqaSharding::q_heads_of(int64_t shard) const { return part(q_sources_, shard, tp_); }
std::span<const int64_t> GqaSharding::kv_heads_of(int64_t shard) const { return part(kv_sources_, shard, tp_); }

}  // namespace regard
