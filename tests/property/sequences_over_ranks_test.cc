// Sequences of a whole model over ranks: prefixes that are shared, forked, saved and restored, and the engine above
// them, against one rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "regard/block_table.h"
#include "regard/engine.h"
#include "regard/model_cache.h"
#include "regard/saved_sequence.h"
#include "support/expect_error.h"
#include "support/property.h"
#include "support/random_requests.h"
#include "support/test_model.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;

constexpr int64_t kPageSize = 32;

// A model of three query heads a KV head, so that most numbers of ranks pad heads or copy them; with or without a
// window.
GgufBuilder llama(int64_t window) {
  GgufBuilder file = TinyLlama{.hidden = 48, .heads = 6, .context = 256}.gguf();
  if (window > 0) file.add_u32("llama.attention.sliding_window", static_cast<uint32_t>(window));
  return file;
}

struct Scene {
  uint64_t seed = 0;
  ParallelConfig parallel;
  int64_t window = 0;
  DType dtype = DType::f32;
};

std::ostream& operator<<(std::ostream& out, const Scene& scene) {
  const ParallelConfig& p = scene.parallel;
  return out << "seed " << scene.seed << ", " << p.tp_degree << " ranks, cp " << p.cp_degree << ", sp "
             << p.sequence_parallel_enabled << ", strided " << (p.context_split == ContextSplit::strided) << ", window "
             << scene.window << ", " << name_of(scene.dtype);
}

rc::Gen<Scene> scenes() {
  return rc::gen::exec([] {
    Scene scene;
    scene.seed = *rc::gen::inRange<uint64_t>(0, 1'000'000);
    ParallelConfig& p = scene.parallel;
    p.deterministic = true;
    p.tp_degree = *rc::gen::element<int64_t>(1, 2, 3, 4, 6);
    do p.cp_degree = *rc::gen::inRange<int64_t>(1, p.tp_degree + 1);
    while (p.tp_degree % p.cp_degree != 0);
    p.sequence_parallel_enabled = *rc::gen::arbitrary<bool>();
    if (p.cp_degree > 1) p.context_split = *rc::gen::element(ContextSplit::contiguous, ContextSplit::strided);
    scene.window = *rc::gen::element<int64_t>(0, 0, 40);
    scene.dtype = *rc::gen::element(DType::f32, DType::bf16, DType::i8);
    return scene;
  });
}

Ranks one_rank() {
  ParallelConfig config;
  config.deterministic = true;
  return {Communicator::single(), config};
}

// Runs `work` on one rank and then on all of the scene's, and expects of each what the one has returned.
template <class Work>
void expect_same_everywhere(const Scene& scene, Work work) {
  const TestModel files(llama(scene.window));
  const auto model_on = [&](const Ranks& ranks) { return Model::load(files.checkpoint(), Threads(1), ranks); };
  const auto expected = work(model_on(one_rank()), files);
  std::mutex mutex;
  run_ranks(static_cast<int>(scene.parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
    const std::vector<std::string> actual = work(model_on(Ranks(world, scene.parallel)), files);
    const auto [ours, theirs] = std::ranges::mismatch(actual, expected);
    const std::scoped_lock lock(mutex);
    const std::string what = ours == actual.end() ? "" : ours->substr(0, ours->find(':'));
    RC_ASSERT(what == "");
    RC_ASSERT(theirs == expected.end());
  });
}

// With a window, rows that divide a prompt keep only what later tokens see: less can be shared, and less is saved.
bool keeps_all(const Scene& scene) { return scene.window == 0 || scene.parallel.cp_degree == 1; }

// Random operations on the sequences of a model, which follow from the seed alone. `told` are the bits of all that they
// give.
class Session {
 public:
  Session(const Model& model, const Scene& scene, const std::string& file)
      : model_(model),
        random_(scene.seed),
        common_(random_tokens(random_, 150)),
        file_(file),
        keeps_all_(keeps_all(scene)),
        workspace_(1),
        cache_(model.make_paged_caches({.slots = 4, .capacity = 256, .dtype = scene.dtype}, int64_t{1} << 24), true) {}

  std::vector<std::string> run(int operations) {
    for (; done_ < operations; ++done_) step();
    return told_;
  }

 private:
  static constexpr std::string_view kLogits = "logits";

