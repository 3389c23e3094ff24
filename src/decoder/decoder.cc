#include "regard/decoder.h"

#include <algorithm>
#include <array>
#include <optional>

#include "families/family.h"
#include "kernels/cache_rows.h"
#include "kernels/rows.h"
#include "kernels/workspace.h"
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
    return {.weight = PackedMatrix::pack(weight, threads), .bias = std::move(bias)};
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

Decoder Decoder::load(const Checkpoint& checkpoint, const Threads& threads) {
  const auto family = family_of(checkpoint);
  Decoder decoder;
  decoder.config_ = family->model();
  const ModelConfig& c = decoder.config_;
  decoder.embedding_ = load_linear(checkpoint, family->model_tensor("embedding"), c.vocab_size, c.hidden_size, threads);
  if (!c.tied_embeddings)
    decoder.output_ = load_linear(checkpoint, family->model_tensor("output"), c.vocab_size, c.hidden_size, threads);
  decoder.norm_ = load_norm(checkpoint, family->model_tensor("norm"), c.hidden_size);
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const auto name = [&](std::string_view part) { return family->layer_tensor(i, part); };
    decoder.layers_.push_back(
        {.attention = Attention::load(checkpoint, i, AttentionConfig::from(checkpoint, i), threads),
         .attention_norm = load_norm(checkpoint, name("attention.norm"), c.hidden_size),
         .mlp_norm = load_norm(checkpoint, name("mlp.norm"), c.hidden_size),
         .gate = load_linear(checkpoint, name("mlp.gate"), c.intermediate_size, c.hidden_size, threads),
         .up = load_linear(checkpoint, name("mlp.up"), c.intermediate_size, c.hidden_size, threads),
         .down = load_linear(checkpoint, name("mlp.down"), c.hidden_size, c.intermediate_size, threads)});
  }
  // All weights are packed: what the file's pages hold is not needed any more.
  checkpoint.release_pages();
  return decoder;
}

DecoderCost Decoder::cost(int64_t history, int64_t tokens, DType cache_dtype) const {
  DecoderCost cost;
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
    const int64_t stored = length - mask.visible(history, length).first;
    cost.operations += 2.0 * keys * static_cast<double>(c.num_attention_heads * (c.head_dim + c.v_head_dim));
    const int64_t elements = stored * c.num_key_value_heads * (c.head_dim + c.v_head_dim);
    cost.bytes +=
        static_cast<double>(elements * kernels::row_bytes_of_cache(cache_dtype)) / static_cast<double>(kernels::kTile);
  }
  add_linear(config_.tied_embeddings ? embedding_.weight : output_.weight, 1);
  return cost;
}

std::vector<KvCache> Decoder::make_caches(const KvCacheOptions& options) const {
  std::vector<KvCache> caches;
  for (const Layer& layer : layers_) {
    const AttentionConfig& config = layer.attention.config();
    const KvStorage storage = config.sliding_window > 0         ? KvStorage::ring
                              : config.attention_chunk_size > 0 ? KvStorage::chunk
                                                                : KvStorage::contiguous;
    caches.emplace_back(storage, options, config);
  }
  return caches;
}

std::vector<KvCache> Decoder::make_paged_caches(const KvCacheOptions& options, int64_t bytes) const {
  std::vector<std::optional<KvCache>> caches(layers_.size());
  int64_t left = bytes;
  int64_t bytes_of_row = 0;  // a page of every layer that keeps all tokens
  for (size_t i = 0; i < layers_.size(); ++i) {
    const AttentionConfig& config = layers_[i].attention.config();
    // One page costs no memory until it is written: this cache only tells the sizes of the one to come.
    KvCacheOptions one = options;
    one.pages = 1;
    const KvCache sample = KvCache::paged(one, config);
    const int64_t page_bytes = sample.bytes_per_token() * sample.page_size();
    if (config.sliding_window == 0 && config.attention_chunk_size == 0) {
      bytes_of_row += page_bytes;
    } else {
      caches[i] = KvCache::paged(options, config);
      left -= caches[i]->pages() * page_bytes;
    }
  }
  std::vector<KvCache> all;
  KvCacheOptions rest = options;
  if (bytes_of_row > 0) {
    // More than all slots can fill would be of no use.
    const int64_t page_size = options.page_size == 0 ? 32 : options.page_size;
    rest.pages = std::min(left / bytes_of_row, options.slots * ((options.capacity + page_size - 1) / page_size));
  }
  require(left >= 0 && (bytes_of_row == 0 || rest.pages >= options.slots),
          "the cache's memory is {} bytes, but {} sequences need at least {}", bytes, options.slots,
          bytes - left + options.slots * bytes_of_row);
  for (size_t i = 0; i < layers_.size(); ++i)
    all.push_back(caches[i] ? std::move(*caches[i]) : KvCache::paged(rest, layers_[i].attention.config()));
  return all;
}

