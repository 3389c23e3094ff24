#pragma once

#include <span>
#include <string>

#include "layers/oracle.h"

namespace regard::test {

// How attended values [queries, heads, v_head_dim] and log-sum-exps [queries, heads] of one sequence leave the error
// budget that plain f32 has beside the oracle; empty: they keep it.
[[nodiscard]] std::string difference_from_oracle(const OracleAttendInput& input, std::span<const float> out,
                                                 std::span<const float> lse);

}  // namespace regard::test
