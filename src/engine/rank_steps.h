#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/continuation.h"
#include "regard/generation.h"
#include "regard/parallel.h"

namespace regard {

// What waits for a step of an engine.
struct StepInbox {
  std::vector<std::pair<int64_t, GenerationRequest>> requests;  // with their numbers
  std::vector<int64_t> cancelled;
  bool stop = false;  // no step follows

  [[nodiscard]] bool empty() const { return requests.empty() && cancelled.empty() && !stop; }
};

// Keeps the engines of ranks alike, which step together: all have the first one's requests, and its callbacks decide.
// Its functions are collective; with one rank they do nothing. Ranks outlive it.
class RankSteps {
 public:
  explicit RankSteps(const Ranks& ranks) : ranks_(ranks) {}

  [[nodiscard]] bool together() const { return ranks_.size() > 1; }
  // Whether this is the rank that takes requests and calls back.
  [[nodiscard]] bool leads() const { return ranks_.rank() == 0; }
  // On ranks that do not lead: the leading one's inbox, without callbacks and what only these are told.
  void share(StepInbox& inbox) const;
  // What each text has drawn in this step; -1: nothing. Throws Error on all ranks where they differ: each would go on
  // with texts of its own.
  void check_drawn(std::span<const int32_t> tokens) const;
  // Ends the texts that the leading rank's callbacks have ended. All ranks pass the same texts.
  void share_ends(std::span<Continuation* const> texts) const;

 private:
  const Ranks& ranks_;
};

}  // namespace regard
