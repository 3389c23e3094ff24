// Tiny checkpoints of every family against transformers on the same weights; see make_family_golden.py.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "golden/golden_files.h"
#include "regard/checkpoint.h"
#include "regard/model.h"
#include "regard/model_spec.h"
#include "regard/shards.h"
#include "support/sanitized.h"
#include "support/temp_folder.h"
#include "support/thread_ranks.h"

namespace regard {
namespace {

using Calls = std::vector<std::vector<Span>>;

// What transformers computed, and by how much it is off in f32.
class Golden {
 public:
  explicit Golden(const std::filesystem::path& folder) : file_(Checkpoint::open(folder / "golden.safetensors")) {}

  [[nodiscard]] std::vector<int32_t> tokens(const std::string& name) const {
    const auto ids = file_.tensor(name).view().elements<int32_t>();
    return {ids.begin(), ids.end()};
  }
  [[nodiscard]] ConstTensorView values(const std::string& name) const { return file_.tensor(name).view(); }

 private:
  Checkpoint file_;
};

// The rows that all calls gave, in order of the tokens of each slot's sequence.
struct Outputs {
  Tensor hidden;  // [layers + 1, tokens of slot 0, hidden_size]
  Tensor logits;  // [tokens of slot 0, vocab_size]
  Tensor other_logits;
};

// Slot 0 holds `tokens`, slot 1 `other_tokens`.
Outputs run(const Model& model, const Golden& golden, const Calls& calls, std::vector<KvCache> caches) {
  const std::array sequences = {golden.tokens("tokens"), golden.tokens("other_tokens")};
  const ConstTensorView hidden = golden.values("hidden");
  Workspace workspace(2);
  Outputs out{.hidden = Tensor(DType::f32, hidden.shape()),
              .logits = Tensor(DType::f32, golden.values("logits").shape()),
              .other_logits = Tensor(DType::f32, golden.values("other_logits").shape())};
  const auto copy_rows = [](ConstTensorView from, TensorView to) {
    std::ranges::copy(from.elements<float>(), to.as<float>());
  };
  for (const auto& spans : calls) {
    std::vector<int32_t> tokens;
    for (const Span& span : spans) {
      const auto first = sequences[static_cast<size_t>(span.slot)].begin() + span.first_position;
      tokens.insert(tokens.end(), first, first + span.count);
    }
    const Tensor layers(DType::f32, {hidden.size(0), static_cast<int64_t>(tokens.size()), hidden.size(2)});
    const ConstTensorView logits =
        model.forward(tokens, spans, caches, {.logits = Model::Logits::all, .hidden_states = layers.view()}, workspace);
    int64_t row = 0;
    for (const Span& span : spans) {
      const Tensor& into = span.slot == 0 ? out.logits : out.other_logits;
      copy_rows(logits.slice(0, row, span.count), into.view().slice(0, span.first_position, span.count));
      for (int64_t layer = 0; layer < hidden.size(0) && span.slot == 0; ++layer)
        copy_rows(layers.view()[layer].slice(0, row, span.count),
                  out.hidden.view()[layer].slice(0, span.first_position, span.count));
      row += span.count;
    }
  }
  return out;
}

struct Error {
  double largest = 0;
  double rms = 0;
};

// At most twice the error of transformers, and half a unit in the last place of f32, which nobody can do without.
void expect_close(const std::string& what, ConstTensorView ours, ConstTensorView expected, const Error& theirs) {
  constexpr double kAllowed = 2;
  const double unit = std::ldexp(1.0, -24);
  const auto got = ours.elements<float>();
  const auto wanted = expected.elements<double>();
  ASSERT_EQ(got.size(), wanted.size()) << what;
  Error error, magnitude;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - wanted[i]);
    ASSERT_FALSE(std::isnan(difference)) << what << ", element " << i;
    error.largest = std::max(error.largest, difference);
    error.rms += difference * difference;
    magnitude.largest = std::max(magnitude.largest, std::fabs(wanted[i]));
    magnitude.rms += wanted[i] * wanted[i];
  }
  const auto count = static_cast<double>(got.size());
  error.rms = std::sqrt(error.rms / count);
  magnitude.rms = std::sqrt(magnitude.rms / count);
  EXPECT_LE(error.largest, kAllowed * theirs.largest + unit * magnitude.largest) << what << ", largest error";
  EXPECT_LE(error.rms, kAllowed * theirs.rms + unit * magnitude.rms) << what << ", root mean square error";
}

