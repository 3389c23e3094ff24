#include "regard/model.h"

#include <algorithm>
#include <array>
#include <optional>

#include "families/family.h"
#include "kernels/cache_rows.h"
#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "layers/attention_call.h"
#include "linear/row_parallel.h"
#include "parallel/even_parts.h"
#include "regard/block_table.h"
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

// The rows and columns of a matrix that are wanted; empty: all.
struct Wanted {
  std::vector<int64_t> rows;
  std::vector<Columns> columns;
};

Linear load_linear(const Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t columns,
                   const Threads& threads, const Wanted& wanted = {}) {
  const WeightView weight = read_matrix(checkpoint, name + ".weight");
  require(weight.rows == rows && weight.columns == columns,
          "checkpoint: tensor \"{}.weight\" has shape [{}, {}], expected [{}, {}]", name, weight.rows, weight.columns,
          rows, columns);
  std::vector<float> bias = read_vector(checkpoint, name + ".bias");
  require(bias.empty() || static_cast<int64_t>(bias.size()) == rows,
          "checkpoint: tensor \"{}.bias\" has {} numbers, expected {}", name, bias.size(), rows);
  try {
    if (!wanted.rows.empty() && !bias.empty()) {
      std::vector<float> own;
      for (const int64_t row : wanted.rows) own.push_back(bias[static_cast<size_t>(row)]);
      bias = std::move(own);
    }
    return {.weight = PackedMatrix::pack(weight, threads, wanted.rows, wanted.columns), .bias = std::move(bias)};
  } catch (const Error& error) {
    fail("checkpoint: tensor \"{}.weight\": {}", name, error.what());
  }
}

// Rows a thread works on at a time, so that small calls stay on one thread.
constexpr int64_t kRowRun = 16;

template <class Work>
void for_each_row(int64_t rows, const Threads& threads, Work work) {
  threads.for_each((rows + kRowRun - 1) / kRowRun, [&](int64_t run, int) {
    for (int64_t row = run * kRowRun; row < std::min((run + 1) * kRowRun, rows); ++row) work(row);
  });
}

void add_rows(ConstTensorView from, TensorView to, const Threads& threads) {
  const int64_t width = to.size(1);
  for_each_row(to.size(0), threads, [&](int64_t row) {
    const float* source = from.as<float>() + row * width;
    float* sum = to.as<float>() + row * width;
    for (int64_t i = 0; i < width; ++i) sum[i] += source[i];
  });
}

}  // namespace

namespace {

// How the MLPs' inner columns are summed over ranks. Ranks may have none where there are fewer leaves than ranks.
std::shared_ptr<const RowParallel> mlp_sum_of(const Ranks& ranks, int64_t columns) {
  const ParallelConfig& parallel = ranks.config();
  if (ranks.size() == 1 && !parallel.deterministic) return nullptr;
  const DType wire = parallel.rpl_reduce_dtype.value_or(DType::f32);
  std::vector<ElementRange> leaves;
  int64_t count = 0;
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    const ElementRange own = part_of(mlp_leaves(columns), ranks.size(), rank);
    leaves.push_back(parallel.deterministic ? own : ElementRange{.first = count, .count = own.count > 0 ? 1 : 0});
    count += leaves.back().count;
  }
  const int64_t width =
      parallel.deterministic ? kMlpLeaf : std::max<int64_t>(1, mlp_part_of(columns, ranks.size(), ranks.rank()).count);
  return std::make_shared<const RowParallel>(ranks.shared_world(), SumTree(count), leaves, width, wire);
}

}  // namespace

Model Model::load(const Checkpoint& checkpoint, const Threads& threads, const Ranks& ranks) {
  const auto family = family_of(checkpoint);
  Model decoder;
  decoder.config_ = family->model();
  decoder.ranks_ = ranks;
  decoder.mlp_sum_ = mlp_sum_of(ranks, decoder.config_.intermediate_size);
  const ModelConfig& c = decoder.config_;
  decoder.embedding_ = load_linear(checkpoint, family->model_tensor("embedding"), c.vocab_size, c.hidden_size, threads);
  if (!c.tied_embeddings)
    decoder.output_ = load_linear(checkpoint, family->model_tensor("output"), c.vocab_size, c.hidden_size, threads);
  decoder.norm_ = load_norm(checkpoint, family->model_tensor("norm"), c.hidden_size);
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const auto name = [&](std::string_view part) { return family->layer_tensor(i, part); };
    Layer& layer = decoder.layers_.emplace_back(
        Layer{.attention = Attention::load(checkpoint, i, AttentionConfig::from(checkpoint, i), threads, ranks),
              .attention_norm = load_norm(checkpoint, name("attention.norm"), c.hidden_size),
              .mlp_norm = load_norm(checkpoint, name("mlp.norm"), c.hidden_size)});
    decoder.load_mlp(checkpoint, i, threads, layer);
  }
  // All weights are packed: what the file's pages hold is not needed any more.
  checkpoint.release_pages();
  return decoder;
}

