#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>

#include "regard/error.h"

namespace regard::test {

// Nothing where `call` throws an Error whose single line holds `part`; what happened instead, otherwise.
template <class Call>
std::optional<std::string> missing_error(Call&& call, std::string_view part) {
  try {
    call();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    if (message.find(part) == std::string_view::npos)
      return "the message is: " + std::string(message) + "\nexpected in it: " + std::string(part);
    if (message.find('\n') != std::string_view::npos) return "the message has two lines: " + std::string(message);
    return std::nullopt;
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "nothing was thrown; expected: " + std::string(part);
}

}  // namespace regard::test

// Expects an Error whose message has `part` in it.
#define EXPECT_ERROR(expression, part) \
  EXPECT_EQ(::regard::test::missing_error([&] { (void)(expression); }, part), std::nullopt)
