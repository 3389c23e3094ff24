#include "text/decoder.h"

#include "text/vocabulary.h"

namespace regard {

std::string Decoder::decode(std::string_view token, bool first) const {
  std::string text(token);
  for (const Step& step : steps_) text = step(std::move(text), first);
  return text;
}

namespace decoders {

Decoder::Step replace(std::string text, std::string content) {
  return [text = std::move(text), content = std::move(content)](const std::string& token, bool) {
    std::string result;
    size_t at = 0;
    for (size_t found = 0; !text.empty() && (found = token.find(text, at)) != token.npos; at = found + text.size())
      result.append(token, at, found - at).append(content);
    return result.append(token, at);
  };
}

Decoder::Step byte_fallback() {
  return [](std::string token, bool) {
    const auto byte = byte_of_token(token);
    return byte ? std::string(1, *byte) : token;
  };
}

Decoder::Step strip(std::string character, size_t left, size_t right) {
  return [character = std::move(character), left, right](const std::string& token, bool) {
    std::string_view rest = token;
    for (size_t i = 0; i < left && rest.starts_with(character); ++i) rest.remove_prefix(character.size());
    for (size_t i = 0; i < right && rest.ends_with(character); ++i) rest.remove_suffix(character.size());
    return std::string(rest);
  };
}

Decoder::Step first_only(Decoder::Step step) {
  return
      [step = std::move(step)](std::string token, bool first) { return first ? step(std::move(token), first) : token; };
}

}  // namespace decoders

}  // namespace regard
