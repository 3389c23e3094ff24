#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <random>

#include "regard/error.h"
#include "regard/tensor.h"
#include "regard/tokenizer.h"

namespace regard {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

const std::vector<ChatMessage> kQuestion = {{.role = "user", .content = "Why?"}};

std::string render(std::string_view source, const std::vector<ChatMessage>& messages = kQuestion) {
  return apply_chat_template(source, messages, "<s>", "</s>");
}

// The message of the Error that rendering throws; empty if it throws none.
std::string error_of(std::string_view source) {
  try {
    (void)render(source);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

std::string repeat(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

// ---- What templates find ----

TEST(ChatTemplate, SeesTheMessagesInOrderAndTheSpecialTokens) {
  const std::vector<ChatMessage> messages = {{.role = "system", .content = "Be brief."},
                                             {.role = "user", .content = "Hi"}};
  EXPECT_EQ(render("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}",
                   messages),
            "<s>[system]Be brief.</s>[user]Hi</s>");
}

TEST(ChatTemplate, IsAskedForTheGenerationPromptAndHasNoTools) {
  EXPECT_EQ(render("{{ add_generation_prompt }} {{ tools is none }} {{ custom_tools is defined }}"), "True True False");
}

TEST(ChatTemplate, WritesMessagesAsTheyAreWhateverTheyLookLike) {
  const std::string content = "{{ bos_token }} {% raise %} {# \xF0\x9F\x99\x82 \" \\";
  EXPECT_EQ(render("{{ messages[0].content }}", {{.role = "user", .content = content}}), content);
}

// ---- Errors ----

TEST(ChatTemplate, RaisesWhatTheTemplateRaises) {
  EXPECT_EQ(error_of("\n\n{{ raise_exception('Roles must alternate: ' ~ messages[0].role) }}"),
            "chat template, line 3: Roles must alternate: user");
}

TEST(ChatTemplate, NamesWhatItDoesNotUnderstandAndTheLine) {
  struct Case {
    const char* source;
    const char* error;
  };
  constexpr std::array<Case, 23> kCases = {{
      {"a\n{% call f(x) %}{% endcall %}", "line 2: the statement {% call %} is not understood here"},
      {"{% include 'x' %}", "the statement {% include %} is not understood here"},
      {"{% if true %}{% endfor %}{% endif %}", "the statement {% endfor %} is not understood here"},
      {"{{ 'a' | wordwrap }}", "the filter \"wordwrap\" is not understood"},
      {"{{ 'a' is escaped }}", "the test \"escaped\" is not understood"},
      {"{{ 'a'.zfill(3) }}", "the method of a string \"zfill\" is not understood"},
      {"{{ cycler('a') }}", "the function \"cycler\" is not understood"},
      {"{% set f = 1 %}{{ f(2) }}", "\"f\" is a number, expected a function"},
      {"{% macro f(a) %}{{ 1 / 0 }}{% endmacro %}\n\n{{ f(1) }}", "line 1: division by zero"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "macros, statements and expressions are more than 600 deep"},
      {"{% macro f() %}{% endmacro %}{{ f(1) }}", "the macro \"f\" has 1 arguments, expected 0 at most"},
      {"{% macro f(a) %}{% endmacro %}{{ f(1, a=2) }}", "the argument \"a\" comes twice"},
      {"{{ strftime_now(1) }}", "strftime_now has other arguments than a format"},
      {"{{ nothing.content }}", "the undefined 'nothing' has no \"content\""},
      {"{{ 'a' + 1 }}", "+ of a string and a number is not understood"},
      {"{{ messages }}", "a list can't be written as text, except by tojson"},
      {"{{ 1 < 2 < 3 }}", "comparisons in a chain are not understood"},
      {"{{ 2 ** 3 }}", "expected }}, found \"**\""},
      {"{% if true %}\n\n", "the template ends, expected {% endif %}"},
      {"{{ 'a'\n }", "\"}\" closes nothing"},
      {"\n{{ 'abc }}", "line 2: a string has no end"},
      {"{{ 9223372036854775807 + 1 }}", "an integer needs more than 64 bits"},
      {"{{ 'a' | trim('x', 'y') }}", "trim has 2 arguments, expected at most 1"},
  }};
  for (const Case& test : kCases)
    EXPECT_THAT(error_of(test.source), AllOf(StartsWith("chat template"), HasSubstr(test.error))) << test.source;
}

// As deep as the parser lets statements and expressions be, in each call of a macro.
TEST(ChatTemplate, MacrosThatCallThemselvesKeepToTheStack) {
  std::string statements;
  std::string ends;
  for (int i = 0; i < 95; ++i) {
    statements += "{% if true %}";
    ends += "{% endif %}";
  }
  std::string expression = "f()|length";
  for (int i = 0; i < 40; ++i) expression = "-(" + expression + ")";
  EXPECT_THAT(error_of("{% macro f() %}" + statements + "{{ " + expression + " }}" + ends + "{% endmacro %}{{ f() }}"),
              HasSubstr("more than 600 deep"));
}

TEST(ChatTemplate, OnlyMindsWhatItRuns) {
  EXPECT_EQ(render("{% if tools %}{{ tools | unknown_filter }}{{ unknown() }}{% endif %}ok"), "ok");
}

TEST(ChatTemplate, RefusesTextThatIsNotUtf8) {
  EXPECT_THROW((void)render("\xFF"), Error);
  EXPECT_THROW((void)render("a", {{.role = "user", .content = "\xC3"}}), Error);
  EXPECT_THROW((void)apply_chat_template("a", kQuestion, "\x80", ""), Error);
}

// ---- Limits ----

TEST(ChatTemplate, EndsHostileLoops) {
  for (const char* source : {
           "{% for i in range(1000000000000) %}{% endfor %}",
           "{% set r = range(2000) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor "
           "%}",
           "{{ 'a' * 9000000000000000000 }}",
           "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
           "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
           "{% set x = 'a' * 1000000 %}{% for i in range(1000000) %}{% if x == x ~ '' %}{% endif %}{% endfor %}",
           "{% set x = 'a' * 8000000 %}{{ (x ~ x) in (x ~ 'b' ~ x ~ x) }}",
           "{% set x = 'a' * 9000000 %}{{ x.split('a') | length }}",
           "{% set x = 'a' * 9000000 %}{{ x | replace('a', x) }}",
           "{% set x = 'a' * 9000000 %}{{ x | join(x) }}",
           "{% set ns = namespace(x='') %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == "
           "ns.x }}",
           "{% set ns = namespace(x='') %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | "
           "tojson }}",
           "{{ [1] | tojson(indent=9000000000000000) }}",
       })
    EXPECT_THAT(error_of(source), HasSubstr("steps")) << source;
}

TEST(ChatTemplate, LimitsTheOutput) {
  const std::string source = "{% set x = 'a' * 4000000 %}{{ x }}{{ x }}{{ x }}{{ x }}";
  EXPECT_EQ(render(source).size(), 16'000'000U);
  EXPECT_THAT(error_of(source + "b"), HasSubstr("longer than 16000000 bytes"));
}

TEST(ChatTemplate, LimitsTheTemplate) {
  EXPECT_EQ(render(std::string(1'000'000, 'a')).size(), 1'000'000U);
  EXPECT_THAT(error_of(std::string(1'000'001, 'a')), HasSubstr("has 1000001 bytes"));
}

TEST(ChatTemplate, LimitsNestingSoThatTheStackHolds) {
  constexpr int kDeep = 30'000;
  const std::string loop = "{% set ns = namespace(x=1) %}{% for i in range(5000) %}{% set ns.x = ";
  for (const std::string& source : {
           "{{ " + repeat("(", kDeep) + "1" + repeat(")", kDeep) + " }}",
           "{{ " + repeat("[", kDeep) + repeat("]", kDeep) + " }}",
           "{{ " + repeat("{'a':", kDeep) + "1" + repeat("}", kDeep) + " }}",
           "{{ 1" + repeat(" + 1", kDeep) + " }}",
           "{{ 'a'" + repeat(" | trim", kDeep) + " }}",
           "{{ 'a'" + repeat(".strip()", kDeep) + " }}",
           "{{ 'a'" + repeat("[0]", kDeep) + " }}",
           "{{ " + repeat("not ", kDeep) + "1 }}",
           "{{ " + repeat("- ", kDeep) + "1 }}",
           "{{ 1" + repeat(" if 1 else 1", kDeep) + " }}",
           "{{ 1" + repeat(" if 1", kDeep) + " }}",
           "{{ 1" + repeat(" is defined", kDeep) + " }}",
           "{{ f(" + repeat("f(", kDeep) + repeat(")", kDeep) + ") }}",
           repeat("{% if 1 %}", kDeep) + repeat("{% endif %}", kDeep),
           repeat("{% for i in [1] %}", kDeep) + repeat("{% endfor %}", kDeep),
           repeat("{% set x %}", kDeep) + repeat("{% endset %}", kDeep),
           "{% if 0 %}" + repeat("{% elif 0 %}", kDeep) + "{% endif %}",
           loop + "[ns.x] %}{% endfor %}",
           loop + "{'a': ns.x} %}{% endfor %}",
       })
    EXPECT_THAT(error_of(source), testing::AnyOf(HasSubstr("nested"), HasSubstr("levels"), HasSubstr("elif in a row")))
        << source.substr(0, 60);
}

TEST(ChatTemplate, AllowsTheNestingOfRealTemplatesAndMore) {
  EXPECT_EQ(render("{{ " + repeat("(", 50) + "1" + repeat(")", 50) + " }}"), "1");
  EXPECT_EQ(render("{{ 'a'" + repeat(" ~ 'a'", 50) + " }}").size(), 51U);
  EXPECT_EQ(render(repeat("{% if 1 %}", 50) + "a" + repeat("{% endif %}", 50)), "a");
}

TEST(ChatTemplate, RendersALongConversationWellWithinTheLimits) {
  std::vector<ChatMessage> messages;
  for (int i = 0; i < 1000; ++i)
    messages.push_back({.role = i % 2 == 0 ? "user" : "assistant", .content = repeat("word ", 1000)});
  const std::string text = render(
      "{% for m in messages %}{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')"
      "[-1] }}{% else %}{{ '[' + m.role + ']' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
      messages);
  EXPECT_EQ(text.size(), 1000U * 4999 + 500 * (6 + 11) + 1000 * 4);
}

// ---- Garbage ----

// Pieces of templates in any order and number: whatever comes out, it is text or an Error with a sentence.
TEST(ChatTemplate, SurvivesAnyMixtureOfPieces) {
  constexpr std::array<std::string_view, 88> kPieces = {
      "{{",      "}}",         "{%",     "%}",          "{%-",        "-%}",         "{{-",
      "-}}",     "{#",         "#}",     "{%+",         "+%}",        " ",           "\n",
      "if",      "else",       "elif",   "endif",       "for",        "in",          "endfor",
      "set",     "endset",     "not",    "and",         "or",         "is",          "defined",
      "none",    "true",       "loop",   "messages",    "ns",         "x",           "namespace",
      "range",   "(",          ")",      "[",           "]",          "{",           "}",
      ",",       ":",          ".",      "|",           "=",          "==",          "!=",
      "<",       "+",          "-",      "*",           "/",          "//",          "%",
      "~",       "**",         "0",      "1",           "-1",         "99999999999", "1.5",
      "1e9",     "'a'",        "\"b\"",  "'",           "\\",         "'\\x41'",     "role",
      "content", "trim",       "tojson", "split",       "replace",    "join",        "default",
      "first",   "selectattr", "items",  "break",       "generation", "\xC3\xA9",    "\xF0\x9F\x99\x82",
      "macro",   "endmacro",   "f",      "strftime_now"};
  constexpr uint64_t kSeed = 20240607;
  std::mt19937_64 random(kSeed);
  int rendered = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string source = random() % 2 == 0 ? "{{ " : "{% set x = ";
    for (size_t left = random() % 24; left > 0; --left) {
      source += kPieces[random() % kPieces.size()];
      if (random() % 2 == 0) source += ' ';
    }
    source += source.starts_with("{{") ? " }}" : " %}";
    const std::string error = error_of(source);
    EXPECT_TRUE(error.empty() || error.starts_with("chat template")) << source << ": " << error;
    rendered += error.empty() ? 1 : 0;
  }
  EXPECT_GT(rendered, 200) << "seed " << kSeed;
}

TEST(ChatTemplate, SurvivesMutationsOfARealOne) {
  const std::string original =
      "{%- if messages[0]['role'] == 'system' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}\n"
      "  {%- set loop_messages = messages -%}{%- endif -%}{% set ns = namespace(n=0, text='') %}\n"
      "{%- for m in loop_messages if m.content is string -%}\n  {%- set ns.n = ns.n + m.content | length -%}"
      "{{ '<|' ~ m.role ~ '|>\\n' + m.content.split('</think>')[-1].strip() | replace('a', 'b') + eos_token }}\n"
      "{%- else -%}{{ raise_exception('no messages') }}{%- endfor -%}{{ ns.n // 2 * 3 - 1 if ns.n > 1 else 'none' }}"
      "{% for k, v in {'a': [1, 2.5, none], 'b': {}}.items() %}{{ loop.index }}{{ k }}{{ v | tojson(indent=1) }}"
      "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
  constexpr uint64_t kSeed = 20240608;
  std::mt19937_64 random(kSeed);
  int rendered = 0;
  for (int round = 0; round < 10'000; ++round) {
    std::string source = original;
    for (size_t changes = 1 + random() % 4; changes > 0; --changes) {
      if (source.empty()) source = original;
      const size_t at = random() % source.size();
      const size_t size = 1 + random() % 8;
      switch (random() % 4) {
        case 0:
          source[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          source.erase(at, size);
          break;
        case 2:
          source.insert(at, source.substr(random() % source.size(), size));
          break;
        default:
          source.resize(at + 1);
      }
    }
    const std::string error = error_of(source);
    EXPECT_TRUE(error.empty() || error.starts_with("chat template")) << source << ": " << error;
    rendered += error.empty() ? 1 : 0;
  }
  EXPECT_GT(rendered, 200) << "seed " << kSeed;
}

// ---- Checkpoints ----

// A Hugging Face folder with a tokenizer of two tokens.
class ChatTemplateOfACheckpoint : public testing::Test {
 protected:
  ChatTemplateOfACheckpoint() {
    fs::create_directories(folder_);
    save_safetensors(folder_ / "model.safetensors", {});
    write("config.json", R"({"eos_token_id": 1})");
    write("tokenizer.json", R"({"added_tokens": [{"id": 1, "content": "<end>", "special": true}],
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
      "model": {"type": "BPE", "vocab": {"a": 0, "<end>": 1}, "merges": []}})");
  }
  ~ChatTemplateOfACheckpoint() override { fs::remove_all(folder_); }

  void write(const char* name, std::string_view text) const { std::ofstream(folder_ / name) << text; }

  [[nodiscard]] std::string apply() const {
    const auto checkpoint = Checkpoint::open(folder_);
    return apply_chat_template(checkpoint, Tokenizer::from(checkpoint), kQuestion);
  }

 private:
  fs::path folder_ = fs::temp_directory_path() / ("regard_chat_template_" + std::to_string(getpid()));
};

TEST_F(ChatTemplateOfACheckpoint, IsInTheTokenizerConfig) {
  write("tokenizer_config.json", R"({"chat_template": "{{ messages[0].content }}{{ eos_token }}"})");
  EXPECT_EQ(apply(), "Why?<end>");
}

TEST_F(ChatTemplateOfACheckpoint, IsTheDefaultOfSeveral) {
  write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "a"},
                                                       {"name": "default", "template": "b"}]})");
  EXPECT_EQ(apply(), "b");
}

TEST_F(ChatTemplateOfACheckpoint, IsTheFileOfItsOwnFirst) {
  write("tokenizer_config.json", R"({"chat_template": "a"})");
  write("chat_template.jinja", "b");
  EXPECT_EQ(apply(), "b");
}

TEST_F(ChatTemplateOfACheckpoint, FindsTheTokensThatTheTokenizerConfigNames) {
  write("tokenizer_config.json", R"({"bos_token": "<begin>", "eos_token": {"content": "<turn>", "lstrip": false}})");
  write("chat_template.jinja", "{{ bos_token }}{{ eos_token }}");
  EXPECT_EQ(apply(), "<begin><turn>");
}

TEST_F(ChatTemplateOfACheckpoint, IsMissedWithAnError) {
  EXPECT_THROW((void)apply(), Error);
  for (const char* config : {"no JSON", "[]", R"({"chat_template": 1})", R"({"chat_template": [1, {"name": "x"}]})"}) {
    write("tokenizer_config.json", config);
    EXPECT_THROW((void)apply(), Error) << config;
  }
}

}  // namespace
}  // namespace regard
