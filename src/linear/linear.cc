#include "regard/linear.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

constexpr size_t kMostLayers = 8;

void check_input(ConstTensorView x) {
  require(x.shape().rank() == 2 && (x.size(1) <= 1 || x.stride(1) == 1),
          "linear: input has shape {}, expected [tokens, columns], dense rows", x.shape());
  require(x.dtype() == DType::f32 || x.dtype() == DType::bf16 || x.dtype() == DType::f16,
          "linear: input has dtype {}, expected f32, bf16 or f16", name_of(x.dtype()));
}

void check_columns(const PackedMatrix& weight, ConstTensorView x) {
  require(weight.columns() == x.size(1), "linear: input has {} columns, expected {}", x.size(1), weight.columns());
}

void check_part(const PackedMatrix& weight, ConstTensorView x, int64_t first, int64_t count) {
  require(first >= 0 && count >= 1 && first + count <= weight.columns() && weight.columns() == x.size(1),
          "linear: columns {} to {} are asked for, of an input with {} and a weight with {}", first, first + count - 1,
          x.size(1), weight.columns());
  require(weight.order().empty(), "linear: columns {} to {} are asked for, of a weight whose columns have an order",
          first, first + count - 1);
}

kernels::Product product_of(const PackedMatrix& weight, int64_t rows, TensorView out) {
  const Shape expected{rows, weight.rows()};
  require(out.shape() == expected, "linear: output has shape {}, expected {}", out.shape(), expected);
  return {.weights = weight.panel(),
          .columns = weight.rows(),
          .bias = nullptr,
          .out = out.as<float>(),
          .out_stride = out.stride(0)};
}

kernels::Product product_of(const Linear& layer, int64_t rows, TensorView out) {
  kernels::Product product = product_of(layer.weight(), rows, out);
  product.bias = layer.bias().empty() ? nullptr : layer.bias().data();
  return product;
}

kernels::InputRows input_rows(ConstTensorView x) {
  return {.data = x.data(), .dtype = x.dtype(), .rows = x.size(0), .depth = x.size(1), .stride = x.stride(0)};
}

void multiply(ConstTensorView x, std::span<const kernels::Product> products, Workspace& workspace) {
  const kernels::ProductGroup all{.first = 0, .count = x.size(0), .products = products};
  kernels::matmul(input_rows(x), {&all, 1}, workspace.memory().matmul, workspace.threads(), workspace.options());
}

// Writes a row's numbers as f32, in the order that a panel has its columns in.
void put_in_order(ConstTensorView x, int64_t row, std::span<const int64_t> order, float* wide, float* out) {
  const auto row_bytes = x.stride(0) * static_cast<int64_t>(size_of(x.dtype()));
  kernels::load_floats(x.data() + row * row_bytes, x.dtype(), x.size(1), order.empty() ? out : wide);
  for (size_t k = 0; k < order.size(); ++k) out[k] = wide[order[k]];
}

// Rows for one layer whose columns have an order.
ConstTensorView ordered_rows(ConstTensorView x, std::span<const int64_t> order, Memory& memory) {
  const TensorView ordered = memory.matrix(Memory::Piece::ordered, x.size(0), x.size(1));
  memory.row.resize(static_cast<size_t>(x.size(1)));
  for (int64_t row = 0; row < x.size(0); ++row)
    put_in_order(x, row, order, memory.row.data(), ordered.as<float>() + row * x.size(1));
  return ordered;
}

bool has_order(const Linear* layer) { return !layer->weight().order().empty(); }

void check_groups(std::span<const RowGroup> groups, int64_t rows, size_t outs) {
  int64_t end = 0;
  for (const RowGroup& group : groups) {
    require(group.first == end && group.count >= 0 && group.layers.size() == outs,
            "linear: a group has rows {} to {} and {} layers, expected rows from {} on and {} layers", group.first,
            group.first + group.count - 1, group.layers.size(), end, outs);
    end += group.count;
  }
  require(end == rows, "linear: the groups have {} rows, expected {}", end, rows);
}

void check_index(std::span<const int64_t> index, int64_t rows) {
  for (const int64_t row : index)
    require(row >= 0 && row < rows, "linear: the index names row {}, expected 0 to {}", row, rows - 1);
}

// Rows of groups of which some have layers whose columns have an order: all rows as f32, each in the order of its
// group.
ConstTensorView ordered_rows(std::span<const RowGroup> groups, ConstTensorView x, std::span<const int64_t> index,
                             int64_t rows, Memory& memory) {
  const TensorView ordered = memory.matrix(Memory::Piece::ordered, rows, x.size(1));
  memory.row.resize(static_cast<size_t>(x.size(1)));
  for (const RowGroup& group : groups) {
    const std::span<const int64_t> order = group.layers.front()->weight().order();
    for (const Linear* layer : group.layers)
      require(std::ranges::equal(layer->weight().order(), order),
              "linear: the columns of a group's layers have different orders, expected one");
    for (int64_t row = group.first; row < group.first + group.count; ++row)
      put_in_order(x, index.empty() ? row : index[static_cast<size_t>(row)], order, memory.row.data(),
                   ordered.as<float>() + row * x.size(1));
  }
  return ordered;
}

}  // namespace

