#include "regard/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "kernels/cache_rows.h"
#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "layers/for_each_row.h"
#include "layers/mlp.h"
#include "layers/norm.h"
#include "layers/ranked_call.h"
#include "layers/row_split.h"
#include "layers/step_plan.h"
#include "model/layer_weights.h"
#include "regard/block_table.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

// to += scale * from
void add_rows(ConstTensorView from, double scale, TensorView to, const Threads& threads) {
  const int64_t width = to.size(1);
  const auto factor = static_cast<float>(scale);
  for_each_row(to.size(0), threads, [&](int64_t row, int) {
    const float* source = from.as<float>() + row * width;
    float* sum = to.as<float>() + row * width;
    if (factor == 1.0F)
      for (int64_t i = 0; i < width; ++i) sum[i] += source[i];
    else
      for (int64_t i = 0; i < width; ++i) sum[i] += factor * source[i];
  });
}

void scale_rows(double scale, TensorView rows, const Threads& threads) {
  if (scale == 1.0) return;
  const auto factor = static_cast<float>(scale);
  const int64_t width = rows.size(1);
  for_each_row(rows.size(0), threads, [&](int64_t row, int) {
    float* x = rows.as<float>() + row * width;
    for (int64_t i = 0; i < width; ++i) x[i] *= factor;
  });
}

Linear load_linear(TensorReader& reader, std::string_view part, int64_t rows, int64_t columns, const Threads& threads) {
  const StoredMatrix matrix = reader.matrix({.part = part}, rows, columns);
  try {
    return Linear::load(matrix, {}, threads);
  } catch (const Error& error) {
    fail("checkpoint: tensor \"{}\": {}", reader.names().of(part).weight, error.what());
  }
}

}  // namespace

// One layer with its weights; a norm that the model does not have is none.
struct Model::Layer {
  LayerSpec spec;
  Attention attention;
  Mlp mlp;
  std::optional<Norm> attention_norm, post_attention_norm, mlp_norm, post_mlp_norm;
};

Model::Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const Checkpoint& checkpoint, const Threads& threads, const Ranks& ranks) {
  return load(checkpoint, ModelSpec::from(checkpoint), threads, ranks);
}

Model Model::load(const Checkpoint& checkpoint, const ModelSpec& spec, const Threads& threads, const Ranks& ranks) {
  const FloatEnvironment environment;
  check_shard(checkpoint, ranks);
  Model model;
  model.spec_ = spec;
  model.ranks_ = ranks;
  TensorReader reader(checkpoint, tensor_names_of(checkpoint));
  model.embedding_ = load_linear(reader, "embedding", spec.vocab_size, spec.hidden_size, threads);
  // A head that is the embedding may be stored once more.
  if (spec.head.tied)
    reader.mark_read(reader.names().of("head").weight);
  else
    model.head_ = load_linear(reader, "head", spec.vocab_size, spec.hidden_size, threads);
  model.norm_ = std::make_unique<const Norm>(*norm_weights(reader, spec.final_norm, "norm", 0, spec.hidden_size));
  // What is packed needs the file's pages no more: loading holds those of a layer at a time.
  checkpoint.release_pages();
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    model.layers_.push_back(load_layer(reader, spec, i, threads, ranks));
    checkpoint.release_pages();
  }
  reader.require_all_read();
  checkpoint.check_sizes();
  return model;
}

std::unique_ptr<const Model::Layer> Model::load_layer(TensorReader& reader, const ModelSpec& spec, size_t index,
                                                      const Threads& threads, const Ranks& ranks) {
  const LayerSpec& layer = spec.layers[index];
  const auto number = static_cast<int64_t>(index);
  const auto norm = [&](const std::optional<NormSpec>& of, std::string_view part) {
    return norm_weights(reader, of, part, number, spec.hidden_size);
  };
  // What is wrong with a tensor names it, and so the layer; what is wrong with its numbers does not.
  const auto naming_layer = [&](const auto& load) {
    try {
      return load();
    } catch (const Error& error) {
      fail("layer {}: {}", index, error.what());
    }
  };
  return std::make_unique<const Layer>(
      Layer{.spec = layer,
            .attention = naming_layer([&, weights = attention_weights(reader, layer.attention, number)] {
              return Attention::load(weights, layer.attention, threads, ranks);
            }),
            .mlp = naming_layer([&, weights = mlp_weights(reader, layer, number)] {
              return Mlp::load(layer.mlp, weights, spec.hidden_size, threads, ranks);
            }),
            .attention_norm = norm(layer.attention_norm, "attention.norm"),
            .post_attention_norm = norm(layer.post_attention_norm, "attention.post_norm"),
            .mlp_norm = norm(layer.mlp_norm, "mlp.norm"),
            .post_mlp_norm = norm(layer.post_mlp_norm, "mlp.post_norm")});
}

