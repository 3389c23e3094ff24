#pragma once

#include <rapidcheck.h>

#include <iosfwd>
#include <utility>
#include <vector>

#include "support/cache_model.h"

// Random caches, the operations on them, and the numbers of their tokens.
namespace regard::test {

// How keys and values are stored, and how many there are of them.
struct CacheLayout {
  int64_t kv_heads = 1;
  int64_t head_dim = 4;
  int64_t v_head_dim = 4;
  KvFormat keys;
  KvFormat values;
};
std::ostream& operator<<(std::ostream& out, const CacheLayout& layout);

struct CacheScene {
  CacheRules rules;  // pages: 0 for as many as the cache chooses
  size_t layout = 0;

  [[nodiscard]] const CacheLayout& formats() const;
  [[nodiscard]] AttentionConfig config() const;
  [[nodiscard]] KvCacheOptions options() const;
};
std::ostream& operator<<(std::ostream& out, const CacheScene& scene);
// Sequences of up to 100 tokens or so, or of several hundreds: several of the kernels' blocks of 256 keys.
rc::Gen<CacheScene> cache_scenes(bool is_long);

struct CacheOperation {
  enum class Kind : uint8_t {
    append,
    call,
    roll_back,
    fork,
    truncate,
    free,
    accept,
    trim,
    retain,
    release,
    share,
    reserve,
    restore,
    read
  };
  Kind kind = Kind::append;
  int seed = 0;  // of its slots, positions and tokens
};
std::ostream& operator<<(std::ostream& out, const CacheOperation& operation);
rc::Gen<std::vector<CacheOperation>> cache_operations();

// The keys and values of tokens: those of different numbers differ.
class TokenNumbers {
 public:
  explicit TokenNumbers(const CacheLayout& layout);

  // [tokens, kv_heads, head_dim] and [tokens, kv_heads, v_head_dim], f32. Unknown tokens are zeros.
  [[nodiscard]] std::pair<Tensor, Tensor> of(std::span<const Token> tokens) const;
  // What a cache of this layout has to give back for a token.
  [[nodiscard]] std::span<const float> stored_key(Token token) const { return row(stored_keys_, key_width_, token); }
  [[nodiscard]] std::span<const float> stored_value(Token token) const {
    return row(stored_values_, value_width_, token);
  }

 private:
  // Numbers repeat after so many: seldom enough to notice a mix-up.
  static constexpr int kDifferent = 509;
  static std::span<const float> row(const std::vector<float>& rows, int64_t width, Token token) {
    return std::span(rows).subspan(static_cast<size_t>((token % kDifferent) * width), static_cast<size_t>(width));
  }

  CacheLayout layout_;
  int64_t key_width_;
  int64_t value_width_;
  std::vector<float> keys_, values_;
  std::vector<float> stored_keys_, stored_values_;
};

// Those of a layout, made once.
const TokenNumbers& numbers_of(size_t layout);

}  // namespace regard::test