// This rank's inner columns; none, but the bias that it adds to its part of the sum, where there are more ranks than
// leaves.
void Model::load_mlp(const Checkpoint& checkpoint, int64_t layer, const Threads& threads, Layer& into) const {
  const auto family = family_of(checkpoint);
  const auto name = [&](std::string_view part) { return family->layer_tensor(layer, part); };
  const ModelConfig& c = config_;
  Wanted rows, columns;
  int64_t stored = c.intermediate_size;
  if (mlp_sum_ && checkpoint.shard()) {
    stored = mlp_part_of(c.intermediate_size, ranks_.size(), ranks_.rank()).count;
    if (stored == 0) into.down.bias = read_vector(checkpoint, name("mlp.down") + ".bias");
    if (stored == 0) return;
  } else if (mlp_sum_) {
    const ElementRange own = mlp_part_of(c.intermediate_size, ranks_.size(), ranks_.rank());
    if (own.count == 0) into.down.bias = read_vector(checkpoint, name("mlp.down") + ".bias");
    if (own.count == 0) return;
    for (int64_t i = own.first; i < own.end(); ++i) rows.rows.push_back(i);
    for (int64_t first = own.first; first < own.end(); first += kMlpLeaf)
      columns.columns.push_back({.first = first, .count = std::min(kMlpLeaf, own.end() - first)});
  }
  into.gate = load_linear(checkpoint, name("mlp.gate"), stored, c.hidden_size, threads, rows);
  into.up = load_linear(checkpoint, name("mlp.up"), stored, c.hidden_size, threads, rows);
  into.down = load_linear(checkpoint, name("mlp.down"), c.hidden_size, stored, threads, columns);
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
    for (const Linear* linear :
         {&qkv.q(), &qkv.k(), &qkv.v(), &attention.output_projection().linear(), &layer.gate, &layer.up, &layer.down})
      add_linear(linear->weight, tokens);
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
  add_linear(config_.tied_embeddings ? embedding_.weight : output_.weight, 1);
  return cost;
}

