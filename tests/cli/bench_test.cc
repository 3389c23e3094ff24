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

}  // namespace
}  // namespace regard::test