  void step() {
    const int64_t kind = random_.integer(0, 9);
    if (texts_.empty() || (kind < 3 && cache_.free_slots() > 0)) return open();
    auto text = texts_.begin();
    std::advance(text, random_.integer(0, std::ssize(texts_) - 1));
    if (kind < 6) return extend();
    const int64_t slot = text->first;
    if (kind == 7) return close(slot);
    if (kind == 9) return save_and_restore(slot);
    // Layers with a window can't go back far.
    if (!keeps_all_) return;
    try {
      kind == 6 ? fork(slot) : go_back(slot);
    } catch (const Error& error) {
      tell("an error", error.what());
    }
  }

  void open() {
    Ids tokens(common_.begin(), common_.begin() + random_.integer(1, std::ssize(common_)));
    const Ids own = random_tokens(random_, random_.integer(0, 40));
    tokens.insert(tokens.end(), own.begin(), own.end());
    const auto opened = cache_.open(tokens);
    tell("a slot", std::to_string(opened->slot));
    tell("a shared length", std::to_string(opened->length));
    texts_[opened->slot].assign(tokens.begin(), tokens.begin() + opened->length);
    append({{opened->slot, Ids(tokens.begin() + opened->length, tokens.end())}});
  }
  // Some texts by a few tokens each, in one call.
  void extend() {
    std::map<int64_t, Ids> tokens;
    for (const auto& [slot, text] : texts_) {
      const int64_t room = 256 - std::ssize(text);
      const int64_t count = std::min(room, random_.integer(0, random_.integer(0, 2) == 0 ? 50 : 2));
      if (count > 0) tokens[slot] = random_tokens(random_, count);
    }
    if (!tokens.empty()) append(tokens);
  }
  void append(const std::map<int64_t, Ids>& tokens) {
    std::vector<Span> spans;
    Ids all;
    for (const auto& [slot, more] : tokens) {
      Ids& text = texts_[slot];
      spans.push_back({.slot = slot, .first_position = std::ssize(text), .count = std::ssize(more)});
      text.insert(text.end(), more.begin(), more.end());
      all.insert(all.end(), more.begin(), more.end());
    }
    const ConstTensorView logits = model_.forward(all, spans, cache_.layers(), {}, workspace_);
    tell(kLogits, {reinterpret_cast<const char*>(logits.data()), static_cast<size_t>(logits.shape().elements()) * 4});
    for (const auto& [slot, more] : tokens) cache_.commit(slot, texts_[slot]);
  }
  void fork(int64_t slot) {
    const int64_t length = std::max<int64_t>(0, std::ssize(texts_[slot]) - random_.integer(0, 1));
    const auto to = cache_.fork(slot, length);
    tell("a fork's slot", std::to_string(to.value_or(-1)));
    if (to) texts_[*to].assign(texts_[slot].begin(), texts_[slot].begin() + length);
  }
  void close(int64_t slot) {
    cache_.close(slot);
    texts_.erase(slot);
  }
  void go_back(int64_t slot) {
    Ids& text = texts_[slot];
    if (text.size() < 2) return;
    cache_.truncate(slot, std::ssize(text) - 1);
    text.pop_back();
  }
  void save_and_restore(int64_t slot) {
    save_sequence(file_, model_, cache_.layers(), slot, texts_[slot]);
    (void)model_.ranks().world().gather(0);  // the file is there
    tell("a file", read_whole_file(file_));
    close(slot);
    const int64_t to = cache_.open({})->slot;
    texts_[to] = restore_sequence(file_, model_, cache_.layers(), to);
    (void)model_.ranks().world().gather(0);  // all have read it
    tell("a restored slot", std::to_string(to));
    tell("a restored length", std::to_string(cache_.length(to)));
  }
  void tell(std::string_view what, std::string_view bytes) {
    if (!keeps_all_ && what != kLogits) return;
    told_.push_back(std::string(what) + " of operation " + std::to_string(done_) + ":" + std::string(bytes));
  }

  const Model& model_;
  Random random_;
  Ids common_;
  std::string file_;
  bool keeps_all_;
  Workspace workspace_;
  ModelCache cache_;
  std::map<int64_t, Ids> texts_;  // by slot
  int done_ = 0;
  std::vector<std::string> told_;  // by operation: what it gave, behind a name and a colon
};

