#include <gtest/gtest.h>

#include <set>

#include "regard/checkpoint.h"
#include "support/safetensors_builder.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard::test {
namespace {

std::string digest_of_bytes(const std::string& bytes, const std::string& config = "{}") {
  const TempFolder folder;
  folder.write("config.json", config);
  return digest_of(Checkpoint::open(folder.write("model.safetensors", bytes)));
}

TEST(Digest, IsTheSameForTheSameFilesWhereverTheyAre) {
  const std::string bytes = safetensors_bytes({{.name = "a", .dtype = "F32", .shape = {2}, .data = "12345678"}});
  EXPECT_EQ(digest_of_bytes(bytes), digest_of_bytes(bytes));
  EXPECT_EQ(digest_of_bytes(bytes).size(), 16U);
}

TEST(Digest, TellsNamesTypesShapesNumbersAndConfigsApart) {
  const auto with = [](const SafeTensor& tensor) { return safetensors_bytes(std::vector{tensor}); };
  const std::string data(8000, '\1');
  std::string other_begin = data, other_middle = data, other_end = data;
  other_begin.front() = other_middle[4000] = other_end.back() = '\2';
  const std::set<std::string> digests = {
      digest_of_bytes(with({.name = "a", .dtype = "F32", .shape = {2000}, .data = data})),
      digest_of_bytes(with({.name = "b", .dtype = "F32", .shape = {2000}, .data = data})),
      digest_of_bytes(with({.name = "a", .dtype = "I32", .shape = {2000}, .data = data})),
      digest_of_bytes(with({.name = "a", .dtype = "F32", .shape = {20, 100}, .data = data})),
      digest_of_bytes(with({.name = "a", .dtype = "F32", .shape = {2000}, .data = other_begin})),
      digest_of_bytes(with({.name = "a", .dtype = "F32", .shape = {2000}, .data = other_middle})),
      digest_of_bytes(with({.name = "a", .dtype = "F32", .shape = {2000}, .data = other_end})),
      digest_of_bytes(with({.name = "a", .dtype = "F32", .shape = {2000}, .data = data}), "{\"rope_theta\": 1}"),
  };
  EXPECT_EQ(digests.size(), 8U);
}

TEST(Digest, ReadsAllOfTheNumbersWhereAskedTo) {
  const TempFolder folder;
  const auto digest = [&](size_t changed, DigestScope scope) {
    std::string data(8000, '\1');
    data[changed] = '\2';
    const auto bytes = safetensors_bytes(
        std::vector<SafeTensor>{{.name = "a", .dtype = "F32", .shape = {2000}, .data = std::move(data)}});
    return digest_of(Checkpoint::open(folder.write("model.safetensors", bytes)), scope);
  };
  EXPECT_EQ(digest(1000, DigestScope::samples), digest(1001, DigestScope::samples));
  std::set<std::string> whole;
  for (const size_t changed : {0U, 1000U, 1001U, 4000U, 7000U, 7999U})
    whole.insert(digest(changed, DigestScope::whole));
  EXPECT_EQ(whole.size(), 6U);
}

TEST(Digest, ReadsTheMetadataOfGguf) {
  const TempFolder folder;
  const auto digest = [&](const TinyLlama& model) {
    return digest_of(Checkpoint::open(folder.write("model.gguf", model.gguf().build())));
  };
  EXPECT_EQ(digest({.context = 64}), digest({.context = 64}));
  EXPECT_NE(digest({.context = 64}), digest({.context = 65}));
}

}  // namespace
}  // namespace regard::test
