#include "regard/tokenizer.h"
#include "tensor/fail.h"

namespace regard {

std::string apply_chat_template(std::string_view, std::span<const ChatMessage>, std::string_view, std::string_view) {
  fail("chat template: templates are not understood yet");
}

std::string apply_chat_template(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                std::span<const ChatMessage> messages) {
  const auto& metadata = checkpoint.metadata();
  const auto found = metadata.find("tokenizer.chat_template");
  const auto* source = found == metadata.end() ? nullptr : std::get_if<std::string>(&found->second);
  require(source != nullptr, "checkpoint: {} carries no chat template", checkpoint.path().string());
  const auto text_of = [&](std::optional<int32_t> token) { return token ? tokenizer.decode({&*token, 1}) : ""; };
  const auto ends = tokenizer.end_tokens();
  return apply_chat_template(*source, messages, text_of(tokenizer.bos_token()),
                             text_of(ends.empty() ? std::nullopt : std::optional(ends.front())));
}

}  // namespace regard
