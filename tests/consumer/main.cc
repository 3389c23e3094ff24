#include <regard/attend.h>

#include <iostream>

// Three tokens of one sequence with one head: keys and values go into a cache, queries attend to them.
int main() {
  auto cache = regard::KvCache::contiguous({.capacity = 3}, {.num_key_value_heads = 1, .head_dim = 4});
  const regard::Span span{.slot = 0, .first_position = 0, .count = 3};
  regard::Tensor queries(regard::DType::f32, {3, 1, 4});  // zeros: every visible key weighs the same
  regard::Tensor values(regard::DType::f32, {3, 1, 4});
  for (int i = 0; i < 12; ++i) values.elements<float>()[i] = static_cast<float>(i / 4);
  cache.append(span, queries, values);
  regard::Tensor output(regard::DType::f32, {3, 1, 4});
  regard::attend({.queries = queries, .spans = {&span, 1}, .cache = &cache, .output = output});
  for (int token = 0; token < 3; ++token) std::cout << output.elements<float>()[4 * token] << ' ';
  std::cout << '\n';
  return output.elements<float>()[8] == 1.0F ? 0 : 1;
}
