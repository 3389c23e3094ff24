#include "regard/tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/json_shown.h"
#include "tensor/fail.h"
#include "text/tokenizer_source.h"
#include "text/utf8.h"

namespace regard {
namespace {

// The end tokens that a config names, of so many tokens: a number or a list of them.
void add_end_tokens(const std::string& config_text, const char* file, int64_t tokens, std::vector<int32_t>& ends) {
  const auto config = nlohmann::json::parse(config_text, nullptr, false);
  if (!config.is_object() || !config.contains("eos_token_id")) return;
  const auto add = [&](const nlohmann::json& id) {
    if (id.is_null()) return;
    require(id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(tokens),
            "tokenizer: \"eos_token_id\" of {} is {}, expected token ids from 0 to {}", file, shown(id), tokens - 1);
    const auto token = id.get<int32_t>();
    if (std::ranges::find(ends, token) == ends.end()) ends.push_back(token);
  };
  const auto& eos = config["eos_token_id"];
  if (!eos.is_array()) return add(eos);
  for (const auto& id : eos) add(id);
}

void add_end_tokens(const Checkpoint& checkpoint, int64_t tokens, std::vector<int32_t>& ends) {
  add_end_tokens(checkpoint.config_json(), "config.json", tokens, ends);
  add_end_tokens(checkpoint.generation_config_json(), "generation_config.json", tokens, ends);
}

}  // namespace

struct Tokenizer::State {
  TokenizerSource source;
  AddedTokens added;

  explicit State(TokenizerSource from) : source(std::move(from)), added(std::move(source.added), source.normalizer) {}

  // `text` is no added token; `begins`: the whole text begins with it.
  void encode_plain(std::string_view text, bool begins, std::vector<int32_t>& out) const {
    const std::string normalized = source.normalizer.normalize(text);
    for (const auto& [range, token] : added.find_in_normalized(normalized)) {
      if (token) {
        out.push_back(*token);
        continue;
      }
      std::string piece(range.of(normalized));
      for (const std::string_view word : source.pre_tokenizer.split(piece, begins && range.begin == 0))
        source.encoder->encode(word, out);
    }
  }
};

Tokenizer Tokenizer::from(const Checkpoint& checkpoint) {
  if (checkpoint.tokenizer_json().empty()) return Tokenizer(std::make_unique<State>(read_gguf_tokenizer(checkpoint)));
  TokenizerSource source = read_tokenizer_json(checkpoint.tokenizer_json());
  // tokenizer.json does not say which tokens end a text.
  add_end_tokens(checkpoint, std::ssize(source.vocabulary->tokens()), source.end_tokens);
  return Tokenizer(std::make_unique<State>(std::move(source)));
}

bool Tokenizer::is_in(const Checkpoint& checkpoint) {
  return !checkpoint.tokenizer_json().empty() || checkpoint.metadata().contains("tokenizer.ggml.model");
}

std::vector<int32_t> end_tokens_of(const Checkpoint& checkpoint, int64_t vocabulary_size) {
  if (Tokenizer::is_in(checkpoint)) {
    const Tokenizer tokenizer = Tokenizer::from(checkpoint);
    const auto ends = tokenizer.end_tokens();
    return {ends.begin(), ends.end()};
  }
  std::vector<int32_t> ends;
  add_end_tokens(checkpoint, vocabulary_size, ends);
  return ends;
}

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json) {
  return Tokenizer(std::make_unique<State>(read_tokenizer_json(tokenizer_json)));
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, Bos bos) const {
  const size_t invalid = find_invalid_utf8(text);
  require(invalid == std::string_view::npos, "tokenizer: the text is no valid UTF-8: byte {} (counted from 0) is wrong",
          invalid);
  const TokenizerSource& source = state_->source;
  const bool surrounded = bos == Bos::as_the_model_says;
  std::vector<int32_t> tokens;
  if (surrounded) tokens = source.front;
  for (const auto& [range, token] : state_->added.find_in_text(text)) {
    if (token)
      tokens.push_back(*token);
    else
      state_->encode_plain(range.of(text), range.begin == 0, tokens);
  }
  if (surrounded) tokens.insert(tokens.end(), source.back.begin(), source.back.end());
  return tokens;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, Place place) const {
  std::string bytes;
  bool first = place == Place::beginning;
  for (const int32_t token : tokens) {
    require(token >= 0 && token < vocabulary_size(), "tokenizer: token id is {}, expected 0 to {}", token,
            vocabulary_size() - 1);
    bytes += state_->source.decoder.decode(state_->source.vocabulary->text(token), first);
    first = false;
  }
  return bytes;
}

int32_t Tokenizer::vocabulary_size() const { return static_cast<int32_t>(state_->source.vocabulary->tokens().size()); }
std::span<const int32_t> Tokenizer::end_tokens() const { return state_->source.end_tokens; }
std::optional<int32_t> Tokenizer::bos_token() const { return state_->source.bos; }

bool Tokenizer::is_special(int32_t token) const { return state_->added.is_special(token); }

std::optional<int32_t> Tokenizer::find(std::string_view text) const {
  const int32_t id = state_->source.vocabulary->find(text);
  return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace regard