TEST(SequencesOverRanks, SharedForkedSavedAndRestoredTheyAreThoseOfOneRank) {
  check_property(200, [] {
    const Scene scene = *scenes();
    const TempFolder folder;
    expect_same_everywhere(scene, [&](const Model& model, const TestModel&) {
      const std::string name = model.ranks().size() == 1 ? "one" : "ranks";
      return Session(model, scene, folder.file(name)).run(12);
    });
  });
}

// What ranks save, one rank restores, and the other way round: files do not know ranks.
TEST(SequencesOverRanks, AFileIsTheSameWhateverTheRanks) {
  const TestModel files(llama(0));
  const TempFolder folder;
  const Ids tokens = [] {
    Random random(1);
    return random_tokens(random, 100);
  }();
  const auto save = [&](const Ranks& ranks, const std::string& path) {
    const Model model = Model::load(files.checkpoint(), Threads(1), ranks);
    Workspace workspace(1);
    auto caches = model.make_caches({.slots = 2, .capacity = 128, .dtype = DType::i8});
    const Span span{.slot = 1, .first_position = 0, .count = 100};
    (void)model.forward(tokens, {&span, 1}, caches, {}, workspace);
    save_sequence(path, model, caches, 1, tokens, "a model");
  };
  save(one_rank(), folder.file("1"));
  for (const int ranks : {2, 3, 4, 6}) {
    const std::string path = folder.file(std::to_string(ranks));
    run_ranks(ranks, [&](const std::shared_ptr<Communicator>& world) {
      ParallelConfig config;
      config.tp_degree = ranks;
      config.deterministic = true;
      save(Ranks(world, config), path);
    });
    EXPECT_EQ(read_whole_file(path), read_whole_file(folder.file("1"))) << ranks;
  }
}

TEST(SequencesOverRanks, RanksThatDivideSequencesCantSaveThemOrServe) {
  const TestModel files(llama(0));
  run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
    ParallelConfig config;
    config.tp_degree = config.attention_dp_degree = 2;
    const Model model = Model::load(files.checkpoint(), Threads(1), Ranks(world, config));
    Workspace workspace(1);
    auto caches = model.make_caches({.slots = 2, .capacity = 128});
    EXPECT_ERROR(save_sequence("/nowhere/file", model, caches, 0, Ids{1}), "ranks divide the sequences of decode");
    EXPECT_ERROR(Engine(model, {}, workspace), "ranks divide the sequences of decode (attention_dp_degree 2)");
  });
}

TEST(SequencesOverRanks, RanksThatReadDifferentFilesAreNamed) {
  const TestModel files(llama(0));
  const TempFolder folder;
  run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
    ParallelConfig config;
    config.tp_degree = 2;
    const Model model = Model::load(files.checkpoint(), Threads(1), Ranks(world, config));
    Workspace workspace(1);
    auto caches = model.make_caches({.slots = 2, .capacity = 128});
    for (const int32_t token : {5, 6}) {
      const Span span{.slot = token - 5, .first_position = 0, .count = 1};
      (void)model.forward(Ids{token}, {&span, 1}, caches, {}, workspace);
      save_sequence(folder.file(std::to_string(token)), model, caches, token - 5, Ids{token});
    }
    (void)world->gather(0);
    auto empty = model.make_caches({.slots = 2, .capacity = 128});
    EXPECT_ERROR((void)restore_sequence(folder.file(std::to_string(5 + world->rank())), model, empty, 0),
                 "ranks disagree: the saved sequence");
  });
}

// Ranks have as many pages as fit on the one with the least memory.
TEST(SequencesOverRanks, TheLeastMemoryDecidesHowManyPagesThereAre) {
  const TestModel files(llama(0));
  run_ranks(3, [&](const std::shared_ptr<Communicator>& world) {
    ParallelConfig config;
    config.tp_degree = 3;
    const Model model = Model::load(files.checkpoint(), Threads(1), Ranks(world, config));
    const KvCacheOptions options{.slots = 2, .capacity = 256};
    const auto pages = [&](int64_t bytes) {
      return model.make_paged_caches(options, bytes).front().block_tables().pages();
    };
    int64_t page = 0;
    for (const KvCache& layer : model.make_caches(options)) page += layer.bytes_per_token() * kPageSize;
    EXPECT_EQ(pages(page * (world->rank() == 1 ? 5 : 9)), 5);
    if (world->rank() == 1)
      EXPECT_ERROR((void)pages(page), "the cache's memory is");
    else
      EXPECT_ERROR((void)pages(page * 9), "the cache's memory on rank 1 holds less than 2 sequences");
  });
}

