#include <gtest/gtest.h>

#include <filesystem>

#include "cli/child_process.h"
#include "cli/model_folder.h"

namespace regard::test {
namespace {

// The command waits for its prompt when it has opened the model, and loads the weights then.
TEST(LostPages, AModelThatBecomesShorterIsNamed) {
  const ModelFolder folder(TinyLlama{.hidden = 64, .intermediate = 256});
  for (const uintmax_t left : {uintmax_t{4096}, std::filesystem::file_size(folder.gguf) - 1}) {
    const TempFolder copies;
    const std::string model = copies.file("model.gguf");
    std::filesystem::copy_file(folder.gguf, model);
    ChildProcess command({"generate", "-m", model, "-p", "-", "-n", "1", "--threads", "1"});
    command.wait_until_it_maps(model);
    std::filesystem::resize_file(model, left);
    const Finished finished = command.finish("the inn");
    EXPECT_EQ(finished.exit_code, 2) << "signal " << finished.signal;
    EXPECT_NE(finished.err.find(model), std::string::npos) << finished.err;
    EXPECT_EQ(finished.err.find('\n'), finished.err.size() - 1) << finished.err;
  }
}

}  // namespace
}  // namespace regard::test