const Attention& Model::attention(int64_t layer) const { return layers_[static_cast<size_t>(layer)]->attention; }

int64_t Model::bytes() const {
  int64_t sum = embedding_.bytes() + head_.bytes();
  for (const auto& layer : layers_) sum += layer->attention.bytes() + layer->mlp.bytes();
  return sum;
}

void Model::truncate(std::span<KvCache> caches, int64_t slot, int64_t length) const {
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i]->attention.truncate(caches[i], slot, length);
}

ModelCost Model::cost(int64_t history, int64_t tokens, DType cache_dtype) const {
  ModelCost cost;
  const auto add_weights = [&](int64_t weights, double bytes, int64_t rows) {
    cost.operations += 2.0 * static_cast<double>(rows) * static_cast<double>(weights);
    cost.bytes += bytes;
  };
  const auto add_linear = [&](const Linear& linear, int64_t rows) {
    add_weights(linear.rows() * linear.columns(), static_cast<double>(linear.bytes()), rows);
  };
  const int64_t length = history + tokens;
  for (const auto& layer : layers_) {
    const Attention& attention = layer->attention;
    const auto& qkv = attention.qkv_projection();
    for (const Linear* linear : {&qkv.q(), &qkv.k(), &qkv.v(), &attention.output_projection().linear()})
      add_linear(*linear, tokens);
    add_weights(layer->mlp.weights_per_token(), layer->mlp.bytes_read(tokens), tokens);
    const AttentionConfig& c = attention.config();
    const Mask mask = Mask::of(c);
    double keys = 0;
    for (int64_t position = history; position < length; ++position)
      keys += static_cast<double>(mask.visible(position, length).size());
    const int64_t stored = length - mask.first_seen(history);
    cost.operations += 2.0 * keys * static_cast<double>(c.num_attention_heads * (c.head_dim + c.v_head_dim));
    const int64_t elements = stored * c.num_key_value_heads * (c.head_dim + c.v_head_dim);
    cost.bytes +=
        static_cast<double>(elements * kernels::row_bytes_of_cache(cache_dtype)) / static_cast<double>(kernels::kTile);
  }
  add_linear(head(), 1);
  return cost;
}

std::vector<KvCache> Model::make_caches(const KvCacheOptions& options) const {
  std::vector<KvCache> caches;
  for (const auto& layer : layers_)
    caches.push_back(layer->attention.make_cache(bounded_storage(Mask::of(layer->attention.config())), options));
  return caches;
}

std::vector<KvCache> Model::make_paged_caches(const KvCacheOptions& options, int64_t bytes) const {
  require(options.pages == 0, "model: pages is {}, but the caches' memory is given in bytes", options.pages);
  // Pages that a layer can use: of one sequence with a window, or one page a sequence, up to all that slots can fill.
  struct Pool {
    int64_t page_bytes, least, most;
    [[nodiscard]] int64_t pages(int64_t count) const { return std::clamp(count, least, most); }
  };
  std::vector<Pool> pools;
  int64_t slots = 0;
  for (const auto& layer : layers_) {
    // Caches of one page only tell sizes.
    KvCacheOptions one = options;
    one.pages = 1;
    const KvCache sample = layer->attention.make_cache(KvStorage::paged, one);
    one.slots = 1;
    slots = sample.slots();
    const bool keeps_all = sample.first_seen(sample.capacity()) == 0;
    pools.push_back({.page_bytes = sample.bytes_per_token() * sample.block_tables().page_size(),
                     .least = keeps_all ? slots : layer->attention.pages_needed(one),
                     .most = layer->attention.pages_needed(options)});
  }
  const auto bytes_of = [&](int64_t count) {
    int64_t sum = 0;
    for (const Pool& pool : pools) sum += pool.pages(count) * pool.page_bytes;
    return sum;
  };
  int64_t fits = bytes_of(0) <= bytes ? 0 : -1;
  for (int64_t too_many = std::ranges::max(pools, {}, &Pool::most).most + 1; fits >= 0 && too_many - fits > 1;) {
    const int64_t middle = fits + (too_many - fits) / 2;
    (bytes_of(middle) <= bytes ? fits : too_many) = middle;
  }
  // Ranks have as many pages each, so that sequences fit on all of them or on none.
  const std::vector<int64_t> of_ranks = ranks_.world().gather(fits);
  const auto least = std::ranges::min_element(of_ranks);
  require(fits >= 0, "the cache's memory is {} bytes, but {} sequences need at least {}", bytes, slots, bytes_of(0));
  require(*least >= 0, "the cache's memory on rank {} holds less than {} sequences", least - of_ranks.begin(), slots);
  std::vector<KvCache> caches;
  for (size_t i = 0; i < layers_.size(); ++i) {
    KvCacheOptions sized = options;
    sized.pages = pools[i].pages(*least);
    caches.push_back(layers_[i]->attention.make_cache(KvStorage::paged, sized));
  }
  return caches;
}

