// Drafts, and texts that go on from a file, against texts made token by token in one go.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>

#include "engine/score.h"
#include "engine/token_outputs.h"
#include "regard/block_table.h"
#include "regard/generation.h"
#include "regard/saved_sequence.h"
#include "regard/tokenizer.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/test_model.h"
#include "support/thread_ranks.h"
#include "support/tiny_llama.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;

// A request without its prompt, and options.
struct Speech {
  int64_t max_tokens = 128;
  SamplerConfig sampler;
  DType cache_dtype = DType::f32;
  int64_t draft_length = 0;
  const Model* draft_model = nullptr;
  std::string restore_from = {};
  std::string save_to = {};
  std::function<bool(const GeneratedToken&)> on_token = {};
};

// A tiny model in memory. Its window, where it has one, is shorter than its texts. Its layers add little to what the
// last token says, so that it often repeats itself, but not always.
struct Speaker : TempFolder {
  explicit Speaker(int64_t window = 0, int64_t context = 400)
      : checkpoint(Checkpoint::open(write("model.gguf", gguf(window, context)))),
        tokenizer(Tokenizer::from(checkpoint)),
        workspace(1),
        decoder(Model::load(checkpoint, workspace.threads())) {}

  static std::string gguf(int64_t window, int64_t context) {
    GgufBuilder file = TinyLlama{.context = context, .has_end_token = false}.gguf();
    for (const char* name :
         {"blk.0.attn_output.weight", "blk.0.ffn_down.weight", "blk.1.attn_output.weight", "blk.1.ffn_down.weight"})
      scale(file.tensor(name).data, 0.08F);
    if (window > 0) file.add_u32("llama.attention.sliding_window", static_cast<uint32_t>(window));
    return file.build();
  }
  static void scale(std::string& f32_bytes, float factor) {
    for (size_t at = 0; at < f32_bytes.size(); at += sizeof(float)) {
      float value = 0;
      std::memcpy(&value, &f32_bytes[at], sizeof(float));
      value *= factor;
      std::memcpy(&f32_bytes[at], &value, sizeof(float));
    }
  }
  GenerateResult speak(std::string_view prompt, const Speech& speech) {
    return speak(tokenizer.encode(prompt), speech);
  }
  GenerateResult speak(Ids prompt, const Speech& speech) {
    return generate(decoder,
                    {.prompt = std::move(prompt),
                     .max_tokens = speech.max_tokens,
                     .sampler = speech.sampler,
                     .on_token = speech.on_token},
                    {.tokenizer = &tokenizer,
                     .cache_dtype = speech.cache_dtype,
                     .draft_length = speech.draft_length,
                     .draft_model = speech.draft_model,
                     .restore_from = speech.restore_from,
                     .save_to = speech.save_to},
                    workspace);
  }

  Checkpoint checkpoint;
  Tokenizer tokenizer;
  Workspace workspace;
  Model decoder;
};

const std::string kPrompt = "the inn and the hen and the inn and the hen and the";

std::vector<SamplerConfig> samplers() {
  return {{}, {.temperature = 0.3F, .seed = 3}, {.temperature = 0.5F, .top_k = 3, .top_p = 0.9F, .seed = 4}};
}

TEST(Drafts, ChangeNoTokenWhateverTheSamplerCacheAndWindow) {
  for (const int64_t window : {0, 20}) {
    Speaker speaker(window);
    int64_t accepted = 0;
    int64_t refused = 0;
    for (const DType dtype : {DType::f32, DType::i8})
      for (const SamplerConfig& sampler : samplers()) {
        Speech options{.max_tokens = 300, .sampler = sampler, .cache_dtype = dtype};
        const Ids plain = speaker.speak(kPrompt, options).tokens;
        for (const int64_t draft : {1, 4, 64}) {
          SCOPED_TRACE(::testing::Message()
                       << window << ' ' << name_of(dtype) << ' ' << sampler.temperature << ' ' << draft);
          options.draft_length = draft;
          const auto result = speaker.speak(kPrompt, options);
          EXPECT_EQ(result.tokens, plain);
          accepted += result.accepted_tokens;
          refused += result.draft_tokens - result.accepted_tokens;
        }
      }
    EXPECT_GT(accepted, 100) << "both ends of a draft were met";
    EXPECT_GT(refused, 100);
  }
}

