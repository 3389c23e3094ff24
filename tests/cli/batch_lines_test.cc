// Lines that are no requests are refused by their size, before they take minutes.
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/child_process.h"
#include "cli/model_folder.h"

namespace regard::test {
namespace {

void expect_refused(const std::string& lines, std::string_view part) {
  const ModelFolder folder;
  const std::string results = folder.file("results.jsonl");
  const Finished result =
      run_command({"batch", "-m", folder.gguf, "-i", folder.write("requests.jsonl", lines), "-o", results});
  EXPECT_EQ(result.exit_code, 2) << result.signal;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err.substr(0, 300);
  EXPECT_LT(result.err.size(), 400U);
  EXPECT_FALSE(std::filesystem::exists(results));
}

std::string request(const std::string& prompt) { return R"({"id":"a","prompt":)" + prompt + "}\n"; }

TEST(BatchLines, OfMoreThanSixteenMegabytesAreRefused) {
  const std::string small = request("\"the\"");
  expect_refused(small + "\n" + request('"' + std::string(20'000'000, 'q') + '"'),
                 "line 3 has 20000022 bytes, expected at most 16777216");
}

TEST(BatchLines, NestedTensOfMillionsDeepAreRefusedWithoutBeingParsed) {
  const int depth = 20'000'000;
  expect_refused(request(std::string(depth, '[') + std::string(depth, ']')), "line 1 has 40000020 bytes");
}

}  // namespace
}  // namespace regard::test
