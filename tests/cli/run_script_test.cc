// ./run says what to do where it can't do it itself.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <filesystem>

#include "support/temp_folder.h"

namespace regard::test {
namespace {

namespace fs = std::filesystem;

struct Said {
  bool failed = false;
  std::string text;  // both outputs
};

// ./run with these words before it, as env takes them, and these after it.
Said run_script(const std::string& environment, const std::string& arguments) {
  const fs::path script = fs::path(REGARD_TEST_DATA).parent_path() / "run";
  FILE* pipe = popen(fmt::format("env {} /bin/bash {} {} 2>&1", environment, script.string(), arguments).c_str(), "r");
  Said said;
  std::array<char, 4096> buffer{};
  for (size_t count = 0; (count = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    said.text.append(buffer.data(), count);
  said.failed = pclose(pipe) != 0;
  return said;
}

TEST(RunScript, WithoutAHomeAsksForTheFolderOfModels) {
  for (const char* environment :
       {"-u HOME -u XDG_CACHE_HOME -u REGARD_CACHE", "-u XDG_CACHE_HOME -u REGARD_CACHE HOME="}) {
    const Said said = run_script(environment, "--model");
    EXPECT_TRUE(said.failed);
    EXPECT_EQ(said.text, "HOME is not set: set REGARD_CACHE to a folder where the model may be kept\n");
  }
}

// A machine with none of the packages, and a user who is not root.
TEST(RunScript, WithoutSudoNamesWhatRootHasToInstall) {
  const TempFolder folder;
  const auto tool = [&](const char* name, const std::string& script) {
    folder.write(name, script);
    fs::permissions(folder.path() / name, fs::perms::owner_all);
  };
  tool("dirname", "#!/bin/bash\necho \"${1%/*}\"\n");
  tool("id", "#!/bin/bash\necho 1000\n");
  tool("dpkg-query", "#!/bin/bash\nexit 1\n");
  const Said said = run_script("PATH=" + folder.path().string(), "--build");
  EXPECT_TRUE(said.failed);
  EXPECT_NE(said.text.find("no sudo"), std::string::npos) << said.text;
  EXPECT_NE(said.text.find("apt-get install cmake ninja-build"), std::string::npos) << said.text;
  EXPECT_EQ(said.text.find("command not found"), std::string::npos) << said.text;
}

}  // namespace
}  // namespace regard::test