// A model that guesses is another one, with windows or a shorter context of its own; the text stays the same.
TEST(Drafts, OfAModelChangeNoToken) {
  for (const int64_t window : {0, 20}) {
    Speaker speaker(window);
    const TestModel other({.layers = 1, .context = 400, .has_end_token = false, .seed = 1});
    Speaker windowed(30);
    Speaker forgetful(0, 150);
    for (const DType dtype : {DType::f32, DType::i8})
      for (const SamplerConfig& sampler : samplers())
        for (const Model* model :
             std::initializer_list<const Model*>{&other.decoder(), &windowed.decoder, &forgetful.decoder}) {
          Speech options{.max_tokens = 300, .sampler = sampler, .cache_dtype = dtype};
          const Ids plain = speaker.speak(kPrompt, options).tokens;
          options.draft_model = model;
          for (const int64_t draft : {1, 4, 64}) {
            SCOPED_TRACE(::testing::Message() << window << ' ' << name_of(dtype) << ' ' << sampler.temperature << ' '
                                              << draft << ' ' << model->spec().layers.size());
            options.draft_length = draft;
            const auto result = speaker.speak(kPrompt, options);
            EXPECT_EQ(result.tokens, plain);
            EXPECT_GT(result.draft_tokens, 0);
          }
        }
  }
}

// The same model guesses right every time: after a prompt of n tokens and a first one, drafts of 4 and the token behind
// each of them make the rest.
TEST(Drafts, OfTheSameModelAllComeTrue) {
  Speaker speaker;
  const auto result = speaker.speak(kPrompt, {.max_tokens = 201, .draft_length = 4, .draft_model = &speaker.decoder});
  EXPECT_EQ(result.draft_tokens, 160);
  EXPECT_EQ(result.accepted_tokens, 160);
}

TEST(Drafts, OfAModelNeedALength) {
  Speaker speaker;
  EXPECT_ERROR(speaker.speak("the", {.draft_length = 0, .draft_model = &speaker.decoder}),
               "draft's length is 0, expected 1 to 64");
}

// Ids that the model which guesses does not have silence it.
TEST(Drafts, OfAModelWithFewerTokensStop) {
  Speaker speaker;
  GgufBuilder file = TinyLlama{.context = 400, .has_end_token = false}.gguf();
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    auto& tensor = file.tensor(name);
    tensor.data.resize(tensor.data.size() / tensor.sizes[1] * 100);
    tensor.sizes[1] = 100;
  }
  const Checkpoint checkpoint = Checkpoint::open(speaker.write("small.gguf", file.build()));
  const Model small = Model::load(checkpoint, Threads(1));
  const Ids plain = speaker.speak(Ids{5, 7, 9}, {.max_tokens = 50}).tokens;
  const auto result = speaker.speak(Ids{5, 7, 9}, {.max_tokens = 50, .draft_length = 4, .draft_model = &small});
  EXPECT_EQ(result.tokens, plain);
  EXPECT_EQ(speaker.speak(Ids{5, 150, 9}, {.max_tokens = 50, .draft_length = 4, .draft_model = &small}).draft_tokens,
            0);
}

// Long drafts that keep failing become short ones.
TEST(Drafts, WasteLittle) {
  Speaker speaker;
  const Speech options{.max_tokens = 300, .sampler = {.temperature = 0.5F, .seed = 3}, .draft_length = 64};
  const auto result = speaker.speak(kPrompt, options);
  EXPECT_LT(result.draft_tokens - result.accepted_tokens, 300);
}

