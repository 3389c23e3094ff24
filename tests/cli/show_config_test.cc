// What the command says of itself, and which instruction set it takes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "kernels/targets.h"

namespace regard::test {
namespace {

// A variable of the commands' environment for as long as it lives.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

nlohmann::json config() {
  const Finished result = run_command({"show-config", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return nlohmann::json::parse(result.out);
}

TEST(ShowConfig, NamesVersionBuildTargetsThreadsAndCache) {
  const Variable cache("REGARD_CACHE", "/tmp/models");
  const nlohmann::json json = config();
  EXPECT_EQ(json["version"], REGARD_VERSION);
  EXPECT_EQ(json["build_type"], REGARD_BUILD_TYPE);
  EXPECT_EQ(json["build_id"].get<std::string>().size(), 40U);  // SHA-1
  EXPECT_EQ(json["mpi"], REGARD_HAS_MPI != 0);
  EXPECT_EQ(json["compiled_targets"], kernels::compiled_targets());
  EXPECT_EQ(json["available_targets"], kernels::supported_targets());
  EXPECT_EQ(json["target"], kernels::supported_targets().front());
  EXPECT_EQ(json["threads"], std::thread::hardware_concurrency());
  EXPECT_GE(json["cores"], json["threads"]);
  EXPECT_EQ(json["cache_folder"], "/tmp/models");
  const Finished text = run_command({"show-config"});
  for (const char* part : {REGARD_VERSION, "/tmp/models", "AVX2", "MPI"})
    EXPECT_NE(text.out.find(part), std::string::npos) << text.out;
  EXPECT_EQ(text.out.find("AVX3"), std::string::npos) << text.out;
}

TEST(Target, IsTheOneThatTheEnvironmentNamesInAnyCase) {
  for (const std::string& target : kernels::supported_targets()) {
    std::string lower = target;
    for (char& c : lower) c = static_cast<char>(std::tolower(c));
    for (const std::string& name : {target, lower}) {
      const Variable variable("REGARD_TARGET", name);
      EXPECT_EQ(config()["target"], target);
    }
  }
  const Variable variable("REGARD_TARGET", "");
  EXPECT_EQ(config()["target"], kernels::supported_targets().front());
}

TEST(Target, ThatTheMachineDoesNotHaveIsRefusedWithThoseItHas) {
  for (const char* name : {"avx9", "AVX3", "NEON\x1B", "avx2 "}) {
    const Variable variable("REGARD_TARGET", name);
    const Finished result = run_command({"show-config"});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    for (const std::string& target : kernels::supported_targets())
      EXPECT_NE(result.err.find(target), std::string::npos) << result.err;
  }
}

TEST(Target, ChangesNoBitOfTheLogits) {
  const ModelFolder folder(TinyLlama{.hidden = 64, .heads = 4, .kv_heads = 2, .intermediate = 96});
  std::string expected;
  int compared = 0;
  for (const std::string& target : kernels::supported_targets()) {
    if (!kernels::target_has_fma(target)) continue;
    const Variable variable("REGARD_TARGET", target);
    const std::string out = folder.file("out.safetensors");
    const Finished result =
        run_command({"logits", "-m", folder.gguf, "--tokens", "5,17,9,200,65,66,67", "--layers", "-o", out});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string bytes = read_whole_file(out);
    if (compared++ == 0) expected = bytes;
    EXPECT_TRUE(bytes == expected) << target;
  }
  if (compared < 2) GTEST_SKIP() << "the machine has one instruction set with fused multiply-add";
}

}  // namespace
}  // namespace regard::test
