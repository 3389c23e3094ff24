#include "engine/continuation.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "tensor/fail.h"

namespace regard {

TextEnds TextEnds::of(const Tokenizer* tokenizer, std::span<const int32_t> end_tokens) {
  TextEnds ends{.tokenizer = tokenizer, .tokens = {end_tokens.begin(), end_tokens.end()}};
  if (tokenizer != nullptr)
    ends.tokens.insert(ends.tokens.end(), tokenizer->end_tokens().begin(), tokenizer->end_tokens().end());
  return ends;
}

void check_settings(const GenerationRequest& request, const TextEnds& ends) {
  require(request.max_tokens >= 1, "the number of tokens to generate is {}, expected 1 or more", request.max_tokens);
  require(!request.log_probabilities || *request.log_probabilities >= 0, "log_probabilities is {}, expected 0 or more",
          request.log_probabilities.value_or(0));
  require(request.stop_texts.empty() || ends.tokenizer != nullptr,
          "{} stop texts are given, but no tokenizer to find them with", request.stop_texts.size());
  if (ends.tokenizer != nullptr) (void)TextStream(*ends.tokenizer, request.stop_texts);
  (void)Sampler(request.sampler);
}

int64_t most_tokens(const GenerationRequest& request, int64_t prompt_length, int64_t context_length) {
  return std::min(request.max_tokens, context_length - prompt_length + 1);
}

Continuation::Continuation(GenerationRequest request, const TextEnds& ends, int64_t most_tokens)
    : request_(std::move(request)), ends_(ends), most_tokens_(most_tokens) {
  if (ends_.tokenizer == nullptr) return;
  stream_.emplace(*ends_.tokenizer, std::move(request_.stop_texts));
  // Rows of the head without a token are never drawn.
  if (request_.sampler.vocabulary == 0) request_.sampler.vocabulary = ends_.tokenizer->vocabulary_size();
}

std::optional<int32_t> Continuation::draw(std::span<const float> logits) {
  try {
    if (sampler_ == nullptr) sampler_ = std::make_unique<Sampler>(request_.sampler);
    const int32_t token = sampler_->sample(logits);
    if (request_.log_probabilities) note_log_probabilities(logits, token);
    text_.tokens.push_back(token);
    add_text(token);
    return token;
  } catch (const std::exception& error) {
    end(FinishReason::error, error.what());
    return std::nullopt;
  }
}

void Continuation::note_log_probabilities(std::span<const float> logits, int32_t token) {
  if (request_.sampler.vocabulary > 0)
    logits = logits.first(std::min(logits.size(), static_cast<size_t>(request_.sampler.vocabulary)));
  text_.log_probabilities.push_back(
      {.drawn = log_probability(logits, token), .top = top_log_probabilities(logits, *request_.log_probabilities)});
}

void Continuation::add_text(int32_t token) {
  news_.clear();
  if (stream_) news_ = stream_->push(token);
  const auto ends_text = [&](std::span<const int32_t> ends) { return std::ranges::find(ends, token) != ends.end(); };
  if (ends_text(ends_.tokens) || ends_text(request_.stop_tokens) || (stream_ && stream_->stopped()))
    end(FinishReason::stop);
  else if (count() == most_tokens_)
    end(FinishReason::length);
  if (ended_ && stream_) news_ += stream_->finish();
  text_.text += news_;
}

void Continuation::report() {
  if (!request_.on_token) return;
  try {
    const bool more = request_.on_token(
        {.token = text_.tokens.back(),
         .text = news_,
         .log_probabilities = text_.log_probabilities.empty() ? nullptr : &text_.log_probabilities.back()});
    if (!more && !ended_) end(FinishReason::cancelled);
  } catch (const std::exception& error) {
    end(FinishReason::error, error.what());
  }
}

void Continuation::end(FinishReason reason, std::string error) {
  ended_ = true;
  text_.finish = reason;
  text_.error = std::move(error);
}

GeneratedText Continuation::take() {
  if (stream_) text_.text += stream_->finish();
  if (!failed()) return std::move(text_);
  return {.finish = FinishReason::error, .error = std::move(text_.error)};
}

}  // namespace regard
