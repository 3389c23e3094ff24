// A file that the PyPI package `gguf` wrote, and what it decodes to there; see make_gguf_golden.py.
#include <gtest/gtest.h>

#include <cmath>

#include "golden/golden_files.h"
#include "regard/checkpoint.h"

namespace regard {
namespace {

TEST(GgufGolden, EveryWeightTypeDecodesAsThePythonPackageDoes) {
  const auto stored = Checkpoint::open(golden::path("gguf_blocks.gguf"));
  const auto expected = Checkpoint::open(golden::path("gguf_blocks.safetensors"));
  EXPECT_EQ(stored.tensors().size(), 12U);
  for (const StoredTensor& tensor : stored.tensors()) {
    const ConstTensorView values = expected.tensor(tensor.name).view();
    ASSERT_EQ(tensor.shape, values.shape()) << tensor.name;
    const WeightView weight = tensor.matrix();
    std::vector<float> row(static_cast<size_t>(weight.columns));
    for (int64_t r = 0; r < weight.rows; ++r) {
      decode_row(weight, r, row);
      const auto golden = values[r].elements<float>();
      for (size_t i = 0; i < row.size(); ++i) {
        // The package rounds after the product and after the sum, here there is one rounding: terms of at most 4 of
        // everyday size differ by less than this.
        const float tolerance = is_quantized(tensor.type) ? 1e-6F : 0.0F;
        ASSERT_NEAR(row[i], golden[i], tolerance) << tensor.name << " " << r << ", " << i;
      }
    }
  }
}

TEST(GgufGolden, MetadataIsWhatThePythonPackageWrote) {
  const auto checkpoint = Checkpoint::open(golden::path("gguf_blocks.gguf"));
  const auto& metadata = checkpoint.metadata();
  EXPECT_EQ(metadata.at("general.architecture"), MetaValue("llama"));
  EXPECT_EQ(metadata.at("general.name"), MetaValue("every block format"));
  EXPECT_EQ(metadata.at("llama.block_count"), MetaValue(int64_t{7}));
  EXPECT_EQ(metadata.at("llama.rope.freq_base"), MetaValue(10000.5));
  EXPECT_EQ(metadata.at("tokenizer.ggml.add_bos_token"), MetaValue(true));
  EXPECT_EQ(metadata.at("tokenizer.ggml.tokens"), MetaValue(std::vector<std::string>{"a", "bé", ""}));
  EXPECT_EQ(metadata.at("tokenizer.ggml.token_type"), MetaValue(std::vector<int64_t>{1, -2, 3}));
}

}  // namespace
}  // namespace regard
