#pragma once

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>

#include "support/sanitized.h"

namespace regard::test {

// An environment variable as a number.
inline int environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

// How many of the cases that a property asks for are run: all; a tenth where sanitizers slow them down; or what
// REGARD_PROPERTY_PERCENT says.
inline int scaled_cases(int cases) {
  return std::max(1, cases * environment("REGARD_PROPERTY_PERCENT", kSanitized ? 10 : 100) / 100);
}

// Checks a property on `cases` random inputs, as a part of the running test. The inputs follow from the seed, which a
// failure prints together with the shrunk input; REGARD_PROPERTY_SEED chooses another.
template <class Property>
void check_property(int cases, Property&& property) {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string name = std::string(test->test_suite_name()) + "." + test->name();
  rc::detail::TestParams params;
  params.seed = static_cast<uint64_t>(environment("REGARD_PROPERTY_SEED", 1));
  params.maxSuccess = scaled_cases(cases);
  const auto result =
      rc::detail::checkTestable(std::forward<Property>(property), rc::detail::TestMetadata{name, name}, params);
  if (result.template is<rc::detail::SuccessResult>()) return;
  std::ostringstream message;
  rc::detail::printResultMessage(result, message);
  ADD_FAILURE() << "seed " << params.seed << "\n" << message.str();
}

}  // namespace regard::test