// `stage` says which of transformers' errors are the measure: "prefill" or "decode".
void expect_outputs(const Outputs& out, const Golden& golden, const std::string& stage) {
  const auto error = [&](const std::string& name, int64_t row) {
    const auto pairs = golden.values(stage + name).elements<double>();
    return Error{.largest = pairs[static_cast<size_t>(2 * row)], .rms = pairs[static_cast<size_t>(2 * row + 1)]};
  };
  for (int64_t layer = 0; layer < out.hidden.shape()[0] && !testing::Test::HasFailure(); ++layer)
    expect_close(layer == 0 ? "embedding" : fmt::format("after layer {}", layer - 1), out.hidden.view()[layer],
                 golden.values("hidden")[layer], error("_hidden_error", layer));
  if (testing::Test::HasFailure()) return;  // the first layer that is wrong says most
  expect_close("logits", out.logits, golden.values("logits"), error("_logits_error", 0));
}

struct Schedule {
  std::string name;
  std::string stage;
  Calls calls;
  bool has_other = false;
};

// All of them run the whole of slot 0's 44 tokens; windows are of 5 to 8.
std::vector<Schedule> schedules() {
  constexpr int64_t kTokens = 44;
  const auto span = [](int64_t slot, int64_t first, int64_t count) {
    return Span{.slot = slot, .first_position = first, .count = count};
  };
  std::vector<Schedule> all = {
      {.name = "in chunks", .stage = "prefill", .calls = {{span(0, 0, 17)}, {span(0, 17, 1)}, {span(0, 18, 26)}}},
      {.name = "beside another sequence",
       .stage = "prefill",
       .calls = {{span(0, 0, 30)},
                 {span(0, 30, 1), span(1, 0, 8)},
                 {span(1, 8, 12), span(0, 31, 1)},
                 {span(0, 32, 1), span(1, 20, 1)},
                 {span(0, 33, 11)}},
       .has_other = true}};
  if (test::kSanitized) return all;
  all.push_back({.name = "at once", .stage = "prefill", .calls = {{span(0, 0, kTokens)}}});
  Schedule one_by_one{.name = "token by token", .stage = "decode", .calls = {}};
  for (int64_t i = 0; i < kTokens; ++i) one_by_one.calls.push_back({span(0, i, 1)});
  all.push_back(one_by_one);
  return all;
}

KvCacheOptions cache_options(const Golden& golden) {
  return {.slots = 2, .capacity = golden.values("tokens").size(0), .dtype = DType::f32, .page_size = 16};
}

bool has_window(const Model& model, size_t layer) { return model.spec().layers[layer].attention.sliding_window > 0; }

bool has_windows(const Model& model) {
  for (size_t i = 0; i < model.spec().layers.size(); ++i)
    if (has_window(model, i)) return true;
  return false;
}

// One cache a layer that gives no token back, whatever its window.
std::vector<KvCache> contiguous_caches(const Model& model, const KvCacheOptions& options) {
  std::vector<KvCache> caches;
  for (int64_t i = 0; i < std::ssize(model.spec().layers); ++i)
    caches.push_back(model.attention(i).make_cache(KvStorage::contiguous, options));
  return caches;
}

bool have_same_bits(ConstTensorView a, ConstTensorView b) {
  return std::ranges::equal(std::as_bytes(a.elements<float>()), std::as_bytes(b.elements<float>()));
}

