#include "regard/attention.h"

#include <algorithm>

#include "layers/attention_shard.h"
#include "layers/shared_tokens.h"
#include "parallel/rank_order.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

// Of the scales of all heads those of these.
std::vector<float> scales_of(const KvFormat& format, std::span<const int64_t> heads, int64_t all_heads,
                             int64_t head_dim) {
  const auto count = static_cast<int64_t>(format.scales.size());
  const bool by_head = format.scaling == KvScaling::per_head ||
                       (format.scaling == KvScaling::per_channel && count == all_heads * head_dim);
  if (!by_head || count != all_heads * (count / all_heads)) return format.scales;
  const int64_t width = count / all_heads;
  std::vector<float> own;
  for (const int64_t head : heads)
    for (int64_t i = 0; i < width; ++i)
      own.push_back(format.scales[static_cast<size_t>(std::max<int64_t>(0, head) * width + i)]);
  return own;
}

}  // namespace

Attention Attention::load(const AttentionWeights& weights, const AttentionConfig& config, const Threads& threads,
                          const Ranks& ranks) {
  const FloatEnvironment environment;
  Attention attention;
  attention.config_ = config.validated();
  attention.ranks_ = ranks;
  const AttentionConfig& c = attention.config_;
  const RankOrders orders = orders_of(ranks.config(), c.num_key_value_heads);
  const auto load = [&](const Ranks::Stage& stage, const std::vector<int64_t>& order) {
    return std::make_shared<const AttentionShard>(AttentionShard::load(weights, c, threads, ranks, stage, order));
  };
  attention.decode_ = load(ranks.decode(), orders.decode);
  const bool same = ranks.prefill().degree == ranks.decode().degree && orders.prefill == orders.decode;
  attention.prefill_ = same ? attention.decode_ : load(ranks.prefill(), orders.prefill);
  if (c.rotary_emb) attention.rotary_.emplace(*c.rotary_emb);
  return attention;
}

// Otherwise every call runs as decode does: all ranks compute all tokens, and keep all that they compute.
bool Attention::spreads_stages_differently() const { return ranks_.prefill().degree > 1 || shares_sequences(); }

bool Attention::shares_sequences() const { return ranks_.decode().degree > 1 || !decode_->token_share().is_all(); }

KvCacheOptions Attention::cache_options() const {
  const InferenceConfig& inference = config_.inference;
  return {.slots = inference.kv_cache_batch_size,
          .capacity = inference.max_length,
          .dtype = inference.attention_dtype.value_or(inference.torch_dtype)};
}

KvCache Attention::make_cache(KvStorage storage, const KvCacheOptions& options) const {
  return {storage, own_part(options), decode_->config};
}

int64_t Attention::pages_needed(const KvCacheOptions& options) const {
  return KvCache::pages_needed(own_part(options), decode_->config);
}

KvCacheOptions Attention::own_part(const KvCacheOptions& options) const {
  KvCacheOptions own = options;
  const int64_t rows = ranks_.decode().degree;
  const TokenShare share = decode_->token_share();
  own.slots = (own.slots + rows - 1) / rows;
  if (!share.is_all() && own.capacity > 0)
    own.capacity = std::max<int64_t>(1, TokenShare{share.ranks, 0}.count_below(own.capacity));
  const auto of_own_heads = [&](std::optional<KvFormat>& format, int64_t width) {
    if (format) format->scales = scales_of(*format, decode_->kv_heads(), config_.num_key_value_heads, width);
  };
  of_own_heads(own.keys, config_.head_dim);
  of_own_heads(own.values, config_.v_head_dim);
  return own;
}

std::vector<int64_t> Attention::kv_heads_of_rank(int64_t rank) const {
  const RankMesh mesh(ranks_.size(), ranks_.decode().degree, ranks_.config().switch_cc);
  const auto heads = decode_->kv_heads_of(mesh.column_of(rank));
  return {heads.begin(), heads.end()};
}

// Where this rank keeps a slot of the whole cache, if it does.
std::optional<int64_t> Attention::own_slot(const KvCache& cache, int64_t slot) const {
  const Ranks::Stage& stage = ranks_.decode();
  require(slot >= 0 && slot < cache.slots() * stage.degree, "attention: slot is {}, expected 0 to {}", slot,
          cache.slots() * stage.degree - 1);
  if (stage.degree == 1) return slot;
  return slot / cache.slots() == stage.row ? std::optional(slot % cache.slots()) : std::nullopt;
}

void Attention::truncate(KvCache& cache, int64_t slot, int64_t length) const {
  if (const auto own = own_slot(cache, slot)) cache.truncate(*own, decode_->token_share().count_below(length));
}

void Attention::accept(KvCache& cache, int64_t slot, int64_t first_position, std::span<const int64_t> indices) const {
  const auto own = own_slot(cache, slot);
  if (!own) return;
  if (decode_->token_share().is_all())
    cache.accept(*own, first_position, indices);
  else
    accept_shared(*decode_, cache, *own, first_position, indices);
}

const QkvProjection& Attention::qkv_projection() const { return decode_->qkv; }
const OutputProjection& Attention::output_projection() const { return decode_->output; }
int64_t Attention::bytes() const {
  const auto of = [](const AttentionShard& shard) { return shard.qkv.bytes() + shard.output.bytes(); };
  return of(*decode_) + (prefill_ == decode_ ? 0 : of(*prefill_));
}

}  // namespace regard
