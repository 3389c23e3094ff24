#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "regard/dtype.h"
#include "regard/model.h"
#include "regard/sampler.h"
#include "regard/tokenizer.h"
#include "regard/workspace.h"

namespace regard {

/// Why a text ended.
enum class FinishReason : uint8_t {
  stop,       ///< An end token, a stop token or a stop text came.
  length,     ///< max_tokens, or the model's context, is reached.
  cancelled,  ///< on_token returned false, or Engine::cancel was called.
  error,      ///< GeneratedText::error says what went wrong.
};

/// The log probability of a drawn token, and those of the tokens that were most likely in its place: natural
/// logarithms of the softmax of the logits, before temperature, top_k and top_p.
struct TokenLogProbabilities {
  double drawn = 0;
  std::vector<TokenLogProbability> top;  ///< The most likely first; as many as the request asks for.
};

/// A token as it is drawn.
struct GeneratedToken {
  int32_t token = 0;
  /// What the text grows by, in whole characters, special tokens left out; empty without a tokenizer. Bytes of a
  /// character that later tokens complete, and what may be the beginning of a stop text, come with a later token, at
  /// the latest with the last one.
  std::string_view text;
  const TokenLogProbabilities* log_probabilities = nullptr;  ///< Null unless the request asks for them.
};

/// A prompt to continue, and how. The tokens depend on the request alone: not on other requests, threads or memory.
struct GenerationRequest {
  std::vector<int32_t> prompt;  ///< Token ids, at least one and at most the model's context.
  int64_t max_tokens = 128;     ///< The most tokens to generate, 1 or more.
  SamplerConfig sampler;
  std::vector<int32_t> stop_tokens;     ///< Ids that end the text, beside the end tokens of the engine.
  std::vector<std::string> stop_texts;  ///< The text ends before the first of these; none may be empty. They need a
                                        ///< tokenizer.
  /// None: no log probabilities; otherwise those of the drawn tokens, and of so many most likely ones, 0 or more.
  std::optional<int32_t> log_probabilities;
  uint64_t salt = 0;  ///< Requests with different ones share no cached prefixes.
  /// Called with each token as it is drawn; false ends the text as cancelled. An exception that it throws ends the text
  /// with its message as the error.
  std::function<bool(const GeneratedToken&)> on_token;
};

/// What a request has come to.
struct GeneratedText {
  std::vector<int32_t> tokens;  ///< All that were drawn, the one that ended the text included; none after an error.
  std::string text;             ///< Of the tokens, without special tokens and without the stop text; empty without a
                                ///< tokenizer.
  std::vector<TokenLogProbabilities> log_probabilities;  ///< [tokens], or empty where not asked for.
  FinishReason finish = FinishReason::stop;
  std::string error;  ///< One sentence where finish is error.
};

/// How `generate` works, beside the request.
struct GenerateOptions {
  const Tokenizer* tokenizer = nullptr;      ///< Gives the text of tokens, and its end tokens; none: tokens alone.
  std::span<const int32_t> end_tokens = {};  ///< Ids that end a text, beside those: without a tokenizer, end_tokens_of.
  DType cache_dtype = DType::f32;
  /// Tokens that a step may guess from the text so far and check together with the next one, 0 (off) to 64. The tokens
  /// that are generated are the same, whatever the sampler's settings.
  int64_t draft_length = 0;
  /// A smaller model that guesses them, on the same ranks; its ids have to mean the same. None: what followed the last
  /// few tokens when they came before. draft_length is then 1 or more.
  const Model* draft_model = nullptr;
  std::string restore_from = {};  ///< A saved sequence that the prompt, which may then be empty, continues.
  std::string save_to = {};       ///< Where the sequence is saved afterwards; see saved_sequence.h.
  std::string model_digest =
      {};  ///< Which saved sequences name, and which those that are restored must have; "": none.
  /// Asked before each token is reported; where it returns true on any rank, all ranks cancel the text behind that
  /// token.
  std::function<bool()> interrupted = {};
};

struct GenerateResult : GeneratedText {
  int64_t restored_tokens = 0;  ///< Of the saved sequence, which did not have to run.
  int64_t prefill_tokens = 0;   ///< That ran to give the first token.
  int64_t draft_tokens = 0;     ///< That were guessed.
  int64_t accepted_tokens = 0;  ///< Of those, the ones that came true.
  bool interrupted = false;     ///< Whether GenerateOptions::interrupted ended the text.
  double prefill_seconds = 0;
  double decode_seconds = 0;  ///< Of all tokens but the first, which prefill gives.
};

/// Continues one prompt, with drafts, saved sequences and over ranks as asked for; Engine continues many at once, with
/// the same tokens. Runs until the text ends, and calls on_token on the caller's thread. Several threads may call it
/// with one model, each with a workspace of its own. Throws Error for what the request or the options may not be, for
/// what restore_sequence and save_sequence refuse, where the text ends with an error, and on all ranks where they draw
/// different tokens. Over ranks on_token has to return the same on all of them.
[[nodiscard]] GenerateResult generate(const Model& model, const GenerationRequest& request,
                                      const GenerateOptions& options, Workspace& workspace);

/// Throws Error for the settings and lengths that `generate` refuses, without the weights: before they are loaded. Of a
/// saved sequence only the tokens are looked at.
void check_generate(const ModelSpec& spec, const GenerationRequest& request, const GenerateOptions& options);

}  // namespace regard