void expect_schedules(const Model& model, const Golden& golden, const std::function<std::vector<KvCache>()>& caches) {
  for (const Schedule& schedule : schedules()) {
    if (testing::Test::HasFailure()) return;
    SCOPED_TRACE(schedule.name);
    const Outputs out = run(model, golden, schedule.calls, caches());
    expect_outputs(out, golden, schedule.stage);
    if (!schedule.has_other) continue;
    const auto error = golden.values("prefill_logits_error").elements<double>();
    expect_close("logits of the other sequence", out.other_logits, golden.values("other_logits"),
                 {.largest = error[0], .rms = error[1]});
  }
}

// Folders, and the GGUF files in them, by name.
std::vector<std::string> checkpoints() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden::path("families"))) {
    const std::string name = entry.path().filename().string();
    names.push_back(name);
    if (std::filesystem::exists(entry.path() / (name + ".gguf"))) names.push_back(name + "/" + name + ".gguf");
  }
  std::ranges::sort(names);
  return names;
}

class FamilyGolden : public testing::TestWithParam<std::string> {
 protected:
  static std::filesystem::path path() { return std::filesystem::path(golden::path("families")) / GetParam(); }
  static Golden golden_values() { return Golden(path().extension() == ".gguf" ? path().parent_path() : path()); }
};

TEST_P(FamilyGolden, EveryLayerEqualsTransformersInEveryScheduleAndCache) {
  const Golden golden = golden_values();
  const Model model = Model::load(Checkpoint::open(path()), Threads(2));
  {
    SCOPED_TRACE("memory of each slot's own");
    expect_schedules(model, golden, [&] { return model.make_caches(cache_options(golden)); });
  }
  {
    SCOPED_TRACE("pages");
    constexpr int64_t kBytes = int64_t{4} << 20;
    expect_schedules(model, golden, [&] { return model.make_paged_caches(cache_options(golden), kBytes); });
  }
  if (has_windows(model)) {
    SCOPED_TRACE("memory that holds every token");
    expect_schedules(model, golden, [&] { return contiguous_caches(model, cache_options(golden)); });
  }
}

// The promise about bits, over schedules: also where experts get the tokens of several sequences at once.
TEST_P(FamilyGolden, LogitsHaveTheSameBitsInEverySchedule) {
  const Golden golden = golden_values();
  const Model model = Model::load(Checkpoint::open(path()), Threads(2));
  const auto run_of = [&](const Calls& calls) {
    return run(model, golden, calls, model.make_caches(cache_options(golden)));
  };
  const auto whole = [&](int64_t slot, const char* name) {
    return Span{.slot = slot, .first_position = 0, .count = golden.values(name).size(0)};
  };
  const Outputs alone = run_of({{whole(0, "tokens")}, {whole(1, "other_tokens")}});
  const Outputs together = run_of({{whole(1, "other_tokens"), whole(0, "tokens")}});
  EXPECT_TRUE(have_same_bits(together.logits, alone.logits));
  EXPECT_TRUE(have_same_bits(together.other_logits, alone.other_logits));
  for (const Schedule& schedule : schedules()) {
    const Outputs out = run_of(schedule.calls);
    EXPECT_TRUE(have_same_bits(out.logits, alone.logits)) << schedule.name;
    if (!schedule.has_other) continue;
    EXPECT_TRUE(have_same_bits(out.other_logits, alone.other_logits)) << schedule.name;
  }
}

TEST_P(FamilyGolden, EveryLayerEqualsTransformersOverTwoRanks) {
  const Golden golden = golden_values();
  test::run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
    const Model model = Model::load(Checkpoint::open(path()), Threads(1), Ranks(world, ParallelConfig{.tp_degree = 2}));
    expect_schedules(model, golden, [&] { return model.make_caches(cache_options(golden)); });
  });
}