ConstTensorView Model::forward(std::span<const int32_t> tokens, std::span<const Span> spans, std::span<KvCache> caches,
                               const ForwardOptions& options, Workspace& workspace) const {
  const FloatEnvironment environment;
  check_call(tokens, caches, options);
  const auto count = static_cast<int64_t>(tokens.size());
  const TensorView hidden = workspace.memory().matrix(Memory::Piece::hidden, count, spec_.hidden_size);
  run_layers(tokens, spans, caches, options, hidden, workspace);
  return logits_of(hidden, spans, options.logits, workspace);
}

void Model::check_call(std::span<const int32_t> tokens, std::span<KvCache> caches,
                       const ForwardOptions& options) const {
  require(caches.size() == layers_.size(), "model: {} caches are given, expected {}, one a layer", caches.size(),
          layers_.size());
  for (const int32_t token : tokens)
    require(token >= 0 && token < spec_.vocab_size, "model: token id is {}, expected 0 to {}", token,
            spec_.vocab_size - 1);
  const Shape all{std::ssize(layers_) + 1, std::ssize(tokens), spec_.hidden_size};
  const TensorView& hidden = options.hidden_states;
  require(hidden.empty() || (hidden.shape() == all && hidden.dtype() == DType::f32 && hidden.is_dense()),
          "model: hidden_states has shape {} and dtype {}, expected {} and f32, dense", hidden.shape(),
          name_of(hidden.dtype()), all);
  require(!options.cancelled || ranks_.size() == 1, "model: cancelled is given over {} ranks, expected 1",
          ranks_.size());
}

// No layer's cache changes when a later one's can't. Over ranks layers make plans of their own: each has spread the
// tokens in its way.
std::optional<StepPlan> Model::plan_step(int64_t tokens, std::span<const Span> spans, std::span<KvCache> caches,
                                         const ForwardOptions& options, Workspace& workspace) const {
  if (ranks_.size() > 1) {
    std::vector<RankedCall::Layer> step;
    for (size_t i = 0; i < layers_.size(); ++i) step.push_back({layers_[i]->attention, &caches[i]});
    RankedCall::agree(step, spans, options.active_masks);
    return std::nullopt;
  }
  std::optional<StepPlan> plan(std::in_place,
                               Step{.tokens = tokens, .spans = spans, .active_masks = options.active_masks}, workspace);
  for (size_t i = 0; i < layers_.size(); ++i) plan->check(layers_[i]->attention.config(), caches[i]);
  return plan;
}

ConstTensorView Model::logits_of(ConstTensorView hidden, std::span<const Span> spans, Logits logits,
                                 Workspace& workspace) const {
  std::vector<int64_t> rows;
  int64_t end = 0;
  for (const Span& span : spans) {
    for (int64_t i = logits == Logits::all ? 0 : span.count - 1; i < span.count; ++i) rows.push_back(end + i);
    end += span.count;
  }
  Memory& memory = workspace.memory();
  const auto count = static_cast<int64_t>(rows.size());
  const TensorView normed = memory.matrix(Memory::Piece::normed, count, spec_.hidden_size);
  norm_->apply(hidden, normed, workspace.threads(), rows);
  const TensorView out = memory.matrix(Memory::Piece::logits, count, spec_.vocab_size);
  apply(std::array<const Linear*, 1>{&head()}, normed, std::array{out}, workspace);
  scale_rows(spec_.head.scale, out, workspace.threads());
  if (spec_.head.soft_cap > 0)
    for_each_row(count, workspace.threads(), [&](int64_t row, int) {
      kernels::soft_cap(spec_.head.soft_cap, spec_.vocab_size, out.as<float>() + row * spec_.vocab_size);
    });
  return out;
}

