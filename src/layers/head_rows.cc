#include "layers/head_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/rows.h"
#include "kernels/workspace.h"

namespace regard {
namespace {

// The numbers of some heads of a token, and what a norm of them wants.
struct NormedHeads {
  const QKNorm& norm;
  const std::vector<float>& weight;
  const std::vector<float>& bias;
  int64_t heads;
  int64_t width;
};

void normalize_each(const NormedHeads& of, float* row) {
  const auto of_head = [&](const std::vector<float>& values, int64_t head) {
    return values.empty() ? nullptr : values.data() + (of.norm.weight_per_head ? head * of.width : 0);
  };
  for (int64_t head = 0; head < of.heads; ++head)
    kernels::normalize(of.norm.kind, of.norm.eps, of_head(of.weight, head), of_head(of.bias, head), of.width,
                       row + head * of.width);
}

// Work on every token of a piece, in runs.
template <class Work>
void for_each_token(int64_t tokens, int64_t numbers, const Threads& threads, Work work) {
  constexpr int64_t kRun = 16;
  // A number that is normed and rotated costs some ten operations.
  threads.for_work(10 * tokens * numbers).for_each((tokens + kRun - 1) / kRun, [&](int64_t run, int) {
    for (int64_t token = run * kRun; token < std::min((run + 1) * kRun, tokens); ++token) work(token);
  });
}

// A norm over all heads of all ranks of the row: statistics of each head, added in the order of the checkpoint's heads,
// so that bits do not depend on how the heads are spread.
class NormOverAllHeads {
 public:
  NormOverAllHeads(const NormedHeads& of, Communicator& row, std::vector<std::span<const int64_t>> heads_of_ranks,
                   int64_t all_heads)
      : of_(of), row_(row), heads_of_ranks_(std::move(heads_of_ranks)), all_heads_(all_heads) {}

  void apply(TensorView rows, const Threads& threads) const {
    const int64_t tokens = rows.size(0);
    const auto count = static_cast<double>(all_heads_ * of_.width);
    std::vector<double> means(static_cast<size_t>(tokens), 0.0);
    if (of_.norm.kind == NormKind::layer_norm) {
      means = totals(
          rows, [](double x, double) { return x; }, means, threads);
      for (double& mean : means) mean /= count;
    }
    const auto squares = totals(
        rows, [](double x, double mean) { return (x - mean) * (x - mean); }, means, threads);
    for_each_token(tokens, rows.size(1), threads, [&](int64_t token) {
      const auto t = static_cast<size_t>(token);
      scale(rows.as<float>() + token * rows.size(1), means[t], 1.0 / std::sqrt(squares[t] / count + of_.norm.eps));
    });
  }

 private:
  // Of every token: the sum over all heads of all ranks of term(x, mean).
  template <class Term>
  std::vector<double> totals(TensorView rows, Term term, const std::vector<double>& means,
                             const Threads& threads) const {
    const auto tokens = static_cast<size_t>(rows.size(0));
    const auto heads = static_cast<size_t>(of_.heads);
    std::vector<double> own(tokens * heads);
    for_each_token(rows.size(0), rows.size(1), threads, [&](int64_t token) {
      const auto t = static_cast<size_t>(token);
      for (size_t head = 0; head < heads; ++head) {
        const float* x = rows.as<float>() + token * rows.size(1) + static_cast<int64_t>(head) * of_.width;
        double sum = 0;
        for (int64_t k = 0; k < of_.width; ++k) sum += term(static_cast<double>(x[k]), means[t]);
        own[t * heads + head] = sum;
      }
    });
    std::vector<double> all(own.size() * heads_of_ranks_.size());
    std::vector<std::span<std::byte>> parts;
    for (size_t rank = 0; rank < heads_of_ranks_.size(); ++rank)
      parts.push_back(std::as_writable_bytes(std::span(all).subspan(rank * own.size(), own.size())));
    row_.all_gather(std::as_bytes(std::span(own)), parts);
    std::vector<size_t> places;
    for (int64_t head = 0; head < all_heads_; ++head) places.push_back(place_of(head));
    std::vector<double> sums(tokens, 0.0);
    for_each_token(rows.size(0), all_heads_, threads, [&](int64_t token) {
      const auto t = static_cast<size_t>(token);
      for (const size_t place : places) sums[t] += all[place / heads * own.size() + t * heads + place % heads];
    });
    return sums;
  }

