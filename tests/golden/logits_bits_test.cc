// The promise about bits, over versions: logits and cached keys and values of SmolLM2 are those that
// smollm2_bits.json remembers. It says nothing about what is right, which text_test.cc does. A change that means to
// change bits puts the digests that a failure prints into that file, in a commit of its own.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "golden/golden_files.h"
#include "regard/model.h"
#include "regard/tokenizer.h"
#include "support/sanitized.h"
#include "tensor/checksum.h"

namespace regard {
namespace {

std::span<const std::byte> bytes_of(ConstTensorView view) {
  return {view.data(), static_cast<size_t>(view.shape().elements()) * size_of(view.dtype())};
}

// A prompt at once, and then three more tokens one by one: checksums of all logits and of what the caches hold.
std::string digest_of_prompt(const Model& model, std::vector<int32_t> tokens, Workspace& workspace) {
  std::vector<uint64_t> sums;
  const auto count = static_cast<int64_t>(tokens.size());
  auto caches = model.make_caches({.slots = 1, .capacity = count + 3, .dtype = DType::f32});
  const Span prompt{.slot = 0, .first_position = 0, .count = count};
  sums.push_back(
      checksum(bytes_of(model.forward(tokens, {&prompt, 1}, caches, {.logits = Model::Logits::all}, workspace))));
  for (int32_t i = 0; i < 3; ++i) {
    const std::vector<int32_t> next = {100 * i + 7};
    const Span span{.slot = 0, .first_position = count + i, .count = 1};
    sums.push_back(
        checksum(bytes_of(model.forward(next, {&span, 1}, caches, {.logits = Model::Logits::all}, workspace))));
  }
  for (const KvCache& cache : caches) {
    const auto [keys, values] = cache.read(0, 0, count + 3);
    sums.push_back(checksum(bytes_of(keys)));
    sums.push_back(checksum(bytes_of(values)));
  }
  return fmt::format("{:016x}", checksum(std::as_bytes(std::span(sums))));
}

TEST(LogitsBits, AreTheSameAsInEarlierVersions) {
  REGARD_REQUIRE_MODEL();
  const Checkpoint checkpoint = Checkpoint::open(golden::model_path());
  const Tokenizer tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace;
  const Model model = Model::load(checkpoint, workspace.threads());
  const auto prompts = golden::read_json("smollm2_greedy.json")["cases"];
  const auto digests = golden::read_json("smollm2_bits.json");
  ASSERT_GE(digests.size(), 20U);
  size_t count = test::kSanitized ? 2 : digests.size();
  for (const auto& prompt : prompts) {
    if (count-- == 0) break;
    const auto name = prompt["name"].get<std::string>();
    EXPECT_EQ(digest_of_prompt(model, tokenizer.encode(prompt["prompt"].get<std::string>()), workspace),
              digests[name].get<std::string>())
        << name;
  }
}

}  // namespace
}  // namespace regard
