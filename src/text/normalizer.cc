#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <span>

#include "tensor/fail.h"
#include "text/utf8.h"

namespace regard {
namespace {

std::string utf8_of(std::span<const utf8proc_int32_t> code_points) {
  std::string text;
  for (const utf8proc_int32_t code_point : code_points) append_utf8(static_cast<uint32_t>(code_point), text);
  return text;
}

// Marks behind a letter in the order of their classes. utf8proc's own sorting takes the square of their number.
void order_marks(std::vector<utf8proc_int32_t>& code_points) {
  const auto mark_class = [](utf8proc_int32_t code_point) {
    return utf8proc_get_property(code_point)->combining_class;
  };
  for (auto at = code_points.begin(); at != code_points.end();) {
    const auto end = std::find_if(at, code_points.end(), [&](utf8proc_int32_t c) { return mark_class(c) == 0; });
    std::ranges::stable_sort(at, end, {}, mark_class);
    at = end == code_points.end() ? end : end + 1;
  }
}

std::string normal_form(std::string_view text, bool compose, bool compatible) {
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> code_points;
  for (size_t at = 0; at < text.size();) {
    std::array<utf8proc_int32_t, 32> parts{};  // the longest decomposition is 18
    int last_class = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(next_code_point(text, at)), parts.data(),
                                               parts.size(), options, &last_class);
    require(count >= 0 && count <= std::ssize(parts), "tokenizer: a character can't be decomposed");
    code_points.insert(code_points.end(), parts.begin(), parts.begin() + count);
  }
  order_marks(code_points);
  if (compose) {
    const auto count = utf8proc_normalize_utf32(code_points.data(), std::ssize(code_points),
                                                static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    require(count >= 0, "tokenizer: a text can't be composed");
    code_points.resize(static_cast<size_t>(count));
  }
  return utf8_of(code_points);
}

bool is_mark(uint32_t code_point) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
}

}  // namespace

std::string Normalizer::normalize(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) result = step(std::move(result));
  return result;
}

namespace normalizers {

Normalizer::Step unicode_form(Form form) {
  const bool compose = form == Form::nfc || form == Form::nfkc;
  const bool compatible = form == Form::nfkc || form == Form::nfkd;
  return [=](std::string text) {
    // Up to U+007F there is nothing to do.
    const bool plain = std::ranges::all_of(text, [](char c) { return static_cast<uint8_t>(c) < 0x80; });
    return plain ? text : normal_form(text, compose, compatible);
  };
}

Normalizer::Step replace(Pattern pattern, std::string content) {
  return [pattern = std::move(pattern), content = std::move(content)](const std::string& text) {
    return pattern.replace(text, content);
  };
}

Normalizer::Step prepend(std::string prefix) {
  return [prefix = std::move(prefix)](std::string text) { return text.empty() ? text : prefix + text; };
}

Normalizer::Step lowercase() {
  return [](const std::string& text) {
    constexpr uint32_t kCapitalIWithDot = 0x130;  // the only one whose small form is two characters
    std::string result;
    for (size_t at = 0; at < text.size();) {
      const uint32_t c = next_code_point(text, at);
      append_utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), result);
      if (c == kCapitalIWithDot) append_utf8(0x307, result);
    }
    return result;
  };
}

Normalizer::Step strip(bool left, bool right) {
  return [=](const std::string& text) {
    std::string_view rest = text;
    if (left) rest.remove_prefix(leading_space(rest));
    if (right) rest.remove_suffix(trailing_space(rest));
    return std::string(rest);
  };
}

Normalizer::Step strip_accents() {
  return [](const std::string& text) {
    std::string result;
    for (size_t at = 0; at < text.size();) {
      const uint32_t c = next_code_point(text, at);
      if (!is_mark(c)) append_utf8(c, result);
    }
    return result;
  };
}

}  // namespace normalizers

}  // namespace regard
