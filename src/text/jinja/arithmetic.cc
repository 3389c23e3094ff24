#include "text/jinja/arithmetic.h"

#include <algorithm>
#include <cmath>

#include "text/jinja/builtins.h"
#include "text/jinja/text.h"

namespace regard::jinja {
namespace {

// Python rounds down, C++ towards zero.
int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return quotient - static_cast<int64_t>(a % b != 0 && (a < 0) != (b < 0));
}

Value integer_result(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case Operator::add:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Operator::subtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Operator::multiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    default:
      require(b != 0, "division by zero");
      if (op == Operator::divide) return Value(static_cast<double>(a) / static_cast<double>(b));
      // The one quotient that overflows is that of the least integer by -1, a negation.
      if (b == -1)
        overflow = op == Operator::floor_divide && __builtin_sub_overflow(int64_t{0}, a, &result);
      else
        result = op == Operator::floor_divide ? floor_divide(a, b) : a - b * floor_divide(a, b);
  }
  require(!overflow, "an integer needs more than 64 bits");
  return Value(result);
}

Value real_result(Operator op, double a, double b) {
  if (op == Operator::add) return Value(a + b);
  if (op == Operator::subtract) return Value(a - b);
  if (op == Operator::multiply) return Value(a * b);
  require(b != 0, "division by zero");
  if (op == Operator::divide) return Value(a / b);
  if (op == Operator::floor_divide) return Value(std::floor(a / b));
  const double remainder = std::fmod(a, b);
  return Value(remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder);
}

Value joined_lists(const Value& left, const Value& right, Budget& budget) {
  budget.spend(left.list()->size() + right.list()->size());
  Value::List all = *left.list();
  all.insert(all.end(), right.list()->begin(), right.list()->end());
  return Value(std::move(all));
}

Value joined_texts(std::string left, const std::string& right, Budget& budget) {
  budget.spend_bytes(left.size() + right.size());
  return Value(std::move(left += right));
}

Value repeated(const Value& text, int64_t count, Budget& budget) {
  if (count <= 0 || text.text()->empty()) return Value("");
  const auto times = static_cast<size_t>(count);
  // First the number alone, so that the product can't overflow.
  budget.spend_bytes(times);
  budget.spend_bytes(times * text.text()->size());
  std::string result;
  for (size_t i = 0; i < times; ++i) result += *text.text();
  return Value(std::move(result));
}

const char* spelling(Operator op) {
  switch (op) {
    case Operator::add:
      return "+";
    case Operator::subtract:
      return "-";
    case Operator::multiply:
      return "*";
    case Operator::divide:
      return "/";
    case Operator::floor_divide:
      return "//";
    case Operator::modulo:
      return "%";
    default:
      return "a comparison";
  }
}

[[noreturn]] void fail_kinds(Operator op, const Value& left, const Value& right) {
  fail("{} of {} and {} is not understood", spelling(op), left.describe(), right.describe());
}

Value calculate(Operator op, const Value& left, const Value& right, Budget& budget) {
  if (left.integer() && right.integer()) return integer_result(op, *left.integer(), *right.integer());
  if (left.is_number() && right.is_number()) return real_result(op, left.real(), right.real());
  if (op == Operator::add && left.text() != nullptr && right.text() != nullptr)
    return joined_texts(*left.text(), *right.text(), budget);
  if (op == Operator::add && left.list() != nullptr && right.list() != nullptr)
    return joined_lists(left, right, budget);
  if (op == Operator::multiply && left.text() != nullptr && right.integer())
    return repeated(left, *right.integer(), budget);
  if (op == Operator::multiply && right.text() != nullptr && left.integer())
    return repeated(right, *left.integer(), budget);
  fail_kinds(op, left, right);
}

template <class T>
bool ordered(Operator op, const T& a, const T& b) {
  if (op == Operator::less) return a < b;
  if (op == Operator::less_equal) return a <= b;
  return op == Operator::greater ? a > b : a >= b;
}

Value compare(Operator op, const Value& left, const Value& right, Budget& budget) {
  if (left.integer() && right.integer()) return Value(ordered(op, *left.integer(), *right.integer()));
  if (left.is_number() && right.is_number()) return Value(ordered(op, left.real(), right.real()));
  if (left.text() == nullptr || right.text() == nullptr) fail_kinds(op, left, right);
  budget.spend_bytes(std::min(left.text()->size(), right.text()->size()));
  // The order of UTF-8's bytes is that of the code points.
  return Value(ordered(op, *left.text(), *right.text()));
}