ConstTensorView Decoder::forward(std::span<const int32_t> tokens, std::span<const Span> spans,
                                 std::span<KvCache> caches, Logits logits, Workspace& workspace,
                                 std::span<const ConstTensorView> active_masks) const {
  require(caches.size() == layers_.size(), "decoder: {} caches are given, expected {}, one a layer", caches.size(),
          layers_.size());
  for (const int32_t token : tokens)
    require(token >= 0 && token < config_.vocab_size, "decoder: token id is {}, expected 0 to {}", token,
            config_.vocab_size - 1);
  const auto count = static_cast<int64_t>(tokens.size());
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

void Decoder::run_layers(std::span<const int32_t> tokens, std::span<const Span> spans,
                         std::span<const ConstTensorView> active_masks, std::span<KvCache> caches, TensorView hidden,
                         Workspace& workspace) const {
  for_each_row(hidden.size(0), workspace.threads(), [&](int64_t row) {
    embedding_.weight.decode_row(tokens[static_cast<size_t>(row)], {hidden.as<float>() + row * config_.hidden_size,
                                                                    static_cast<size_t>(config_.hidden_size)});
  });
  const TensorView branch = workspace.memory().matrix(Memory::Piece::branch, hidden.size(0), config_.hidden_size);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = spans;
    input.active_masks = active_masks;
    input.output = branch;
    input.cache = &caches[i];
    input.rmsnorm = ConstTensorView(layer.attention_norm.data(), {config_.hidden_size});
    input.present_key_value = false;
    input.angles = false;
    input.workspace = &workspace;
    (void)layer.attention.forward(input);
    add_rows(branch, hidden, workspace.threads());
    run_mlp(layer, hidden, workspace);
  }
}

// Rows pass in pieces, so that the wide activations do not grow with the length of a prompt.
void Decoder::run_mlp(const Layer& layer, TensorView hidden, Workspace& workspace) const {
  constexpr int64_t kPieceTokens = 512;
  Memory& memory = workspace.memory();
  for (int64_t first = 0; first < hidden.size(0); first += kPieceTokens) {
    const TensorView x = hidden.slice(0, first, std::min(kPieceTokens, hidden.size(0) - first));
    const TensorView normed = memory.matrix(Memory::Piece::normed, x.size(0), config_.hidden_size);
    for_each_row(x.size(0), workspace.threads(), [&](int64_t row) {
      kernels::rms_norm(x.as<float>() + row * config_.hidden_size, layer.mlp_norm.data(), config_.rms_norm_eps,
                        config_.hidden_size, normed.as<float>() + row * config_.hidden_size);
    });
    const TensorView gate = memory.matrix(Memory::Piece::gate, x.size(0), config_.intermediate_size);
    const TensorView up = memory.matrix(Memory::Piece::up, x.size(0), config_.intermediate_size);
    apply(std::array<const Linear*, 2>{&layer.gate, &layer.up}, normed, std::array{gate, up}, workspace);
    for_each_row(x.size(0), workspace.threads(), [&](int64_t row) {
      kernels::silu_times(up.as<float>() + row * config_.intermediate_size, config_.intermediate_size,
                          gate.as<float>() + row * config_.intermediate_size);
    });
    apply(std::array<const Linear*, 1>{&layer.down}, gate, std::array{normed}, workspace);
    add_rows(normed, x, workspace.threads());
  }
}

}  // namespace regard
