#include "support/text_cache.h"

#include <algorithm>

namespace regard::test {
namespace {

constexpr int64_t kWidth = 4;

// The numbers of all tokens of a text, from its first on.
std::vector<float> numbers_of(std::span<const int32_t> text, size_t layer) {
  std::vector<float> numbers;
  uint32_t hash = 1 + static_cast<uint32_t>(layer);
  for (const int32_t token : text) {
    hash = hash * 31 + static_cast<uint32_t>(token) + 7;
    numbers.push_back(static_cast<float>(hash % 100'003));
  }
  return numbers;
}

// Tokens of these numbers, layer by layer.
template <class NumbersOfLayer>
void append(ModelCache& cache, const Span& span, const NumbersOfLayer& numbers_of_layer) {
  for (size_t i = 0; i < cache.layers().size(); ++i) {
    const std::vector<float> numbers = numbers_of_layer(i);
    const Tensor rows(DType::f32, {span.count, 1, kWidth});
    for (int64_t t = 0; t < span.count; ++t)
      std::ranges::fill(rows.view()[t].elements<float>(), numbers[static_cast<size_t>(t)]);
    cache.layers()[i].append(span, rows, rows);
  }
}

}  // namespace

float number_of(std::span<const int32_t> text, size_t layer) { return numbers_of(text, layer).back(); }

void append_token(ModelCache& cache, int64_t slot, int64_t position, std::span<const int32_t> text) {
  append(cache, {.slot = slot, .first_position = position, .count = 1},
         [&](size_t layer) { return std::vector{number_of(text, layer)}; });
}

bool run_text(ModelCache& cache, int64_t slot, std::span<const int32_t> text, int64_t at_once) {
  while (cache.length(slot) < std::ssize(text)) {
    const int64_t first = cache.length(slot);
    const int64_t count = std::min(at_once, std::ssize(text) - first);
    const Span span{.slot = slot, .first_position = first, .count = count};
    if (!cache.make_room({&span, 1})) return false;
    append(cache, span, [&](size_t layer) {
      auto numbers = numbers_of(text.first(static_cast<size_t>(first + count)), layer);
      numbers.erase(numbers.begin(), numbers.begin() + first);
      return numbers;
    });
    cache.commit(slot, text);
  }
  return true;
}

std::optional<std::string> wrong_contents(ModelCache& cache, int64_t slot, std::span<const int32_t> text) {
  const auto length = std::ssize(text);
  for (size_t i = 0; i < cache.layers().size(); ++i) {
    const KvCache& layer = cache.layers()[i];
    if (layer.length(slot) != length) return "length of layer " + std::to_string(i);
    const int64_t first = std::min(length, layer.first_seen(length));
    const auto [keys, values] = layer.read(slot, first, length - first);
    const auto numbers = numbers_of(text, i);
    for (int64_t t = first; t < length; ++t) {
      const auto at = static_cast<size_t>((t - first) * kWidth);
      const float expected = numbers[static_cast<size_t>(t)];
      if (keys.elements<float>()[at] != expected || values.elements<float>()[at + 3] != expected)
        return "token " + std::to_string(t) + " of layer " + std::to_string(i);
    }
  }
  return std::nullopt;
}

}  // namespace regard::test