Linear Linear::load(const StoredMatrix& matrix, std::span<const float> bias, const Threads& threads,
                    std::span<const int64_t> rows, std::span<const Columns> columns) {
  require(bias.empty() || static_cast<int64_t>(bias.size()) == matrix.rows(),
          "linear: bias has {} numbers, expected {}", bias.size(), matrix.rows());
  Linear linear;
  linear.weight_ = PackedMatrix::pack(matrix, threads, rows, columns);
  if (rows.empty()) linear.bias_.assign(bias.begin(), bias.end());
  if (!bias.empty())
    for (const int64_t row : rows) linear.bias_.push_back(row < 0 ? 0.0F : bias[static_cast<size_t>(row)]);
  require(std::ranges::none_of(linear.bias_, [](float value) { return std::isnan(value); }), "linear: bias holds NaN");
  return linear;
}

void apply(std::span<const Linear* const> layers, ConstTensorView x, std::span<const TensorView> outs,
           Workspace& workspace) {
  require(layers.size() == outs.size() && layers.size() <= kMostLayers,
          "linear: {} layers have {} outputs, expected as many, at most {}", layers.size(), outs.size(), kMostLayers);
  check_input(x);
  std::array<kernels::Product, kMostLayers> products;
  for (size_t i = 0; i < layers.size(); ++i) {
    check_columns(layers[i]->weight(), x);
    products[i] = product_of(*layers[i], x.size(0), outs[i]);
  }
  if (std::ranges::none_of(layers, has_order)) return multiply(x, std::span(products.data(), layers.size()), workspace);
  for (size_t i = 0; i < layers.size(); ++i)
    multiply(ordered_rows(x, layers[i]->weight().order(), workspace.memory()), {&products[i], 1}, workspace);
}

void apply_columns(const PackedMatrix& weight, ConstTensorView x, int64_t first, int64_t count, TensorView out,
                   Workspace& workspace) {
  check_input(x);
  check_part(weight, x, first, count);
  kernels::Product product = product_of(weight, x.size(0), out);
  product.weights = product.weights.from(0, first);
  multiply(x.slice(1, first, count), {&product, 1}, workspace);
}

void apply_grouped(std::span<const RowGroup> groups, ConstTensorView x, std::span<const int64_t> index,
                   std::span<const TensorView> outs, Workspace& workspace) {
  require(!outs.empty() && outs.size() <= kMostLayers, "linear: groups have {} outputs, expected 1 to {}", outs.size(),
          kMostLayers);
  check_input(x);
  const int64_t rows = index.empty() ? x.size(0) : static_cast<int64_t>(index.size());
  check_groups(groups, rows, outs.size());
  check_index(index, x.size(0));
  Memory& memory = workspace.memory();
  memory.products.clear();
  bool ordered = false;
  for (const RowGroup& group : groups)
    for (size_t i = 0; i < outs.size(); ++i) {
      check_columns(group.layers[i]->weight(), x);
      memory.products.push_back(product_of(*group.layers[i], rows, outs[i]));
      ordered = ordered || has_order(group.layers[i]);
    }
  memory.product_groups.clear();
  for (size_t i = 0; i < groups.size(); ++i)
    memory.product_groups.push_back({.first = groups[i].first,
                                     .count = groups[i].count,
                                     .products = std::span(memory.products).subspan(i * outs.size(), outs.size())});
  kernels::InputRows input = input_rows(ordered ? ordered_rows(groups, x, index, rows, memory) : x);
  if (!ordered && !index.empty()) input.index = index.data();
  input.rows = rows;
  kernels::matmul(input, memory.product_groups, memory.matmul, workspace.threads(), workspace.options());
}

void apply_grouped_columns(std::span<const RowGroup> groups, ConstTensorView x, int64_t first, int64_t count,
                           TensorView out, Workspace& workspace) {
  check_input(x);
  check_groups(groups, x.size(0), 1);
  Memory& memory = workspace.memory();
  memory.products.clear();
  for (const RowGroup& group : groups) {
    const PackedMatrix& weight = group.layers[0]->weight();
    check_part(weight, x, first, count);
    memory.products.push_back(product_of(weight, x.size(0), out));
    memory.products.back().weights = memory.products.back().weights.from(0, first);
  }
  memory.product_groups.clear();
  for (size_t i = 0; i < groups.size(); ++i)
    memory.product_groups.push_back(
        {.first = groups[i].first, .count = groups[i].count, .products = std::span(memory.products).subspan(i, 1)});
  kernels::matmul(input_rows(x.slice(1, first, count)), memory.product_groups, memory.matmul, workspace.threads(),
                  workspace.options());
}

}  // namespace regard
