// Whatever the input, the command says one sentence on one line and exits with 2.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "regard/checkpoint.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/gguf_builder.h"
#include "support/safetensors_builder.h"

namespace regard::test {
namespace {

// What a sentence says twice: a part between colons, or a layer beside a tensor whose name has it; "" where nothing.
std::string said_twice(const std::string& sentence) {
  std::set<std::string> parts;
  for (size_t at = 0; at < sentence.size();) {
    const size_t end = std::min(sentence.find(": ", at), sentence.size());
    const std::string part = sentence.substr(at, end - at);
    if (!parts.insert(part).second) return part;
    at = end + 2;
  }
  for (const std::string& part : parts)
    if (part.starts_with("layer ") && (sentence.find("\"blk." + part.substr(6) + ".") != std::string::npos ||
                                       sentence.find(".layers." + part.substr(6) + ".") != std::string::npos))
      return part;
  return "";
}

void expect_complaint(const std::vector<std::string>& arguments, std::string_view part, std::string_view input = {}) {
  const Finished result = run_command(arguments, input);
  std::string what;
  for (const std::string& argument : arguments) what += argument.substr(0, 200) + " ";
  EXPECT_EQ(result.exit_code, 2) << what << "signal " << result.signal << "\n" << result.err.substr(0, 2000);
  EXPECT_EQ(result.out, "") << what;
  EXPECT_TRUE(result.err.starts_with("regard: ")) << what << result.err;
  EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << what << result.err;
  EXPECT_TRUE(result.err.ends_with("\n")) << what;
  EXPECT_NE(result.err.find(part), std::string::npos) << what << result.err;
  EXPECT_EQ(said_twice(result.err), "") << what << result.err;
}

TEST(BadInput, WrongOptionsAreRefused) {
  const ModelFolder folder;
  const std::string text = folder.write("text.txt", "the inn");
  expect_complaint({}, "subcommand");
  expect_complaint({"dance"}, "dance");
  expect_complaint({"generate"}, "required");
  expect_complaint({"generate", "-m", folder.gguf}, "--prompt");
  expect_complaint({"generate", "-m", folder.gguf, "-p", "a", "--loud"}, "--loud");
  expect_complaint({"score", "-m", folder.gguf}, "--file");
  // Unknown before missing: the one may be the other, misspelt.
  expect_complaint({"generate", "--modle", folder.gguf}, "--modle");
  expect_complaint({"score", "-m", folder.gguf, "--flie", text}, "--flie");
  expect_complaint({"inspect"}, "model");
  const auto generate = [&](const std::string& option, const std::string& value, std::string_view part) {
    // One token, so that a value that is not refused fails fast.
    expect_complaint({"generate", "-m", folder.gguf, "-p", "a", "-n", "1", option, value}, part);
  };
  for (const char* threads : {"0", "-1", "1025", "99999999999999999999", "two", "", "1.5"})
    generate("--threads", threads, "--threads");
  for (const char* count : {"0", "-5", "99999999999999999999", "many", "1e3"})
    expect_complaint({"generate", "-m", folder.gguf, "-p", "a", "-n", count}, "--max-tokens");
  for (const char* temperature : {"-1", "nan", "inf", "-inf"}) generate("--temperature", temperature, "temperature is");
  generate("--temperature", "warm", "--temperature");
  generate("--top-k", "-1", "top_k is -1");
  generate("--top-k", "4294967297", "--top-k");
  for (const char* top_p : {"0", "-0.5", "1.5", "nan"}) generate("--top-p", top_p, "top_p is");
  for (const char* seed : {"-1", "18446744073709551616", "0x10", "1.5", "x", ""}) generate("--seed", seed, "--seed");
  for (const char* draft : {"-1", "65", "all", "1.5", ""}) generate("--draft", draft, "--draft");
  expect_complaint({"generate", "-m", folder.gguf, "-p", "a", "--system", "b"}, "--chat");
  expect_complaint({"generate", "-m", folder.gguf, "-p", "a", "--chat"}, "chat template");
  expect_complaint({"score", "-m", folder.gguf, "-f", text, "--max-tokens", "1"}, "--max-tokens");
}

TEST(BadInput, NumbersAreDecimalAndNeverEmpty) {
  const ModelFolder folder;
  const std::string in = folder.write("in.jsonl", "");
  const auto generate = [&](const std::string& option, const std::string& value, std::string_view part) {
    expect_complaint({"generate", "-m", folder.gguf, "-p", "a", option, value}, part);
  };
  for (const char* option : {"--max-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--draft", "--threads",
                             "--tp", "--cp", "--dp"}) {
    generate(option, "", option);
    generate(option, "", "the value is empty");
    for (const char* value : {"010", "0x10", "-010", "0b1"}) generate(option, value, "expected a decimal number");
  }
  for (const char* value : {"", "010K", "0x10"})
    expect_complaint({"batch", "-m", folder.gguf, "-i", in, "-o", folder.file("out"), "--kv-memory", value},
                     "--kv-memory");
  expect_complaint({"plan", "-m", folder.gguf, "--ranks", "02", "--context", "64"}, "--ranks");
  expect_complaint({"plan", "-m", folder.gguf, "--ranks", "2", "--context", ""}, "--context");
  expect_complaint({"attend", "-m", folder.gguf, "--layer", "", "--input", in, "--output", folder.file("out")},
                   "--layer");
  // A number alone may be 0, and what is no number may begin with it.
  const std::vector<std::string> good = {"generate", "-m", folder.gguf, "-p", "010",           "-n", "1",
                                         "--top-k",  "0",  "--seed",    "0",  "--temperature", "0.5"};
  EXPECT_EQ(run_command(good).exit_code, 0);
}

TEST(BadInput, TokensThatAreNoIdsAreRefused) {
  const ModelFolder folder;  // a vocabulary of 267, a context of 64
  const std::string out = folder.file("out.safetensors");
  const auto every_command = [&](const std::string& list, std::string_view part) {
    SCOPED_TRACE(list);
    expect_complaint({"generate", "-m", folder.gguf, "--tokens", list, "-n", "1"}, part);
    expect_complaint({"logits", "-m", folder.gguf, "--tokens", list, "-o", out}, part);
    expect_complaint({"verify", "-m", folder.gguf, "--tokens", list}, part);
  };
  for (const char* list : {"", ",", "5,", ",5", "5,,9", "5 9", "5, 9", "five", "5.5", "-1", "+1", "0x10", "1e3",
                           "2147483648", "99999999999999999999", "[5]"})
    every_command(list, "expected token ids separated by commas, as 5,17,9");
  every_command("5,267", "token id is 267, expected 0 to 266");
  std::string long_list = "1";
  for (int i = 0; i < 64; ++i) long_list += ",1";
  every_command(long_list, "65 tokens, expected 1 to 64 (the model's context)");
  EXPECT_FALSE(std::filesystem::exists(out));
  expect_complaint({"generate", "-m", folder.gguf, "--tokens", "5", "-p", "a"}, "--tokens");
  expect_complaint({"generate", "-m", folder.gguf, "--tokens", "5", "--chat"}, "--tokens");
  expect_complaint({"logits", "-m", folder.gguf, "--tokens", "5"}, "--output");
  expect_complaint({"logits", "-m", folder.gguf, "-o", out}, "--tokens");
  expect_complaint({"logits", "-m", folder.gguf, "--tokens", "5", "-o", folder.file("none/out")}, "can't be written");
  expect_complaint({"logits", "-m", folder.gguf, "--tokens", "5", "-o", folder.path()}, folder.path().string());
  expect_complaint({"logits", "-m", folder.gguf, "--tokens", "5", "-o", ""}, "");
  const auto score = [&](std::string_view file, std::string_view part) {
    SCOPED_TRACE(file);
    expect_complaint({"score", "-m", folder.gguf, "--tokens", folder.write("ids.json", file)}, part);
  };
  for (const char* file : {"", "5", "{}", "[5, 17", "[5, -1]", "[5, 1.5]", "[5, \"6\"]", "[[5, 6]]", "[5, 6] 7",
                           "[5, 2147483648]", "null", "5,17"})
    score(file, "expected a JSON list of token ids, as [5, 17, 9]");
  score(std::string_view("[5, 6]\0[7]", 10), "expected a JSON list of token ids");
  score("[]", "the text has 0 tokens, expected 2 to 64");
  score("[5]", "the text has 1 tokens, expected 2 to 64");
  score("[5, 267]", "token id is 267, expected 0 to 266");
  expect_complaint({"score", "-m", folder.gguf, "--tokens", folder.file("none.json")}, "none.json can't be opened");
  expect_complaint({"score", "-m", folder.gguf, "--tokens", folder.write("ids.json", "[5, 6]"), "-f", "text"},
                   "--tokens");
}

TEST(BadInput, VerifyRefusesWhatIsNoReferenceOfTheModel) {
  const ModelFolder folder;  // 2 layers, hidden 32, vocabulary 267
  const std::vector<int32_t> three = {5, 17, 9};
  const std::vector<float> zeros(4 * 4 * 267);
  const auto verify = [&](const std::vector<NamedTensor>& tensors, std::string_view part) {
    SCOPED_TRACE(part);
    const std::string reference = folder.file("reference.safetensors");
    save_safetensors(reference, tensors);
    expect_complaint({"verify", "-m", folder.gguf, "--reference", reference}, part);
  };
  const NamedTensor tokens{"tokens", ConstTensorView(three.data(), {3})};
  const auto of_zeros = [&](const char* name, const Shape& shape) {
    return NamedTensor{name, ConstTensorView(zeros.data(), shape)};
  };
  const NamedTensor logits = of_zeros("logits", {3, 267});
  verify({logits}, "tokens");
  verify({tokens}, "logits");
  verify({tokens, of_zeros("logits", {2, 267})}, "logits have shape [2, 267] and dtype f32, expected [3, 267]");
  verify({tokens, of_zeros("logits", {3, 266})}, "logits have shape [3, 266]");
  verify({tokens, {"logits", ConstTensorView(three.data(), {3})}}, "logits have shape [3] and dtype i32");
  verify({tokens, logits, of_zeros("hidden_states", {2, 3, 32})},
         "hidden states have shape [2, 3, 32] and dtype f32, expected [3, 3, 32]");
  verify({of_zeros("tokens", {3}), logits}, "tokens have shape [3] and dtype f32");
  verify({{"tokens", ConstTensorView(three.data(), {3, 1})}, logits}, "tokens have shape [3, 1]");
  const std::vector<int32_t> large = {5, 267, 9};
  verify({{"tokens", ConstTensorView(large.data(), {3})}, logits}, "token id is 267, expected 0 to 266");
  const std::vector<int64_t> wide = {5, int64_t{1} << 40, 9};
  verify({{"tokens", ConstTensorView(wide.data(), {3})}, logits}, "token id is 1099511627776, expected 0 to");
  expect_complaint({"verify", "-m", folder.gguf, "--reference", folder.file("none.safetensors")}, "does not exist");
  expect_complaint({"verify", "-m", folder.gguf, "--reference", folder.gguf}, "tokens");
  expect_complaint({"verify", "-m", folder.gguf, "--reference", ""}, "checkpoint: ");
  expect_complaint({"verify", "-m", folder.gguf, "--reference", folder.gguf, "--tokens", "5"}, "--tokens");
}

TEST(BadInput, DraftModelsThatDoNotFitAreRefused) {
  const ModelFolder folder;
  const auto generate = [&](std::vector<std::string> arguments, std::string_view part) {
    arguments.insert(arguments.begin(), {"generate", "-m", folder.gguf, "-p", "the", "-n", "1", "--threads", "1"});
    expect_complaint(arguments, part);
  };
  generate({"--draft-model", ""}, "--draft-model");
  generate({"--draft-model", folder.file("none")}, "does not exist");
  generate({"--draft-model", folder.gguf, "--draft", "0"}, "--draft is 0 and --draft-model is given, expected 1 to 64");
  auto vocabulary = tiny_vocabulary();
  std::swap(vocabulary[40], vocabulary[41]);
  GgufBuilder other = TinyLlama().gguf();
  const std::string key = "tokenizer.ggml.tokens";
  other.remove(key).add_texts(key, vocabulary);
  generate({"--draft-model", folder.write("other.gguf", other.build())},
           "other.gguf has another vocabulary: token 40 is ");
}

TEST(BadInput, SavedSequencesThatDoNotFitAreRefused) {
  const ModelFolder folder;
  const std::string cache = folder.file("text.safetensors");
  const auto generate = [&](std::vector<std::string> arguments, std::string_view part) {
    arguments.insert(arguments.begin(), {"generate", "-m", folder.gguf, "-n", "1", "--threads", "1"});
    expect_complaint(arguments, part);
  };
  generate({"--restore-cache", cache}, "does not exist");
  generate({"--restore-cache", folder.gguf}, "has no kind");
  generate({"--restore-cache", ""}, "--restore-cache");
  generate({"-p", "the inn", "--save-cache", ""}, "--save-cache");
  const Finished saved =
      run_command({"generate", "-m", folder.gguf, "-p", "the inn", "-n", "5", "--save-cache", cache, "--json"});
  ASSERT_EQ(saved.exit_code, 0) << saved.err;
  generate({"--restore-cache", cache, "--kv-dtype", "int8"}, "layers.0.key_dtype is \"f32\", expected \"i8\"");
  generate({"--restore-cache", cache, "-p", std::string(64, 'q')}, "the text has");
  generate({"--restore-cache", cache, "-p", "the", "--chat"}, "--chat");
  const std::string bytes = read_whole_file(cache);
  folder.write("text.safetensors", std::string_view(bytes).substr(0, bytes.size() - 1));
  generate({"--restore-cache", cache}, "data_offsets");
  const ModelFolder other(TinyLlama{.layers = 3});
  folder.write("text.safetensors", bytes);
  expect_complaint({"generate", "-m", other.gguf, "-n", "1", "--restore-cache", cache},
                   "layers is \"2\", expected \"3\"");
  // Of the same shapes, with other numbers.
  const ModelFolder twin(TinyLlama{.seed = 2});
  expect_complaint({"generate", "-m", twin.gguf, "-n", "1", "--restore-cache", cache}, "belongs to another model");
  // The name of the model's file does not matter.
  std::filesystem::rename(folder.gguf, folder.file("renamed.gguf"));
  EXPECT_EQ(run_command({"generate", "-m", folder.file("renamed.gguf"), "-n", "1", "--restore-cache", cache}).exit_code,
            0);
}

TEST(BadInput, ModelsThatAreNotThereAreRefusedByEveryCommand) {
  const ModelFolder folder;
  const std::string text = folder.write("text.txt", "the inn");
  const std::string empty = folder.write("empty.gguf", "");
  for (const std::string& model : {folder.file("none.gguf"), folder.file("none/model.gguf"), std::string("/dev/null"),
                                   std::string(), empty, text, std::string("two\nlines\x1B[2J.gguf")}) {
    expect_complaint({"generate", "-m", model, "-p", "a"}, "checkpoint: ");
    expect_complaint({"score", "-m", model, "-f", text}, "checkpoint: ");
    expect_complaint({"inspect", model}, "checkpoint: ");
    expect_complaint({"attend", "-m", model, "--layer", "0", "--input", text, "--output", folder.file("out")},
                     "checkpoint: ");
  }
  EXPECT_FALSE(std::filesystem::exists(folder.file("out")));
}

TEST(BadInput, FilesOfOtherKindsAreNeitherGgufNorSafetensors) {
  const TempFolder folder;
  for (const char* name : {"README.md", "pytorch_model.bin", "model.gguf", "tokenizer.model"})
    for (const std::string& bytes : {std::string("# A text of some length, in Markdown.\n"), std::string("PK\3\4"),
                                     std::string("\x80\2}q\0X", 6) + std::string(100, 'x')})
      expect_complaint({"inspect", folder.write(name, bytes)}, "is neither GGUF nor safetensors");
}

// A model of which only what needs no weights can be read: what is wrong besides is said first.
TEST(BadInput, WhatNeedsNoWeightsIsCheckedBeforeTheyAreLoaded) {
  const TempFolder folder;
  GgufBuilder file = TinyLlama().gguf();  // a vocabulary of 267, a context of 64
  file.tensor("blk.0.ffn_down.weight").name = "blk.0.other.weight";
  const std::string model = folder.write("model.gguf", file.build());
  const std::string out = folder.file("out.safetensors");
  const std::string nowhere = folder.file("none/out.safetensors");
  const auto refused = [&](std::vector<std::string> arguments, std::string_view part) {
    arguments.insert(arguments.begin() + 1, {"-m", model});
    expect_complaint(arguments, part);
  };
  refused({"generate", "-p", "the"}, "ffn_down");
  refused({"generate", "-p", std::string(65, 'q')}, "65 tokens, expected 1 to 64");
  refused({"generate", "--tokens", "5,267"}, "token id is 267");
  refused({"generate", "-p", "the", "--temperature", "-1"}, "temperature is -1");
  refused({"generate", "-p", "the", "--save-cache", nowhere}, "can't be written: No such file or directory");
  refused({"score", "-f", folder.write("text.txt", "q")}, "the text has 1 tokens");
  refused({"score", "--tokens", folder.write("ids.json", "[5, 267]")}, "token id is 267");
  refused({"logits", "--tokens", "5,267", "-o", out}, "token id is 267");
  refused({"logits", "--tokens", "5", "-o", nowhere}, "can't be written: No such file or directory");
  refused({"verify", "--tokens", "5,267"}, "token id is 267");
  const std::vector<int32_t> ids = {5, 17};
  const std::vector<float> logits(2 * 266);
  save_safetensors(out, std::array<NamedTensor, 2>{{{"tokens", ConstTensorView(ids.data(), {2})},
                                                    {"logits", ConstTensorView(logits.data(), {2, 266})}}});
  refused({"verify", "--reference", out}, "logits have shape [2, 266]");
  refused({"batch", "-i", folder.write("requests.jsonl", "{\"id\": \"a\", \"prompt\": \"the\"}"), "-o", nowhere},
          "can't be written: No such file or directory");
}

TEST(BadInput, AttendChecksItsFilesBeforeTheWeights) {
  const TempFolder folder;
  GgufBuilder file = TinyLlama().gguf();
  file.tensor("blk.0.attn_output.weight").name = "blk.0.other.weight";
  const std::string model = folder.write("model.gguf", file.build());
  const std::string in = folder.file("in.safetensors");
  const auto refused = [&](const Tensor& tensor, const char* name, const std::string& out, std::string_view part) {
    save_safetensors(in, std::array<NamedTensor, 1>{{{name, tensor}}});
    expect_complaint({"attend", "-m", model, "--layer", "0", "--input", in, "--output", out}, part);
  };
  const Tensor x(DType::f32, {1, 2, 32});
  refused(x, "hidden_states", folder.file("out"), "attn_output");
  refused(x, "hidden", folder.file("out"), "no tensor is called \"hidden\"");
  refused(x, "hidden_states", folder.file("none/out"), "can't be written: No such file or directory");
}

TEST(BadInput, MessagesKeepQuotesAndGiveReasons) {
  const ModelFolder folder;
  expect_complaint({"generate", "-m", folder.gguf, "--tokens", "\"5\""}, "--tokens is \"\"5\"\", expected");
  expect_complaint({"score", "-m", folder.gguf, "-f", folder.file("none")},
                   "can't be opened: No such file or directory");
  expect_complaint({"score", "-m", folder.gguf, "-f", folder.path()}, "can't be read: Is a directory");
  expect_complaint({"logits", "-m", folder.gguf, "--tokens", "5", "-o", "/proc/out"}, "can't be written: ");
}

TEST(BadInput, BrokenModelFilesAreRefusedWithTheReason) {
  const TempFolder folder;
  for (const auto& files : {broken_ggufs(), broken_models()}) {
    for (const BrokenFile& broken : files) {
      SCOPED_TRACE(broken.name);
      expect_complaint({"generate", "-m", folder.write("model.gguf", broken.bytes), "-p", "the inn", "--threads", "1"},
                       broken.complaint);
    }
  }
}

TEST(BadInput, BrokenFoldersAreRefusedWithTheReason) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path());
  for (const BrokenFile& broken : broken_configs()) {
    SCOPED_TRACE(broken.name);
    folder.write("config.json", broken.bytes);
    expect_complaint({"generate", "-m", folder.path(), "-p", "the inn", "--threads", "1"}, broken.complaint);
  }
  TinyLlama().write_hugging_face(folder.path());
  for (const BrokenFile& broken : broken_tokenizers()) {
    SCOPED_TRACE(broken.name);
    folder.write("tokenizer.json", broken.bytes);
    expect_complaint({"generate", "-m", folder.path(), "-p", "the inn", "--threads", "1"}, broken.complaint);
  }
  TinyLlama().write_hugging_face(folder.path());
  for (const BrokenFile& broken : broken_safetensors()) {
    SCOPED_TRACE(broken.name);
    folder.write("model.safetensors", broken.bytes);
    expect_complaint({"inspect", folder.path()}, broken.complaint);
  }
}