// A rank that reads its own file computes what it would from the whole one: also experts, stacked, transposed, with
// gate and up in turns.
TEST_P(FamilyGolden, ShardsGiveTheSameBitsAsTheWholeFile) {
  const Golden golden = golden_values();
  const test::TempFolder folder;
  save_shards(Checkpoint::open(path()), folder.path(), {.tp_degree = 2});
  const auto tokens = golden.tokens("other_tokens");
  const Span span{.slot = 0, .first_position = 0, .count = std::ssize(tokens)};
  test::run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
    const Ranks ranks(world, ParallelConfig{.tp_degree = 2});
    const auto logits_of = [&](const Checkpoint& checkpoint) {
      Workspace workspace(1);
      const Model model = Model::load(checkpoint, workspace.threads(), ranks);
      auto caches = model.make_caches({.slots = 1, .capacity = span.count});
      const auto logits = model.forward(tokens, {&span, 1}, caches, {.logits = Model::Logits::all}, workspace);
      const auto elements = logits.elements<float>();
      return std::vector<float>(elements.begin(), elements.end());
    };
    EXPECT_EQ(logits_of(Checkpoint::open_shard(folder.path(), world->rank())), logits_of(Checkpoint::open(path())));
  });
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, FamilyGolden, testing::ValuesIn(checkpoints()), [](const auto& test) {
  std::string name = test.param.substr(test.param.find('/') + 1);
  std::ranges::replace(name, '.', '_');
  return name;
});

// 1200 tokens of two sequences, of which the second is some behind.
std::vector<std::vector<float>> logits_of_long_texts(const Model& model, std::vector<KvCache>& caches) {
  std::vector<int32_t> text;
  for (int64_t i = 0; i < 1200; ++i) text.push_back(static_cast<int32_t>(i * i * 7 % model.spec().vocab_size));
  std::vector<std::vector<float>> all;
  std::array<int64_t, 2> lengths{};
  Workspace workspace(2);
  for (const auto& counts :
       std::vector<std::array<int64_t, 2>>{{300, 0}, {512, 100}, {1, 1}, {2, 600}, {385, 1}, {0, 498}}) {
    std::vector<Span> spans;
    std::vector<int32_t> tokens;
    for (size_t slot = 0; slot < counts.size(); ++slot) {
      if (counts[slot] == 0) continue;
      spans.push_back({.slot = static_cast<int64_t>(slot), .first_position = lengths[slot], .count = counts[slot]});
      const auto first = text.begin() + lengths[slot];
      tokens.insert(tokens.end(), first, first + counts[slot]);
      lengths[slot] += counts[slot];
    }
    const auto logits = model.forward(tokens, spans, caches, {.logits = Model::Logits::all}, workspace);
    all.emplace_back(logits.elements<float>().begin(), logits.elements<float>().end());
  }
  return all;
}

// A ring has room for its window and the 512 tokens that a call appends at once, so that longer texts wrap around.
TEST(FamilyGolden, RingsThatWrapAroundGiveTheBitsOfCachesThatHoldEveryToken) {
  for (const char* name : {"gemma3", "gemma3_mixed", "gpt_oss", "mixtral_windows", "qwen3_windows"}) {
    SCOPED_TRACE(name);
    const Model model =
        Model::load(Checkpoint::open(std::filesystem::path(golden::path("families")) / name), Threads(2));
    const KvCacheOptions options{.slots = 2, .capacity = 1200, .dtype = DType::f32};
    auto rings = model.make_caches(options);
    auto contiguous = contiguous_caches(model, options);
    EXPECT_TRUE(has_windows(model));
    EXPECT_EQ(logits_of_long_texts(model, rings), logits_of_long_texts(model, contiguous));
    for (size_t layer = 0; layer < rings.size(); ++layer)
      for (int64_t slot = 0; slot < 2; ++slot) {
        EXPECT_EQ(rings[layer].first_held(slot) > 0, has_window(model, layer)) << "layer " << layer;
        EXPECT_EQ(contiguous[layer].first_held(slot), 0) << "layer " << layer;
      }
  }
}

