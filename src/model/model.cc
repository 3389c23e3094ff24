#include "regard/model.h"

#include <algorithm>
#include <array>
#include <optional>

#include "families/family.h"
#include "kernels/cache_rows.h"
#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "layers/attention_call.h"
#include "layers/for_each_row.h"
#include "layers/mlp.h"
#include "parallel/even_parts.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

std::vector<float> load_norm(const Checkpoint& checkpoint, const std::string& name, int64_t width) {
  std::vector<float> gain = read_vector(checkpoint, name + ".weight");
  require(static_cast<int64_t>(gain.size()) == width, "checkpoint: tensor \"{}.weight\" has {} numbers, expected {}",
          name, gain.size(), width);
  return gain;
}

Linear load_linear(const Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t columns,
                   const Threads& threads) {
  const WeightView weight = read_matrix(checkpoint, name + ".weight");
  require(weight.rows == rows && weight.columns == columns,
          "checkpoint: tensor \"{}.weight\" has shape [{}, {}], expected [{}, {}]", name, weight.rows, weight.columns,
          rows, columns);
  std::vector<float> bias = read_vector(checkpoint, name + ".bias");
  require(bias.empty() || static_cast<int64_t>(bias.size()) == rows,
          "checkpoint: tensor \"{}.bias\" has {} numbers, expected {}", name, bias.size(), rows);
  try {
    return Linear::load(weight, bias, threads);
  } catch (const Error& error) {
    fail("checkpoint: tensor \"{}.weight\": {}", name, error.what());
  }
}

void add_rows(ConstTensorView from, TensorView to, const Threads& threads) {
  const int64_t width = to.size(1);
  for_each_row(to.size(0), threads, [&](int64_t row, int) {
    const float* source = from.as<float>() + row * width;
    float* sum = to.as<float>() + row * width;
    for (int64_t i = 0; i < width; ++i) sum[i] += source[i];
  });
}

// A part of a cut checkpoint may have no matrices of an MLP that has fewer leaves than there are ranks.
StoredMatrix read_part(const Checkpoint& checkpoint, const std::string& name) {
  return checkpoint.shard() && checkpoint.find(name) == nullptr ? StoredMatrix() : read_matrix(checkpoint, name);
}

std::shared_ptr<const Mlp> load_mlp(const Checkpoint& checkpoint, const Family& family, int64_t layer,
                                    const ModelConfig& c, const Threads& threads, const Ranks& ranks) {
  const auto name = [&](std::string_view part) { return family.layer_tensor(layer, part); };
  const int64_t width =
      checkpoint.shard() ? mlp_part_of(c.intermediate_size, ranks.size(), ranks.rank()).count : c.intermediate_size;
  const auto weight = [&](std::string_view part, int64_t rows, int64_t columns) {
    StoredMatrix matrix = read_part(checkpoint, name(part) + ".weight");
    require(matrix.empty() || (matrix.rows() == rows && matrix.columns() == columns),
            "checkpoint: tensor \"{}.weight\" has shape [{}, {}], expected [{}, {}]", name(part), matrix.rows(),
            matrix.columns(), rows, columns);
    return matrix;
  };
  const auto bias = [&](std::string_view part) { return read_vector(checkpoint, name(part) + ".bias"); };
  DenseWeights weights{.gate = weight("mlp.gate", width, c.hidden_size),
                       .up = weight("mlp.up", width, c.hidden_size),
                       .down = weight("mlp.down", c.hidden_size, width),
                       .gate_bias = bias("mlp.gate"),
                       .up_bias = bias("mlp.up"),
                       .down_bias = bias("mlp.down"),
                       .gate_rows = {},
                       .up_rows = {}};
  const DenseMlp spec{.width = c.intermediate_size, .has_bias = !weights.down_bias.empty()};
  try {
    return std::make_shared<const Mlp>(Mlp::load(spec, weights, c.hidden_size, threads, ranks));
  } catch (const Error& error) {
    fail("checkpoint: layer {}: {}", layer, error.what());
  }
}

}  // namespace

