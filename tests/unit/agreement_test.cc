#include "regard/agreement.h"

#include <gtest/gtest.h>

#include "support/error_of.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

using Fields = std::vector<std::pair<std::string, std::string>>;

// What each rank hears.
std::vector<std::string> answers(const std::vector<Fields>& ranks) {
  std::vector<std::string> answers(ranks.size());
  run_ranks(static_cast<int>(ranks.size()), [&](const std::shared_ptr<Communicator>& world) {
    const auto rank = static_cast<size_t>(world->rank());
    answers[rank] = error_of([&] { check_agreement(*world, ranks[rank]); });
  });
  return answers;
}

TEST(Agreement, IsSilentWhereAllSayTheSame) {
  const Fields fields = {{"version", "0.1.0"}, {"cp_degree", "2"}, {"prompt", ""}};
  for (const size_t count : {1U, 2U, 5U})
    EXPECT_EQ(answers(std::vector(count, fields)), std::vector<std::string>(count)) << count;
  EXPECT_EQ(answers({{}, {}}), std::vector<std::string>(2));
}

TEST(Agreement, AllRanksHearOfTheFirstFieldThatDiffers) {
  const auto heard = answers({{{"version", "1"}, {"cp_degree", "2"}, {"dp", "1"}},
                              {{"version", "1"}, {"cp_degree", "2"}, {"dp", "7"}},
                              {{"version", "1"}, {"cp_degree", "4"}, {"dp", "1"}},
                              {{"version", "1"}, {"cp_degree", "8"}, {"dp", "1"}}});
  const std::string sentence = "ranks disagree: cp_degree is \"2\" on rank 0, but \"4\" on rank 2, expected the same";
  EXPECT_EQ(heard, std::vector<std::string>(4, sentence));
}

TEST(Agreement, FieldsOfOtherNamesAreDifferences) {
  EXPECT_EQ(answers({{{"a", "1"}}, {{"b", "1"}}})[0],
            "ranks disagree: field 0 is \"a\" on rank 0, but \"b\" on rank 1, expected the same");
  EXPECT_EQ(answers({{{"a", "1"}}, {{"a", "1"}, {"b", "2"}}})[1],
            "ranks disagree: field 1 is \"\" on rank 0, but \"b\" on rank 1, expected the same");
}

TEST(Agreement, LongAndStrangeValuesStayOneLine) {
  const std::string line = answers({{{"a", std::string(1000, 'x') + "\n"}}, {{"a", "\n\x1b[31m"}}})[0];
  EXPECT_LT(line.size(), 250U);
  EXPECT_EQ(line.find_first_of("\n\x1b"), std::string::npos);
}

}  // namespace
}  // namespace regard::test
