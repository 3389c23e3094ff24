#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "regard/attention_config.h"
#include "regard/interval.h"
#include "regard/mask.h"
#include "regard/tensor.h"

// Which keys the tokens of a layer see, told by what the layer computes.
namespace regard::test {

using Positions = std::vector<int64_t>;
using Rule = std::function<bool(int64_t query, int64_t key)>;

Positions members(Interval interval);
// What a mask without prefix lets a token see.
Positions seen(const Mask& mask, int64_t position, int64_t length);

// What the rule lets each of `length` queries see.
std::vector<Positions> by_rule(int64_t length, const Rule& rule);

// Which keys weigh in each row of a layer's output. All scores are equal and the value of token j is 1 at element j
// and 0 elsewhere, so that the output itself is the list of the visible keys. `columns` is the width of a value.
AttentionConfig revealing(int64_t columns);
// The hidden states of tokens `first`, `first` + 1, ... of such a layer.
Tensor one_hot_rows(const AttentionConfig& config, int64_t first, int64_t count);
// By row of its output: the keys that weigh.
std::vector<Positions> non_zeros(const AttentionConfig& config, const Tensor& output);

// Expects that a sequence in one call, whose first `prefix` tokens see each other, sees what the rule says: without a
// cache, through each storage, padded, without projections, and over ranks.
void expect_every_path_follows(const AttentionConfig& mask, int64_t length, int64_t prefix, const Rule& rule);

}  // namespace regard::test
