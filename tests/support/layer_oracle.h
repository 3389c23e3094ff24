#pragma once

#include <string>

#include "layers/oracle.h"
#include "support/session.h"

// Whole layers beside the oracle: "" if the outputs are as close to the oracle's as they should be, else what is not.
namespace regard::test {

// A whole sequence that went through a cache.
std::string difference_from_oracle(const Layer& layer, const Sequence& sequence);

// Any tokens of one sequence.
std::string difference_from_oracle(const Layer& layer, const OracleInput& input, std::span<const TokenOutput> ours);

// Hidden states [tokens, width] as the oracle reads them.
OracleMatrix oracle_matrix(ConstTensorView hidden);

}  // namespace regard::test