Model Model::load(const Checkpoint& checkpoint, const Threads& threads, const Ranks& ranks) {
  const auto family = family_of(checkpoint);
  Model decoder;
  decoder.config_ = family->model();
  decoder.ranks_ = ranks;
  const ModelConfig& c = decoder.config_;
  decoder.embedding_ = load_linear(checkpoint, family->model_tensor("embedding"), c.vocab_size, c.hidden_size, threads);
  if (!c.tied_embeddings)
    decoder.output_ = load_linear(checkpoint, family->model_tensor("output"), c.vocab_size, c.hidden_size, threads);
  decoder.norm_ = load_norm(checkpoint, family->model_tensor("norm"), c.hidden_size);
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const auto name = [&](std::string_view part) { return family->layer_tensor(i, part); };
    decoder.layers_.push_back(
        {.attention = Attention::load(checkpoint, i, AttentionConfig::from(checkpoint, i), threads, ranks),
         .attention_norm = load_norm(checkpoint, name("attention.norm"), c.hidden_size),
         .mlp_norm = load_norm(checkpoint, name("mlp.norm"), c.hidden_size),
         .mlp = load_mlp(checkpoint, *family, i, c, threads, ranks)});
  }
  // All weights are packed: what the file's pages hold is not needed any more.
  checkpoint.release_pages();
  return decoder;
}

void Model::truncate(std::span<KvCache> caches, int64_t slot, int64_t length) const {
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i].attention.truncate(caches[i], slot, length);
}

ModelCost Model::cost(int64_t history, int64_t tokens, DType cache_dtype) const {
  ModelCost cost;
  const auto add_linear = [&](const PackedMatrix& weight, int64_t rows) {
    cost.operations += 2.0 * static_cast<double>(rows) * static_cast<double>(weight.rows() * weight.columns());
    cost.bytes += static_cast<double>(weight.bytes());
  };
  const int64_t length = history + tokens;
  for (const Layer& layer : layers_) {
    const Attention& attention = layer.attention;
    const auto& qkv = attention.qkv_projection();
    for (const Linear* linear : {&qkv.q(), &qkv.k(), &qkv.v(), &attention.output_projection().linear()})
      add_linear(linear->weight(), tokens);
    cost.operations += 2.0 * static_cast<double>(tokens) * static_cast<double>(layer.mlp->weights_per_token());
    cost.bytes += layer.mlp->bytes_read(tokens);
    const AttentionConfig& c = attention.config();
    const Mask mask = Mask::of(c);
    double keys = 0;
    for (int64_t position = history; position < length; ++position)
      keys += static_cast<double>(mask.visible(position, length).size());
    const int64_t stored = length - mask.visible(history, length).first;
    cost.operations += 2.0 * keys * static_cast<double>(c.num_attention_heads * (c.head_dim + c.v_head_dim));
    const int64_t elements = stored * c.num_key_value_heads * (c.head_dim + c.v_head_dim);
    cost.bytes +=
        static_cast<double>(elements * kernels::row_bytes_of_cache(cache_dtype)) / static_cast<double>(kernels::kTile);
  }
  add_linear((config_.tied_embeddings ? embedding_ : output_).weight(), 1);
  return cost;
}

std::vector<KvCache> Model::make_caches(const KvCacheOptions& options) const {
  std::vector<KvCache> caches;
  for (const Layer& layer : layers_) {
    const AttentionConfig& config = layer.attention.config();
    const KvStorage storage = config.sliding_window > 0         ? KvStorage::ring
                              : config.attention_chunk_size > 0 ? KvStorage::chunk
                                                                : KvStorage::contiguous;
    caches.push_back(layer.attention.make_cache(storage, options));
  }
  return caches;
}

