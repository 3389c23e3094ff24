// What `plan` says of bytes against a model at work over ranks.
#include "planning/model_traffic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "planning/plan.h"
#include "regard/model.h"
#include "support/temp_folder.h"
#include "support/thread_ranks.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

constexpr int64_t kSlots = 3;
constexpr int64_t kContext = 700;

std::string families(std::string_view name) { return std::string(REGARD_TEST_DATA "/golden/families/").append(name); }

// Layouts of so many ranks: every one that the degrees allow.
std::vector<ParallelConfig> layouts(int64_t ranks) {
  std::vector<ParallelConfig> all;
  for (const int64_t cp : {1, 2, 4})
    for (const int64_t dp : {1, 2, 4})
      for (const bool sequence_parallel : {false, true})
        for (const bool flash : {false, true})
          if (ranks % cp == 0 && ranks % dp == 0)
            all.push_back({.tp_degree = ranks,
                           .cp_degree = cp,
                           .attention_dp_degree = dp,
                           .sequence_parallel_enabled = sequence_parallel,
                           .flash_decoding_enabled = flash});
  // In turn, what else there is.
  for (size_t i = 0; i < all.size(); ++i) {
    if (i % 2 == 1 && all[i].cp_degree > 1) all[i].context_split = ContextSplit::strided;
    if (i % 3 > 0) all[i].output_dispatch = i % 3 == 1 ? OutputDispatch::RS_AG : OutputDispatch::AG_AR;
    all[i].deterministic = i % 5 == 1;
    if (i % 5 == 3) all[i].rpl_reduce_dtype = DType::bf16;
  }
  return all;
}

std::string name_of(const ParallelConfig& config) {
  return testing::PrintToString(config.tp_degree) + " ranks, cp " + testing::PrintToString(config.cp_degree) + ", dp " +
         testing::PrintToString(config.attention_dp_degree) + (config.sequence_parallel_enabled ? ", SP" : "") +
         (config.flash_decoding_enabled ? ", flash" : "") + (config.deterministic ? ", deterministic" : "");
}

// Tokens of three sequences, from where `first` has them.
std::vector<Span> spans_of(std::span<const int64_t> first, std::span<const int64_t> counts) {
  std::vector<Span> spans;
  for (int64_t slot = 0; slot < std::ssize(counts); ++slot)
    spans.push_back(
        {.slot = slot, .first_position = first[static_cast<size_t>(slot)], .count = counts[static_cast<size_t>(slot)]});
  return spans;
}

std::vector<TokenRun> runs_of(std::span<const Span> spans, const ParallelConfig& config) {
  const int64_t slots = (kSlots + config.attention_dp_degree - 1) / config.attention_dp_degree;
  std::vector<TokenRun> runs;
  for (const Span& span : spans)
    runs.push_back({.first = span.first_position, .count = span.count, .row = span.slot / slots});
  return runs;
}

// Prompts, and then a step of a token each: what every rank has sent in either.
struct Sent {
  std::vector<int64_t> prefill, decode;  // [ranks]
  std::vector<int64_t> weights;          // bytes
};

Sent run(const Checkpoint& checkpoint, const ParallelConfig& config, std::span<const Span> prompts,
         std::span<const Span> step) {
  const auto ranks = static_cast<size_t>(config.tp_degree);
  Sent sent{.prefill = std::vector<int64_t>(ranks),
            .decode = std::vector<int64_t>(ranks),
            .weights = std::vector<int64_t>(ranks)};
  test::run_ranks(static_cast<int>(ranks), [&](const std::shared_ptr<Communicator>& world) {
    Workspace workspace(1);
    const Model model = Model::load(checkpoint, workspace.threads(), Ranks(world, config));
    auto caches = model.make_caches({.slots = kSlots, .capacity = kContext, .dtype = DType::bf16});
    const auto bytes_of = [&](std::span<const Span> spans) {
      int64_t tokens = 0;
      for (const Span& span : spans) tokens += span.count;
      const int64_t before = world->bytes_sent();
      (void)model.forward(std::vector<int32_t>(static_cast<size_t>(tokens), 7), spans, caches, {}, workspace);
      return world->bytes_sent() - before;
    };
    const auto rank = static_cast<size_t>(world->rank());
    sent.prefill[rank] = bytes_of(prompts);
    sent.decode[rank] = bytes_of(step);
    sent.weights[rank] = model.bytes();
  });
  return sent;
}

