#include <nlohmann/json.hpp>

#include "regard/tokenizer.h"
#include "tensor/fail.h"
#include "text/jinja/interpreter.h"
#include "text/utf8.h"

namespace regard {
namespace {

void check_text(std::string_view text, std::string_view what) {
  require(find_invalid_utf8(text) == std::string_view::npos, "chat template: {} is no valid UTF-8", what);
}

jinja::Value::List values_of(std::span<const ChatMessage> messages) {
  jinja::Value::List list;
  for (const ChatMessage& message : messages) {
    check_text(message.role, "a message's role");
    check_text(message.content, "a message's content");
    list.emplace_back(
        jinja::Value::Map{{"role", jinja::Value(message.role)}, {"content", jinja::Value(message.content)}});
  }
  return list;
}

// A string, or empty where there is none.
std::string string_at(const nlohmann::json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_string()) return {};
  return object[key].get<std::string>();
}

// The "chat_template" of a tokenizer_config.json: one, or a list of named ones with a default among them.
std::string template_of_config(const nlohmann::json& config) {
  if (!config.is_object() || !config.contains("chat_template")) return {};
  const auto& found = config["chat_template"];
  if (found.is_string()) return found.get<std::string>();
  if (!found.is_array()) return {};
  for (const auto& named : found)
    if (string_at(named, "name") == "default") return string_at(named, "template");
  return {};
}

// A special token of a tokenizer_config.json: its text, or an object with that as "content".
std::string token_of_config(const nlohmann::json& config, const char* key) {
  if (!config.is_object() || !config.contains(key)) return {};
  return config[key].is_object() ? string_at(config[key], "content") : string_at(config, key);
}

std::string template_of(const Checkpoint& checkpoint, const nlohmann::json& config) {
  if (!checkpoint.chat_template().empty()) return checkpoint.chat_template();
  if (std::string source = template_of_config(config); !source.empty()) return source;
  const auto found = checkpoint.metadata().find("tokenizer.chat_template");
  const auto* source = found == checkpoint.metadata().end() ? nullptr : std::get_if<std::string>(&found->second);
  require(source != nullptr, "checkpoint: {} carries no chat template", checkpoint.path().string());
  return *source;
}

}  // namespace

std::string apply_chat_template(std::string_view chat_template, std::span<const ChatMessage> messages,
                                std::string_view bos_token, std::string_view eos_token,
                                std::chrono::system_clock::time_point now) {
  check_text(chat_template, "the template");
  check_text(bos_token, "bos_token");
  check_text(eos_token, "eos_token");
  using jinja::Value;
  return jinja::render(chat_template,
                       {{"messages", Value(values_of(messages))},
                        {"add_generation_prompt", Value(true)},
                        {"bos_token", Value(bos_token)},
                        {"eos_token", Value(eos_token)},
                        {"tools", Value(Value::None())},
                        {"documents", Value(Value::None())}},
                       now);
}

std::string apply_chat_template(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                std::span<const ChatMessage> messages) {
  const auto config = nlohmann::json::parse(checkpoint.tokenizer_config_json(), nullptr, false);
  // Which token the template means is said there, or else by the tokenizer.
  const auto text_of = [&](const char* key, std::optional<int32_t> token) {
    std::string text = token_of_config(config, key);
    return text.empty() && token ? tokenizer.decode({&*token, 1}) : text;
  };
  const auto ends = tokenizer.end_tokens();
  const auto eos = ends.empty() ? std::nullopt : std::optional(ends.front());
  return apply_chat_template(template_of(checkpoint, config), messages, text_of("bos_token", tokenizer.bos_token()),
                             text_of("eos_token", eos));
}

}  // namespace regard
