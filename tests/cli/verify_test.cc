#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "golden/golden_files.h"
#include "regard/checkpoint.h"

namespace regard::test {
namespace {

using Json = nlohmann::json;

std::string family(const std::string& name) { return golden::path("families/" + name); }

class VerifyFamily : public testing::TestWithParam<std::string> {};

TEST_P(VerifyFamily, HoldsBesideFp64AndTransformers) {
  const Finished result = run_command(
      {"verify", "-m", family(GetParam()), "--reference", family(GetParam()) + "/golden.safetensors", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["tokens"], 44);
  const auto config = Json::parse(golden::read_file(family(GetParam()) + "/config.json"));
  for (const Json* parts : {&json["parts"], &json["reference"]["parts"]}) {
    ASSERT_EQ(parts->size(), config["num_hidden_layers"].get<size_t>() + 2);
    EXPECT_EQ(parts->front()["name"], "embedding");
    EXPECT_EQ(parts->at(1)["name"], "layer 0");
    EXPECT_EQ(parts->back()["name"], "logits");
    // Numbers that somebody computed, not zeros.
    EXPECT_GT(parts->at(1)["rms"], 0.0);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, VerifyFamily,
                         testing::Values("llama", "llama_biases", "llama_longrope", "qwen3_windows", "gemma3",
                                         "gemma3_mixed", "gpt_oss", "mixtral", "mixtral_windows", "olmo2"),
                         [](const auto& test) { return test.param; });

// A copy of a family's reference in which one number of `name` is another one.
class ChangedReference : public TempFolder {
 public:
  ChangedReference(const std::string& name, const std::string& tensor, int64_t element, double change) {
    const auto reference = Checkpoint::open(family(name) + "/golden.safetensors");
    const ConstTensorView right = reference.tensor(tensor).view();
    const Tensor changed(DType::f64, right.shape());
    std::ranges::copy(right.elements<double>(), changed.elements<double>().begin());
    changed.elements<double>()[static_cast<size_t>(element)] += change;
    std::vector<NamedTensor> tensors = {{tensor, changed}};
    for (const char* other : {"tokens", "hidden", "logits"})
      if (other != tensor) tensors.push_back({other, reference.tensor(other).view()});
    save_safetensors(file_name(), tensors);
  }
  [[nodiscard]] std::string file_name() const { return file("reference.safetensors"); }
};

TEST(VerifyCommand, NamesTheFirstLayerThatIsNotTheReferences) {
  // hidden is [4, 44, 50]: the second layer leaves state 2.
  const ChangedReference reference("llama", "hidden", (2 * 44 + 30) * 50 + 7, 0.5);
  const std::vector<std::string> command = {"verify", "-m", family("llama"), "--reference", reference.file_name()};
  const Finished text = run_command(command);
  EXPECT_EQ(text.exit_code, 1) << text.err;
  EXPECT_EQ(text.err, "");
  EXPECT_NE(text.out.find("fp64: within the tolerance everywhere\n"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("reference: leaves the tolerance first in: layer 1\n"), std::string::npos) << text.out;
  auto with_json = command;
  with_json.emplace_back("--json");
  const Json json = Json::parse(run_command(with_json).out);
  EXPECT_EQ(json["first_failure"], nullptr);
  EXPECT_EQ(json["reference"]["first_failure"], "layer 1");
  EXPECT_EQ(std::ranges::count(json["reference"]["parts"], Json(false), [](const Json& part) { return part["holds"]; }),
            1);
}

TEST(VerifyCommand, OneWrongLogitAndNaNAreSeen) {
  for (const double change : {0.2, std::numeric_limits<double>::quiet_NaN()}) {
    const ChangedReference reference("qwen3", "logits", 1234, change);
    const Finished result = run_command({"verify", "-m", family("qwen3"), "--reference", reference.file_name()});
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_NE(result.out.find("reference: leaves the tolerance first in: logits\n"), std::string::npos) << result.out;
  }
}

TEST(VerifyCommand, TakesTheFileOfLogits) {
  const ModelFolder folder;
  const std::string out = folder.file("out.safetensors");
  ASSERT_EQ(run_command({"logits", "-m", folder.gguf, "--tokens", "5,17,9", "--layers", "-o", out}).exit_code, 0);
  const Finished result = run_command({"verify", "-m", folder.gguf, "--reference", out, "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["tokens"], 3);
  for (const Json& part : json["reference"]["parts"]) EXPECT_EQ(part["largest"], 0.0);
}

TEST(VerifyCommand, WithoutAReferenceTokensAreMadeUpOrGiven) {
  const auto tokens = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"verify", "-m", family("gemma3"), "--json"});
    const Finished result = run_command(more);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    const Json json = Json::parse(result.out);
    EXPECT_FALSE(json.contains("reference"));
    return json["tokens"].get<int>();
  };
  EXPECT_EQ(tokens({}), 24);
  EXPECT_EQ(tokens({"--tokens", "5,17,9"}), 3);
}

TEST(VerifyCommand, MadeUpTokensReachBeyondAShortWindow) {
  const TempFolder folder;
  std::filesystem::copy(family("gemma3"), folder.path(), std::filesystem::copy_options::recursive);
  auto config = Json::parse(golden::read_file(family("gemma3") + "/config.json"));
  config["sliding_window"] = 40;
  folder.write("config.json", config.dump());
  const Finished result = run_command({"verify", "-m", folder.file("model.safetensors"), "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_EQ(Json::parse(result.out)["tokens"], 52);
}

}  // namespace
}  // namespace regard::test
