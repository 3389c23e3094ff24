// GGUF, versions 2 and 3, little-endian:
//   magic "GGUF", u32 version, u64 tensor count, u64 key-value count,
//   key-values (string key, u32 type, value), tensor infos (string name, u32 rank, u64 sizes innermost first, u32 type,
//   u64 offset), padding to the alignment, tensor data.
#include <array>
#include <cstring>
#include <limits>
#include <set>

#include "checkpoint/parsed_file.h"
#include "tensor/fail.h"

namespace regard {
namespace {

enum class ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct StoredType {
  uint32_t id;
  WeightType type;
};
constexpr std::array<StoredType, 15> kTensorTypes = {{{0, WeightType::f32},
                                                      {1, WeightType::f16},
                                                      {2, WeightType::q4_0},
                                                      {3, WeightType::q4_1},
                                                      {6, WeightType::q5_0},
                                                      {7, WeightType::q5_1},
                                                      {8, WeightType::q8_0},
                                                      {12, WeightType::q4_k},
                                                      {13, WeightType::q5_k},
                                                      {14, WeightType::q6_k},
                                                      {24, WeightType::i8},
                                                      {26, WeightType::i32},
                                                      {27, WeightType::i64},
                                                      {28, WeightType::f64},
                                                      {30, WeightType::bf16}}};

// Types that files hold but this library does not read, so that the message can name them.
constexpr std::array<std::pair<uint32_t, std::string_view>, 18> kOtherTypes = {{{9, "Q8_1"},
                                                                                {10, "Q2_K"},
                                                                                {11, "Q3_K"},
                                                                                {15, "Q8_K"},
                                                                                {16, "IQ2_XXS"},
                                                                                {17, "IQ2_XS"},
                                                                                {18, "IQ3_XXS"},
                                                                                {19, "IQ1_S"},
                                                                                {20, "IQ4_NL"},
                                                                                {21, "IQ3_S"},
                                                                                {22, "IQ2_S"},
                                                                                {23, "IQ4_XS"},
                                                                                {25, "I16"},
                                                                                {29, "IQ1_M"},
                                                                                {34, "TQ1_0"},
                                                                                {35, "TQ2_0"},
                                                                                {39, "MXFP4"},
                                                                                {40, "NVFP4"}}};

class Reader {
 public:
  Reader(std::span<const std::byte> file, std::string_view name) : file_(file), name_(name) {}

  ParsedFile parse() {
    read_header();
    for (uint64_t i = 0; i < key_values_; ++i) read_key_value();
    const uint64_t alignment = this->alignment();
    std::set<std::string, std::less<>> names;
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < tensors_; ++i) offsets.push_back(read_tensor_info(names));
    place_tensors(offsets, alignment);
    return std::move(parsed_);
  }

 private:
  [[nodiscard]] size_t left() const { return file_.size() - at_; }