TEST(BadInput, ATensorsLayerIsSaidOnce) {
  const TempFolder folder;
  const auto complaint = [&](const GgufBuilder& gguf, std::string_view part) {
    expect_complaint({"generate", "-m", folder.write("model.gguf", gguf.build()), "-p", "the inn"}, part);
  };
  for (const char* name : {"blk.1.attn_q.weight", "blk.1.ffn_up.weight", "blk.1.attn_norm.weight"}) {
    GgufBuilder gguf = TinyLlama().gguf();
    std::erase_if(gguf.tensors, [&](const GgufTensor& tensor) { return tensor.name == name; });
    complaint(gguf, std::string("model.gguf has no tensor \"") + name + "\"");
  }
  // Numbers are those of a layer, or of a tensor that is named.
  const std::string nan(4, '\xFF');
  GgufBuilder gguf = TinyLlama().gguf();
  gguf.tensor("blk.1.ffn_up.weight").data.replace(0, 4, nan);
  complaint(gguf, "regard: layer 1: mlp: up_proj: ");
  gguf = TinyLlama().gguf();
  gguf.tensor("blk.1.attn_norm.weight").data.replace(0, 4, nan);
  complaint(gguf, "regard: checkpoint: tensor \"blk.1.attn_norm.weight\" holds NaN");
}

