#include <gtest/gtest.h>

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

}  // namespace
}  // namespace regard::test
