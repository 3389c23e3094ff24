#include "regard/tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "decoder/byte_pair_encoder.h"
#include "decoder/tokenizer_source.h"
#include "decoder/utf8.h"
#include "tensor/fail.h"

namespace regard {
namespace {

bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_word_byte(char c) {
  return std::isalnum(static_cast<uint8_t>(c)) != 0 || c == '_' || static_cast<uint8_t>(c) >= 0x80;
}

}  // namespace

struct Tokenizer::State {
  BytePairEncoder encoder;
  PreTokenizer pre_tokenizer;
  std::vector<AddedToken> added;  // longest first
  std::array<bool, 256> added_starts{};
  bool add_prefix_space;
  std::optional<int32_t> bos;
  bool add_bos;
  std::vector<int32_t> end_tokens;

  explicit State(TokenizerSource source)
      : encoder(std::move(source.tokens), source.merges, source.whole_words),
        pre_tokenizer(std::move(source.pre_tokenizer)),
        added(std::move(source.added)),
        add_prefix_space(source.add_prefix_space),
        bos(source.bos),
        add_bos(source.add_bos),
        end_tokens(std::move(source.end_tokens)) {
    std::ranges::stable_sort(added, std::ranges::greater(), [](const AddedToken& token) { return token.text.size(); });
    for (const AddedToken& token : added) added_starts[static_cast<uint8_t>(token.text.front())] = true;
  }

  // The longest added token at `at`, or nullptr.
  [[nodiscard]] const AddedToken* added_at(std::string_view text, size_t at) const {
    if (!added_starts[static_cast<uint8_t>(text[at])]) return nullptr;
    for (const AddedToken& token : added) {
      if (!text.substr(at).starts_with(token.text)) continue;
      const size_t end = at + token.text.size();
      const bool touches = (at > 0 && is_word_byte(text[at - 1])) || (end < text.size() && is_word_byte(text[end]));
      if (!token.single_word || !touches) return &token;
    }
    return nullptr;
  }

  void encode_plain(std::string_view text, std::vector<int32_t>& out) const {
    if (text.empty()) return;
    std::string prefixed;
    if (add_prefix_space && !is_ascii_space(text.front())) {
      prefixed.assign(1, ' ').append(text);
      text = prefixed;
    }
    for (const std::string_view word : pre_tokenizer.split(text)) encoder.encode(word, out);
  }
};

Tokenizer Tokenizer::from(const Checkpoint& checkpoint) {
  if (checkpoint.tokenizer_json().empty()) return Tokenizer(std::make_unique<State>(read_gguf_tokenizer(checkpoint)));
  TokenizerSource source = read_tokenizer_json(checkpoint.tokenizer_json());
  // tokenizer.json does not say which tokens end a text; config.json does.
  const auto config = nlohmann::json::parse(checkpoint.config_json(), nullptr, false);
  if (config.is_object() && config.contains("eos_token_id")) {
    const auto& eos = config["eos_token_id"];
    for (const auto& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
      if (id.is_null()) continue;
      require(id.is_number_unsigned() && id.get<uint64_t>() < source.tokens.size(),
              "tokenizer: \"eos_token_id\" of config.json is {}, expected token ids from 0 to {}",
              id.is_structured() ? id.type_name() : printable(id.dump()), source.tokens.size() - 1);
      source.end_tokens.push_back(id.get<int32_t>());
    }
  }
  return Tokenizer(std::make_unique<State>(std::move(source)));
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
  std::vector<int32_t> tokens;
  if (state_->add_bos && bos == Bos::as_the_model_says) tokens.push_back(*state_->bos);
  size_t plain = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* added = state_->added_at(text, at);
    if (added == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + added->text.size();
    while (added->strip_left && begin > plain && is_ascii_space(text[begin - 1])) --begin;
    while (added->strip_right && end < text.size() && is_ascii_space(text[end])) ++end;
    state_->encode_plain(text.substr(plain, begin - plain), tokens);
    tokens.push_back(added->id);
    plain = at = end;
  }
  state_->encode_plain(text.substr(plain), tokens);
  return tokens;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string bytes;
  for (const int32_t token : tokens) {
    require(token >= 0 && token < vocabulary_size(), "tokenizer: token id is {}, expected 0 to {}", token,
            vocabulary_size() - 1);
    bytes += state_->encoder.tokens()[static_cast<size_t>(token)];
  }
  return bytes;
}

int32_t Tokenizer::vocabulary_size() const { return static_cast<int32_t>(state_->encoder.tokens().size()); }
std::span<const int32_t> Tokenizer::end_tokens() const { return state_->end_tokens; }
std::optional<int32_t> Tokenizer::bos_token() const { return state_->bos; }

bool Tokenizer::is_special(int32_t token) const {
  return std::ranges::any_of(state_->added,
                             [&](const AddedToken& added) { return added.id == token && added.special; });
}

std::optional<int32_t> Tokenizer::find(std::string_view text) const {
  const int32_t id = state_->encoder.find(text);
  return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace regard
