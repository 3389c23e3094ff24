#include "layers/stored_parts.h"

namespace regard {

std::vector<StoredPart> stored_parts(const KvCache::StoredTokens& tokens) {
  std::vector<StoredPart> parts;
  for (const auto tensor : {&KvCache::StoredTokens::keys, &KvCache::StoredTokens::values,
                            &KvCache::StoredTokens::key_scales, &KvCache::StoredTokens::value_scales}) {
    const Tensor& t = tokens.*tensor;
    if (t.shape().rank() < 2) continue;
    const int64_t width = t.shape().rank() == 2 ? 1 : t.shape()[2];
    parts.push_back({tensor, width * static_cast<int64_t>(size_of(t.dtype()))});
  }
  return parts;
}

// Room for `count` tokens of `heads` heads, in the form of others.
KvCache::StoredTokens stored_like(const KvCache::StoredTokens& others, int64_t count, int64_t heads) {
  KvCache::StoredTokens tokens;
  for (const StoredPart& part : stored_parts(others)) {
    const Tensor& form = others.*part.tensor;
    tokens.*part.tensor =
        Tensor(form.dtype(), form.shape().rank() == 2 ? Shape{count, heads} : Shape{count, heads, form.shape()[2]});
  }
  return tokens;
}

}  // namespace regard