TEST(Drafts, StopWhereTheTextWouldStopWithoutThem) {
  Speaker speaker;
  const Speech plain{.max_tokens = 150};
  const Ids whole = speaker.speak(kPrompt, plain).tokens;
  ASSERT_EQ(whole.size(), 150U);
  for (size_t length = 100; length < 115; ++length) {
    const Ids expected(whole.begin(), whole.begin() + static_cast<int64_t>(length));
    Speech limited{.max_tokens = static_cast<int64_t>(length), .draft_length = 8};
    EXPECT_EQ(speaker.speak(kPrompt, limited).tokens, expected);
    size_t seen = 0;
    Speech stopped{
        .max_tokens = 150, .draft_length = 8, .on_token = [&](const GeneratedToken&) { return ++seen < length; }};
    EXPECT_EQ(speaker.speak(kPrompt, stopped).tokens, expected);
    EXPECT_EQ(seen, length);
  }
}

TEST(Drafts, StopAtTheContextsEnd) {
  Speaker speaker(0, 100);
  const Speech plain{.max_tokens = 1000};
  const Ids tokens = speaker.speak(kPrompt, plain).tokens;
  EXPECT_EQ(tokens.size(), 100 - speaker.tokenizer.encode(kPrompt).size() + 1);
  for (const int64_t draft : {3, 64})
    EXPECT_EQ(speaker.speak(kPrompt, {.max_tokens = 1000, .draft_length = draft}).tokens, tokens);
}

TEST(Drafts, AreRefusedOutOfRange) {
  Speaker speaker;
  EXPECT_ERROR(speaker.speak("the", {.draft_length = -1}), "draft's length is -1, expected 0 to 64");
  EXPECT_ERROR(speaker.speak("the", {.draft_length = 65}), "draft's length is 65");
}

// However the first part ended: on a token of a draft, or on one that refused it.
// The same text on each rank but the last, whose head, which every rank has for itself, is damaged.
struct Damaged : TempFolder {
  [[nodiscard]] std::string model(bool damaged) {
    GgufBuilder file = TinyLlama{.context = 400, .has_end_token = true}.gguf();
    if (damaged) Speaker::scale(file.tensor("output.weight").data, -1);
    return write(damaged ? "damaged.gguf" : "model.gguf", file.build());
  }
  // What all ranks get; `work` has the model, a prompt and the end tokens.
  void expect_error(const std::string& begin, const std::string& values, const auto& work) {
    std::atomic<int> refused = 0;
    run_ranks(3, [&](const std::shared_ptr<Communicator>& world) {
      const auto checkpoint = Checkpoint::open(model_of_[world->rank() == 2 ? 1 : 0]);
      const auto tokenizer = Tokenizer::from(checkpoint);
      Workspace workspace(1);
      const Model model = Model::load(checkpoint, workspace.threads(), Ranks(world, {.tp_degree = 3}));
      try {
        work(model, tokenizer, workspace);
      } catch (const Error& error) {
        const std::string words = error.what();
        if (words.find(begin) == 0 && words.find(values) != words.npos && words.find(" on rank 2,") != words.npos)
          ++refused;
        else
          ADD_FAILURE() << words;
      }
    });
    EXPECT_EQ(refused, 3);
  }

  std::array<std::string, 2> model_of_ = {model(false), model(true)};
};

TEST(RanksThatDriftApart, AreToldByTheTokenThatTheyDraw) {
  Damaged damaged;
  damaged.expect_error("ranks disagree: the token drawn at position 2 is ", " on ranks 0, 1, ",
                       [](const Model& model, const Tokenizer& tokenizer, Workspace& workspace) {
                         const Ids prompt = {70, 71};
                         (void)generate(model, {.prompt = prompt, .max_tokens = 5}, {.tokenizer = &tokenizer},
                                        workspace);
                       });
}

TEST(RanksThatDriftApart, AreToldByTheLogitsThatTheyScoreWith) {
  Damaged damaged;
  damaged.expect_error("ranks disagree: the checksum of the logits up to token 2 is ", " on ranks 0, 1, ",
                       [](const Model& model, const Tokenizer&, Workspace& workspace) {
                         const Ids text = {70, 71, 72};
                         (void)score(model, text, workspace, [](int64_t) {});
                       });
  damaged.expect_error("ranks disagree: the checksum of the logits up to token 3 is ", " on ranks 0, 1, ",
                       [](const Model& model, const Tokenizer&, Workspace& workspace) {
                         const Ids text = {70, 71, 72};
                         (void)outputs_of(model, text, {}, workspace);
                       });
}

