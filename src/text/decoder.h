#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace regard {

// From the texts of tokens to the bytes that they stand for. Steps work on one token at a time, so that tokens can be
// decoded as they come; what is stripped from a whole text is stripped from its first token.
class Decoder {
 public:
  // `first`: of its text.
  using Step = std::function<std::string(std::string token, bool first)>;

  void add(Step step) { steps_.push_back(std::move(step)); }
  [[nodiscard]] std::string decode(std::string_view token, bool first) const;

 private:
  std::vector<Step> steps_;
};

// The steps, as `tokenizers` defines them.
namespace decoders {

[[nodiscard]] Decoder::Step replace(std::string text, std::string content);
// "<0x0A>" and the like become bytes.
[[nodiscard]] Decoder::Step byte_fallback();
// Up to `left` times `character` at the beginning and `right` times at the end.
[[nodiscard]] Decoder::Step strip(std::string character, size_t left, size_t right);
// `step` for the first token only.
[[nodiscard]] Decoder::Step first_only(Decoder::Step step);

}  // namespace decoders

}  // namespace regard