std::vector<KvCache> Model::make_paged_caches(const KvCacheOptions& options, int64_t bytes) const {
  require(ranks_.size() == 1, "model: paged caches of a size in bytes are asked for over {} ranks, expected 1",
          ranks_.size());
  require(options.pages == 0, "model: pages is {}, but the caches' memory is given in bytes", options.pages);
  // Pages that a layer can use: of one sequence with a window, or one page a sequence, up to all that slots can fill.
  struct Pool {
    int64_t page_bytes, least, most;
    [[nodiscard]] int64_t pages(int64_t count) const { return std::clamp(count, least, most); }
  };
  std::vector<Pool> pools;
  int64_t slots = 0;
  for (const Layer& layer : layers_) {
    const AttentionConfig& config = layer.attention.config();
    // Caches of one page only tell sizes.
    KvCacheOptions one = options;
    one.pages = 1;
    const KvCache sample = KvCache::paged(one, config);
    one.slots = 1;
    slots = sample.slots();
    const bool keeps_all = sample.first_seen(sample.capacity()) == 0;
    pools.push_back({.page_bytes = sample.bytes_per_token() * sample.page_size(),
                     .least = keeps_all ? slots : KvCache::pages_needed(one, config),
                     .most = KvCache::pages_needed(options, config)});
  }
  const auto bytes_of = [&](int64_t count) {
    int64_t sum = 0;
    for (const Pool& pool : pools) sum += pool.pages(count) * pool.page_bytes;
    return sum;
  };
  require(bytes_of(0) <= bytes, "the cache's memory is {} bytes, but {} sequences need at least {}", bytes, slots,
          bytes_of(0));
  int64_t fits = 0;
  for (int64_t too_many = std::ranges::max(pools, {}, &Pool::most).most + 1; too_many - fits > 1;) {
    const int64_t middle = fits + (too_many - fits) / 2;
    (bytes_of(middle) <= bytes ? fits : too_many) = middle;
  }
  std::vector<KvCache> caches;
  for (size_t i = 0; i < layers_.size(); ++i) {
    KvCacheOptions sized = options;
    sized.pages = pools[i].pages(fits);
    caches.push_back(KvCache::paged(sized, layers_[i].attention.config()));
  }
  return caches;
}

ConstTensorView Model::forward(std::span<const int32_t> tokens, std::span<const Span> spans, std::span<KvCache> caches,
                               Logits logits, Workspace& workspace,
                               std::span<const ConstTensorView> active_masks) const {
  require(caches.size() == layers_.size(), "model: {} caches are given, expected {}, one a layer", caches.size(),
          layers_.size());
  for (const int32_t token : tokens)
    require(token >= 0 && token < config_.vocab_size, "model: token id is {}, expected 0 to {}", token,
            config_.vocab_size - 1);
  const auto count = static_cast<int64_t>(tokens.size());
  // No layer's cache changes when a later one's can't. Over ranks all have the same room.
  for (size_t i = 0; i < layers_.size() && ranks_.size() == 1; ++i)
    caches[i].check(spans, tokens_at_once(layers_[i].attention.config(), !active_masks.empty(), count));
  Memory& memory = workspace.memory();
  const TensorView hidden = memory.matrix(Memory::Piece::hidden, count, config_.hidden_size);
  run_layers(tokens, spans, active_masks, caches, hidden, workspace);

  std::vector<int64_t> rows;
  int64_t end = 0;
  for (const Span& span : spans) {
    for (int64_t i = logits == Logits::all ? 0 : span.count - 1; i < span.count; ++i) rows.push_back(end + i);
    end += span.count;
  }
  const auto row_count = static_cast<int64_t>(rows.size());
  const TensorView normed = memory.matrix(Memory::Piece::normed, row_count, config_.hidden_size);
  for_each_row(row_count, workspace.threads(), [&](int64_t row, int) {
    kernels::rms_norm(hidden.as<float>() + rows[static_cast<size_t>(row)] * config_.hidden_size, norm_.data(),
                      config_.rms_norm_eps, config_.hidden_size, normed.as<float>() + row * config_.hidden_size);
  });
  const TensorView out = memory.matrix(Memory::Piece::logits, row_count, config_.vocab_size);
  const std::array<const Linear*, 1> head = {config_.tied_embeddings ? &embedding_ : &output_};
  apply(head, normed, std::array{out}, workspace);
  return out;
}

