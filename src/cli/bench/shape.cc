#include "cli/bench/shape.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "cli/common.h"
#include "kernels/cache_rows.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return parts;
    text.remove_prefix(colon + 1);
  }
}

// "kv8" -> {"kv", 8}; {"", 0} if the part is no name with a number.
std::pair<std::string_view, int64_t> name_and_number(std::string_view part) {
  constexpr int64_t kMost = int64_t{1} << 24;
  const size_t digits = std::min(part.find_first_of("0123456789"), part.size());
  int64_t number = 0;
  const char* end = part.data() + part.size();
  const auto [read, error] = std::from_chars(part.data() + digits, end, number);
  if (error != std::errc{} || read != end || number < 1 || number > kMost) return {};
  return {part.substr(0, digits), number};
}

}  // namespace

AttentionShape AttentionShape::parse(std::string_view text) {
  const auto bad = [&](std::string_view part) {
    fail(
        "bench: shape \"{}\" has the part \"{}\"; expected e.g. prefill:f32:b1:h32:kv8:d128:s2048 or "
        "decode:bf16:b8:h32:kv8:d128:l8192, and perhaps v64, w128, c8192, sink, p32, scattered",
        text, part);
  };
  const auto parts = split(text);
  AttentionShape shape;
  if (parts[0] == "prefill")
    shape.stage = Stage::prefill;
  else if (parts[0] == "decode")
    shape.stage = Stage::decode;
  else
    bad(parts[0]);
  if (parts.size() < 2) bad("");
  shape.dtype = parse_cache_dtype(parts[1]);
  for (size_t i = 2; i < parts.size(); ++i) {
    if (parts[i] == "sink") {
      shape.sink = true;
      continue;
    }
    if (parts[i] == "scattered") {
      shape.scattered = true;
      continue;
    }
    const auto [name, number] = name_and_number(parts[i]);
    if (name == "b")
      shape.batch = number;
    else if (name == "h")
      shape.heads = number;
    else if (name == "kv")
      shape.kv_heads = number;
    else if (name == "d")
      shape.head_dim = number;
    else if (name == "v")
      shape.v_head_dim = number;
    else if (name == (shape.stage == Stage::prefill ? "s" : "l"))
      shape.length = number;
    else if (name == "w")
      shape.mask.sliding_window = number;
    else if (name == "p")
      shape.page_size = number;
    else if (name == "c")
      shape.mask.attention_chunk_size = number;
    else
      bad(parts[i]);
  }
  require(!shape.scattered || shape.page_size > 0, "bench: shape \"{}\" has scattered pages, but no page size (p)",
          text);
  if (shape.kv_heads == 0) shape.kv_heads = shape.heads;
  if (shape.v_head_dim == 0) shape.v_head_dim = shape.head_dim;
  require(shape.heads > 0 && shape.head_dim > 0 && shape.length > 0,
          "bench: shape \"{}\" needs query heads (h), head_dim (d) and {}", text,
          shape.stage == Stage::prefill ? "tokens (s)" : "cached tokens (l)");
  return shape;
}

double AttentionShape::operations() const {
  double keys = 0;
  for (int64_t position = length - queries(); position < length; ++position)
    keys += static_cast<double>(mask.visible(position, length).size());
  return 2.0 * keys * static_cast<double>(batch * heads * (head_dim + v_head_dim));
}

double AttentionShape::bytes() const {
  const int64_t first = mask.visible(length - queries(), length).first;
  const int64_t elements = (length - first) * batch * kv_heads * (head_dim + v_head_dim);
  return static_cast<double>(elements * kernels::row_bytes_of_cache(dtype)) / static_cast<double>(kernels::kTile);
}

}  // namespace regard::cli
