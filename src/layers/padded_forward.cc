#include <algorithm>
#include <cstring>
#include <limits>

#include "regard/attention.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

// The padded form is an adapter: real tokens are packed, computed as spans, and put back. Padding is never computed.
namespace regard {
namespace {

// The real tokens of one row of the batch.
struct Row {
  int64_t slot = -1;
  int64_t first = 0;  // index in the row of its first real token
  int64_t count = 0;
  int64_t first_position = 0;
  int64_t prefix = 0;
};

int64_t integer_at(ConstTensorView view, int64_t row, int64_t column) {
  const ConstTensorView element = view[row][column];
  switch (view.dtype()) {
    case DType::boolean:
    case DType::u8:
      return std::to_integer<int64_t>(*element.data());
    case DType::i32:
      return *element.as<int32_t>();
    case DType::i64:
      return *element.as<int64_t>();
    default:
      fail("attention: attention_mask or position_ids has dtype {}, expected bool, u8, i32 or i64",
           name_of(view.dtype()));
  }
}

class PaddedCall {
 public:
  PaddedCall(const Attention& attention, const PaddedAttentionInput& input)
      : attention_(attention), config_(attention.config()), input_(input) {
    const ConstTensorView& x = input.hidden_states;
    require(x.shape().rank() == 3 && x.size(2) == config_.input_size() && x.is_dense(),
            "attention: hidden_states has shape {}, expected [batch, seq, {}], dense", x.shape(), config_.input_size());
    require(!attention.ranks().config().sequence_parallel_enabled,
            "attention: a padded batch is given, expected packed tokens with sequence_parallel_enabled");
    batch_ = x.size(0);
    seq_ = x.size(1);
    check_matrix("attention_mask", input.attention_mask);
    check_matrix("position_ids", input.position_ids);
    const Shape all{batch_, seq_, seq_};
    const Shape shared{seq_, seq_};
    require(input.active_mask.empty() || input.active_mask.shape() == all || input.active_mask.shape() == shared,
            "attention: active_mask has shape {}, expected {} or {}", input.active_mask.shape(), all, shared);
    require(input.seq_ids.empty() || static_cast<int64_t>(input.seq_ids.size()) == batch_,
            "attention: seq_ids has {} entries, expected {}", input.seq_ids.size(), batch_);
    require(input.prefixes.empty() || static_cast<int64_t>(input.prefixes.size()) == batch_,
            "attention: prefixes has {} entries, expected {}", input.prefixes.size(), batch_);
    require(
        input.rotary_position_ids.empty() || static_cast<int64_t>(input.rotary_position_ids.size()) == batch_ * seq_,
        "attention: rotary_position_ids has {} entries, expected {}", input.rotary_position_ids.size(), batch_ * seq_);
    for (int64_t row = 0; row < batch_; ++row) rows_.push_back(find_row(row));
  }

  AttentionOutput run() {
    std::vector<Span> spans;
    std::vector<int64_t> rotary;
    std::vector<ConstTensorView> active_masks;
    int64_t tokens = 0;
    for (int64_t b = 0; b < batch_; ++b) {
      const Row& row = rows_[static_cast<size_t>(b)];
      if (row.count == 0) continue;
      spans.push_back(
          {.slot = row.slot, .first_position = row.first_position, .count = row.count, .prefix = row.prefix});
      tokens += row.count;
      if (!input_.active_mask.empty()) active_masks.push_back(active_mask(b, row));
      if (input_.rotary_position_ids.empty()) continue;
      const auto ids =
          input_.rotary_position_ids.subspan(static_cast<size_t>(b * seq_ + row.first), static_cast<size_t>(row.count));
      rotary.insert(rotary.end(), ids.begin(), ids.end());
    }
    const Tensor packed = pack(input_.hidden_states, tokens);
    const Tensor residual = input_.residual.empty() ? Tensor() : pack(input_.residual, tokens);
    AttentionInput inner;
    static_cast<AttentionOptions&>(inner) = input_;
    inner.hidden_states = packed;
    inner.spans = spans;
    inner.rotary_position_ids = rotary;
    inner.active_masks = active_masks;
    if (!residual.empty()) inner.residual = residual;
    AttentionOutput output = attention_.forward(inner);
    output.hidden_states =
        unpack(output.hidden_states, Tensor(output.hidden_states.dtype(), {batch_, seq_, config_.hidden_size}));
    if (!output.residual.empty())
      output.residual = unpack(output.residual, Tensor(output.residual.dtype(), input_.residual.shape()));
    if (!output.lse.empty()) output.lse = unpack(output.lse, no_keys(output.lse.shape()[1]));
    if (!output.present_key_value.key.empty())
      output.present_key_value = {.key = heads_first(output.present_key_value.key),
                                  .value = heads_first(output.present_key_value.value)};
    return output;
  }

 private:
  void check_matrix(const char* name, ConstTensorView view) const {
    require(view.empty() || view.shape() == Shape{batch_, seq_}, "attention: {} has shape {}, expected [{}, {}]", name,
            view.shape(), batch_, seq_);
  }

