#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace regard::test {

// Numbers that follow from a seed: the data of random cases, whose shapes the property's own generators choose.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  [[nodiscard]] float normal(double deviation = 1.0, double mean = 0.0) {
    return static_cast<float>(std::normal_distribution<double>(mean, deviation)(engine_));
  }
  // first .. last, both inclusive
  [[nodiscard]] int64_t integer(int64_t first, int64_t last) {
    return std::uniform_int_distribution<int64_t>(first, last)(engine_);
  }
  [[nodiscard]] std::vector<float> normals(int64_t count, double deviation = 1.0, double mean = 0.0) {
    std::vector<float> numbers(static_cast<size_t>(count));
    for (float& number : numbers) number = normal(deviation, mean);
    return numbers;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace regard::test
