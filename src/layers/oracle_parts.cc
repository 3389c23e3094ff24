#include "layers/oracle_parts.h"

#include <cmath>
#include <vector>

namespace regard::oracle_parts {

OracleMatrix project(const OracleMatrix& x, const StoredRows& rows) {
  OracleMatrix out(x.rows, rows.count);
  std::vector<float> row(static_cast<size_t>(rows.matrix.columns()));
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t source = rows.first + (rows.order.empty() ? r : rows.order[static_cast<size_t>(r)]);
    decode_row(rows.matrix, source, row);
    for (int64_t t = 0; t < x.rows; ++t) {
      double sum = rows.bias.empty() ? 0.0 : static_cast<double>(rows.bias[static_cast<size_t>(source)]);
      for (int64_t c = 0; c < x.columns; ++c) sum += x[t][c] * static_cast<double>(row[static_cast<size_t>(c)]);
      out[t][r] = sum;
    }
  }
  return out;
}

void normalize(NormKind kind, double eps, std::span<const float> weight, std::span<const float> bias,
               std::span<double> x) {
  const auto count = static_cast<double>(x.size());
  double mean = 0;
  if (kind == NormKind::layer_norm)
    for (const double number : x) mean += number / count;
  double variance = 0;
  for (const double number : x) variance += (number - mean) * (number - mean) / count;
  for (size_t i = 0; i < x.size(); ++i) {
    double gain = weight.empty() ? 1.0 : static_cast<double>(weight[i]);
    if (kind == NormKind::rms_plus_one && !weight.empty()) gain += 1.0;
    x[i] = (x[i] - mean) / std::sqrt(variance + eps) * gain + (bias.empty() ? 0.0 : static_cast<double>(bias[i]));
  }
}

}  // namespace regard::oracle_parts