  Row find_row(int64_t b) const {
    Row row{.slot = input_.seq_ids.empty() ? b : input_.seq_ids[static_cast<size_t>(b)]};
    row.count = seq_;
    if (!input_.attention_mask.empty()) {
      const auto real = [&](int64_t i) { return integer_at(input_.attention_mask, b, i) != 0; };
      while (row.first < seq_ && !real(row.first)) ++row.first;
      int64_t end = row.first;
      while (end < seq_ && real(end)) ++end;
      for (int64_t i = end; i < seq_; ++i)
        require(!real(i),
                "attention: attention_mask of row {} has padding between tokens, at index {}; expected it at one side",
                b, end);
      row.count = end - row.first;
    }
    if (row.slot == -1) row.count = 0;
    limit_prompt(b, row);
    if (row.count > 0) row.first_position = first_position(b, row);
    if (!input_.prefixes.empty()) row.prefix = input_.prefixes[static_cast<size_t>(b)];
    return row;
  }

  void limit_prompt(int64_t b, Row& row) const {
    const auto& inference = config_.inference;
    if (inference.max_context_length == 0 || row.count <= inference.max_context_length) return;
    require(inference.allow_input_truncation,
            "attention: row {} has {} tokens, expected at most max_context_length ({})", b, row.count,
            inference.max_context_length);
    row.count = inference.max_context_length;
  }

  int64_t first_position(int64_t b, const Row& row) const {
    if (input_.position_ids.empty()) {
      if (input_.cache == nullptr) return 0;
      require(!attention_.shares_sequences(),
              "attention: position_ids is missing, expected it where ranks divide sequences or their tokens: none "
              "knows all lengths");
      return input_.cache->length(row.slot);
    }
    const int64_t first = integer_at(input_.position_ids, b, row.first);
    require(first >= 0 && first <= std::numeric_limits<int64_t>::max() - seq_,
            "attention: position_ids of row {} starts at {}, expected a position from 0 on", b, first);
    for (int64_t i = 0; i < row.count; ++i) {
      const int64_t position = integer_at(input_.position_ids, b, row.first + i);
      require(position == first + i,
              "attention: position_ids of row {} has {} at index {}, expected {}; a row's tokens are consecutive", b,
              position, row.first + i, first + i);
    }
    return first;
  }

  // What the row's real tokens see of each other.
  [[nodiscard]] ConstTensorView active_mask(int64_t b, const Row& row) const {
    const ConstTensorView& all = input_.active_mask;
    const ConstTensorView mask = all.shape().rank() == 2 ? all : all[b];
    return mask.slice(0, row.first, row.count).slice(1, row.first, row.count);
  }

  // [batch, seq, width] -> [tokens, width]
  Tensor pack(ConstTensorView padded, int64_t tokens) const {
    require(padded.shape() == input_.hidden_states.shape() && padded.is_dense(),
            "attention: residual has shape {}, expected {}, dense", padded.shape(), input_.hidden_states.shape());
    Tensor packed(padded.dtype(), {tokens, padded.size(2)});
    std::byte* to = packed.view().data();
    for (int64_t b = 0; b < batch_; ++b) {
      const Row& row = rows_[static_cast<size_t>(b)];
      if (row.count == 0) continue;
      const auto part = padded[b].slice(0, row.first, row.count);
      const auto bytes = static_cast<size_t>(part.shape().elements()) * size_of(part.dtype());
      std::memcpy(to, part.data(), bytes);
      to += bytes;
    }
    return packed;
  }

  // Log-sum-exps of tokens that see nothing: what merges with others without changing them.
  Tensor no_keys(int64_t heads) const {
    Tensor lse(DType::f32, {batch_, seq_, heads});
    std::ranges::fill(lse.elements<float>(), -std::numeric_limits<float>::infinity());
    return lse;
  }

  // [tokens, width] -> [batch, seq, width]; where there is no token, `padded` keeps what it holds.
  Tensor unpack(const Tensor& packed, Tensor padded) const {
    const std::byte* from = packed.view().data();
    for (int64_t b = 0; b < batch_; ++b) {
      const Row& row = rows_[static_cast<size_t>(b)];
      if (row.count == 0) continue;
      const auto part = padded.view()[b].slice(0, row.first, row.count);
      const auto bytes = static_cast<size_t>(part.shape().elements()) * size_of(part.dtype());
      std::memcpy(part.data(), from, bytes);
      from += bytes;
    }
    return padded;
  }

  // [tokens, kv_heads, width] -> [batch, kv_heads, seq, width] [OUT-10]
  Tensor heads_first(const Tensor& packed) const {
    const int64_t heads = packed.shape()[1];
    const int64_t width = packed.shape()[2];
    Tensor padded(DType::f32, {batch_, heads, seq_, width});
    const float* from = packed.view().as<float>();
    for (int64_t b = 0; b < batch_; ++b) {
      const Row& row = rows_[static_cast<size_t>(b)];
      for (int64_t i = row.first; i < row.first + row.count; ++i)
        for (int64_t head = 0; head < heads; ++head, from += width)
          std::copy_n(from, width, padded.view()[b][head][i].as<float>());
    }
    return padded;
  }

  const Attention& attention_;
  const AttentionConfig& config_;
  const PaddedAttentionInput& input_;
  int64_t batch_ = 0;
  int64_t seq_ = 0;
  std::vector<Row> rows_;
};

}  // namespace

AttentionOutput Attention::forward(const PaddedAttentionInput& input) const {
  const FloatEnvironment environment;
  return PaddedCall(*this, input).run();
}

}  // namespace regard