std::vector<KvCache> Model::make_caches(const KvCacheOptions& options) const {
  std::vector<KvCache> caches;
  for (const Layer& layer : layers_) {
    const Mask mask = Mask::of(layer.attention.config());
    caches.push_back(layer.attention.make_cache(bounded_storage(mask), options));
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
    pools.push_back({.page_bytes = sample.bytes_per_token() * sample.block_tables().page_size(),
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
  for_each_row(row_count, workspace.threads(), [&](int64_t row) {
    kernels::rms_norm(hidden.as<float>() + rows[static_cast<size_t>(row)] * config_.hidden_size, norm_.data(),
                      config_.rms_norm_eps, config_.hidden_size, normed.as<float>() + row * config_.hidden_size);
  });
  const TensorView out = memory.matrix(Memory::Piece::logits, row_count, config_.vocab_size);
  const std::array<const Linear*, 1> head = {config_.tied_embeddings ? &embedding_ : &output_};
  apply(head, normed, std::array{out}, workspace);
  return out;
}

// The rows that this rank has between layers.
struct Model::RowSplit {
  TensorView rows;
  int64_t rank = 0;
  // Where each rank has its own: their tokens, and their places when ranks' rows lie one after the other.
  std::vector<std::vector<int64_t>> tokens;
  std::vector<ElementRange> ranges;

  [[nodiscard]] bool scattered() const { return !ranges.empty(); }
  [[nodiscard]] const ElementRange& own() const { return ranges[static_cast<size_t>(rank)]; }
  // The token of the call that a row is.
  [[nodiscard]] int64_t token_of(int64_t row) const {
    return scattered() ? tokens[static_cast<size_t>(rank)][static_cast<size_t>(row)] : row;
  }
};

void Model::run_layers(std::span<const int32_t> tokens, std::span<const Span> spans,
                       std::span<const ConstTensorView> active_masks, std::span<KvCache> caches, TensorView hidden,
                       Workspace& workspace) const {
  const RowSplit split = split_rows(hidden, spans, active_masks, caches, workspace);
  for_each_row(split.rows.size(0), workspace.threads(), [&](int64_t row) {
    embedding_.weight.decode_row(
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
    run_mlp(layer, split, workspace);
  }
  if (split.scattered()) gather_rows(split, hidden);
}

// Between layers every rank has all rows, or with sequence parallelism its own.
Model::RowSplit Model::split_rows(TensorView hidden, std::span<const Span> spans,
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
  all_gather(split, split.rows, all);
  for (size_t rank = 0; rank < split.tokens.size(); ++rank)
    for (size_t i = 0; i < split.tokens[rank].size(); ++i)
      std::copy_n(all.view().as<float>() + (split.ranges[rank].first + static_cast<int64_t>(i)) * config_.hidden_size,
                  config_.hidden_size, hidden.as<float>() + split.tokens[rank][i] * config_.hidden_size);
}

// Every rank's rows one after the other, in order of ranks.
void Model::all_gather(const RowSplit& split, ConstTensorView own, TensorView all) const {
  const int64_t row_bytes = config_.hidden_size * static_cast<int64_t>(sizeof(float));
  std::vector<std::span<std::byte>> parts;
  for (const ElementRange& range : split.ranges)
    parts.emplace_back(all.data() + range.first * row_bytes, static_cast<size_t>(range.count * row_bytes));
  ranks_.world().all_gather({own.data(), static_cast<size_t>(split.own().count * row_bytes)}, parts);
}

// Rows pass in pieces, so that the wide activations do not grow with the length of a prompt.
void Model::run_mlp(const Layer& layer, const RowSplit& split, Workspace& workspace) const {
  constexpr int64_t kPieceTokens = 512;
  Memory& memory = workspace.memory();
  const TensorView rows = split.rows;
  const TensorView branch = memory.matrix(Memory::Piece::branch, rows.size(0), config_.hidden_size);
  std::optional<SummedRows> sums;
  if (mlp_sum_) sums.emplace(*mlp_sum_, layer.down, workspace);
  ConstTensorView all;
  if (split.scattered()) {
    const TensorView gathered =
        memory.matrix(Memory::Piece::all_hidden, split.ranges.back().end(), config_.hidden_size);
    all_gather(split, normed(layer, rows, workspace), gathered);
    all = gathered;
  }
  const int64_t count = split.scattered() ? all.size(0) : rows.size(0);
  for (int64_t first = 0; first < count; first += kPieceTokens) {
    const ElementRange piece{.first = first, .count = std::min(kPieceTokens, count - first)};
    const TensorView gate = gated(layer,
                                  split.scattered() ? all.slice(0, first, piece.count)
                                                    : normed(layer, rows.slice(0, first, piece.count), workspace),
                                  workspace);
    if (!sums) {
      apply(std::array<const Linear*, 1>{&layer.down}, gate, std::array{branch.slice(0, first, piece.count)},
            workspace);
    } else if (!split.scattered()) {
      sums->add(gate, branch.slice(0, first, piece.count));
    } else {
      std::vector<ElementRange> parts;
      for (const ElementRange& range : split.ranges) parts.push_back(inside(range, piece));
      const ElementRange own = parts[static_cast<size_t>(ranks_.rank())];
      const int64_t own_first = own.count == 0 ? 0 : first + own.first - split.own().first;
      sums->scatter(gate, parts, branch.slice(0, own_first, own.count));
    }
  }
  if (sums) sums->finish();
  add_rows(branch, rows, workspace.threads());
}

ConstTensorView Model::normed(const Layer& layer, ConstTensorView rows, Workspace& workspace) const {
  const TensorView out = workspace.memory().matrix(Memory::Piece::normed, rows.size(0), config_.hidden_size);
  for_each_row(out.size(0), workspace.threads(), [&](int64_t row) {
    kernels::rms_norm(rows.as<float>() + row * config_.hidden_size, layer.mlp_norm.data(), config_.rms_norm_eps,
                      config_.hidden_size, out.as<float>() + row * config_.hidden_size);
  });
  return out;
}

// silu(x G^T) * (x U^T) over this rank's inner columns.
TensorView Model::gated(const Layer& layer, ConstTensorView x, Workspace& workspace) const {
  const int64_t inner = layer.gate.weight.rows();
  const TensorView gate = workspace.memory().matrix(Memory::Piece::gate, x.size(0), inner);
  if (inner == 0) return gate;
  const TensorView up = workspace.memory().matrix(Memory::Piece::up, x.size(0), inner);
  apply(std::array<const Linear*, 2>{&layer.gate, &layer.up}, x, std::array{gate, up}, workspace);
  for_each_row(x.size(0), workspace.threads(), [&](int64_t row) {
    kernels::silu_times(up.as<float>() + row * inner, inner, gate.as<float>() + row * inner);
  });
  return gate;
}

}  // namespace regard
