#include "layers/hidden_output.h"

#include <algorithm>
#include <cstring>

#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "parallel/rank_order.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

std::span<std::byte> bytes_of(TensorView rows) {
  return {rows.data(), static_cast<size_t>(rows.shape().elements()) * size_of(rows.dtype())};
}

}  // namespace

HiddenOutput::HiddenOutput(const AttentionShard& shard, const RankPlace* place, TensorView hidden, Workspace& workspace)
    : shard_(shard), place_(place), hidden_(hidden), workspace_(workspace), way_(find_way()) {
  if (!shard.output_sum.empty()) sums_.emplace(shard.output_sum, shard.output.linear(), workspace);
  if (place == nullptr) return;
  const int64_t tokens = place->tokens.count_of(place->stage.row);
  const int64_t width = shard.config.hidden_size;
  if (way_ == Way::sum_then_parts)
    own_ = Tensor(hidden.dtype(), {part_of(tokens, shard.row->size(), place->stage.column).count, width});
  if (way_ == Way::rows_then_sum)
    partials_ = Tensor(place->ranks.config().rpl_reduce_dtype.value_or(DType::f32),
                       {std::ssize(shard.output_sum.sum().own_nodes()), tokens, width});
}

HiddenOutput::Way HiddenOutput::find_way() const {
  if (shard_.output_sum.empty() && (place_ == nullptr || place_->ranks.size() == 1)) return Way::alone;
  if (place_ == nullptr) return Way::to_all_direct;
  if (place_->scattered) return Way::to_own_part;
  const auto& tokens = place_->tokens;
  if (tokens.rows() == 1 && tokens.count_of(0) == hidden_.size(0)) return Way::to_all_direct;
  if (tokens.rows() == 1) return Way::sum_then_rows;
  switch (place_->dispatch) {
    case OutputDispatch::AR_AG:
      return Way::sum_then_rows;
    case OutputDispatch::RS_AG:
      return Way::sum_then_parts;
    case OutputDispatch::AG_AR:
      break;
  }
  return Way::rows_then_sum;
}

void HiddenOutput::write(int64_t first, ConstTensorView attended) {
  switch (way_) {
    case Way::alone:
      return write_alone(first, attended);
    case Way::to_all_direct:
      return sums_->add(attended, hidden_.slice(0, first, attended.size(0)));
    case Way::sum_then_rows:
      return write_row(first, attended);
    case Way::to_own_part:
    case Way::sum_then_parts:
      return write_part(first, attended);
    case Way::rows_then_sum:
      return write_partials(first, attended);
  }
}

void HiddenOutput::finish() {
  if (sums_) sums_->finish();
  if (way_ == Way::sum_then_rows) gather_rows();
  if (way_ == Way::sum_then_parts) gather_parts();
  if (way_ == Way::rows_then_sum) sum_gathered();
}

void HiddenOutput::write_alone(int64_t first, ConstTensorView attended) {
  const TensorView out = hidden_.slice(0, first, attended.size(0));
  if (hidden_.dtype() == DType::f32) return shard_.output.forward(attended, out, workspace_);
  const TensorView wide = workspace_.memory().matrix(Memory::Piece::normed, out.size(0), out.size(1));
  shard_.output.forward(attended, wide, workspace_);
  kernels::store_floats(wide.as<float>(), wide.shape().elements(), hidden_.dtype(), out.data());
}

// Every rank of the row gets an even part of the row's tokens; a piece may touch several parts.
void HiddenOutput::write_part(int64_t first, ConstTensorView attended) {
  const auto parts_of_row = even_parts(place_->tokens.count_of(place_->stage.row), shard_.row->size());
  std::vector<ElementRange> parts;
  parts.reserve(parts_of_row.size());
  for (const ElementRange& part : parts_of_row) parts.push_back(inside(part, {first, attended.size(0)}));
  const auto column = static_cast<size_t>(place_->stage.column);
  const ElementRange own = parts[column];
  const int64_t own_first = own.count == 0 ? 0 : first + own.first - parts_of_row[column].first;
  const TensorView target = way_ == Way::to_own_part ? hidden_ : own_.view();
  sums_->scatter(attended, parts, target.slice(0, own_first, own.count));
}

void HiddenOutput::write_row(int64_t first, ConstTensorView attended) {
  StagedPiece& piece = staged_[static_cast<size_t>(pieces_++) % staged_.size()];
  place(piece);
  piece.first = first;
  piece.count = attended.size(0);
  if (piece.rows.empty() || piece.rows.shape()[0] < piece.count)
    piece.rows = Tensor(hidden_.dtype(), {piece.count, hidden_.size(1)});
  sums_->add(attended, piece.rows.view().slice(0, 0, piece.count));
}

void HiddenOutput::place(StagedPiece& piece) {
  if (piece.count == 0) return;
  place_rows(tokens_of(place_->stage.row, {piece.first, piece.count}), piece.rows.view().slice(0, 0, piece.count));
  piece.count = 0;
}

std::span<const int64_t> HiddenOutput::tokens_of(int64_t row, ElementRange range) const {
  return std::span(place_->tokens.tokens_of(row))
      .subspan(static_cast<size_t>(range.first), static_cast<size_t>(range.count));
}

