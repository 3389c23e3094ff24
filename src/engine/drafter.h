#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace regard {

// How many tokens to guess at a time: more while guesses come true to their end.
class DraftLength {
 public:
  explicit DraftLength(int64_t longest) : longest_(longest), wanted_(longest) {}

  [[nodiscard]] int64_t longest() const { return longest_; }
  [[nodiscard]] int64_t wanted() const { return wanted_; }
  void judge(int64_t drafted, int64_t accepted) {
    if (drafted > 0) wanted_ = std::min(longest_, accepted == drafted ? 2 * wanted_ : accepted + 1);
  }

 private:
  int64_t longest_;
  int64_t wanted_;
};

// Guesses how a text goes on. Guesses change how fast a text comes, and never what comes.
class Drafter {
 public:
  Drafter() = default;
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;
  virtual ~Drafter() = default;

  // Appends to the text.
  virtual void extend(std::span<const int32_t> tokens) = 0;
  // At most `room` tokens that may come next; none where nothing is worth a guess. Until the next draft the text grows
  // by what of this one comes true, and one token.
  [[nodiscard]] virtual std::vector<int32_t> draft(int64_t room) = 0;
  // Tells how many tokens of the last draft came true.
  virtual void judge(int64_t drafted, int64_t accepted) = 0;
};

}  // namespace regard
