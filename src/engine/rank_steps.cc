#include "engine/rank_steps.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "parallel/broadcast.h"
#include "parallel/same_values.h"
#include "tensor/checksum.h"

namespace regard {
namespace {

using Json = nlohmann::json;

// All that tokens and the places of their ends depend on.
Json json_of(const GenerationRequest& request) {
  const SamplerConfig& sampler = request.sampler;
  return {{"prompt", request.prompt},
          {"max_tokens", request.max_tokens},
          {"temperature", sampler.temperature},
          {"top_k", sampler.top_k},
          {"top_p", sampler.top_p},
          {"seed", sampler.seed},
          {"vocabulary", sampler.vocabulary},
          {"stop_tokens", request.stop_tokens},
          {"stop_texts", request.stop_texts},
          {"salt", request.salt}};
}

GenerationRequest request_of(const Json& json) {
  GenerationRequest request;
  json.at("prompt").get_to(request.prompt);
  json.at("max_tokens").get_to(request.max_tokens);
  json.at("temperature").get_to(request.sampler.temperature);
  json.at("top_k").get_to(request.sampler.top_k);
  json.at("top_p").get_to(request.sampler.top_p);
  json.at("seed").get_to(request.sampler.seed);
  json.at("vocabulary").get_to(request.sampler.vocabulary);
  json.at("stop_tokens").get_to(request.stop_tokens);
  json.at("stop_texts").get_to(request.stop_texts);
  json.at("salt").get_to(request.salt);
  return request;
}

// An inbox is empty in most steps.
std::string bytes_of(const StepInbox& inbox) {
  if (inbox.empty()) return {};
  Json requests = Json::array();
  for (const auto& [number, request] : inbox.requests) requests.push_back({number, json_of(request)});
  std::string bytes;
  Json::to_cbor({{"requests", requests}, {"cancelled", inbox.cancelled}, {"stop", inbox.stop}}, bytes);
  return bytes;
}

StepInbox inbox_of(const std::string& bytes) {
  StepInbox inbox;
  if (bytes.empty()) return inbox;
  const Json json = Json::from_cbor(bytes);
  for (const Json& numbered : json.at("requests"))
    inbox.requests.emplace_back(numbered.at(0).get<int64_t>(), request_of(numbered.at(1)));
  json.at("cancelled").get_to(inbox.cancelled);
  json.at("stop").get_to(inbox.stop);
  return inbox;
}

}  // namespace

void RankSteps::share(StepInbox& inbox) const {
  if (!together()) return;
  const std::string bytes = from_first(ranks_.world(), leads() ? bytes_of(inbox) : std::string());
  if (!leads()) inbox = inbox_of(bytes);
}

void RankSteps::check_drawn(std::span<const int32_t> tokens) const {
  if (!together()) return;
  const auto sums = ranks_.world().gather(checksum(std::as_bytes(tokens)));
  if (std::ranges::all_of(sums, [&](uint64_t sum) { return sum == sums.front(); })) return;
  for (const int32_t own : tokens) {
    std::vector<std::string> drawn;
    for (const int32_t token : ranks_.world().gather(own)) drawn.push_back(std::to_string(token));
    require_same("a token that is drawn", drawn);
  }
}

void RankSteps::share_ends(std::span<Continuation* const> texts) const {
  if (!together() || texts.empty()) return;
  enum End : uint8_t { none, cancelled, failed };
  std::vector<std::byte> ends;
  for (const Continuation* text : texts)
    ends.push_back(std::byte(text->failed() ? failed : text->cancelled() ? cancelled : none));
  broadcast(ranks_.world(), ends);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (leads() || ends[i] == std::byte(none)) continue;
    const bool has_failed = ends[i] == std::byte(failed);
    texts[i]->end(has_failed ? FinishReason::error : FinishReason::cancelled,
                  has_failed ? "the first rank's callback has failed" : "");
  }
}

}  // namespace regard
