#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

// Files beside the golden tests, and the models that some of them need.
namespace regard::golden {

inline std::string path(const std::string& name) { return std::string(REGARD_TEST_DATA) + "/golden/" + name; }

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline nlohmann::json read_json(const std::string& name) { return nlohmann::json::parse(read_file(path(name))); }

// The SmolLM2 file, or nullptr where the environment does not name it.
inline const char* model_path() { return std::getenv("REGARD_MODEL"); }

// The file of Gemma 3 270M, or nullptr.
inline const char* gemma3_path() { return std::getenv("REGARD_GEMMA3"); }

}  // namespace regard::golden

#define REGARD_REQUIRE_MODEL()                 \
  if (regard::golden::model_path() == nullptr) \
  GTEST_SKIP() << "REGARD_MODEL does not name the SmolLM2 file; ./run --model prints its path"

#define REGARD_REQUIRE_GEMMA3()                 \
  if (regard::golden::gemma3_path() == nullptr) \
  GTEST_SKIP() << "REGARD_GEMMA3 does not name the file; ./run --model gemma3 prints its path"
