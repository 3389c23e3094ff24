#pragma once

#include <algorithm>
#include <cmath>
#include <ostream>

namespace regard::test {

// The yardstick of every comparison with the oracle: our largest error may be at most twice that of a plain f32
// implementation on the same input, plus a few roundings of the largest numbers that go into a result, because a small
// case may leave the plain one without any error by luck. NaN, in whichever of the three, always fails.
class ErrorBudget {
 public:
  static constexpr double kFactor = 2.0;
  static constexpr double kRoundings = 2.0;
  static constexpr double kRounding = 0x1p-24;  // relative, of f32 to nearest

  // `magnitude` is of the size of the terms that were summed up.
  void add_plain(double exact, double plain, double magnitude) {
    plain_error_ = std::max(plain_error_, error_of(exact, plain));
    magnitude_ = std::max(magnitude_, std::fabs(magnitude));
  }
  // `storage` is the rounding of a result that is stored in a narrower type.
  void add_ours(double exact, double ours, double storage = 0.0) {
    our_error_ = std::max(our_error_, error_of(exact, ours) - storage);
  }

  [[nodiscard]] double allowed() const { return kFactor * plain_error_ + kRoundings * kRounding * magnitude_; }
  [[nodiscard]] bool holds() const { return !wrong_ && our_error_ <= allowed(); }

  friend std::ostream& operator<<(std::ostream& out, const ErrorBudget& budget) {
    return out << "error " << budget.our_error_ << ", allowed " << budget.allowed() << " (plain f32 makes "
               << budget.plain_error_ << ", magnitude " << budget.magnitude_ << ")"
               << (budget.wrong_ ? ", and NaN or a wrong infinity" : "");
  }

 private:
  double error_of(double exact, double other) {
    if (std::isinf(exact) && other == exact) return 0.0;  // the log of an empty sum
    wrong_ |= !std::isfinite(exact) || !std::isfinite(other);
    return std::fabs(other - exact);
  }

  double plain_error_ = 0.0;
  double our_error_ = 0.0;
  double magnitude_ = 0.0;
  bool wrong_ = false;
};

}  // namespace regard::test
