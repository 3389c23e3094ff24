#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "regard/position.h"
#include "tensor/fail.h"

namespace regard {
namespace {

std::vector<double> plain_frequencies(const RotaryConfig& config) {
  std::vector<double> frequencies(static_cast<size_t>(config.rotary_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
  return frequencies;
}

// Long wavelengths are stretched, short ones kept, those between blended [POS-6].
void scale_llama3(const RotaryConfig& config, std::vector<double>& frequencies) {
  const auto original = static_cast<double>(config.original_max_position_embeddings);
  for (double& frequency : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < original / config.high_freq_factor) continue;
    if (wavelength > original / config.low_freq_factor) {
      frequency /= config.factor;
      continue;
    }
    const double smooth =
        (original / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
    frequency = (1.0 - smooth) * frequency / config.factor + smooth * frequency;
  }
}

// A ramp over the dimensions, from kept to stretched frequencies [POS-7].
void scale_yarn(const RotaryConfig& config, std::vector<double>& frequencies) {
  if (config.factor <= 1.0) return;
  const auto half = static_cast<double>(config.rotary_dim) / 2.0;
  // The dimension whose wave turns so often over the length of the training.
  const auto dimension_of = [&](double rotations) {
    return half *
           std::log(static_cast<double>(config.original_max_position_embeddings) /
                    (2.0 * std::numbers::pi * rotations)) /
           std::log(config.rope_theta);
  };
  double low = dimension_of(config.beta_fast);
  double high = dimension_of(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rotary_dim - 1));
  // Where both ends meet, a step; the width only keeps the division defined.
  constexpr double kLeastWidth = 0.001;
  const double width = std::max(high - low, kLeastWidth);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / width, 0.0, 1.0);
    frequencies[i] = ramp * frequencies[i] / config.factor + (1.0 - ramp) * frequencies[i];
  }
}

void divide(std::vector<double>& frequencies, std::span<const double> factors) {
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors[i];
}

uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9E3779B97F4A7C15ULL + (hash << 6) + (hash >> 2);
  return hash * 0xFF51AFD7ED558CCDULL;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(const RotaryConfig& config)
    : config_(config), frequencies_(plain_frequencies(config)) {
  switch (config.scaling) {
    case RopeScaling::none:
      attention_factor_ = config.attention_factor.value_or(1.0);
      break;
    case RopeScaling::linear:
      for (double& frequency : frequencies_) frequency /= config.factor;
      attention_factor_ = config.attention_factor.value_or(1.0);
      break;
    case RopeScaling::llama3:
      scale_llama3(config, frequencies_);
      attention_factor_ = config.attention_factor.value_or(1.0);
      break;
    case RopeScaling::yarn:
      scale_yarn(config, frequencies_);
      attention_factor_ =
          config.attention_factor.value_or(config.factor <= 1.0 ? 1.0 : 0.1 * std::log(config.factor) + 1.0);
      break;
    case RopeScaling::longrope:
      divide(frequencies_,
             config.longrope_factors == LongropeFactors::long_factor ? config.long_factor : config.short_factor);
      attention_factor_ = config.attention_factor.value_or(
          config.factor <= 1.0
              ? 1.0
              : std::sqrt(1.0 + std::log(config.factor) /
                                    std::log(static_cast<double>(config.original_max_position_embeddings))));
      break;
  }
  rotation_key_ = std::bit_cast<uint64_t>(attention_factor_);
  for (const double frequency : frequencies_) rotation_key_ = mix(rotation_key_, std::bit_cast<uint64_t>(frequency));
}

RotaryAngles RotaryEmbedding::angles(std::span<const int64_t> positions) const {
  const Shape shape{static_cast<int64_t>(positions.size()), static_cast<int64_t>(frequencies_.size())};
  const uint64_t hash = key(positions);
  RotaryAngles angles{.cos = {Tensor(DType::f32, shape), hash}, .sin = {Tensor(DType::f32, shape), hash}};
  write_angles(positions, angles.cos.values, angles.sin.values);
  return angles;
}

void RotaryEmbedding::write_angles(std::span<const int64_t> positions, TensorView cos_out, TensorView sin_out) const {
  float* cos = cos_out.as<float>();
  float* sin = sin_out.as<float>();
  for (const int64_t position : positions) {
    for (const double frequency : frequencies_) {
      const double angle = static_cast<double>(position) * frequency;
      *cos++ = static_cast<float>(std::cos(angle) * attention_factor_);
      *sin++ = static_cast<float>(std::sin(angle) * attention_factor_);
    }
  }
}

uint64_t RotaryEmbedding::key(std::span<const int64_t> positions) const {
  uint64_t hash = mix(rotation_key_, positions.size());
  for (const int64_t position : positions) hash = mix(hash, static_cast<uint64_t>(position));
  return hash;
}

}  // namespace regard