void Model::run_layers(std::span<const int32_t> tokens, std::span<const Span> spans,
                       std::span<const ConstTensorView> active_masks, std::span<KvCache> caches, TensorView hidden,
                       Workspace& workspace) const {
  const RowSplit split = split_rows(hidden, spans, active_masks, caches, workspace);
  for_each_row(split.rows.size(0), workspace.threads(), [&](int64_t row, int) {
    embedding_.weight().decode_row(
        tokens[static_cast<size_t>(split.token_of(row))],
        {split.rows.as<float>() + row * config_.hidden_size, static_cast<size_t>(config_.hidden_size)});
  });
  const TensorView branch = workspace.memory().matrix(Memory::Piece::branch, split.rows.size(0), config_.hidden_size);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    AttentionInput input;
    input.hidden_states = split.rows;
    input.spans = spans;
    input.active_masks = active_masks;
    input.output = branch;
    input.cache = &caches[i];
    input.rmsnorm = ConstTensorView(layer.attention_norm.data(), {config_.hidden_size});
    input.present_key_value = false;
    input.angles = false;
    input.workspace = &workspace;
    (void)layer.attention.forward(input);
    add_rows(branch, split.rows, workspace.threads());
    const TensorView normed = workspace.memory().matrix(Memory::Piece::normed, split.rows.size(0), config_.hidden_size);
    for_each_row(normed.size(0), workspace.threads(), [&](int64_t row, int) {
      kernels::rms_norm(split.rows.as<float>() + row * config_.hidden_size, layer.mlp_norm.data(), config_.rms_norm_eps,
                        config_.hidden_size, normed.as<float>() + row * config_.hidden_size);
    });
    layer.mlp->run(normed, split, branch, workspace);
    add_rows(branch, split.rows, workspace.threads());
  }
  if (split.scattered()) gather_rows(split, hidden);
}

// Between layers every rank has all rows, or with sequence parallelism its own.
RowSplit Model::split_rows(TensorView hidden, std::span<const Span> spans,
                           std::span<const ConstTensorView> active_masks, std::span<KvCache> caches,
                           Workspace& workspace) const {
  RowSplit split{.rows = hidden, .rank = ranks_.rank(), .tokens = {}, .ranges = {}};
  if (!ranks_.config().sequence_parallel_enabled || ranks_.size() == 1) return split;
  int64_t first = 0;
  for (int64_t rank = 0; rank < ranks_.size(); ++rank) {
    split.tokens.push_back(layers_.front().attention.tokens_of_rank(rank, spans, &caches.front(), active_masks));
    const auto count = static_cast<int64_t>(split.tokens.back().size());
    split.ranges.push_back({.first = first, .count = count});
    first += count;
  }
  split.rows = workspace.memory().matrix(Memory::Piece::own_hidden, split.own().count, config_.hidden_size);
  return split;
}

// All rows in the order of their tokens.
void Model::gather_rows(const RowSplit& split, TensorView hidden) const {
  const Tensor all(DType::f32, hidden.shape());
  gather_split_rows(ranks_, split, split.rows, all);
  for (size_t rank = 0; rank < split.tokens.size(); ++rank)
    for (size_t i = 0; i < split.tokens[rank].size(); ++i)
      std::copy_n(all.view().as<float>() + (split.ranges[rank].first + static_cast<int64_t>(i)) * config_.hidden_size,
                  config_.hidden_size, hidden.as<float>() + split.tokens[rank][i] * config_.hidden_size);
}

}  // namespace regard
