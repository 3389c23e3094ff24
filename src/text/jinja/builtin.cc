#include "text/jinja/builtin.h"

namespace regard::jinja {
namespace {

Value::List bind(const Builtin& builtin, const Arguments& arguments) {
  const auto& parameters = builtin.parameters;
  require(arguments.positional.size() <= parameters.size(), "{} has {} arguments, expected at most {}", builtin.name,
          arguments.positional.size(), parameters.size());
  Value::List bound = arguments.positional;
  bound.resize(parameters.size());
  for (const auto& [name, value] : arguments.named) {
    const auto index = static_cast<size_t>(std::ranges::find(parameters, name) - parameters.begin());
    require(index < parameters.size(), "{} has no argument \"{}\" that is understood", builtin.name, name);
    require(index >= arguments.positional.size(), "{} has two values for \"{}\"", builtin.name, name);
    bound[index] = value;
  }
  const size_t given = arguments.positional.size() + arguments.named.size();
  require(given >= builtin.required, "{} has {} arguments, expected {}", builtin.name, given, builtin.required);
  return bound;
}

}  // namespace

Value call_builtin(std::span<const Builtin> builtins, std::string_view owner, std::string_view name,
                   const Value& subject, const Arguments& arguments, Budget& budget) {
  budget.spend();
  const auto builtin = std::ranges::find(builtins, name, &Builtin::name);
  require(builtin != builtins.end(), "{} \"{}\" is not understood", owner, name.substr(0, 80));
  return builtin->call({.subject = subject, .arguments = bind(*builtin, arguments), .budget = budget});
}

void spend_search(std::string_view whole, std::string_view part, Budget& budget) {
  // At worst, the whole part is compared at each place.
  budget.spend_bytes(whole.size());
  budget.spend_bytes(whole.size() * (part.size() / Budget::kBytesPerStep));
}

}  // namespace regard::jinja
