// Chat templates against Python's Jinja2; see make_chat_template_golden.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <ctime>

#include "golden/golden_files.h"
#include "regard/error.h"
#include "regard/tokenizer.h"

namespace regard {
namespace {

using nlohmann::json;

std::chrono::system_clock::time_point now_of(const json& golden) {
  const auto parts = golden["now"].get<std::vector<int>>();
  std::tm time{.tm_sec = parts[5],
               .tm_min = parts[4],
               .tm_hour = parts[3],
               .tm_mday = parts[2],
               .tm_mon = parts[1] - 1,
               .tm_year = parts[0] - 1900,
               .tm_isdst = -1};
  return std::chrono::system_clock::from_time_t(std::mktime(&time));
}

// A text where there is one; else an error, with its words if the template itself raised it.
void expect_same(const json& golden, const std::string& source, const std::string& conversation, const json& test) {
  std::vector<ChatMessage> messages;
  for (const json& message : golden["conversations"][conversation])
    messages.push_back({.role = message["role"], .content = message["content"]});
  std::string text;
  std::string error;
  try {
    text = apply_chat_template(source, messages, golden["bos_token"].get<std::string>(),
                               golden["eos_token"].get<std::string>(), now_of(golden));
  } catch (const Error& thrown) {
    error = thrown.what();
  }
  if (test.contains("text")) {
    EXPECT_EQ(text, test["text"].get<std::string>());
    EXPECT_EQ(error, "");
  } else {
    EXPECT_NE(error, "") << "rendered as: " << text;
    EXPECT_THAT(error, testing::EndsWith(test["error"].get<std::string>()));
  }
}

TEST(ChatTemplateGolden, FamiliesOfModelsRenderAsInJinja2) {
  const json golden = golden::read_json("chat_templates.json");
  ASSERT_GE(golden["cases"].size(), 150U);
  for (const json& test : golden["cases"]) {
    SCOPED_TRACE(test["family"].get<std::string>() + ", " + test["conversation"].get<std::string>());
    expect_same(golden, golden["families"][test["family"].get<std::string>()], test["conversation"], test);
  }
}

TEST(ChatTemplateGolden, SnippetsRenderAsInJinja2) {
  const json golden = golden::read_json("chat_templates.json");
  ASSERT_GE(golden["snippets"].size(), 200U);
  for (const json& test : golden["snippets"]) {
    SCOPED_TRACE(test["template"].get<std::string>());
    expect_same(golden, test["template"], "one_question", test);
  }
}

}  // namespace
}  // namespace regard
