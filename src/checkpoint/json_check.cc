#include "checkpoint/json_check.h"

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "tensor/fail.h"

namespace regard {
namespace {

using Json = nlohmann::json;

// A handler of the parser's events. Its own callbacks would do, but look through all of an object's values at the end
// of each of them: quadratic in the number of tensors.
class Check final : public nlohmann::json_sax<Json> {
 public:
  Check(const JsonLimits& limits, std::string_view where) : limits_(limits), where_(where) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(); }
  bool end_array() override { return close(); }
  bool parse_error(size_t, const std::string&, const Json::exception&) override { return false; }

  bool key(string_t& key) override {
    require(!limits_.refuses_twice || keys_.back().insert(key).second, "{}: \"{}\" comes twice", where_,
            printable(key));
    return true;
  }

 private:
  bool open() {
    keys_.emplace_back();
    require(static_cast<int>(keys_.size()) <= limits_.depth, "{}: it is nested more than {} deep", where_,
            limits_.depth);
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  std::string_view where_;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

bool check_json(std::string_view text, const JsonLimits& limits, std::string_view where) {
  Check check(limits, where);
  return Json::sax_parse(text, &check);
}

}  // namespace regard