  // Where a head of the checkpoint is found first: rank * local heads + index.
  [[nodiscard]] size_t place_of(int64_t head) const {
    size_t place = 0;
    for (const auto& heads : heads_of_ranks_)
      for (const int64_t own : heads) {
        if (own == head) return place;
        ++place;
      }
    return place;
  }

  void scale(float* row, double mean, double factor) const {
    for (int64_t i = 0; i < of_.heads * of_.width; ++i) {
      const auto k = static_cast<size_t>(i);
      const double gain = of_.weight.empty()                        ? 1.0
                          : of_.norm.kind == NormKind::rms_plus_one ? 1.0 + static_cast<double>(of_.weight[k])
                                                                    : static_cast<double>(of_.weight[k]);
      const double bias = of_.bias.empty() ? 0.0 : static_cast<double>(of_.bias[k]);
      row[i] = static_cast<float>((static_cast<double>(row[i]) - mean) * factor * gain + bias);
    }
  }

  const NormedHeads& of_;
  Communicator& row_;
  std::vector<std::span<const int64_t>> heads_of_ranks_;
  int64_t all_heads_;
};

// The steps of one call, on all tokens one after the other: only a norm over all heads needs other ranks.
class HeadPreparation {
 public:
  HeadPreparation(const AttentionShard& shard, const HeadPlaces& places, const HeadRows& rows, const Threads& threads)
      : shard_(shard),
        config_(shard.config),
        places_(places),
        rows_(rows),
        threads_(threads),
        heads_(rows.q.empty() ? 0 : config_.num_attention_heads),
        kv_heads_(rows.k.empty() ? 0 : config_.num_key_value_heads) {}

  void run() const {
    const auto& c = config_;
    const bool pre = c.qk_norm_placement == QKNormPlacement::PRE_ROPE;
    // The plain norm comes first, so that a norm over all heads splits the pass over tokens.
    if (pre && needs_all_heads()) {
      each_token([&](int64_t token) { norm_plainly(queries_of(token), keys_of(token)); });
      norm_all_heads();
    }
    norm_all_values();
    each_token([&](int64_t token) { prepare(token); });
    if (pre || !needs_all_heads()) return;
    norm_all_heads();
    each_token([&](int64_t token) { scale_query(token); });
  }

 private:
  template <class Work>
  void each_token(Work work) const {
    const int64_t numbers = heads_ * config_.head_dim + kv_heads_ * (config_.head_dim + config_.v_head_dim);
    for_each_token(std::ssize(places_.positions), numbers, threads_, work);
  }

  [[nodiscard]] bool needs_all_heads() const {
    return config_.q_layernorm &&
           (config_.q_layernorm->width == NormWidth::all || config_.k_layernorm->width == NormWidth::all);
  }

  void norm_all_heads() const {
    const auto& w = shard_.norms;
    norm_all(config_.q_layernorm, w.q, w.q_bias, config_.head_dim, shard_.sharding.heads(), &GqaSharding::q_heads_of,
             rows_.q);
    norm_all(config_.k_layernorm, w.k, w.k_bias, config_.head_dim, shard_.sharding.kv_heads(),
             &GqaSharding::kv_heads_of, rows_.k);
  }

  void norm_all_values() const {
    norm_all(config_.v_norm, shard_.norms.v, kNone, config_.v_head_dim, shard_.sharding.kv_heads(),
             &GqaSharding::kv_heads_of, rows_.v);
  }

  void norm_all(const std::optional<QKNorm>& norm, const std::vector<float>& weight, const std::vector<float>& bias,
                int64_t width, int64_t all_heads, std::span<const int64_t> (GqaSharding::*heads_of)(int64_t) const,
                TensorView rows) const {
    if (!norm || norm->width != NormWidth::all || rows.empty()) return;
    std::vector<std::span<const int64_t>> heads;
    for (const int64_t part : shard_.shards) heads.push_back((shard_.sharding.*heads_of)(part));
    const NormedHeads of{*norm, weight, bias, rows.size(1) / width, width};
    NormOverAllHeads(of, *shard_.row, std::move(heads), all_heads).apply(rows, threads_);
  }

