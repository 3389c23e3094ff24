#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/child_process.h"

namespace regard::test {
namespace {

// 64 tokens of one KV head: 64 * 32 elements of keys and values.
TEST(BenchCommand, CountsTheBytesOfEveryCacheType) {
  const std::pair<const char*, double> types[] = {{"f32", 4}, {"bf16", 2}, {"int8", 1}, {"int4", 0.5}};
  std::vector<std::string> arguments = {"bench", "--json", "--threads", "1"};
  for (const auto& [name, bytes] : types)
    arguments.insert(arguments.end(), {"--shape", std::string("prefill:") + name + ":b1:h2:kv1:d16:s64"});
  const Finished result = run_command(arguments);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto cases = nlohmann::json::parse(result.out)["cases"];
  ASSERT_EQ(cases.size(), std::size(types));
  for (size_t i = 0; i < cases.size(); ++i) {
    const double bytes = cases[i]["gbs"].get<double>() * cases[i]["milliseconds"].get<double>() * 1e6;
    EXPECT_NEAR(bytes, 64 * 32 * types[i].second, 0.01) << cases[i]["shape"];
  }
}

TEST(BenchCommand, AModelThatNoSuiteReadsIsRefused) {
  const std::vector<std::vector<std::string>> commands = {
      {"bench", "-m", "/nonexistent"},
      {"bench", "-m", ""},
      {"bench", "--suite", "layer", "-m", "/nonexistent"},
      {"bench", "--shape", "decode:f32:b1:h2:d16:l64", "-m", "x"},
      {"bench", "--suite", "decoder", "-m", "/nonexistent"},
      {"bench", "--shape", "decode:f32:b1:h2:d16:l64", "--filter", "x"}};
  for (const auto& command : commands) {
    const Finished result = run_command(command);
    EXPECT_EQ(result.exit_code, 2) << command.back();
    EXPECT_EQ(result.out, "") << command.back();
  }
}

}  // namespace
}  // namespace regard::test