// Whichever rank is interrupted, all end behind the same token.
TEST(InterruptedRanks, StopTogether) {
  Damaged folder;
  run_ranks(3, [&](const std::shared_ptr<Communicator>& world) {
    const auto checkpoint = Checkpoint::open(folder.model_of_[0]);
    Workspace workspace(1);
    const Model model = Model::load(checkpoint, workspace.threads(), Ranks(world, {.tp_degree = 3}));
    int asked = 0;
    const Ids prompt = {70, 71};
    const auto result = generate(model, {.prompt = prompt, .max_tokens = 20},
                                 {.interrupted = [&] { return world->rank() == 1 && ++asked == 4; }}, workspace);
    EXPECT_EQ(result.tokens.size(), 4U);
    EXPECT_TRUE(result.interrupted);
  });
}

TEST(SavedTexts, GoOnAsIfTheyHadNeverStopped) {
  for (const int64_t window : {0, 20})
    for (const DType dtype : {DType::f32, DType::i8}) {
      Speaker speaker(window);
      const std::string file = speaker.file("text.safetensors");
      const Ids whole = speaker.speak(kPrompt, {.max_tokens = 150, .cache_dtype = dtype}).tokens;
      for (int64_t first = 1; first < 140; first += 9)
        for (const int64_t draft : {0, 8}) {
          SCOPED_TRACE(::testing::Message() << window << ' ' << name_of(dtype) << ' ' << first << ' ' << draft);
          Ids tokens =
              speaker
                  .speak(kPrompt, {.max_tokens = first, .cache_dtype = dtype, .draft_length = draft, .save_to = file})
                  .tokens;
          const auto rest = speaker.speak(
              "", {.max_tokens = 150 - first, .cache_dtype = dtype, .draft_length = draft, .restore_from = file});
          EXPECT_EQ(rest.prefill_tokens, 1);
          tokens.insert(tokens.end(), rest.tokens.begin(), rest.tokens.end());
          EXPECT_EQ(tokens, whole);
        }
    }
}

TEST(SavedTexts, APromptFollowsThem) {
  Speaker speaker;
  const std::string file = speaker.file("text.safetensors");
  const Ids first = speaker.speak(kPrompt, {.max_tokens = 10, .save_to = file}).tokens;
  Ids text = speaker.tokenizer.encode(kPrompt);
  text.insert(text.end(), first.begin(), first.end());
  EXPECT_EQ(saved_tokens(file), text);
  for (const int32_t token : speaker.tokenizer.encode(" a hen")) text.push_back(token);
  const auto at_once = speaker.speak(text, {.max_tokens = 20}).tokens;
  EXPECT_EQ(speaker.speak(" a hen", {.max_tokens = 20, .restore_from = file}).tokens, at_once);
}

// Caches in whose slot 0 all tokens have run.
std::vector<KvCache> wholly_cached(Speaker& speaker, const Ids& tokens) {
  auto caches = speaker.decoder.make_caches({.slots = 1, .capacity = 100, .dtype = DType::f32});
  const Span span{.count = static_cast<int64_t>(tokens.size())};
  (void)speaker.decoder.forward(tokens, {&span, 1}, caches, {.logits = Model::Logits::all}, speaker.workspace);
  return caches;
}

// The last token has to run again to give logits, where a file has the keys of all.
TEST(SavedTexts, WhollyCachedTextsGoOnToo) {
  Speaker speaker;
  const std::string file = speaker.file("text.safetensors");
  const Ids prompt = speaker.tokenizer.encode(kPrompt);
  const auto caches = wholly_cached(speaker, prompt);
  save_sequence(file, caches, 0, prompt);
  const auto result = speaker.speak("", {.max_tokens = 20, .restore_from = file});
  EXPECT_EQ(result.restored_tokens, static_cast<int64_t>(prompt.size()) - 1);
  EXPECT_EQ(result.tokens, speaker.speak(kPrompt, {.max_tokens = 20}).tokens);
}