TEST(BadInput, InspectRefusesModelsWithoutLayers) {
  const TempFolder folder;
  for (const uint32_t layers : {0U, 3U, 0xFFFFFFFFU}) {
    GgufBuilder gguf = TinyLlama().gguf();
    gguf.replace_raw("llama.block_count", gguf::u32, bytes_of(layers));
    expect_complaint({"inspect", folder.write("model.gguf", gguf.build())},
                     layers == 3 ? "blk.2." : "block_count\" is");
  }
}

TEST(BadInput, PromptsAndTextsThatDoNotFitAreRefused) {
  const ModelFolder folder;  // a context of 64
  expect_complaint({"generate", "-m", folder.gguf, "-p", ""}, "the prompt has 0 tokens, expected 1 to 64");
  expect_complaint({"generate", "-m", folder.gguf, "-p", std::string(65, 'q')}, "65 tokens, expected 1 to 64");
  expect_complaint({"generate", "-m", folder.gguf, "-p", "-"}, "1000000 tokens", std::string(1'000'000, 'q'));
  expect_complaint({"generate", "-m", folder.gguf, "-p", "-"}, "0 tokens", "");
  expect_complaint({"generate", "-m", folder.gguf, "-p", "ab\xFF"}, "no valid UTF-8: byte 2");
  expect_complaint({"generate", "-m", folder.gguf, "-p", "-"}, "no valid UTF-8: byte 3", "ab\n\xC3");
  const auto score = [&](std::string_view text, std::string_view part) {
    expect_complaint({"score", "-m", folder.gguf, "-f", folder.write("text.txt", text)}, part);
  };
  score("", "the text has 0 tokens, expected 2 to 64");
  score("q", "the text has 1 tokens");
  score(std::string(65, 'q'), "the text has 65 tokens");
  score("the \xE2\x82", "no valid UTF-8: byte 4");
  expect_complaint({"score", "-m", folder.gguf, "-f", folder.file("none.txt")}, "none.txt can't be opened");
  expect_complaint({"score", "-m", folder.gguf, "-f", folder.path()}, "can't be read");
}

