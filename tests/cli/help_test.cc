#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <sstream>

#include "cli/child_process.h"

namespace regard::test {
namespace {

TEST(HelpText, TheCommandListsItsSubcommands) {
  for (const char* flag : {"--help", "-h"}) {
    const Finished result = run_command({flag});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.err, "");
    for (const char* name : {"generate", "batch", "score", "inspect", "attend", "shard", "logits", "verify"})
      EXPECT_NE(result.out.find(name), std::string::npos) << result.out;
  }
}

TEST(HelpText, EverySubcommandHasAnExampleThatStartsWithItself) {
  for (const std::string name : {"generate", "batch", "score", "inspect", "attend", "shard", "logits", "verify"}) {
    const Finished result = run_command({name, "--help"});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_NE(result.out.find("Example"), std::string::npos) << name;
    EXPECT_NE(result.out.find("  regard " + name + " "), std::string::npos) << name;
  }
}

TEST(HelpText, WrapsAtTheWidthOfTheTerminalAndTellsNoRangesOfTypes) {
  setenv("COLUMNS", "64", 1);
  for (const char* name : {"", "generate", "batch", "score", "inspect", "attend", "shard", "logits", "verify", "bench",
                           "plan", "show-config"}) {
    SCOPED_TRACE(name);
    const Finished result = *name == '\0' ? run_command({"--help"}) : run_command({name, "--help"});
    EXPECT_EQ(result.exit_code, 0);
    std::istringstream lines(result.out);
    for (std::string line; std::getline(lines, line);) {
      // Examples can be copied only as they are.
      const bool is_example =
          std::ranges::any_of(std::array{"  regard ", "  echo ", "  cat ", "  REGARD_", "  mpirun "},
                              [&](const char* begin) { return line.starts_with(begin); });
      EXPECT_TRUE(is_example || line.size() <= 64) << line;
    }
    for (const char* part : {" in [", "INT:", "TEXT:", "REQUIRED"})
      EXPECT_EQ(result.out.find(part), std::string::npos) << result.out;
  }
  unsetenv("COLUMNS");
}

TEST(HelpText, SaysWhatIsRequiredAndWhatCanBeChosen) {
  setenv("COLUMNS", "200", 1);
  const std::string help = run_command({"generate", "--help"}).out;
  unsetenv("COLUMNS");
  EXPECT_NE(help.find("a Hugging Face folder (required)"), std::string::npos) << help;
  EXPECT_NE(help.find("(default: f32): f32, bf16, f16, int8"), std::string::npos) << help;
  EXPECT_NE(help.find("--threads INT"), std::string::npos) << help;
}

TEST(HelpText, VersionIsPrinted) {
  const Finished result = run_command({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "regard " REGARD_VERSION "\n");
  EXPECT_EQ(result.err, "");
}

}  // namespace
}  // namespace regard::test
