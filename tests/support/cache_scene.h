#pragma once

#include <rapidcheck.h>

#include <iosfwd>
#include <map>
#include <utility>
#include <vector>

#include "support/cache_model.h"
#include "support/random.h"

// Random operations on a cache, next to the same ones on its model.
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

// A cache and its model, which have to agree after every operation.
class CacheDriver {
 public:
  explicit CacheDriver(const CacheScene& scene);

  // Fails the property where the cache does what the model does not.
  void apply(const CacheOperation& operation);

  [[nodiscard]] const KvCache& cache() const { return cache_; }
  [[nodiscard]] const CacheModel& model() const { return model_; }
  [[nodiscard]] const TokenNumbers& numbers() const { return numbers_; }

 private:
  void append(Random& random);
  void roll_back(Random& random);
  void call(Random& random);
  void fork(Random& random);
  void truncate(Random& random);
  void accept(Random& random);
  void retain(Random& random);
  void release(Random& random);
  void share(Random& random);
  void reserve(Random& random);
  void restore(Random& random);
  void read(Random& random);

  void append(const Span& span);
  template <class Operation>
  void expect(bool succeeds, Operation&& operation);
  [[nodiscard]] int64_t any_slot(Random& random) const;
  [[nodiscard]] int64_t any_count(Random& random) const;
  [[nodiscard]] std::vector<Token> new_tokens(int64_t count);
  // The model's page in the cache's numbers; one that nobody holds for negative pages.
  [[nodiscard]] int32_t real_page(int page) const;
  [[nodiscard]] std::vector<int32_t> free_pages() const;

  void compare();
  void compare_slot(int64_t slot);
  void compare_tokens(int64_t slot) const;
  void compare_pages() const;

  CacheScene scene_;
  KvCache cache_;
  CacheModel model_;
  const TokenNumbers& numbers_;
  std::map<int, int32_t> real_pages_;  // of the model's
  Token next_token_ = 0;
};

}  // namespace regard::test
