#include "regard/tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "checkpoint/json_shown.h"
#include "tensor/fail.h"
#include "text/byte_pair_encoder.h"
#include "text/tokenizer_source.h"
#include "text/utf8.h"

namespace regard {
namespace {

// How many of the text's first bytes are white space.
size_t leading_space(std::string_view text) {
  size_t end = 0;
  for (size_t next = 0; next < text.size(); end = next)
    if (!is_white_space(next_code_point(text, next))) break;
  return end;
}

// Where the text's last character begins.
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

size_t trailing_space(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    const size_t last = last_character(text.substr(0, begin));
    size_t next = last;
    if (!is_white_space(next_code_point(text, next))) break;
    begin = last;
  }
  return text.size() - begin;
}

// The tokens that are found in the text itself.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    for (const AddedToken& token : tokens_) {
      by_text_.emplace(token.text, &token);
      if (token.special) special_.insert(token.id);
      auto& lengths = lengths_[static_cast<uint8_t>(token.text.front())];
      if (std::ranges::find(lengths, token.text.size()) == lengths.end()) lengths.push_back(token.text.size());
    }
    for (auto& lengths : lengths_) std::ranges::sort(lengths, std::greater());
    // What the original's \w takes: letters, digits, marks, connectors and joiners.
    word_characters_.add_split(R"([\p{L}\p{Nl}\p{Nd}\p{M}\p{Pc}\x{200C}\x{200D}])", PreTokenizer::Behavior::removed);
  }

  // The longest one at `at`, or nullptr.
  [[nodiscard]] const AddedToken* find(std::string_view text, size_t at) const {
    for (const size_t length : lengths_[static_cast<uint8_t>(text[at])])
      if (const auto found = by_text_.find(text.substr(at, length)); found != by_text_.end()) return found->second;
    return nullptr;
  }

  // Whether no word goes on before or behind this part of the text.
  [[nodiscard]] bool stands_alone(std::string_view text, size_t begin, size_t end) const {
    if (begin > 0 && is_word(text.substr(0, begin).substr(last_character(text.substr(0, begin))))) return false;
    size_t next = end;
    if (end < text.size()) (void)next_code_point(text, next);
    return end == text.size() || !is_word(text.substr(end, next - end));
  }

  [[nodiscard]] bool is_special(int32_t token) const { return special_.contains(token); }

 private:
  [[nodiscard]] bool is_word(std::string_view character) const { return word_characters_.split(character).empty(); }

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string_view, const AddedToken*> by_text_;  // views into tokens_
  std::unordered_set<int32_t> special_;
  std::array<std::vector<size_t>, 256> lengths_;  // of the tokens that begin with a byte, longest first
  PreTokenizer word_characters_;
};

}  // namespace

struct Tokenizer::State {
  BytePairEncoder encoder;
  PreTokenizer pre_tokenizer;
  AddedTokens added;
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
        end_tokens(std::move(source.end_tokens)) {}

  void encode_plain(std::string_view text, std::vector<int32_t>& out) const {
    if (text.empty()) return;
    std::string prefixed;
    if (add_prefix_space && text.front() != ' ') {
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
    const auto add = [&](const nlohmann::json& id) {
      if (id.is_null()) return;
      require(id.is_number_unsigned() && id.get<uint64_t>() < source.tokens.size(),
              "tokenizer: \"eos_token_id\" of config.json is {}, expected token ids from 0 to {}", shown(id),
              source.tokens.size() - 1);
      source.end_tokens.push_back(id.get<int32_t>());
    };
    const auto& eos = config["eos_token_id"];
    if (eos.is_array())
      for (const auto& id : eos) add(id);
    else
      add(eos);
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
    const AddedToken* added = state_->added.find(text, at);
    const size_t match_end = at + (added == nullptr ? 1 : added->text.size());
    if (added == nullptr || (added->single_word && !state_->added.stands_alone(text, at, match_end))) {
      at = match_end;
      continue;
    }
    const size_t begin = added->strip_left ? at - trailing_space(text.substr(plain, at - plain)) : at;
    const size_t end = added->strip_right ? match_end + leading_space(text.substr(match_end)) : match_end;
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

bool Tokenizer::is_special(int32_t token) const { return state_->added.is_special(token); }

std::optional<int32_t> Tokenizer::find(std::string_view text) const {
  const int32_t id = state_->encoder.find(text);
  return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace regard
