#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace regard::jinja {

struct Token {
  // `text` is what stands outside of tags; print is {{ }}, block is {% %}.
  enum class Kind : uint8_t {
    text,
    print_begin,
    print_end,
    block_begin,
    block_end,
    name,
    string,
    integer,
    real,
    symbol,
    end
  };
  Kind kind = Kind::end;
  std::string content;  // a string without its quotes and escapes
  int line = 0;
};

// The tokens of a template, with white space around tags gone as Jinja's trim_blocks and lstrip_blocks and the marks
// {%- -%} {%+ +%} ask. The last one is of kind `end`. Throws Error with the line for what is no token.
[[nodiscard]] std::vector<Token> read_tokens(std::string_view source);

}  // namespace regard::jinja
