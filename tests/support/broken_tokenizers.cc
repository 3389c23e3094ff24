#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/broken_files.h"
#include "support/tiny_llama.h"

namespace regard::test {
namespace {

using Json = nlohmann::json;
using Change = std::function<void(Json&)>;

const std::string kDeepList = std::string(200'000, '[') + std::string(200'000, ']');

// The text of a right file with `key` replaced by a text that is too deep for dump().
std::string with_text(const std::string& pointer, const std::string& text) {
  Json json = TinyLlama().tokenizer_json();
  json[Json::json_pointer(pointer)] = "HERE";
  std::string dumped = json.dump();
  return dumped.replace(dumped.find("\"HERE\""), 6, text);
}

// Sequences inside each other, 100,000 of them.
std::string nested_sequences(const std::string& list) {
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += R"({"type":"Sequence",")" + list + "\":[";
  for (int i = 0; i < 100'000; ++i) text += "]}";
  return text;
}

void add_models(std::vector<BrokenFile>& files, const std::function<void(std::string, Change, std::string)>& add) {
  add(
      "no model", [](Json& json) { json.erase("model"); }, "lacks a part");
  add(
      "model of text", [](Json& json) { json["model"] = "BPE"; }, "lacks a part");
  add(
      "another model", [](Json& json) { json["model"]["type"] = "WordPiece"; }, "expected BPE");
  add(
      "model type of a number", [](Json& json) { json["model"]["type"] = 1; }, "lacks a part");
  add(
      "no vocabulary", [](Json& json) { json["model"].erase("vocab"); }, "lacks a part");
  add(
      "vocabulary of a list",
      [](Json& json) {
        json["model"]["vocab"] = {1, 2};
      },
      "vocab");
  add(
      "no merges", [](Json& json) { json["model"].erase("merges"); }, "lacks a part");
  add(
      "merges of an object",
      [](Json& json) {
        json["model"]["merges"] = {{"a", "b"}};
      },
      "merges");
  for (const Json& id : {Json("1"), Json(1.0), Json(1e300), Json(nullptr), Json(true), Json::array({1})})
    add(
        "id " + id.dump(), [=](Json& json) { json["model"]["vocab"]["t"] = id; }, "id");
  for (const int64_t id : {int64_t{-1}, int64_t{9'999'999}, (int64_t{1} << 32) + 1, std::numeric_limits<int64_t>::max(),
                           std::numeric_limits<int64_t>::min()}) {
    add(
        "id " + std::to_string(id), [=](Json& json) { json["model"]["vocab"]["t"] = id; }, std::to_string(id));
    add(
        "added id " + std::to_string(id), [=](Json& json) { json["added_tokens"][0]["id"] = id; }, std::to_string(id));
  }
  add(
      "an id twice", [](Json& json) { json["model"]["vocab"]["another"] = 5; }, "id 5");
  for (const Json& merge :
       {Json("th"), Json("t h e"), Json(" "), Json("t "), Json(7), Json(nullptr), Json::array(), Json::array({"t"}),
        Json::array({"t", 7}), Json::array({"t", "h", "e"}), Json("q z"), Json::array({"q", "z"})})
    add(
        "merge " + merge.dump(), [=](Json& json) { json["model"]["merges"][0] = merge; }, "");
  for (const Json& dropout : {Json(0.1), Json(1), Json("0")})
    add(
        "dropout " + dropout.dump(), [=](Json& json) { json["model"]["dropout"] = dropout; }, "dropout is ");
  add(
      "an unknown key", [](Json& json) { json["extra"] = 1; }, "the key \"extra\"");
  add(
      "an unknown key of the model", [](Json& json) { json["model"]["extra"] = 1; }, "the key \"extra\"");
  add(
      "an unknown unk_token", [](Json& json) { json["model"]["unk_token"] = "<unk>"; }, "unk_token");
  add(
      "whole words of text", [](Json& json) { json["model"]["ignore_merges"] = "yes"; }, "lacks a part");
  files.push_back({"deep model type", with_text("/model/type", kDeepList), "wrong kind"});
  files.push_back({"deep suffix", with_text("/model/end_of_word_suffix", kDeepList), "is an array, expected none"});
}

void add_added_tokens(const std::function<void(std::string, Change, std::string)>& add) {
  add(
      "added tokens of text", [](Json& json) { json["added_tokens"] = "none"; }, "lacks a part");
  add(
      "added token without text", [](Json& json) { json["added_tokens"][0].erase("content"); }, "lacks a part");
  add(
      "added token without id", [](Json& json) { json["added_tokens"][0].erase("id"); }, "lacks a part");
  add(
      "empty added token", [](Json& json) { json["added_tokens"][0]["content"] = ""; }, "empty");
  add(
      "special of a number", [](Json& json) { json["added_tokens"][0]["special"] = 1; }, "lacks a part");
}

void add_steps(std::vector<BrokenFile>& files, const std::function<void(std::string, Change, std::string)>& add) {
  add(
      "an unknown normalizer",
      [](Json& json) {
        json["normalizer"] = {{"type", "BertNormalizer"}};
      },
      "the normalizer \"BertNormalizer\" is not known");
  files.push_back({"deep normalizer", with_text("/normalizer", kDeepList), "normalizer"});
  add(
      "no pre-tokenizer", [](Json& json) { json.erase("pre_tokenizer"); }, "ByteLevel");
  add(
      "pre-tokenizer of text", [](Json& json) { json["pre_tokenizer"] = "ByteLevel"; }, "ByteLevel");
  add(
      "unknown pre-tokenizer", [](Json& json) { json["pre_tokenizer"]["type"] = "UnicodeScripts"; }, "UnicodeScripts");
  add(
      "pre-tokenizer without type", [](Json& json) { json["pre_tokenizer"].erase("type"); }, "lacks a part");
  files.push_back({"deep normalizers", with_text("/normalizer", nested_sequences("normalizers")), "8 deep"});
  files.push_back({"deep decoders", with_text("/decoder", nested_sequences("decoders")), "8 deep"});
  files.push_back({"deep pre-tokenizers", with_text("/pre_tokenizer", nested_sequences("pretokenizers")), "8 deep"});
  const auto add_split = [&](const std::string& name, const Json& split, std::string complaint) {
    add(
        "split with " + name,
        [=](Json& json) {
          json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, json["pre_tokenizer"]}}};
        },
        std::move(complaint));
  };
  const auto regex = [](const char* pattern) {
    return Json{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
  };
  add_split("half a group", regex("(a"), "not understood");
  add_split("half a class", regex("[a"), "not understood");
  add_split("a class in a class", regex("[a[b]]"), "nests or intersects classes");
  add_split("an intersection of classes", regex("[\\p{L}&&[^a]]"), "nests or intersects classes");
  add_split("bytes of characters", regex("\\C"), "not understood");
  add_split("a huge repeat", regex("((((a{1000}){1000}){1000}){1000})"), "not understood");
  add_split("deep groups", regex(std::string(10'000, '(').c_str()), "not understood");
  add_split("a pattern of a number", {{"type", "Split"}, {"pattern", 7}, {"behavior", "Isolated"}}, "lacks a part");
  add_split("no pattern", {{"type", "Split"}, {"behavior", "Isolated"}}, "lacks a part");
  add_split("an unknown behavior", {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Odd"}}, "Odd");
  const auto add_post = [&](std::string name, const Json& processor, std::string complaint) {
    add(
        std::move(name), [=](Json& json) { json["post_processor"] = processor; }, std::move(complaint));
  };
  add_post("post-processor without type", Json::object(), "lacks a part");
  add_post("template without tokens", {{"type", "TemplateProcessing"}, {"single", Json::array()}}, "lacks a part");
  add_post("template of an unknown token",
           {{"type", "TemplateProcessing"}, {"single", Json::array({{{"SpecialToken", {{"id", "<bos>"}}}}})}}, "<bos>");
  const Json bos = {{"SpecialToken", {{"id", "<bos>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto add_template = [&](std::string name, const Json& single, const Json& ids, std::string complaint) {
    const Json tokens = {{"<bos>", {{"id", "<bos>"}, {"ids", ids}, {"tokens", {"<bos>"}}}}};
    add_post(std::move(name), {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", tokens}},
             std::move(complaint));
  };
  add_template("template of a high id", {bos, text}, {267}, "adds the token 267, expected 0 to 266");
  add_template("template of a negative id", {bos, text}, {-1}, "adds the token -1");
  add_template("template of a text as id", {bos, text}, {"<bos>"}, "adds the token");
  add_template("template without a text", Json::array({bos}), {0}, "lacks a part for the text");
  add_template("template of two texts", {text, bos, text}, {0}, "behind another");
  add_template("template of another part", {text, {{"Odd", 1}}}, {0}, "\"Odd\"");
  add_post("an unknown post-processor", {{"type", "Odd"}}, "the post-processor \"Odd\" is not known");
  add_post("Roberta with a high id", {{"type", "RobertaProcessing"}, {"sep", {"</s>", 1}}, {"cls", {"<s>", 9999}}},
           "adds the token 9999");
  files.push_back({"deep post-processors", with_text("/post_processor", nested_sequences("processors")), "8 deep"});
}

}  // namespace

std::vector<BrokenFile> broken_tokenizers() {
  std::vector<BrokenFile> files = {{"no JSON", "hello", "no valid JSON"},
                                   {"half", "{\"model\":", "no valid JSON"},
                                   {"a list", "[]", "no valid JSON object"},
                                   {"null", "null", "no valid JSON object"},
                                   {"invalid UTF-8", "{\"model\":\"\xC3\"}", "no valid JSON"},
                                   {"deep lists", kDeepList, "no valid JSON object"},
                                   {"an empty object", "{}", "lacks a part"}};
  const auto add = [&](std::string name, const Change& change, std::string complaint) {
    Json json = TinyLlama().tokenizer_json();
    change(json);
    files.push_back({std::move(name), json.dump(), std::move(complaint)});
  };
  add_models(files, add);
  add_added_tokens(add);
  add_steps(files, add);
  return files;
}

}  // namespace regard::test
