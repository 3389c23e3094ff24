#pragma once

#include <nlohmann/json.hpp>

#include "text/tokenizer_source.h"

namespace regard {

// The steps of a tokenizer.json around its model. All of them throw Error for a step or an option that is not
// understood, with its name, and nlohmann::json::exception for parts that are missing or of the wrong kind.

void read_normalizer(const nlohmann::json& json, Normalizer& normalizer);

// Whether the words are bytes (ByteLevel), which the vocabulary spells as visible characters.
[[nodiscard]] bool read_pre_tokenizer(const nlohmann::json& json, PreTokenizer& pre_tokenizer);

// What is put around a text of its own: source.front and source.back.
void read_post_processor(const nlohmann::json& json, TokenizerSource& source);

// `byte_level`: as the pre-tokenizer says; tokens are bytes already.
void read_decoder(const nlohmann::json& json, bool byte_level, Decoder& decoder);

// Throws Error if an object has a key that is not one of these, and nlohmann::json::exception if it is no object.
void check_keys(const nlohmann::json& object, std::string_view what, std::initializer_list<std::string_view> known);

}  // namespace regard