TEST(SavedTexts, OfAnotherVocabularyOrTooLongAreRefused) {
  Speaker speaker;
  const std::string file = speaker.file("text.safetensors");
  const Ids prompt = speaker.tokenizer.encode(kPrompt);
  const auto caches = wholly_cached(speaker, prompt);
  Ids strange = prompt;
  strange[1] = 100'000;
  save_sequence(file, caches, 0, strange);
  EXPECT_ERROR(speaker.speak("", {.restore_from = file}), "token id is 100000");
  Speaker small(0, 20);
  save_sequence(file, caches, 0, prompt);
  EXPECT_ERROR(small.speak("", {.restore_from = file}), "the text has");
}

// [KV-50]: a layer's storage follows from its mask.
TEST(CachesOfAModel, AreOfTheKindThatTheLayersNeed) {
  for (const auto& [window, storage] : {std::pair{0, KvStorage::contiguous}, {20, KvStorage::ring}}) {
    const Speaker speaker(window);
    for (const KvCache& cache : speaker.decoder.make_caches({.slots = 1, .capacity = 100}))
      EXPECT_EQ(cache.storage(), storage) << window;
  }
}

// As many pages as the bytes hold; with a window no more than all slots can fill, and no fewer than one sequence needs.
TEST(CachesOfAModel, TakeNoMoreThanTheirBytesAndTheirNeed) {
  const KvCacheOptions options{.slots = 4, .capacity = 1600, .dtype = DType::f32};
  const Speaker full(0, 1600);
  const Speaker windowed(20, 1600);
  const auto pages = [&](const Speaker& speaker, int64_t bytes) {
    return speaker.decoder.make_paged_caches(options, bytes).back().block_tables().pages();
  };
  const KvCache sample = std::move(full.decoder.make_paged_caches(options, int64_t{1} << 30).front());
  const int64_t page_of_all_layers = 2 * sample.bytes_per_token() * sample.block_tables().page_size();
  EXPECT_EQ(pages(full, page_of_all_layers * 60), 60);
  EXPECT_EQ(pages(full, page_of_all_layers * 61 - 1), 60);
  EXPECT_EQ(pages(full, int64_t{1} << 30), 4 * 50);
  EXPECT_ERROR(pages(full, page_of_all_layers * 4 - 1), "4 sequences need at least");
  // A window of 20 begins and ends inside of pages of 32: two a slot, and 512 tokens that come at once.
  EXPECT_EQ(pages(windowed, int64_t{1} << 30), 4 * 2 + 16 + 4);
  EXPECT_EQ(pages(windowed, page_of_all_layers * 23), 23);
  EXPECT_EQ(pages(windowed, page_of_all_layers * 19), 19);
  EXPECT_ERROR(pages(windowed, page_of_all_layers * 19 - 1), "4 sequences need at least");
  // What the slots could fill may be more than any machine has.
  const KvCacheOptions huge{.slots = 1000, .capacity = int64_t{1} << 24, .dtype = DType::f32};
  EXPECT_EQ(full.decoder.make_paged_caches(huge, page_of_all_layers * 1001).back().block_tables().pages(), 1001);
  // One slot is the default.
  EXPECT_EQ(full.decoder.make_paged_caches({.capacity = 1600, .dtype = DType::f32}, page_of_all_layers)
                .back()
                .block_tables()
                .pages(),
            1);
  EXPECT_ERROR((void)full.decoder.make_paged_caches({.slots = 1, .pages = 4}, 1 << 20), "pages is 4");
}

TEST(CachesOfAModel, NoneChangesWhereALaterOneHasNoRoom) {
  Speaker speaker;
  std::vector<KvCache> caches;
  for (const int64_t pages : {4, 2})
    caches.push_back(KvCache::paged({.slots = 1, .capacity = 128, .dtype = DType::f32, .page_size = 32, .pages = pages},
                                    speaker.decoder.attention(0).config()));
  const Ids tokens(100, 5);
  const Span span{.slot = 0, .first_position = 0, .count = 100};
  EXPECT_ERROR((void)speaker.decoder.forward(tokens, {&span, 1}, caches, {.logits = Model::Logits::last_of_each_span},
                                             speaker.workspace),
               "2 more free pages");
  for (const KvCache& cache : caches) EXPECT_EQ(cache.length(0), 0);
}

}  // namespace
}  // namespace regard::test
