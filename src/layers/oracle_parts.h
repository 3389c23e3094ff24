#pragma once

#include <cstdint>
#include <span>

#include "layers/oracle.h"
#include "regard/attention_config.h"
#include "regard/linear.h"

// What the oracles of attention and of MLPs have in common: loops over doubles that share no code with the kernels.
namespace regard::oracle_parts {

// Rows of a stored matrix: row r is stored row first + order[r].
struct StoredRows {
  const StoredMatrix& matrix;
  std::span<const float> bias;  // of the whole matrix, or empty
  int64_t first;
  int64_t count;
  std::span<const int64_t> order;  // or empty: row r is stored row first + r
};

// out[t][r] = sum over c of x[t][c] * weight[r][c] + bias[r]
[[nodiscard]] OracleMatrix project(const OracleMatrix& x, const StoredRows& rows);

// One statistic over all of x, then gain and bias, where there are any [POS-12], [POS-23].
void normalize(NormKind kind, double eps, std::span<const float> weight, std::span<const float> bias,
               std::span<double> x);

}  // namespace regard::oracle_parts