void HiddenOutput::write_partials(int64_t first, ConstTensorView attended) {
  const RowParallel& parallel = shard_.output_sum;
  const auto nodes = static_cast<int64_t>(parallel.sum().own_nodes().size());
  const int64_t count = attended.size(0) * shard_.config.hidden_size;
  std::vector<float> piece(static_cast<size_t>(nodes * count));
  parallel.multiply(shard_.output.linear().weight(), attended, piece, workspace_);
  for (int64_t node = 0; node < nodes; ++node)
    kernels::store_floats(piece.data() + node * count, count, partials_.dtype(),
                          partials_.view().slice(0, node, 1).slice(1, first, attended.size(0)).data());
}

void HiddenOutput::place_rows(std::span<const int64_t> tokens, ConstTensorView rows) {
  const auto row_bytes = static_cast<size_t>(rows.size(1)) * size_of(rows.dtype());
  for (size_t i = 0; i < tokens.size(); ++i)
    std::memcpy(hidden_.slice(0, tokens[i], 1).data(), rows.data() + i * row_bytes, row_bytes);
}

// Each rank has its row's tokens and gets those of its column, a piece of each row's at a time.
void HiddenOutput::gather_rows() {
  for (StagedPiece& piece : staged_) place(piece);
  const StageTokens& tokens = place_->tokens;
  const auto row_bytes = static_cast<size_t>(hidden_.size(1)) * size_of(hidden_.dtype());
  int64_t most = 0;
  for (int64_t row = 0; row < tokens.rows(); ++row) most = std::max(most, tokens.count_of(row));
  for (int64_t first = 0; first < most && tokens.rows() > 1; first += KvCache::kTokensAtOnce) {
    std::vector<std::span<const int64_t>> of_rows;
    std::vector<Tensor> rows;
    std::vector<std::span<std::byte>> parts;
    for (int64_t row = 0; row < tokens.rows(); ++row) {
      const int64_t start = std::min(first, tokens.count_of(row));
      of_rows.push_back(tokens_of(row, {start, std::min(KvCache::kTokensAtOnce, tokens.count_of(row) - start)}));
      rows.emplace_back(hidden_.dtype(), Shape{std::ssize(of_rows.back()), hidden_.size(1)});
      parts.push_back(bytes_of(rows.back()));
    }
    const auto own = static_cast<size_t>(place_->stage.row);
    const std::vector<std::byte> sent = [&] {
      std::vector<std::byte> bytes(parts[own].size());
      for (size_t i = 0; i < of_rows[own].size(); ++i)
        std::memcpy(bytes.data() + i * row_bytes, hidden_.slice(0, of_rows[own][i], 1).data(), row_bytes);
      return bytes;
    }();
    place_->stage.in_column->all_gather(sent, parts);
    for (size_t row = 0; row < rows.size(); ++row)
      if (row != own) place_rows(of_rows[row], rows[row].view());
  }
}

// Each rank has a part of its row's tokens and gets those of all ranks.
void HiddenOutput::gather_parts() {
  const StageTokens& tokens = place_->tokens;
  const Ranks& ranks = place_->ranks;
  const RankMesh mesh(ranks.size(), place_->stage.degree, ranks.config().switch_cc);
  std::vector<std::span<const int64_t>> owned;
  std::vector<Tensor> rows;
  std::vector<std::span<std::byte>> parts;
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    const auto& of_row = tokens.tokens_of(mesh.row_of(rank));
    const ElementRange part = part_of(static_cast<int64_t>(of_row.size()), mesh.columns(), mesh.column_of(rank));
    owned.push_back(std::span(of_row).subspan(static_cast<size_t>(part.first), static_cast<size_t>(part.count)));
    rows.emplace_back(hidden_.dtype(), Shape{part.count, hidden_.size(1)});
    parts.push_back(bytes_of(rows.back()));
  }
  ranks.world().all_gather(bytes_of(own_), parts);
  for (size_t rank = 0; rank < rows.size(); ++rank) place_rows(owned[rank], rows[rank].view());
}

// The ranks of a column have the same nodes of the sum, each for its row's tokens. What was rounded on the way between
// rows is not rounded again inside the row.
void HiddenOutput::sum_gathered() {
  const StageTokens& tokens = place_->tokens;
  const int64_t width = hidden_.size(1);
  const int64_t nodes = partials_.shape()[0];
  std::vector<Tensor> rows;
  std::vector<std::span<std::byte>> parts;
  std::vector<int64_t> order;
  for (int64_t row = 0; row < tokens.rows(); ++row) {
    const auto& of_row = tokens.tokens_of(row);
    order.insert(order.end(), of_row.begin(), of_row.end());
    rows.emplace_back(partials_.dtype(), Shape{nodes, tokens.count_of(row), width});
    parts.push_back(bytes_of(rows.back()));
  }
  place_->stage.in_column->all_gather(bytes_of(partials_), parts);
  own_ = Tensor(hidden_.dtype(), {static_cast<int64_t>(order.size()), width});
  sums_->add_partials(
      [&](std::span<float> partials) {
        float* out = partials.data();
        for (int64_t node = 0; node < nodes; ++node)
          for (const Tensor& row : rows) {
            const int64_t count = row.shape()[1] * width;
            kernels::load_floats(row.view().slice(0, node, 1).data(), row.dtype(), count, out);
            out += count;
          }
      },
      own_);
  sums_->finish();
  place_rows(order, own_.view());
}

}  // namespace regard
