// The attention kernels against the oracle, on random shapes, masks, cache types and numbers.
#include <gtest/gtest.h>

#include <string>

#include "support/attend_case.h"
#include "support/error_budget.h"
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
      const OracleAttended exact = oracle_attend(input);
      ErrorBudget out;
      ErrorBudget lse;
      for (int order = 0; order < orders_for(input.queries.rows * input.heads); ++order) {
        const PlainAttended plain = plain_attend(input, order);
        for (size_t j = 0; j < plain.out.size(); ++j)
          out.add_plain(exact.out.numbers[j], plain.out[j], plain.out_sensitivity[j]);
        for (size_t j = 0; j < plain.lse.size(); ++j)
          lse.add_plain(exact.lse.numbers[j], plain.lse[j], plain.lse_sensitivity[j]);
      }
      for (size_t j = 0; j < ours[i].out.size(); ++j) out.add_ours(exact.out.numbers[j], ours[i].out[j]);
      for (size_t j = 0; j < ours[i].lse.size(); ++j) lse.add_ours(exact.lse.numbers[j], ours[i].lse[j]);
      if (!out.holds()) RC_FAIL("sequence " + std::to_string(i) + ", attended values: " + rc::toString(out));
      if (!lse.holds()) RC_FAIL("sequence " + std::to_string(i) + ", log of sums: " + rc::toString(lse));
    }
  });
}

}  // namespace
}  // namespace regard::test
