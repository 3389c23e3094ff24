#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/child_process.h"
#include "cli/model_folder.h"

namespace regard::test {
namespace {

const std::string kLlama = REGARD_TEST_DATA "/data/llama-3-70b.json";
const std::string kGptOss = REGARD_TEST_DATA "/data/gpt-oss-120b.json";

std::vector<std::string> plan(const std::string& model, std::vector<std::string> more) {
  more.insert(more.begin(), {"plan", "-m", model});
  return more;
}

nlohmann::json plan_as_json(const std::string& model, std::vector<std::string> more) {
  more.emplace_back("--json");
  const Finished result = run_command(plan(model, std::move(more)));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return nlohmann::json::parse(result.out);
}

TEST(PlanCommand, JsonHasEveryPlanAndTheBest) {
  const auto json = plan_as_json(kLlama, {"--ranks", "64", "--batch", "64", "--context", "8192", "--kv-dtype", "bf16"});
  EXPECT_EQ(json["family"], "llama");
  EXPECT_EQ(json["ranks"], 64);
  EXPECT_EQ(json["sequences"], 64);
  EXPECT_EQ(json["context"], 8192);
  EXPECT_EQ(json["prompt"], 8192);
  EXPECT_EQ(json["output"], 256);
  EXPECT_EQ(json["kv_dtype"], "bf16");
  const auto& plans = json["plans"];
  ASSERT_GT(plans.size(), 50U);
  EXPECT_EQ(json["best"]["everything"], 0);
  for (const char* key : {"prefill", "decode"})
    for (const auto& plan : plans)
      EXPECT_LE(plans[json["best"][key].get<size_t>()][key]["seconds"], plan[key]["seconds"]) << key;
  for (const auto& plan : plans)
    EXPECT_LE(plans[json["best"]["memory"].get<size_t>()]["memory"]["total_bytes"], plan["memory"]["total_bytes"]);
}

TEST(PlanCommand, PlainTensorParallelIsAmongThem) {
  const auto json = plan_as_json(kLlama, {"--ranks", "8", "--batch", "2", "--context", "100", "--kv-dtype", "bf16"});
  const auto found = std::ranges::find_if(json["plans"], [](const nlohmann::json& plan) {
    return plan["prefill_name"] == "TP 8" && plan["decode_name"] == "TP 8";
  });
  ASSERT_NE(found, json["plans"].end());
  // An eighth of all weights; one KV head of 128 + 128 numbers, 2 sequences of 100 tokens, 80 layers.
  EXPECT_EQ((*found)["memory"]["attention_weight_bytes"], 80LL * 8192 * 128 * (8 + 1 + 1 + 8) * 2);
  EXPECT_EQ((*found)["memory"]["cache_bytes"], 80LL * 2 * 100 * 256 * 2);
  // Two tokens of 8192 numbers in eight parts, as partial sums and as sums.
  EXPECT_EQ((*found)["decode"]["sent_bytes_per_layer"], 2 * 2 * 1024 * 7 * 4);
}

TEST(PlanCommand, SaysHowToStartEachPlan) {
  const auto json = plan_as_json(kLlama, {"--ranks", "8", "--batch", "4", "--context", "100", "--ranks-per-host", "2"});
  EXPECT_EQ(json["ranks_per_host"], 2);
  for (const auto& plan : json["plans"]) {
    const int64_t cp = plan["cp_degree"];
    const int64_t dp = plan["attention_dp_degree"];
    std::string expected =
        "mpirun -n 8 --map-by ppr:2:node --bind-to socket regard generate -m MODEL --tp " + std::to_string(8 / cp);
    if (cp > 1) expected += " --cp " + std::to_string(cp);
    if (dp > 1) expected += " --dp " + std::to_string(dp);
    if (plan["sequence_parallel_enabled"]) expected += " --sp";
    if (plan["flash_decoding_enabled"]) expected += " --flash-decoding";
    if (plan["context_split"] == "strided") expected += " --strided";
    const std::string dispatch = plan["output_dispatch"];
    if (dispatch != "AR_AG") expected += " --dispatch " + dispatch;
    EXPECT_EQ(plan["command"], expected);
  }
  const Finished result = run_command(plan(kLlama, {"--ranks", "8", "--batch", "4", "--context", "100"}));
  size_t lines = 0;
  for (size_t at = 0; (at = result.out.find("\n  mpirun -n 8 --map-by ppr:1:node ", at)) != std::string::npos; ++at)
    ++lines;
  EXPECT_EQ(lines, 4U) << result.out;
  EXPECT_EQ(plan_as_json(kLlama, {"--ranks", "1", "--context", "9"})["plans"][0]["command"],
            "regard generate -m MODEL");
}

// Rows of 2 ranks on a host each send less over the slow link than rows of 8 over 4 hosts.
TEST(PlanCommand, KnowsHosts) {
  const auto time_of = [](const nlohmann::json& json, const char* name) {
    for (const auto& plan : json["plans"])
      if (plan["decode_name"] == name) return plan["decode"]["link_seconds"].get<double>();
    ADD_FAILURE() << name;
    return 0.0;
  };
  const std::vector<std::string> options = {"--ranks", "8", "--batch", "8", "--context", "100", "--link", "1"};
  auto on_hosts = options;
  on_hosts.insert(on_hosts.end(), {"--ranks-per-host", "2", "--host-link", "1e6"});
  const auto far = plan_as_json(kLlama, options);
  const auto near = plan_as_json(kLlama, on_hosts);
  EXPECT_LT(time_of(near, "DP 4 x TP 2, SP"), 0.001 * time_of(far, "DP 4 x TP 2, SP"));
  EXPECT_GT(time_of(near, "TP 8"), 0.8 * time_of(far, "TP 8"));
}

// 3 KV heads on 4 ranks: keys and values move between prefill and decode.
TEST(PlanCommand, ContextParallelPrefillIsListedWhateverTheHeads) {
  const TempFolder folder;
  const std::string model = folder.write(
      "config.json",
      R"({"model_type": "llama", "hidden_size": 576, "vocab_size": 100, "intermediate_size": 1536, )"
      R"("num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 2, "rms_norm_eps": 1e-5, )"
      R"("max_position_embeddings": 2048, "hidden_act": "silu"})");
  const auto json = plan_as_json(model, {"--ranks", "4", "--context", "1024"});
  EXPECT_TRUE(std::ranges::any_of(
      json["plans"], [](const nlohmann::json& plan) { return plan["prefill_name"] == "CP 4 x TP 1, SP, strided"; }));
}

TEST(PlanCommand, TextSaysWhatWinsForWhat) {
  const Finished result = run_command(plan(kGptOss, {"--ranks", "64", "--batch", "128", "--context", "32768"}));
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const char* part :
       {"gpt_oss, 36 layers of width 2880",
        "18 x 64 query and 8 KV heads of 64, window 128; MLP 2880, 4 of 128 experts",
        "Prefill of one prompt of 32768 tokens", "A decode step of 128 sequences of 32768 tokens", "TP 16, SP, flash",
        "The first token soonest: ", "Most tokens a second: ", "Least memory: ", "Everything soonest: ", "--all"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
}

// All lines of a table are as long as its longest, so that numbers stand under each other.
TEST(PlanCommand, TablesAreAligned) {
  const Finished result = run_command(plan(kLlama, {"--ranks", "16", "--batch", "16", "--context", "4096", "--all"}));
  std::istringstream lines(result.out);
  std::string line;
  size_t tables = 0;
  size_t width = 0;
  while (std::getline(lines, line)) {
    const bool header = line.ends_with("sent") || line.ends_with("everything");
    if (header) ++tables;
    if (header) width = line.size();
    if (width > 0 && line.empty()) width = 0;
    if (width > 0) {
      EXPECT_EQ(line.size(), width) << line;
    }
  }
  EXPECT_EQ(tables, 3U);
  EXPECT_EQ(result.out.find("--all"), std::string::npos);
}

TEST(PlanCommand, MemoryLeavesPlansOut) {
  const std::vector<std::string> options = {"--ranks", "64", "--batch", "64", "--context", "8192", "--memory"};
  const auto with_limit = [&](const char* limit) {
    auto more = options;
    more.emplace_back(limit);
    return more;
  };
  const auto all = plan_as_json(kLlama, with_limit("1000"));
  const auto some = plan_as_json(kLlama, with_limit("14"));
  EXPECT_LT(some["plans"].size(), all["plans"].size());
  for (const auto& plan : some["plans"]) EXPECT_LE(plan["memory"]["total_bytes"], 14e9);
}

TEST(PlanCommand, ModelsOfAllForms) {
  const ModelFolder folder;
  EXPECT_EQ(plan_as_json(folder.gguf, {"--ranks", "2", "--context", "64"})["family"], "llama");
  const TempFolder other;
  TinyLlama().write_hugging_face(other.path(), 2);
  EXPECT_EQ(plan_as_json(other.path(), {"--ranks", "2", "--context", "64"})["family"], "llama");
  const auto lighter = plan_as_json(kLlama, {"--ranks", "2", "--context", "64", "--weight-bytes", "0.5"});
  EXPECT_DOUBLE_EQ(plan_as_json(kLlama, {"--ranks", "2", "--context", "64"})["weight_bytes"].get<double>(),
                   4 * lighter["weight_bytes"].get<double>());
}

void expect_complaint(const std::vector<std::string>& arguments, std::string_view part) {
  const Finished result = run_command(arguments);
  EXPECT_EQ(result.exit_code, 2) << part;
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(result.err.starts_with("regard: ")) << result.err;
  EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(PlanCommand, WrongOptionsAreRefused) {
  expect_complaint({"plan", "--ranks", "2", "--context", "9"}, "--model");
  expect_complaint(plan(kLlama, {"--ranks", "2"}), "--context");
  expect_complaint(plan(kLlama, {"--context", "9"}), "--ranks");
  const auto refused = [](const std::string& option, const std::string& value, std::string_view part) {
    std::vector<std::string> more = {option, value};
    if (option != "--ranks") more.insert(more.end(), {"--ranks", "2"});
    if (option != "--context") more.insert(more.end(), {"--context", "100"});
    expect_complaint(plan(kLlama, more), part);
  };
  for (const char* ranks : {"0", "-1", "4097", "many", ""}) refused("--ranks", ranks, "--ranks");
  for (const char* context : {"0", "-5", "99999999999"}) refused("--context", context, "the context is");
  refused("--batch", "0", "the number of sequences is 0");
  refused("--prompt", "101", "the prompt is 101, expected 1 to 100");
  refused("--prompt", "0", "--prompt");
  refused("--prompt", "many", "--prompt: Value many not in range 1 to 16777216");
  refused("--output", "-1", "the output is -1");
  for (const char* option : {"--link", "--host-link", "--flops", "--bandwidth", "--weight-bytes", "--memory"})
    for (const char* value : {"0", "-1", "nan", "inf", "fast"}) refused(option, value, option);
  for (const char* option : {"--latency", "--host-latency"})
    for (const char* value : {"-1", "nan", "inf"}) refused(option, value, option);
  for (const char* value : {"0", "-1", "257", "many"}) refused("--ranks-per-host", value, "--ranks-per-host");
  refused("--kv-dtype", "f64", "--kv-dtype");
  refused("--memory", "1", "every plan needs");
}

TEST(PlanCommand, BrokenModelsAreRefused) {
  const TempFolder folder;
  const auto refused = [&](std::string_view text, std::string_view part) {
    expect_complaint(plan(folder.write("config.json", text), {"--ranks", "2", "--context", "9"}), part);
  };
  refused("", "no valid JSON object");
  refused("{", "no valid JSON object");
  refused(std::string(1000000, '['), "no valid JSON object");
  refused("{}", "family \"\"");
  refused(R"({"model_type": "llama", "vocab_size": 9})", "has no \"hidden_size\"");
  refused(
      R"({"model_type": "llama", "hidden_size": 64, "vocab_size": 9, "intermediate_size": 9, "num_attention_heads": 1, "num_hidden_layers": 1e9})",
      "expected an integer");
  refused(
      R"({"model_type": "llama", "hidden_size": 64, "vocab_size": 9, "intermediate_size": 9, "num_attention_heads": 1, "num_hidden_layers": 99999999})",
      "\"num_hidden_layers\" is 99999999");
  expect_complaint(plan(folder.file("none.json"), {"--ranks", "2", "--context", "9"}), "none.json");
  expect_complaint(plan(folder.write("model.gguf", "GGUF"), {"--ranks", "2", "--context", "9"}), "model.gguf");
}

}  // namespace
}  // namespace regard::test