// A text, or rather a cache, that the trained length holds takes the other list of factors.
TEST(FamilyGolden, LongropeTakesItsShortFactorsWhereTheContextIsDeclaredShort) {
  const std::filesystem::path folder = golden::path("families/llama_longrope");
  const Golden golden(folder);
  const auto tokens = golden.tokens("short_tokens");
  const auto count = static_cast<int64_t>(tokens.size());
  const auto checkpoint = Checkpoint::open(folder);
  const Model model = Model::load(checkpoint, ModelSpec::from(checkpoint).with_context_length(count), Threads(2));
  auto caches = model.make_caches({.slots = 1, .capacity = count, .dtype = DType::f32});
  Workspace workspace(2);
  const Span span{.slot = 0, .first_position = 0, .count = count};
  const ConstTensorView logits = model.forward(tokens, {&span, 1}, caches, {.logits = Model::Logits::all}, workspace);
  const auto error = golden.values("prefill_logits_error").elements<double>();
  expect_close("logits", logits, golden.values("short_logits"), {.largest = error[0], .rms = error[1]});
}

// The experts of each layer as transformers 5 keeps them in memory: [experts, 2 * width, hidden_size], gate above up,
// and [experts, hidden_size, width].
void write_with_stacked_experts(const Checkpoint& released, const test::TempFolder& folder) {
  const ModelSpec spec = ModelSpec::from(released);
  std::vector<NamedTensor> tensors;
  for (const StoredTensor& tensor : released.tensors())
    if (tensor.name.find("block_sparse_moe") == std::string::npos) tensors.push_back({tensor.name, tensor.view()});
  std::vector<Tensor> stacks;  // what `tensors` points to
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    const std::string from = fmt::format("model.layers.{}.block_sparse_moe.", layer);
    const std::string to = fmt::format("model.layers.{}.mlp.", layer);
    const auto& mlp = std::get<ExpertsMlp>(spec.layers[layer].mlp);
    const int64_t width = mlp.expert.width;
    const Tensor gate_up(DType::bf16, {mlp.experts, 2 * width, spec.hidden_size});
    const Tensor down(DType::bf16, {mlp.experts, spec.hidden_size, width});
    for (int64_t expert = 0; expert < mlp.experts; ++expert) {
      const auto copy = [&](const char* matrix, TensorView into) {
        const StoredTensor& tensor = released.tensor(fmt::format("{}experts.{}.{}.weight", from, expert, matrix));
        std::ranges::copy(tensor.bytes, into.data());
      };
      copy("w1", gate_up.view()[expert].slice(0, 0, width));
      copy("w3", gate_up.view()[expert].slice(0, width, width));
      copy("w2", down.view()[expert]);
    }
    stacks.insert(stacks.end(), {gate_up, down});
    tensors.push_back({to + "experts.gate_up_proj", gate_up});
    tensors.push_back({to + "experts.down_proj", down});
    tensors.push_back({to + "gate.weight", released.tensor(from + "gate.weight").view()});
  }
  save_safetensors(folder.path() / "model.safetensors", tensors);
  folder.write("config.json", released.config_json());
}

TEST(FamilyGolden, MixtralsExpertsMayBeStacked) {
  for (const char* name : {"mixtral", "mixtral_windows"}) {
    SCOPED_TRACE(name);
    const std::filesystem::path folder = std::filesystem::path(golden::path("families")) / name;
    const Golden golden(folder);
    const auto released = Checkpoint::open(folder);
    const test::TempFolder other;
    write_with_stacked_experts(released, other);
    const auto logits_of = [&](const Checkpoint& checkpoint) {
      const Model model = Model::load(checkpoint, Threads(2));
      return run(model, golden, schedules().front().calls, model.make_caches(cache_options(golden))).logits;
    };
    const Tensor expected = logits_of(released);
    const Tensor stacked = logits_of(Checkpoint::open(other.path()));
    EXPECT_TRUE(std::ranges::equal(stacked.elements<float>(), expected.elements<float>()));
  }
}

}  // namespace
}  // namespace regard