// What an engine of few pages makes of random requests, some of which callbacks end; nothing on ranks that do not lead.
std::vector<GeneratedText> served(const Model& model, const TestModel& files, const Scene& scene) {
  Workspace workspace(1);
  int64_t token_bytes = 0;
  for (const KvCache& layer : model.make_caches({.slots = 1, .capacity = 1, .dtype = scene.dtype}))
    token_bytes += layer.bytes_per_token();
  Engine engine(model,
                {.tokenizer = &files.tokenizer(),
                 .max_sequences = 3,
                 .cache_bytes = 8 * kPageSize * token_bytes,
                 .cache_dtype = scene.dtype},
                workspace);
  std::vector<GeneratedText> texts;
  if (model.ranks().rank() != 0) {
    EXPECT_ERROR((void)engine.submit({.prompt = {1}}, {}), "submitted on another rank than 0");
    engine.run();
    EXPECT_EQ(engine.open_requests(), 0);
    return texts;
  }
  Random random(scene.seed);
  const Ids common = random_tokens(random, 100);
  texts.resize(8);
  for (GeneratedText& text : texts) {
    GenerationRequest request = random_request(random, common, 20);
    int64_t left = random.integer(0, 3) == 0 ? random.integer(1, 6) : -1;
    const bool fails = random.integer(0, 1) == 0;
    request.on_token = [left, fails](const GeneratedToken&) mutable {
      if (--left == 0 && fails) throw std::runtime_error("a callback fails");
      return left != 0;
    };
    (void)engine.submit(std::move(request), [&text](GeneratedText done) { text = std::move(done); });
  }
  engine.run();
  return texts;
}

bool same(const GeneratedText& a, const GeneratedText& b) {
  return a.tokens == b.tokens && a.text == b.text && a.finish == b.finish && a.error == b.error;
}

TEST(EngineOverRanks, GivesTheTextsOfOneRank) {
  check_property(100, [] {
    const Scene scene = *scenes();
    const TestModel files(llama(scene.window));
    const auto texts_on = [&](const Ranks& ranks) {
      return served(Model::load(files.checkpoint(), Threads(1), ranks), files, scene);
    };
    const auto expected = texts_on(one_rank());
    run_ranks(static_cast<int>(scene.parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
      const auto texts = texts_on(Ranks(world, scene.parallel));
      if (world->rank() == 0) RC_ASSERT(std::ranges::equal(texts, expected, same));
    });
  });
}

// Clients come and go while ranks serve; rank 0's stop ends all of them.
TEST(EngineOverRanks, ServesUntilTheFirstRankStops) {
  const TestModel files(llama(0));
  run_ranks(3, [&](const std::shared_ptr<Communicator>& world) {
    ParallelConfig config;
    config.tp_degree = 3;
    const Model model = Model::load(files.checkpoint(), Threads(1), Ranks(world, config));
    Workspace workspace(1);
    Engine engine(model, {.tokenizer = &files.tokenizer(), .max_sequences = 2}, workspace);
    if (world->rank() != 0) return engine.serve({});
    std::stop_source stop;
    std::atomic<int> finished = 0;
    const std::jthread client([&] {
      const auto on_finish = [&](const GeneratedText& text) {
        EXPECT_EQ(text.finish, finished == 4 ? FinishReason::cancelled : FinishReason::length);
        if (++finished == 5) stop.request_stop();
      };
      for (int i = 0; i < 4; ++i) (void)engine.submit({.prompt = {1 + i, 2, 3}, .max_tokens = 5}, on_finish);
      while (finished < 4) std::this_thread::yield();
      EXPECT_TRUE(engine.cancel(engine.submit({.prompt = {1}, .max_tokens = 200}, on_finish)));
    });
    engine.serve(stop.get_token());
    EXPECT_EQ(finished, 5);
  });
}

}  // namespace
}  // namespace regard::test
