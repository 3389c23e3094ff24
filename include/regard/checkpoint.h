#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "regard/gqa_sharding.h"
#include "regard/tensor.h"
#include "regard/weight.h"

namespace regard {

/// One tensor of a checkpoint: its bytes are those of the mapped file and live as long as the Checkpoint.
struct StoredTensor {
  std::string name;
  WeightType type = WeightType::f32;
  /// Outermost axis first, whatever the file's own order is.
  Shape shape;
  std::span<const std::byte> bytes;

  /// The tensor as a matrix: the last axis is the row, all others are folded.
  [[nodiscard]] WeightView matrix() const;
  /// The tensor as it is, without a copy. Throws Error for block-quantised types and for data that is not aligned to
  /// its element size.
  [[nodiscard]] ConstTensorView view() const;
};

/// A value of GGUF's key-value section. Integers of every width are int64 (uint64 above int64's range is an Error).
using MetaValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string>>;

/// What a checkpoint is that holds one rank's part of a model.
struct CheckpointShard {
  int64_t tp_degree = 1;                  ///< Into how many parts the model was cut.
  int64_t rank = 0;                       ///< Which of them this is, as in GqaSharding::q_heads_of.
  GQA gqa = GQA::REPLICATE_TO_TP_DEGREE;  ///< The strategy that was asked for.
  uint64_t whole = 0;                     ///< The same for all parts, and for parts of something else another.
};

/// A checkpoint in one of the common forms, memory-mapped. Everything in the files is checked before use, so whatever
/// they hold, opening one either succeeds or throws Error with one sentence that names the file.
class Checkpoint {
 public:
  enum class Format : uint8_t { gguf, safetensors };

  /// Opens a .gguf file (versions 2 and 3), a .safetensors file, a `model.safetensors.index.json`, or a folder that
  /// holds one of them (index first, then model.safetensors, then the only *.safetensors or *.gguf), with config.json,
  /// tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json beside it where they exist.
  [[nodiscard]] static Checkpoint open(const std::filesystem::path& path);

  /// Whether a folder holds what save_shards writes.
  [[nodiscard]] static bool holds_shards(const std::filesystem::path& folder);
  /// Opens one rank's part of a model that save_shards cut: the file of that rank and no other. Names, metadata and
  /// texts are those of the whole model; tensors that ranks share out have this rank's shape, with query and KV heads
  /// padded as GqaSharding says and the rows of a head in the order of the source. The file's checksum is compared.
  /// Throws Error for a rank that there is none of, or where the folder holds anything else than was written.
  [[nodiscard]] static Checkpoint open_shard(const std::filesystem::path& folder, int64_t rank);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  [[nodiscard]] Format format() const;
  [[nodiscard]] const std::filesystem::path& path() const;
  /// Which part of a model this is, where it was opened with open_shard.
  [[nodiscard]] const std::optional<CheckpointShard>& shard() const;
  /// Bytes of all mapped files.
  [[nodiscard]] int64_t file_bytes() const;

  /// The files that it is read from: those of the tensors, and of the texts beside them whether they exist or not.
  [[nodiscard]] std::vector<std::filesystem::path> files() const;
  /// Throws Error, with its name, where a mapped file has become shorter since it was opened: what was read of its end
  /// may be zeros. (Pages beyond the new end can't be read at all: SIGBUS.)
  void check_sizes() const;

  /// All tensors, sorted by name.
  [[nodiscard]] std::span<const StoredTensor> tensors() const;
  /// The tensor of that name, or nullptr.
  [[nodiscard]] const StoredTensor* find(std::string_view name) const;
  /// The tensor of that name. Throws Error if there is none.
  [[nodiscard]] const StoredTensor& tensor(std::string_view name) const;

  /// GGUF's key-value section; empty for safetensors.
  [[nodiscard]] const std::map<std::string, MetaValue, std::less<>>& metadata() const;
  /// The text of config.json beside safetensors; empty if there is none.
  [[nodiscard]] const std::string& config_json() const;
  /// The text of tokenizer.json beside the checkpoint; empty if there is none.
  [[nodiscard]] const std::string& tokenizer_json() const;
  /// The text of tokenizer_config.json beside the checkpoint; empty if there is none.
  [[nodiscard]] const std::string& tokenizer_config_json() const;
  /// The text of chat_template.jinja beside the checkpoint; empty if there is none.
  [[nodiscard]] const std::string& chat_template() const;
  /// The text of generation_config.json beside the checkpoint; empty if there is none.
  [[nodiscard]] const std::string& generation_config_json() const;
  /// The `__metadata__` strings of a single safetensors file.
  [[nodiscard]] const std::map<std::string, std::string>& safetensors_metadata() const;

  /// Tells the kernel that the mapped pages are not needed in memory any more (they can be read again from the file).
  void release_pages() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Sixteen hexadecimal digits that tell checkpoints apart, for ranks that should have loaded the same: of the size of
/// the files, the name, type and shape of each tensor with 64 bytes each of its beginning, middle and end, GGUF's
/// metadata and the texts beside the checkpoint; all parts of a cut model have the same. `samples` is cheap, as it
/// reads few pages; a change elsewhere inside a tensor goes unnoticed. `whole` reads all bytes of all tensors. Parts of
/// a cut model have been read whole when they were opened.
enum class DigestScope : uint8_t { samples, whole };
[[nodiscard]] std::string digest_of(const Checkpoint& checkpoint, DigestScope scope = DigestScope::samples);

/// A tensor to be written, with its name.
struct NamedTensor {
  std::string name;
  ConstTensorView tensor;
};

/// Writes a safetensors file: to a temporary name beside `path`, synced, then renamed, so that a half-written file is
/// never seen. Tensors must be dense. Throws Error when the file can't be written or a name comes twice.
void save_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace regard
