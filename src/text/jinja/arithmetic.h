#pragma once

#include "text/jinja/syntax.h"

namespace regard::jinja {

// The value of all operators but `and` and `or`, which may leave out the right side. Throws Error for values that do
// not fit, a division by zero, and integers past 64 bits.
[[nodiscard]] Value operate(Operator op, const Value& left, const Value& right, Budget& budget);
// negate, plus and logical_not.
[[nodiscard]] Value operate(Operator op, const Value& operand);

// object[index]: undefined if there is no such element. Throws Error for an index that is no integer or key.
[[nodiscard]] Value element_at(const Value& object, const Value& index, Budget& budget);

// Python's bounds of a slice; none where they are left out.
struct SliceBounds {
  Value start;
  Value stop;
  Value step;
};
[[nodiscard]] Value slice(const Value& object, const SliceBounds& bounds, Budget& budget);

}  // namespace regard::jinja
