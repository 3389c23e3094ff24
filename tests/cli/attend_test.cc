#include <gtest/gtest.h>

#include <cmath>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "regard/attention.h"
#include "regard/checkpoint.h"

namespace regard::test {
namespace {

Tensor random_hidden_states(const Shape& shape) {
  Tensor tensor(DType::f32, shape);
  uint32_t state = 1;
  for (float& value : tensor.elements<float>()) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<float>(state) * 0x1p-31F - 1.0F;
  }
  return tensor;
}

struct AttendResult {
  Finished command;
  std::vector<std::pair<std::string, std::vector<float>>> tensors;
};

AttendResult attend(const ModelFolder& folder, std::span<const NamedTensor> input, const std::string& layer = "1") {
  const std::string in = folder.file("in.safetensors");
  const std::string out = folder.file("out.safetensors");
  save_safetensors(in, input);
  AttendResult result;
  result.command = run_command({"attend", "-m", folder.gguf, "--layer", layer, "--input", in, "--output", out});
  if (result.command.exit_code != 0) return result;
  const auto written = Checkpoint::open(out);
  for (const StoredTensor& tensor : written.tensors()) {
    const auto values = tensor.view().elements<float>();
    result.tensors.emplace_back(tensor.name, std::vector<float>(values.begin(), values.end()));
  }
  return result;
}

std::vector<float> copy_of(const Tensor& tensor) {
  const auto values = tensor.elements<float>();
  return {values.begin(), values.end()};
}

TEST(AttendCommand, WritesWhatTheLibraryComputes) {
  const ModelFolder folder;
  const Tensor x = random_hidden_states({2, 5, 32});
  const AttendResult result = attend(folder, std::array<NamedTensor, 1>{{{"hidden_states", x}}});
  ASSERT_EQ(result.command.exit_code, 0) << result.command.err;
  EXPECT_EQ(result.command.out + result.command.err, "");

  const auto checkpoint = Checkpoint::open(folder.gguf);
  const auto layer = Attention::load(checkpoint, 1, AttentionConfig::from(checkpoint, 1), Threads(1));
  PaddedAttentionInput call;
  call.hidden_states = x;
  call.present_key_value = true;
  call.lse = true;
  const AttentionOutput expected = layer.forward(call);
  ASSERT_EQ(result.tensors.size(), 4U);
  EXPECT_EQ(result.tensors[0].first, "hidden_states");
  EXPECT_EQ(result.tensors[0].second, copy_of(expected.hidden_states));
  EXPECT_EQ(result.tensors[1].first, "key");
  EXPECT_EQ(result.tensors[1].second, copy_of(expected.present_key_value.key));
  EXPECT_EQ(result.tensors[2].first, "lse");
  EXPECT_EQ(result.tensors[2].second, copy_of(expected.lse));
  EXPECT_EQ(result.tensors[3].first, "value");
  EXPECT_EQ(result.tensors[3].second, copy_of(expected.present_key_value.value));
  for (const auto& [name, values] : result.tensors) {
    EXPECT_TRUE(std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) << name;
    EXPECT_TRUE(std::ranges::any_of(values, [](float value) { return value != 0.0F; })) << name;
  }
}

TEST(AttendCommand, PaddingGivesZerosAndChangesNothingElse) {
  const ModelFolder folder;
  const Tensor x = random_hidden_states({1, 4, 32});
  Tensor mask(DType::i64, {1, 4});
  for (size_t i = 0; i < 3; ++i) mask.elements<int64_t>()[i] = 1;
  const auto whole = attend(folder, std::array<NamedTensor, 1>{{{"hidden_states", x}}});
  const auto padded = attend(folder, std::array<NamedTensor, 2>{{{"attention_mask", mask}, {"hidden_states", x}}});
  ASSERT_EQ(padded.command.exit_code, 0) << padded.command.err;
  const auto& all = whole.tensors[0].second;
  const auto& some = padded.tensors[0].second;
  EXPECT_TRUE(std::equal(some.begin(), some.begin() + 3 * 32, all.begin()));
  EXPECT_TRUE(std::all_of(some.begin() + 3 * 32, some.end(), [](float value) { return value == 0.0F; }));
}

TEST(AttendCommand, PositionsRotateTheKeys) {
  const ModelFolder folder;
  const Tensor x = random_hidden_states({1, 2, 32});
  Tensor positions(DType::i32, {1, 2});
  positions.elements<int32_t>()[0] = 40;
  positions.elements<int32_t>()[1] = 41;
  const auto plain = attend(folder, std::array<NamedTensor, 1>{{{"hidden_states", x}}});
  const auto moved = attend(folder, std::array<NamedTensor, 2>{{{"hidden_states", x}, {"position_ids", positions}}});
  ASSERT_EQ(moved.command.exit_code, 0) << moved.command.err;
  EXPECT_NE(moved.tensors[1].second, plain.tensors[1].second);
  EXPECT_EQ(moved.tensors[3].second, plain.tensors[3].second);  // values do not rotate
}

TEST(AttendCommand, ARefusedInputLeavesTheOldOutputAsItWas) {
  const ModelFolder folder;
  folder.write("out.safetensors", "old");
  const Tensor wrong = random_hidden_states({1, 2, 31});
  const auto result = attend(folder, std::array<NamedTensor, 1>{{{"hidden_states", wrong}}});
  EXPECT_EQ(result.command.exit_code, 2);
  EXPECT_EQ(read_whole_file(folder.file("out.safetensors")), "old");
}

TEST(AttendCommand, NothingButTheOutputIsLeftBehind) {
  const ModelFolder folder;
  (void)attend(folder, std::array<NamedTensor, 1>{{{"hidden_states", random_hidden_states({1, 2, 32})}}});
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"in.safetensors", "model.gguf", "out.safetensors"}));
}

}  // namespace
}  // namespace regard::test
