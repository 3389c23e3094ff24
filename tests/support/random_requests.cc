#include "support/random_requests.h"

namespace regard::test {

std::vector<int32_t> random_tokens(Random& random, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.integer(1, 266)));
  return tokens;
}

GenerationRequest random_request(Random& random, const std::vector<int32_t>& common, int64_t most_tokens) {
  GenerationRequest request;
  if (random.integer(0, 1) == 1) request.prompt.assign(common.begin(), common.begin() + random.integer(1, 100));
  const auto own = random_tokens(random, random.integer(request.prompt.empty() ? 1 : 0, 40));
  request.prompt.insert(request.prompt.end(), own.begin(), own.end());
  request.max_tokens = random.integer(1, most_tokens);
  request.sampler = {.temperature = random.integer(0, 2) == 0 ? 0.0F : 3.0F,
                     .seed = static_cast<uint64_t>(random.integer(0, 9))};
  if (random.integer(0, 3) == 0) request.stop_tokens = random_tokens(random, 3);
  if (random.integer(0, 3) == 0) request.stop_texts = {std::string(1, static_cast<char>(random.integer('a', 'z')))};
  request.salt = static_cast<uint64_t>(random.integer(0, 1));
  return request;
}

}  // namespace regard::test
