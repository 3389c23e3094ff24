#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

// What a template is made of, as the parser reads it and the interpreter runs it.
namespace regard::jinja {

enum class Operator : uint8_t {
  logical_or,
  logical_and,
  logical_not,
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  in,
  not_in,
  add,
  subtract,
  concatenate,
  multiply,
  divide,
  floor_divide,
  modulo,
  negate,
  plus
};

struct Expression {
  // The comment says what `parts` hold.
  enum class Kind : uint8_t {
    literal,      // nothing; the value is in `value`
    variable,     // nothing; its name is in `name`
    list,         // the elements
    map,          // key, value, key, value, ...
    attribute,    // the object; `name` is behind the dot
    subscript,    // the object, the index
    slice,        // the object, start, stop, step; none where left out
    operation,    // one or two operands of `op`
    conditional,  // the condition, the value if it holds, the value otherwise
    function,     // the arguments; `name` is called
    method,       // the object, the arguments
    filter,       // what is filtered, the arguments
    test          // what is tested, the arguments
  };
  Kind kind = Kind::literal;
  Operator op = Operator::plus;
  std::string name;
  Value value;
  std::vector<Expression> parts;
  std::vector<std::string> keywords;  // of the last arguments
  int depth = 1;                      // of the tree
};

struct Statement {
  enum class Kind : uint8_t {
    text,
    print,
    assign,         // the value is `expression`, or what `body` prints
    loop,           // over `expression`, with `body`, and `otherwise` if there was nothing
    conditional,    // `body` if `expression` holds; an elif is a conditional in `otherwise`
    block,          // `body`, once
    macro,          // `text` becomes a function of `targets` that gives what `body` prints
    break_loop,     // ends the innermost loop
    continue_loop,  // goes on with its next element
  };
  Kind kind = Kind::text;
  int line = 0;
  std::string text;
  std::vector<std::string> targets;  // the variables that are set; several share out the elements of a list
  std::vector<Expression> defaults;  // of a macro's last parameters
  std::string attribute;             // of a namespace, where that is what is set
  std::optional<Expression> expression;
  std::optional<Expression> filter;  // the elements that a loop is about
  std::vector<Statement> body;
  std::vector<Statement> otherwise;
};

}  // namespace regard::jinja
