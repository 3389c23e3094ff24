#pragma once

#include <variant>

#include "layers/mlp.h"
#include "layers/oracle.h"
#include "regard/model_spec.h"

// An MLP in plain loops over doubles: what Mlp::run approximates. Like the oracle of attention it shares no code with
// the kernels, is slow, and is written to be read.
namespace regard {

// x [tokens, hidden] -> [tokens, hidden]. The weights are those of the whole layer.
[[nodiscard]] OracleMatrix oracle_mlp(const std::variant<DenseMlp, ExpertsMlp>& spec, const MlpWeights& weights,
                                      const OracleMatrix& x);

}  // namespace regard