TEST(BadInput, AttendRefusesWhatIsNoInputOfTheLayer) {
  const ModelFolder folder;
  const std::string out = folder.file("out.safetensors");
  const auto attend = [&](const std::string& layer, const std::vector<SafeTensor>& tensors, std::string_view part) {
    const std::string in = folder.write("in.safetensors", safetensors_bytes(tensors));
    expect_complaint({"attend", "-m", folder.gguf, "--layer", layer, "--input", in, "--output", out}, part);
  };
  const SafeTensor good{.name = "hidden_states", .dtype = "F32", .shape = {1, 2, 32}, .data = std::string(256, '\0')};
  for (const char* layer : {"2", "-1", "9223372036854775807"}) attend(layer, {good}, "expected 0 to 1");
  attend("x", {good}, "--layer");
  attend("0", {}, "no tensor \"hidden_states\"");
  const auto changed = [&](std::vector<int64_t> shape, const char* dtype, size_t bytes) {
    return SafeTensor{
        .name = "hidden_states", .dtype = dtype, .shape = std::move(shape), .data = std::string(bytes, '\0')};
  };
  attend("0", {changed({2, 32}, "F32", 256)}, "hidden_states has shape [2, 32]");
  attend("0", {changed({1, 2, 31}, "F32", 248)}, "hidden_states has shape");
  attend("0", {changed({1, 2, 32}, "F64", 512)}, "f64");
  attend("0", {changed({1, 2, 32}, "I32", 256)}, "i32");
  attend("0", {changed({1, 65, 32}, "F32", 65 * 128)}, "65 tokens");
  const auto with = [&](const char* name, const char* dtype, std::vector<int64_t> shape, std::string data) {
    return std::vector<SafeTensor>{good,
                                   {.name = name, .dtype = dtype, .shape = std::move(shape), .data = std::move(data)}};
  };
  const auto two = [](int64_t first, int64_t second) { return bytes_of(first) + bytes_of(second); };
  attend("0", with("position_idz", "I64", {1, 2}, two(0, 1)), "no tensor is called \"position_idz\", expected hidden_");
  attend("0", with("attention_mask", "I64", {1, 3}, two(1, 1) + bytes_of(int64_t{1})), "attention_mask has shape");
  attend("0", with("attention_mask", "F32", {1, 2}, std::string(8, '\0')), "f32");
  attend("0", with("position_ids", "I64", {2}, two(0, 1)), "position_ids has shape");
  attend("0", with("position_ids", "I64", {1, 2}, two(0, 2)), "position_ids of row 0 has 2 at index 1");
  attend("0", with("position_ids", "I64", {1, 2}, two(-1, 0)), "position");
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST(BadInput, OutputsThatCanNotBeWrittenAreRefused) {
  const ModelFolder folder;
  const Tensor x(DType::f32, {1, 2, 32});
  const std::string in = folder.file("in.safetensors");
  save_safetensors(in, std::array<NamedTensor, 1>{{{"hidden_states", x}}});
  for (const std::string& out : {folder.file("none/out.safetensors"), folder.path().string(), std::string("/proc/out"),
                                 std::string("/dev/full/out"), std::string()})
    expect_complaint({"attend", "-m", folder.gguf, "--layer", "0", "--input", in, "--output", out}, "can't be written");
  // Before a text is generated that would be lost.
  expect_complaint({"generate", "-m", folder.gguf, "-p", "the", "--save-cache", folder.file("none/cache")},
                   "can't be written");
}

TEST(BadInput, AFullStandardOutputIsSaid) {
  const ModelFolder folder;
  const Finished result = ChildProcess({"inspect", folder.gguf}, "/dev/full").finish();
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_TRUE(result.err.starts_with("regard: ")) << result.err;
}

}  // namespace
}  // namespace regard::test
