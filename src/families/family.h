#pragma once

#include <span>
#include <string_view>

#include "families/config_reader.h"
#include "families/gguf_reader.h"
#include "families/tensor_names.h"
#include "regard/model_spec.h"

namespace regard {

// A model family: how its files describe a model, and how they call its tensors. Of a form of file that the family does
// not have, the functions are null and the name is empty. Functions that read a description ask for every key that
// matters; what is left over is refused.
struct Family {
  std::string_view name;
  std::string_view model_type;  // of config.json
  ModelSpec (*from_config)(const ConfigReader& config);
  TensorNames (*config_names)(const Checkpoint& checkpoint);
  std::string_view architecture;  // of GGUF
  ModelSpec (*from_gguf)(const GgufReader& reader);
  TensorNames (*gguf_names)(const Checkpoint& checkpoint);
};

// One a file of this folder.
extern const Family kLlama, kQwen3, kGemma3, kGptOss, kOlmo2, kMixtral;

// All families.
[[nodiscard]] std::span<const Family* const> families();

}  // namespace regard
