#pragma once

#include <array>
#include <memory>
#include <vector>

#include "kernels/attend.h"
#include "kernels/matmul.h"
#include "regard/linear.h"
#include "regard/workspace.h"

namespace regard {

struct StepMemory;

/// Named pieces of memory, each as large as the largest call asked for.
struct Workspace::Memory {
  enum class Piece : uint8_t {
    queries,
    keys,
    values,
    attended,
    tail_keys,
    tail_values,
    tail_key_scales,
    tail_value_scales,
    normed,
    ordered,
    hidden,
    own_hidden,
    all_hidden,
    layer_input,
    branch,
    mlp_branch,
    gate,
    up,
    router_logits,
    expert_rows,
    shared,
    logits,
    count
  };

  kernels::MatmulScratch matmul;
  kernels::AttendScratch attend;
  std::vector<kernels::Product> products;  ///< Of a grouped call, with its groups.
  std::vector<kernels::ProductGroup> product_groups;
  // Rows on their way through experts, which have one group of them each.
  std::vector<RowGroup> row_groups;
  std::vector<int64_t> expert_tokens;   ///< The token of each row.
  std::vector<int64_t> expert_ends;     ///< Behind each expert's rows.
  std::vector<int64_t> chosen_experts;  ///< [tokens][experts_per_token], with weights and rows of the same choices.
  std::vector<float> chosen_weights;
  std::vector<int64_t> chosen_rows;
  std::vector<double> router_scores;  ///< Of each thread.
  std::vector<kernels::AttendSpan> spans;
  std::vector<Interval> visible;
  std::shared_ptr<StepMemory> step;  ///< Of the plans of steps: layers/step_plan.h
  std::vector<float> row;
  std::vector<Buffer> terms;  // of sums over trees, by level

  /// Piece as an f32 matrix of that shape. What it held before is lost.
  [[nodiscard]] TensorView matrix(Piece piece, int64_t rows, int64_t columns) {
    Buffer& buffer = pieces_[static_cast<size_t>(piece)];
    const auto bytes = static_cast<size_t>(rows * columns) * sizeof(float);
    if (buffer.size() < bytes) buffer = Buffer(bytes);
    return TensorView(buffer.data(), DType::f32, {rows, columns});
  }

 private:
  std::array<Buffer, static_cast<size_t>(Piece::count)> pieces_;
};

}  // namespace regard
