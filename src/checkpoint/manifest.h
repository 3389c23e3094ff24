#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "regard/checkpoint.h"

namespace regard {

// What lies in a folder of shards: manifest.json, a file of tensors for each rank, and what the model needs besides.
struct Manifest {
  // As it is to be read: in the file, quantised rows are rows of bytes.
  struct Entry {
    std::string name;
    WeightType type = WeightType::f32;
    Shape shape;
  };
  struct File {
    int64_t bytes = 0;
    uint64_t checksum = 0;
    std::vector<Entry> tensors;
  };

  bool finished = false;  // all files are there
  int64_t tp_degree = 0;
  GQA gqa = GQA::REPLICATE_TO_TP_DEGREE;  // as it was asked for
  Checkpoint::Format format = Checkpoint::Format::safetensors;
  std::string family;
  std::string source;
  std::vector<std::string> texts;  // of kShardTexts, those that are there
  std::vector<File> files;         // one a rank

  // Throws Error for a name that is no UTF-8.
  [[nodiscard]] std::string to_json() const;
  // Takes any text; `name` is the file's, for messages. Throws Error unless it is a manifest of this version.
  [[nodiscard]] static Manifest parse(std::string_view text, std::string_view name);
};

inline constexpr int64_t kMostShards = 1024;
inline constexpr const char* kManifestFile = "manifest.json";
// GGUF's key-values, as a GGUF file without tensors.
inline constexpr const char* kShardMetadataFile = "metadata.gguf";
inline constexpr std::string_view kShardTexts[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                                   "chat_template.jinja", "generation_config.json"};

// The shape of a tensor in a rank's file: quantised rows are rows of bytes.
[[nodiscard]] Shape stored_shape(const Manifest::Entry& entry);

// "rank-00000-of-00004.safetensors"
[[nodiscard]] std::string shard_file_name(int64_t rank, int64_t tp_degree);

}  // namespace regard