std::vector<int64_t> bytes_of(const ModelTraffic& traffic) {
  std::vector<int64_t> bytes;
  for (size_t rank = 0; rank < traffic.attention.ranks.size(); ++rank) bytes.push_back(traffic.of_rank(rank));
  return bytes;
}

void compare(const Checkpoint& checkpoint, std::span<const int64_t> prompts, int64_t ranks) {
  const ModelSpec spec = ModelSpec::from(checkpoint);
  const std::vector<Span> first = spans_of(std::vector<int64_t>(kSlots), prompts);
  const std::vector<Span> next = spans_of(prompts, std::vector<int64_t>(prompts.size(), 1));
  for (const ParallelConfig& config : layouts(ranks)) {
    SCOPED_TRACE(name_of(config));
    const Sent sent = run(checkpoint, config, first, next);
    const auto modelled = [&](Stage stage, std::span<const Span> spans) {
      return bytes_of(model_traffic(spec, stage, runs_of(spans, config), DType::bf16, config, 1));
    };
    EXPECT_EQ(sent.prefill, modelled(Stage::prefill, first));
    EXPECT_EQ(sent.decode, modelled(Stage::decode, next));
  }
}

constexpr std::array<int64_t, kSlots> kPrompts = {40, 57, 33};

TEST(ModelTraffic, IsWhatALlamaSends) {
  const test::TempFolder folder;
  // 3 leaves of columns, so that one of 4 ranks has none.
  test::TinyLlama{.heads = 4, .kv_heads = 2, .intermediate = 300, .context = kContext}.write_hugging_face(
      folder.path());
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  for (const int64_t ranks : {1, 2, 3, 4}) compare(checkpoint, kPrompts, ranks);
}

// Pieces of 512 tokens, which five ranks do not divide.
TEST(ModelTraffic, IsWhatALlamaSendsOfLongPrompts) {
  const test::TempFolder folder;
  test::TinyLlama{.layers = 1, .heads = 4, .kv_heads = 1, .intermediate = 300, .context = kContext}.write_hugging_face(
      folder.path());
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  for (const int64_t ranks : {4, 5}) compare(checkpoint, std::array<int64_t, kSlots>{550, 57, 33}, ranks);
}

TEST(ModelTraffic, IsWhatModelsWithExpertsAndWindowsSend) {
  for (const char* name : {"mixtral", "gpt_oss"}) {
    SCOPED_TRACE(name);
    compare(Checkpoint::open(families(name)), kPrompts, 4);
  }
}

// The weights of a rank, of a model in f32. But for the vocabulary all sizes are whole panels of the kernels.
TEST(RankMemory, IsWhatTheModelOfTheFullestRankHolds) {
  const test::TempFolder folder;
  test::TinyLlama{.hidden = 128, .heads = 8, .kv_heads = 4, .intermediate = 640, .context = kContext}
      .write_hugging_face(folder.path());
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  ModelSpec spec = ModelSpec::from(checkpoint);
  spec.bytes_per_weight = {.attention = 4, .mlp = 4, .embedding = 4};
  constexpr int64_t kPanel = 16;
  spec.vocab_size = (spec.vocab_size + kPanel - 1) / kPanel * kPanel;
  const std::vector<Span> prompts = spans_of(std::vector<int64_t>(kSlots), kPrompts);
  const std::vector<Span> step = spans_of(kPrompts, std::vector<int64_t>(kSlots, 1));
  for (const int64_t ranks : {1, 2, 4})
    for (const ParallelConfig& config : layouts(ranks)) {
      SCOPED_TRACE(name_of(config));
      const RankMemory memory = rank_memory(spec, {.context = 100, .prompt = 100}, config);
      const Sent sent = run(checkpoint, config, prompts, step);
      EXPECT_EQ(memory.attention_weights + memory.other_weights,
                static_cast<double>(*std::ranges::max_element(sent.weights)));
    }
}

}  // namespace
}  // namespace regard
