#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "regard/checkpoint.h"

namespace regard {

/// Text to token ids and back, with the ids of Hugging Face's `tokenizers`: byte-level BPE, SentencePiece's BPE with
/// byte fallback, and unigram. Read from a Hugging Face tokenizer.json (model type BPE or Unigram) or from GGUF
/// metadata
/// (`tokenizer.ggml.*`, model "gpt2", "llama" or "t5").
///
/// Thread safety: several threads may call const methods at once.
class Tokenizer {
 public:
  /// From the checkpoint's tokenizer.json where there is one, else from its GGUF metadata.
  /// Throws Error if there is neither, and for a step or an option that is not understood, with its name.
  [[nodiscard]] static Tokenizer from(const Checkpoint& checkpoint);
  /// Whether there is either, understood or not.
  [[nodiscard]] static bool is_in(const Checkpoint& checkpoint);
  [[nodiscard]] static Tokenizer from_json(std::string_view tokenizer_json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Whether BOS and the like are put around a text: in front and behind as the model asks for it, or never, as for
  /// text that a chat template made.
  enum class Bos : uint8_t { as_the_model_says, never };
  /// Token ids of `text`; special tokens written in it are recognised. What the vocabulary lacks becomes the unknown
  /// token; where there is none, it is dropped. Takes time in proportion to the text times the longest token.
  /// Throws Error if the text is not valid UTF-8.
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text, Bos bos = Bos::as_the_model_says) const;
  /// Where tokens stand: some tokenizers write a space before a text's first word that the text does not have.
  enum class Place : uint8_t { beginning, behind_others };
  /// The bytes that the tokens stand for, special tokens included as they are written. Not always valid UTF-8: a
  /// character may span tokens. To decode a text token by token, all but the first are `behind_others`.
  /// Throws Error for an id outside 0..vocabulary_size()-1.
  [[nodiscard]] std::string decode(std::span<const int32_t> tokens, Place place = Place::beginning) const;

  [[nodiscard]] int32_t vocabulary_size() const;
  /// The ids that end a text: EOS, and end-of-turn tokens where the model names them (`eos_token_id` of config.json and
  /// generation_config.json; in GGUF `eos_token_id`, `eot_token_id`, `eom_token_id` and control tokens by their texts).
  [[nodiscard]] std::span<const int32_t> end_tokens() const;
  /// The first token that is put in front of a text, and in GGUF BOS itself.
  [[nodiscard]] std::optional<int32_t> bos_token() const;
  [[nodiscard]] bool is_special(int32_t token) const;
  /// The id of a token by its text, e.g. "<|im_start|>".
  [[nodiscard]] std::optional<int32_t> find(std::string_view text) const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// The ids that end a text: those of the checkpoint's tokenizer, or, where there is none, the `eos_token_id` of
/// config.json and generation_config.json, if any. Throws Error as Tokenizer::from, and for ids outside
/// 0..vocabulary_size-1.
[[nodiscard]] std::vector<int32_t> end_tokens_of(const Checkpoint& checkpoint, int64_t vocabulary_size);

/// One message of a conversation.
struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// The text that a chat template makes of a conversation, ready for the assistant's answer (the generation prompt is
/// added). `chat_template` is the Jinja source; bos_token and eos_token are what it finds under those names.
/// Renders as Python's Jinja2 does for transformers (trim_blocks, lstrip_blocks), macros included, without includes and
/// inheritance; upper and lower change ASCII letters only. `now` is what strftime_now tells, as local time: a template
/// that asks for the date gives another text tomorrow. A template may do anything and still ends soon, in little
/// memory. Throws Error, with the line, for what is not understood or goes wrong, for what raise_exception says, for a
/// template of more than 1 MB, a text of more than 16 MB, and texts that are not valid UTF-8.
[[nodiscard]] std::string apply_chat_template(
    std::string_view chat_template, std::span<const ChatMessage> messages, std::string_view bos_token,
    std::string_view eos_token, std::chrono::system_clock::time_point now = std::chrono::system_clock::now());
/// The same with the template that the checkpoint carries: chat_template.jinja, or else the one in
/// tokenizer_config.json (the default of several), or else in GGUF metadata. Throws Error if it carries none.
[[nodiscard]] std::string apply_chat_template(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                              std::span<const ChatMessage> messages);

}  // namespace regard
