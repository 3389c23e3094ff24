#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/drafter.h"

// Drafts without a draft model: text repeats itself, so what followed the last few tokens when they came before may
// follow them again.
namespace regard {

class PromptLookup : public Drafter {
 public:
  // At most so many tokens a draft; 0: never any.
  explicit PromptLookup(int64_t longest_draft) : length_(longest_draft) {}

  void extend(std::span<const int32_t> tokens) override;
  // Those that followed the most recent earlier place of the last three tokens, or else of the last two. Empty where
  // the text has no such place.
  [[nodiscard]] std::vector<int32_t> draft(int64_t room) override;
  void judge(int64_t drafted, int64_t accepted) override { length_.judge(drafted, accepted); }

 private:
  using Places = std::unordered_map<uint64_t, size_t>;

  [[nodiscard]] uint64_t last_gram(size_t length) const;

  DraftLength length_;
  std::vector<int32_t> text_;
  // Where the token lies that last followed two tokens, or three.
  Places after_two_, after_three_;
};

}  // namespace regard
