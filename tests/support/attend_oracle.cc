#include "support/attend_oracle.h"

#include <sstream>

#include "support/error_budget.h"
#include "support/plain_f32.h"

namespace regard::test {

std::string difference_from_oracle(const OracleAttendInput& input, std::span<const float> out,
                                   std::span<const float> lse) {
  const OracleAttended exact = oracle_attend(input);
  ErrorBudget out_budget;
  ErrorBudget lse_budget;
  for (int order = 0; order < orders_for(input.queries.rows * input.heads); ++order) {
    const PlainAttended plain = plain_attend(input, order);
    for (size_t i = 0; i < plain.out.size(); ++i)
      out_budget.add_plain(exact.out.numbers[i], plain.out[i], plain.out_sensitivity[i]);
    for (size_t i = 0; i < plain.lse.size(); ++i)
      lse_budget.add_plain(exact.lse.numbers[i], plain.lse[i], plain.lse_sensitivity[i]);
  }
  for (size_t i = 0; i < out.size(); ++i) out_budget.add_ours(exact.out.numbers[i], out[i]);
  for (size_t i = 0; i < lse.size(); ++i) lse_budget.add_ours(exact.lse.numbers[i], lse[i]);
  std::ostringstream text;
  if (!out_budget.holds())
    text << "attended values: " << out_budget;
  else if (!lse_budget.holds())
    text << "log of sums: " << lse_budget;
  return text.str();
}

}  // namespace regard::test