  template <class T>
  T read(std::string_view what) {
    require(left() >= sizeof(T), "checkpoint: {}: the file ends at byte {}, inside {}", name_, file_.size(), what);
    T value;
    std::memcpy(&value, file_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  std::string read_string(std::string_view what) {
    const auto length = read<uint64_t>(what);
    require(length <= left(), "checkpoint: {}: {} has {} bytes, but {} are left in the file", name_, what, length,
            left());
    std::string text(reinterpret_cast<const char*>(file_.data() + at_), length);
    at_ += length;
    return text;
  }

  void read_header() {
    require(file_.size() >= 4 && std::memcmp(file_.data(), "GGUF", 4) == 0,
            "checkpoint: {} is no GGUF file: it does not start with \"GGUF\"", name_);
    at_ = 4;
    const auto version = read<uint32_t>("the version");
    require(version != 0x02000000 && version != 0x03000000, "checkpoint: {} is big-endian GGUF, expected little-endian",
            name_);
    require(version == 2 || version == 3, "checkpoint: {} is GGUF version {}, expected 2 or 3", name_, version);
    tensors_ = read<uint64_t>("the tensor count");
    key_values_ = read<uint64_t>("the key-value count");
    // The smallest key-value takes 13 bytes (empty key, type, one byte), the smallest tensor info 24.
    require(key_values_ <= left() / 13, "checkpoint: {}: the key-value count is {}, more than the file can hold", name_,
            key_values_);
    require(tensors_ <= left() / 24, "checkpoint: {}: the tensor count is {}, more than the file can hold", name_,
            tensors_);
  }

  void read_key_value() {
    const std::string key = read_string("a key");
    const auto type = read<uint32_t>("a value's type");
    MetaValue value = type == static_cast<uint32_t>(ValueType::array) ? read_array(key) : read_scalar(key, type);
    require(parsed_.metadata.emplace(key, std::move(value)).second, "checkpoint: {}: key \"{}\" comes twice", name_,
            printable(key));
  }

  MetaValue read_scalar(const std::string& key, uint32_t type) {
    constexpr std::string_view kWhat = "a value";
    switch (static_cast<ValueType>(type)) {
      case ValueType::u8:
        return int64_t{read<uint8_t>(kWhat)};
      case ValueType::i8:
        return int64_t{read<int8_t>(kWhat)};
      case ValueType::u16:
        return int64_t{read<uint16_t>(kWhat)};
      case ValueType::i16:
        return int64_t{read<int16_t>(kWhat)};
      case ValueType::u32:
        return int64_t{read<uint32_t>(kWhat)};
      case ValueType::i32:
        return int64_t{read<int32_t>(kWhat)};
      case ValueType::u64:
        return narrow(key, read<uint64_t>(kWhat));
      case ValueType::i64:
        return read<int64_t>(kWhat);
      case ValueType::f32:
        return double{read<float>(kWhat)};
      case ValueType::f64:
        return read<double>(kWhat);
      case ValueType::boolean:
        return read_bool(key);
      case ValueType::string:
        return read_string(kWhat);
      default:
        fail("checkpoint: {}: key \"{}\" has a value of type {}, expected 0 to 12", name_, printable(key), type);
    }
  }

  int64_t narrow(const std::string& key, uint64_t value) const {
    require(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
            "checkpoint: {}: key \"{}\" is {}, too large", name_, printable(key), value);
    return static_cast<int64_t>(value);
  }

  bool read_bool(const std::string& key) {
    const auto value = read<uint8_t>("a value");
    require(value <= 1, "checkpoint: {}: key \"{}\" is {}, expected 0 or 1", name_, printable(key), value);
    return value == 1;
  }

  static size_t smallest_bytes(uint32_t type) {
    switch (static_cast<ValueType>(type)) {
      case ValueType::u8:
      case ValueType::i8:
      case ValueType::boolean:
        return 1;
      case ValueType::u16:
      case ValueType::i16:
        return 2;
      case ValueType::u32:
      case ValueType::i32:
      case ValueType::f32:
        return 4;
      default:
        return 8;
    }
  }

  MetaValue read_array(const std::string& key) {
    const auto type = read<uint32_t>("an array's type");
    const auto count = read<uint64_t>("an array's length");
    require(type <= 12 && type != static_cast<uint32_t>(ValueType::array),
            "checkpoint: {}: key \"{}\" is an array of type {}, expected 0 to 8 or 10 to 12", name_, printable(key),
            type);
    require(count <= left() / smallest_bytes(type),
            "checkpoint: {}: key \"{}\" is an array of {} values, more than the file can hold", name_, printable(key),
            count);
    switch (static_cast<ValueType>(type)) {
      case ValueType::u8:
        return read_numbers<int64_t, uint8_t>(count);
      case ValueType::i8:
        return read_numbers<int64_t, int8_t>(count);
      case ValueType::u16:
        return read_numbers<int64_t, uint16_t>(count);
      case ValueType::i16:
        return read_numbers<int64_t, int16_t>(count);
      case ValueType::u32:
        return read_numbers<int64_t, uint32_t>(count);
      case ValueType::i32:
        return read_numbers<int64_t, int32_t>(count);
      case ValueType::i64:
        return read_numbers<int64_t, int64_t>(count);
      case ValueType::f32:
        return read_numbers<double, float>(count);
      case ValueType::f64:
        return read_numbers<double, double>(count);
      case ValueType::u64:
        return read_each<int64_t>(count, [&] { return narrow(key, read<uint64_t>(kElement)); });
      case ValueType::boolean:
        return read_each<bool>(count, [&] { return read_bool(key); });
      default:
        return read_each<std::string>(count, [&] { return read_string(kElement); });
    }
  }

  static constexpr std::string_view kElement = "a value";

  // An array may have as many numbers as the file has bytes: they are read in one go, without a check for each.
  template <class T, class Stored>
  std::vector<T> read_numbers(uint64_t count) {
    std::vector<T> values(count);
    const std::byte* from = file_.data() + at_;
    for (uint64_t i = 0; i < count; ++i) {
      Stored value;
      std::memcpy(&value, from + i * sizeof(Stored), sizeof(Stored));
      values[i] = static_cast<T>(value);
    }
    at_ += count * sizeof(Stored);
    return values;
  }

  template <class T, class Read>
  static std::vector<T> read_each(uint64_t count, Read read) {
    std::vector<T> values;
    values.reserve(count);
    for (uint64_t i = 0; i < count; ++i) values.push_back(read());
    return values;
  }

  uint64_t alignment() const {
    const auto found = parsed_.metadata.find("general.alignment");
    if (found == parsed_.metadata.end()) return 32;
    const auto* value = std::get_if<int64_t>(&found->second);
    require(value != nullptr, "checkpoint: {}: general.alignment is no integer", name_);
    require(*value > 0 && *value <= (1 << 20) && (*value & (*value - 1)) == 0,
            "checkpoint: {}: general.alignment is {}, expected a power of two up to 2^20", name_, *value);
    return static_cast<uint64_t>(*value);
  }

  WeightType weight_type(const std::string& tensor, uint32_t id) const {
    for (const StoredType& known : kTensorTypes)
      if (known.id == id) return known.type;
    for (const auto& [other, type] : kOtherTypes)
      require(other != id, "checkpoint: {}: tensor \"{}\" has type {}, which this library does not read", name_,
              printable(tensor), type);
    fail("checkpoint: {}: tensor \"{}\" has the unknown type {}", name_, printable(tensor), id);
  }

  // Reads all but the place; returns the offset in the data section.
  uint64_t read_tensor_info(std::set<std::string, std::less<>>& names) {
    StoredTensor tensor;
    tensor.name = read_string("a tensor's name");
    require(names.insert(tensor.name).second, "checkpoint: {}: tensor \"{}\" comes twice", name_,
            printable(tensor.name));
    const auto rank = read<uint32_t>("a tensor's rank");
    require(rank <= 4, "checkpoint: {}: tensor \"{}\" has {} axes, expected at most 4", name_, printable(tensor.name),
            rank);
    std::array<int64_t, 4> sizes{};
    for (uint32_t axis = 0; axis < rank; ++axis) {
      const auto size = read<uint64_t>("a tensor's shape");
      // 2^48 elements on an axis are beyond any file; the product is checked by Shape.
      require(size >= 1 && size <= (uint64_t{1} << 48),
              "checkpoint: {}: tensor \"{}\" has size {} on an axis, expected 1 to 2^48", name_, printable(tensor.name),
              size);
      sizes[rank - 1 - axis] = static_cast<int64_t>(size);
    }
    tensor.shape = checked_shape(tensor.name, std::span(sizes.data(), rank));
    tensor.type = weight_type(tensor.name, read<uint32_t>("a tensor's type"));
    const WeightBlock block = block_of(tensor.type);
    const int64_t row = rank == 0 ? 1 : sizes[rank - 1];
    require(row % block.values == 0,
            "checkpoint: {}: tensor \"{}\" of type {} has rows of {} values, expected a multiple of {}", name_,
            printable(tensor.name), name_of(tensor.type), row, block.values);
    const auto offset = read<uint64_t>("a tensor's offset");
    parsed_.tensors.push_back(std::move(tensor));
    return offset;
  }

  Shape checked_shape(const std::string& tensor, std::span<const int64_t> sizes) const {
    try {
      return Shape(sizes);
    } catch (const Error& error) {
      fail("checkpoint: {}: tensor \"{}\": {}", name_, printable(tensor), error.what());
    }
  }

  void place_tensors(const std::vector<uint64_t>& offsets, uint64_t alignment) {
    const uint64_t padding = (alignment - at_ % alignment) % alignment;
    const auto data = padding <= left() ? file_.subspan(at_ + padding) : std::span<const std::byte>();
    for (size_t i = 0; i < offsets.size(); ++i) {
      StoredTensor& tensor = parsed_.tensors[i];
      const WeightBlock block = block_of(tensor.type);
      int64_t bytes = 0;
      const bool fits = !__builtin_mul_overflow(tensor.shape.elements() / block.values, block.bytes, &bytes);
      require(offsets[i] % alignment == 0, "checkpoint: {}: tensor \"{}\" has offset {}, expected a multiple of {}",
              name_, printable(tensor.name), offsets[i], alignment);
      require(fits && offsets[i] <= data.size() && static_cast<uint64_t>(bytes) <= data.size() - offsets[i],
              "checkpoint: {}: tensor \"{}\" ends past the end of the file: offset {} in {} bytes of data", name_,
              printable(tensor.name), offsets[i], data.size());
      tensor.bytes = data.subspan(offsets[i], static_cast<size_t>(bytes));
    }
    check_layout(parsed_, data, false, name_);
  }

  std::span<const std::byte> file_;
  std::string_view name_;
  size_t at_ = 0;
  uint64_t tensors_ = 0;
  uint64_t key_values_ = 0;
  ParsedFile parsed_;
};

// Writes what Reader reads.
class Writer {
 public:
  std::string write(const Metadata& metadata) {
    bytes_ = "GGUF";
    put(uint32_t{3});
    put(uint64_t{0});
    put(uint64_t{metadata.size()});
    for (const auto& [key, value] : metadata) {
      put_element(key);
      std::visit([&](const auto& typed) { put_value(typed); }, value);
    }
    return std::move(bytes_);
  }

 private:
  template <class T>
  static constexpr ValueType type_of() {
    if constexpr (std::is_same_v<T, int64_t>)
      return ValueType::i64;
    else if constexpr (std::is_same_v<T, double>)
      return ValueType::f64;
    else if constexpr (std::is_same_v<T, bool>)
      return ValueType::boolean;
    else
      return ValueType::string;
  }

  template <class T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  template <class T>
  void put_element(const T& value) {
    put(value);
  }
  void put_element(const std::string& text) {
    put(uint64_t{text.size()});
    bytes_ += text;
  }

  template <class T>
  void put_value(const T& value) {
    put(type_of<T>());
    put_element(value);
  }
  template <class T>
  void put_value(const std::vector<T>& values) {
    put(ValueType::array);
    put(type_of<T>());
    put(uint64_t{values.size()});
    for (const T& value : values) put_element(value);
  }

  std::string bytes_;
};

}  // namespace

std::string gguf_of(const Metadata& metadata) { return Writer().write(metadata); }

ParsedFile parse_gguf(std::span<const std::byte> file, std::string_view name) { return Reader(file, name).parse(); }

}  // namespace regard
