#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "regard/attention_config.h"
#include "regard/tensor.h"

namespace regard {

/// cos or sin of the angles of some tokens: `values` is [tokens, rotary_dim / 2], f32. The key tells which rotation and
/// which positions they belong to, so that a layer with other parameters never uses them by mistake [GAP-13].
struct AngleTable {
  Tensor values;
  uint64_t key = 0;

  [[nodiscard]] bool empty() const { return values.empty(); }
};

/// What layers with equal rotations hand to each other [POS-15].
struct RotaryAngles {
  AngleTable cos;
  AngleTable sin;
};

/// Rotary position embedding of one layer.
///
/// Thread safety: several threads may call const methods at once.
class RotaryEmbedding {
 public:
  /// `config` as AttentionConfig::validated leaves it.
  explicit RotaryEmbedding(const RotaryConfig& config);

  [[nodiscard]] const RotaryConfig& config() const { return config_; }
  /// Radians per position of each pair, [rotary_dim / 2].
  [[nodiscard]] std::span<const double> frequencies() const { return frequencies_; }
  /// What cos and sin are multiplied by [POS-7].
  [[nodiscard]] double attention_factor() const { return attention_factor_; }

  /// What the angles of these positions under this rotation are known by.
  [[nodiscard]] uint64_t key(std::span<const int64_t> positions) const;
  /// cos and sin for tokens at `positions`; computed in double.
  [[nodiscard]] RotaryAngles angles(std::span<const int64_t> positions) const;
  /// The same, written to cos and sin: f32 [positions, rotary_dim / 2].
  void write_angles(std::span<const int64_t> positions, TensorView cos, TensorView sin) const;

 private:
  RotaryConfig config_;
  double attention_factor_ = 1.0;
  std::vector<double> frequencies_;
  uint64_t rotation_key_ = 0;
};

}  // namespace regard
