// safetensors: u64 header length, header (JSON: name -> {dtype, shape, data_offsets}), tensor data without holes.

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/json_check.h"
#include "checkpoint/parsed_file.h"
#include "tensor/fail.h"
#include "tensor/printable_quotes.h"
#include "tensor/replaced_file.h"

namespace regard {
namespace {

// Not ordered_json: it looks for a key among all those before, which takes minutes where a header has 100,000.
using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

constexpr std::array<std::pair<std::string_view, WeightType>, 11> kTypes = {{{"F32", WeightType::f32},
                                                                             {"F64", WeightType::f64},
                                                                             {"BF16", WeightType::bf16},
                                                                             {"F16", WeightType::f16},
                                                                             {"F8_E4M3", WeightType::f8_e4m3},
                                                                             {"F8_E5M2", WeightType::f8_e5m2},
                                                                             {"I8", WeightType::i8},
                                                                             {"U8", WeightType::u8},
                                                                             {"I32", WeightType::i32},
                                                                             {"I64", WeightType::i64},
                                                                             {"BOOL", WeightType::boolean}}};

// A header is three objects deep at most.
Json parse_header(std::string_view text, std::string_view name) {
  const bool valid =
      check_json(text, {.depth = 4, .refuses_twice = true}, fmt::format("checkpoint: {}: the header", name));
  require(valid, "checkpoint: {}: the header is no valid JSON", name);
  Json header = Json::parse(text);
  require(header.is_object(), "checkpoint: {}: the header is no JSON object", name);
  return header;
}

class Reader {
 public:
  Reader(std::span<const std::byte> file, std::string_view name) : file_(file), name_(name) {}

  ParsedFile parse() {
    uint64_t length = 0;
    require(file_.size() >= sizeof(length), "checkpoint: {}: the file has {} bytes, expected a header", name_,
            file_.size());
    std::memcpy(&length, file_.data(), sizeof(length));
    require(length <= kMaxHeaderBytes && length <= file_.size() - sizeof(length),
            "checkpoint: {}: the header has {} bytes, but the file has {} and headers at most {}", name_, length,
            file_.size(), kMaxHeaderBytes);
    const std::string_view text(reinterpret_cast<const char*>(file_.data()) + sizeof(length), length);
    data_ = file_.subspan(sizeof(length) + length);
    const Json header = parse_header(text, name_);
    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__")
        read_metadata(value);
      else
        read_tensor(key, value);
    }
    check_layout(parsed_, data_, true, name_);
    return std::move(parsed_);
  }

 private:
  void read_metadata(const Json& value) {
    require(value.is_object(), "checkpoint: {}: __metadata__ is no object", name_);
    for (const auto& [key, text] : value.items()) {
      require(text.is_string(), "checkpoint: {}: __metadata__ \"{}\" is no string", name_, printable(key));
      parsed_.strings[key] = text.get<std::string>();
    }
  }

  // A list of non-negative integers.
  std::vector<int64_t> integers(const std::string& tensor, const Json& info, const char* field) const {
    const auto found = info.find(field);
    require(found != info.end() && found->is_array(), "checkpoint: {}: tensor \"{}\" has no list \"{}\"", name_,
            printable(tensor), field);
    std::vector<int64_t> values;
    for (const Json& value : *found) {
      require(value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{1} << 62,
              "checkpoint: {}: tensor \"{}\" has {} in \"{}\", expected integers from 0 to 2^62", name_,
              printable(tensor), printable_with_quotes(value.dump()), field);
      values.push_back(value.get<int64_t>());
    }
    return values;
  }

  WeightType type_of(const std::string& tensor, const Json& info) const {
    const auto found = info.find("dtype");
    require(found != info.end() && found->is_string(), "checkpoint: {}: tensor \"{}\" has no \"dtype\"", name_,
            printable(tensor));
    for (const auto& [type_name, type] : kTypes)
      if (*found == type_name) return type;
    fail("checkpoint: {}: tensor \"{}\" has dtype \"{}\", which this library does not read", name_, printable(tensor),
         printable(found->get<std::string>()));
  }

  void read_tensor(const std::string& name, const Json& info) {
    require(info.is_object(), "checkpoint: {}: tensor \"{}\" is no object", name_, printable(name));
    StoredTensor tensor{.name = name, .type = type_of(name, info), .shape = {}, .bytes = {}};
    const auto sizes = integers(name, info, "shape");
    try {
      tensor.shape = Shape(sizes);
    } catch (const Error& error) {
      fail("checkpoint: {}: tensor \"{}\": {}", name_, printable(name), error.what());
    }
    const auto offsets = integers(name, info, "data_offsets");
    require(offsets.size() == 2 && offsets[0] <= offsets[1] && static_cast<uint64_t>(offsets[1]) <= data_.size(),
            "checkpoint: {}: tensor \"{}\" has data_offsets outside the {} bytes of data", name_, printable(name),
            data_.size());
    int64_t bytes = 0;
    require(!__builtin_mul_overflow(tensor.shape.elements(), block_of(tensor.type).bytes, &bytes) &&
                bytes == offsets[1] - offsets[0],
            "checkpoint: {}: tensor \"{}\" has {} bytes, but shape {} of {} needs another number", name_,
            printable(name), offsets[1] - offsets[0], tensor.shape, name_of(tensor.type));
    tensor.bytes = data_.subspan(static_cast<size_t>(offsets[0]), static_cast<size_t>(bytes));
    parsed_.tensors.push_back(std::move(tensor));
  }

  std::span<const std::byte> file_;
  std::string_view name_;
  std::span<const std::byte> data_;
  ParsedFile parsed_;
};

std::string make_header(std::span<const NamedTensor> tensors, const std::map<std::string, std::string>& metadata) {
  // Tensors are written in the order that they are given in.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  auto& entries = header.get_ref<nlohmann::ordered_json::object_t&>();
  if (!metadata.empty()) entries.emplace_back("__metadata__", metadata);
  std::set<std::string_view> names;
  int64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    require(names.insert(name).second, "safetensors: tensor \"{}\" comes twice", name);
    require(tensor.is_dense(), "safetensors: tensor \"{}\" of shape {} is not dense", name, tensor.shape());
    const WeightType type = weight_type_of(tensor.dtype());
    const int64_t bytes = tensor.shape().elements() * static_cast<int64_t>(size_of(tensor.dtype()));
    std::string_view type_name;
    for (const auto& [known, stored] : kTypes)
      if (stored == type) type_name = known;
    entries.emplace_back(
        name, nlohmann::ordered_json{{"dtype", type_name},
                                     {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())},
                                     {"data_offsets", {offset, offset + bytes}}});
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

ParsedFile parse_safetensors(std::span<const std::byte> file, std::string_view name) {
  return Reader(file, name).parse();
}

void save_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata) {
  const std::string header = make_header(tensors, metadata);
  ReplacedFile file(path);
  std::ostream& out = file.stream();
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << header;
  for (const auto& [name, tensor] : tensors)
    out.write(reinterpret_cast<const char*>(tensor.data()),
              tensor.shape().elements() * static_cast<int64_t>(size_of(tensor.dtype())));
  file.commit();
}

}  // namespace regard
