#pragma once

#include <map>
#include <vector>

#include "support/cache_scene.h"
#include "support/random.h"

// Random operations on a cache, next to the same ones on its model.
namespace regard::test {

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
  void free(Random& random);
  void trim(Random& random);
  void accept(Random& random);
  void retain(Random& random);
  void release(Random& random);
  void share(Random& random);
  void reserve(Random& random);
  void restore(Random& random);
  void read(Random& random);

  void append_span(const Span& span);
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