void Model::run_layers(std::span<const int32_t> tokens, std::span<const Span> spans, std::span<KvCache> caches,
                       const ForwardOptions& options, TensorView hidden, Workspace& workspace) const {
  std::optional<StepPlan> plan = plan_step(std::ssize(tokens), spans, caches, options, workspace);
  const RowSplit split = split_rows(hidden, spans, caches, options.active_masks, workspace);
  const auto report = [&](size_t layer) {
    if (options.hidden_states.empty()) return;
    const TensorView to = options.hidden_states[static_cast<int64_t>(layer)];
    if (split.scattered()) return gather_rows(split, to);
    std::copy_n(split.rows.as<float>(), split.rows.shape().elements(), to.as<float>());
  };
  embed(tokens, split, workspace.threads());
  report(0);
  AttentionInput input;
  input.spans = spans;
  input.active_masks = options.active_masks;
  input.workspace = &workspace;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (options.cancelled && options.cancelled()) throw Cancelled(fmt::format("cancelled before layer {}", i));
    input.cache = &caches[i];
    run_layer(*layers_[i], input, plan, split, workspace);
    report(i + 1);
  }
  if (split.scattered()) gather_rows(split, hidden);
}

void Model::embed(std::span<const int32_t> tokens, const RowSplit& split, const Threads& threads) const {
  for_each_row(split.rows.size(0), threads, [&](int64_t row, int) {
    embedding_.weight().decode_row(
        tokens[static_cast<size_t>(split.token_of(row))],
        {split.rows.as<float>() + row * spec_.hidden_size, static_cast<size_t>(spec_.hidden_size)});
  });
  scale_rows(spec_.embedding.scale, split.rows, threads);
}

// See LayerSpec for what a layer computes.
void Model::run_layer(const Layer& layer, AttentionInput& input, std::optional<StepPlan>& plan, const RowSplit& split,
                      Workspace& workspace) const {
  Memory& memory = workspace.memory();
  const Threads& threads = workspace.threads();
  const TensorView rows = split.rows;
  const auto matrix = [&](Memory::Piece piece) { return memory.matrix(piece, rows.size(0), spec_.hidden_size); };
  const auto normed = [&](const std::optional<Norm>& norm, Memory::Piece piece) -> ConstTensorView {
    if (!norm) return rows;
    const TensorView out = matrix(piece);
    norm->apply(rows, out, threads);
    return out;
  };
  const auto add = [&](TensorView branch, const std::optional<Norm>& norm) {
    if (norm) norm->apply(branch, branch, threads);
    add_rows(branch, layer.spec.residual_scale, rows, threads);
  };
  const ConstTensorView attention_input = normed(layer.attention_norm, Memory::Piece::layer_input);
  const TensorView branch = matrix(Memory::Piece::branch);
  input.hidden_states = attention_input;
  input.output = branch;
  layer.attention.run(input, plan ? &*plan : nullptr);
  if (!layer.spec.parallel) add(branch, layer.post_attention_norm);
  const ConstTensorView mlp_input =
      layer.spec.parallel && !layer.mlp_norm ? attention_input : normed(layer.mlp_norm, Memory::Piece::layer_input);
  const TensorView mlp_branch = layer.spec.parallel ? matrix(Memory::Piece::mlp_branch) : branch;
  layer.mlp.run(mlp_input, split, mlp_branch, workspace);
  if (layer.spec.parallel) add(branch, layer.post_attention_norm);
  add(mlp_branch, layer.post_mlp_norm);
}

// Between layers every rank has all rows, or with sequence parallelism its own.
RowSplit Model::split_rows(TensorView hidden, std::span<const Span> spans, std::span<KvCache> caches,
                           std::span<const ConstTensorView> active_masks, Workspace& workspace) const {
  RowSplit split{.rows = hidden, .rank = ranks_.rank(), .tokens = {}, .ranges = {}};
  if (!ranks_.config().sequence_parallel_enabled || ranks_.size() == 1) return split;
  int64_t first = 0;
  for (int64_t rank = 0; rank < ranks_.size(); ++rank) {
    split.tokens.push_back(layers_.front()->attention.tokens_of_rank(rank, spans, &caches.front(), active_masks));
    const auto count = static_cast<int64_t>(split.tokens.back().size());
    split.ranges.push_back({.first = first, .count = count});
    first += count;
  }
  split.rows = workspace.memory().matrix(Memory::Piece::own_hidden, split.own().count, spec_.hidden_size);
  return split;
}

// All rows in the order of their tokens.
void Model::gather_rows(const RowSplit& split, TensorView hidden) const {
  const Tensor all(DType::f32, hidden.shape());
  gather_split_rows(ranks_, split, split.rows, all);
  for (size_t rank = 0; rank < split.tokens.size(); ++rank)
    for (size_t i = 0; i < split.tokens[rank].size(); ++i)
      std::copy_n(all.view().as<float>() + (split.ranges[rank].first + static_cast<int64_t>(i)) * spec_.hidden_size,
                  spec_.hidden_size, hidden.as<float>() + split.tokens[rank][i] * spec_.hidden_size);
}

}  // namespace regard
