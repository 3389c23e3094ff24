#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/text_stream.h"
#include "regard/generation.h"
#include "regard/sampler.h"

namespace regard {

// What texts are made of, and where they end.
struct TextEnds {
  const Tokenizer* tokenizer = nullptr;  // none: tokens alone
  std::vector<int32_t> tokens;           // end tokens

  // With the end tokens of the tokenizer, if any.
  [[nodiscard]] static TextEnds of(const Tokenizer* tokenizer, std::span<const int32_t> end_tokens);
};

// Throws Error for a request that no model can continue: settings out of range, or stop texts without a tokenizer. The
// prompt is not looked at.
void check_settings(const GenerationRequest& request, const TextEnds& ends);

// How many tokens a request can come to: its max_tokens, or what the context leaves. The last one never goes into a
// cache.
[[nodiscard]] int64_t most_tokens(const GenerationRequest& request, int64_t prompt_length, int64_t context_length);

// What a request has generated so far: draws its tokens from logits, finds its end, and reports to its owner.
class Continuation {
 public:
  // `request` needs no prompt, and has passed check_settings; `ends` outlives this. `most_tokens`: at which it ends.
  Continuation(GenerationRequest request, const TextEnds& ends, int64_t most_tokens);

  // Draws the next token from logits [vocab_size] and returns it. Where that fails the text ends with an error, and
  // nothing is drawn. Not after the end.
  [[nodiscard]] std::optional<int32_t> draw(std::span<const float> logits);
  // Passes the token that was drawn last to on_token, which may end the text.
  void report();
  // Ends the text; an error also replaces an end that it had come to.
  void end(FinishReason reason, std::string error = {});

  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] bool failed() const { return ended_ && text_.finish == FinishReason::error; }
  [[nodiscard]] bool cancelled() const { return ended_ && text_.finish == FinishReason::cancelled; }
  [[nodiscard]] int64_t count() const { return static_cast<int64_t>(text_.tokens.size()); }
  // The text, which has ended.
  [[nodiscard]] GeneratedText take();

 private:
  void note_log_probabilities(std::span<const float> logits, int32_t token);
  void add_text(int32_t token);

  GenerationRequest request_;
  const TextEnds& ends_;
  int64_t most_tokens_ = 0;
  std::unique_ptr<Sampler> sampler_;  // from the first token on: its generator is large, and many requests may wait
  std::optional<TextStream> stream_;  // none without a tokenizer
  GeneratedText text_;
  std::string news_;  // what the last token added to the text
  bool ended_ = false;
};

}  // namespace regard