// From `start`, so many elements, `step` apart.
struct Range {
  int64_t start;
  int64_t count;
  int64_t step;
};

int64_t bound_of(const Value& value, int64_t left_out) {
  if (value.is_none()) return left_out;
  require(value.integer().has_value(), "a bound of a slice is {}, expected an integer", value.describe());
  return *value.integer();
}

// Counts from the end if negative, and is kept between the ends.
int64_t position_of(const Value& bound, int64_t left_out, int64_t length, int64_t lowest, int64_t highest) {
  if (bound.is_none()) return left_out;
  const int64_t position = bound_of(bound, 0);
  return std::clamp(position < 0 ? position + length : position, lowest, highest);
}

Range range_of(const SliceBounds& bounds, int64_t length) {
  const int64_t step = bound_of(bounds.step, 1);
  require(step != 0, "the step of a slice is 0");
  // Steps that are longer than the whole are all the same, and can't overflow.
  const int64_t stride = std::clamp(step, -length - 1, length + 1);
  if (step > 0) {
    const int64_t start = position_of(bounds.start, 0, length, 0, length);
    const int64_t stop = position_of(bounds.stop, length, length, 0, length);
    return {.start = start, .count = stop > start ? (stop - start - 1) / stride + 1 : 0, .step = stride};
  }
  const int64_t start = position_of(bounds.start, length - 1, length, -1, length - 1);
  const int64_t stop = position_of(bounds.stop, -1, length, -1, length - 1);
  return {.start = start, .count = start > stop ? (start - stop - 1) / -stride + 1 : 0, .step = stride};
}

}  // namespace

Value operate(Operator op, const Value& left, const Value& right, Budget& budget) {
  switch (op) {
    case Operator::equal:
      return Value(equal(left, right, budget));
    case Operator::not_equal:
      return Value(!equal(left, right, budget));
    case Operator::in:
      return Value(contains(right, left, budget));
    case Operator::not_in:
      return Value(!contains(right, left, budget));
    case Operator::less:
    case Operator::less_equal:
    case Operator::greater:
    case Operator::greater_equal:
      return compare(op, left, right, budget);
    case Operator::concatenate:
      return joined_texts(to_text(left), to_text(right), budget);
    default:
      return calculate(op, left, right, budget);
  }
}

Value operate(Operator op, const Value& operand) {
  if (op == Operator::logical_not) return Value(!operand.truthy());
  require(operand.is_number(), "{} has a sign, expected a number", operand.describe());
  if (operand.is_real()) return Value(op == Operator::negate ? -operand.real() : operand.real());
  return op == Operator::negate ? integer_result(Operator::subtract, 0, *operand.integer()) : Value(*operand.integer());
}

Value element_at(const Value& object, const Value& index, Budget& budget) {
  require(!object.is_undefined(), "{} has no element", object.describe());
  if (object.map() != nullptr && index.text() != nullptr) return object.entry(*index.text());
  const auto number = index.integer();
  if (!number || (object.list() == nullptr && object.text() == nullptr)) return Value(Value::Undefined{"an element"});
  const int64_t size = length(object, budget);
  const int64_t at = *number < 0 ? *number + size : *number;
  if (at < 0 || at >= size) return Value(Value::Undefined{fmt::format("element {}", *number)});
  if (object.list() != nullptr) return (*object.list())[static_cast<size_t>(at)];
  const std::string_view rest =
      std::string_view(*object.text()).substr(offset_of_character(*object.text(), static_cast<size_t>(at)));
  return Value(rest.substr(0, offset_of_character(rest, 1)));
}

Value slice(const Value& object, const SliceBounds& bounds, Budget& budget) {
  require(!object.is_undefined(), "{} has no slice", object.describe());
  if (object.list() == nullptr && object.text() == nullptr) return Value(Value::Undefined{"a slice"});
  const Range range = range_of(bounds, length(object, budget));
  if (object.text() != nullptr && range.step == 1) {
    const std::string_view rest =
        std::string_view(*object.text()).substr(offset_of_character(*object.text(), static_cast<size_t>(range.start)));
    return Value(rest.substr(0, offset_of_character(rest, static_cast<size_t>(range.count))));
  }
  const auto items = elements(object, budget);
  Value::List picked;
  for (int64_t i = 0; i < range.count; ++i) picked.push_back(items[static_cast<size_t>(range.start + i * range.step)]);
  if (object.list() != nullptr) return Value(std::move(picked));
  std::string text;
  for (const Value& character : picked) text += *character.text();
  return Value(std::move(text));
}

}  // namespace regard::jinja
