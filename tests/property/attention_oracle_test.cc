// The attention kernels against the oracle, on random shapes, masks, cache types and numbers.
#include <gtest/gtest.h>

#include <string>

#include "support/attend_case.h"
#include "support/attend_oracle.h"
#include "support/property.h"

namespace regard::test {
namespace {

TEST(AttentionKernels, EqualTheOracleOnRandomCases) {
  check_property(2500, [] {
    const auto c = *attend_cases();
    const AttendNumbers numbers = make_numbers(c);
    const auto ours = attend_by_kernels(c, numbers, c.threads);
    for (size_t i = 0; i < c.sequences.size(); ++i) {
      const OracleAttendInput input = oracle_input(c, numbers, i);
      const std::string found = difference_from_oracle(input, ours[i].out, ours[i].lse);
      if (!found.empty()) RC_FAIL("sequence " + std::to_string(i) + ", " + found);
    }
  });
}

}  // namespace
}  // namespace regard::test