  [[nodiscard]] static float* row_of(TensorView rows, int64_t token) {
    return rows.empty() ? nullptr : rows.as<float>() + token * rows.size(1);
  }
  [[nodiscard]] float* queries_of(int64_t token) const { return row_of(rows_.q, token); }
  [[nodiscard]] float* keys_of(int64_t token) const { return row_of(rows_.k, token); }

  void norm_plainly(float* queries, float* keys) const {
    const auto& c = config_;
    if (!c.use_qk_norm) return;
    const QKNorm plain{.kind = NormKind::rms, .eps = c.rms_norm_eps.value_or(1e-6), .has_weight = false};
    normalize_each({plain, kNone, kNone, heads_, c.head_dim}, queries);
    normalize_each({plain, kNone, kNone, kv_heads_, c.head_dim}, keys);
  }

  void norm_heads(float* queries, float* keys) const {
    const auto& c = config_;
    const auto& w = shard_.norms;
    if (!c.q_layernorm) return;
    if (c.q_layernorm->width == NormWidth::head)
      normalize_each({*c.q_layernorm, w.q, w.q_bias, heads_, c.head_dim}, queries);
    if (c.k_layernorm->width == NormWidth::head)
      normalize_each({*c.k_layernorm, w.k, w.k_bias, kv_heads_, c.head_dim}, keys);
  }

  void prepare(int64_t token) const {
    const auto& c = config_;
    float* queries = queries_of(token);
    float* keys = keys_of(token);
    float* values = row_of(rows_.v, token);
    const bool pre = c.qk_norm_placement == QKNormPlacement::PRE_ROPE;
    if (pre && !needs_all_heads()) norm_plainly(queries, keys);
    if (pre) norm_heads(queries, keys);
    if (c.rotary_emb) {
      const int64_t half = c.rotary_emb->rotary_dim / 2;
      const float* cos = places_.cos.as<float>() + token * half;
      const float* sin = places_.sin.as<float>() + token * half;
      kernels::rotate(c.rotary_emb->style, cos, sin, half, heads_, c.head_dim, queries);
      kernels::rotate(c.rotary_emb->style, cos, sin, half, kv_heads_, c.head_dim, keys);
    }
    if (!pre) {
      norm_plainly(queries, keys);
      norm_heads(queries, keys);
    }
    if (pre || !needs_all_heads()) scale_query(token);
    if (c.v_norm && c.v_norm->width == NormWidth::head)
      normalize_each({*c.v_norm, shard_.norms.v, kNone, kv_heads_, c.v_head_dim}, values);
    if (c.value_scale != 1.0)
      for (int64_t i = 0; i < kv_heads_ * c.v_head_dim; ++i) values[i] *= static_cast<float>(c.value_scale);
  }

  void scale_query(int64_t token) const {
    if (!config_.query_position_scale || heads_ == 0) return;
    const auto& scale = *config_.query_position_scale;
    const auto place = static_cast<double>(places_.positions[static_cast<size_t>(token)] + scale.offset);
    const auto factor = static_cast<float>(std::log1p(std::floor(place / scale.floor_scale)) * scale.attn_scale + 1.0);
    float* queries = queries_of(token);
    for (int64_t i = 0; i < rows_.q.size(1); ++i) queries[i] *= factor;
  }

  inline static const std::vector<float> kNone;

  const AttentionShard& shard_;
  const AttentionConfig& config_;
  const HeadPlaces& places_;
  const HeadRows& rows_;
  const Threads& threads_;
  int64_t heads_, kv_heads_;  // 0 where there are no such rows
};

}  // namespace

void write_angles(const RotaryEmbedding& rotary, std::span<const int64_t> positions, const RowAngles& to,
                  const Threads& threads) {
  constexpr int64_t kRun = 64;
  const auto count = static_cast<int64_t>(positions.size());
  // A cosine takes as long as some 50 multiply-adds.
  threads.for_work(100 * count * to.cos.size(1)).for_each((count + kRun - 1) / kRun, [&](int64_t run, int) {
    const int64_t first = run * kRun;
    const int64_t length = std::min(kRun, count - first);
    rotary.write_angles(positions.subspan(static_cast<size_t>(first), static_cast<size_t>(length)),
                        to.cos.slice(0, first, length), to.sin.slice(0, first, length));
  });
}

void prepare_heads(const AttentionShard& shard, const HeadPlaces& places, const HeadRows& rows,
                   const Threads& threads) {
  HeadPreparation(shard, places, rows, threads).run();
}

}  // namespace regard
