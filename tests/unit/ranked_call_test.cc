// Calls over ranks that can't be made, and what only some ranks can know.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "regard/attention.h"
#include "regard/checkpoint.h"
#include "regard/model.h"
#include "support/error_of.h"
#include "support/temp_folder.h"
#include "support/test_layer.h"
#include "support/thread_ranks.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

AttentionConfig small_config() {
  AttentionConfig config;
  config.hidden_size = 32;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.inference.seq_len = 64;
  return config;
}

Attention layer_of(const Ranks& ranks) {
  const auto layer = test::random_layer(small_config(), 7);
  return Attention::load(layer.views(), layer.config, Threads(1), ranks);
}

// One token for each of these slots, at its position.
void decode(const Attention& layer, KvCache& cache, std::vector<Span> spans) {
  const Tensor hidden(DType::f32, {static_cast<int64_t>(spans.size()), 32});
  AttentionInput input;
  input.hidden_states = hidden;
  input.spans = spans;
  input.cache = &cache;
  (void)layer.forward(input);
}

// [GAP-60]: sequences of one row fill up before those of another.
TEST(CallOverRanks, AFullCacheOfOneRowIsRefusedByAll) {
  test::run_ranks(2, [](const std::shared_ptr<Communicator>& world) {
    const Attention layer = layer_of(Ranks(world, {.tp_degree = 2, .attention_dp_degree = 2}));
    KvCache cache = layer.make_cache(KvStorage::contiguous, {.slots = 2, .capacity = 3, .dtype = DType::f32});
    for (int64_t position = 0; position < 3; ++position) decode(layer, cache, {{1, position, 1}});
    const auto error = test::error_of([&] { decode(layer, cache, {{0, 0, 1}, {1, 3, 1}}); });
    EXPECT_THAT(error, HasSubstr(world->rank() == 1 ? "capacity" : "rank 1 refuses the call"));
    decode(layer, cache, {{0, 0, 1}});  // goes on
    const auto slot = test::error_of([&] { decode(layer, cache, {{2, 0, 1}}); });
    EXPECT_THAT(slot, HasSubstr("slot is 2, expected -1 to 1"));
  });
}

// Of a model's step all layers' caches are looked at before one changes, on every rank.
TEST(CallOverRanks, ALayerWithoutRoomStopsAStepBeforeAnyCacheChanges) {
  const test::TempFolder folder;
  const auto file = folder.write("model.gguf", test::TinyLlama().gguf().build());
  for (const int64_t rows : {1, 2})
    test::run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
      Workspace workspace(1);
      const Ranks ranks(world, {.tp_degree = 2, .attention_dp_degree = rows, .prefill_tokens = 100});
      const auto model = Model::load(Checkpoint::open(file), workspace.threads(), ranks);
      auto caches = model.make_caches({.slots = 2, .capacity = 8});
      caches[1] = model.attention(1).make_cache(KvStorage::contiguous, {.slots = 2, .capacity = 4});
      const std::vector<int32_t> tokens(6, 3);
      const std::vector<Span> spans = {{.slot = 1, .first_position = 0, .count = 6}};
      const auto error = test::error_of([&] { (void)model.forward(tokens, spans, caches, {}, workspace); });
      EXPECT_THAT(error, AnyOf(HasSubstr("capacity"), HasSubstr("rank 1 refuses the call")));
      for (int64_t slot = 0; slot < caches[0].slots(); ++slot) EXPECT_EQ(caches[0].length(slot), 0);
    });
}

// With shared tokens only who should keep one knows that it is missing.
TEST(CallOverRanks, WhatCannotBeAcceptedIsRefusedByAll) {
  test::run_ranks(4, [](const std::shared_ptr<Communicator>& world) {
    const Attention layer = layer_of(Ranks(world, {.tp_degree = 4, .flash_decoding_enabled = true}));
    KvCache cache = layer.make_cache(KvStorage::paged, {.slots = 1, .capacity = 64, .dtype = DType::f32});
    for (int64_t position = 0; position < 4; ++position) decode(layer, cache, {{0, position, 1}});
    const auto refused = [&](const std::vector<int64_t>& indices) {
      return test::error_of([&] { layer.accept(cache, 0, 1, indices); });
    };
    EXPECT_THAT(refused({0, 3}), HasSubstr("tokens up to position 4 of slot 0 are to be accepted, but fewer are"));
    EXPECT_THAT(refused({1, 1}), HasSubstr("accepted index 1 is 1, expected rising ones"));
    EXPECT_THAT(refused({-1}), HasSubstr("accepted index 0 is -1"));
    EXPECT_THAT(test::error_of([&] { layer.accept(cache, 1, 0, {}); }), HasSubstr("slot is 1, expected 0 to 0"));
    layer.accept(cache, 0, 1, std::vector<int64_t>{0, 2});
    decode(layer, cache, {{0, 3, 1}});  // goes on
    const auto hole = test::error_of([&] { decode(layer, cache, {{0, 6, 1}}); });
    EXPECT_THAT(hole, AnyOf(HasSubstr("holds less"), HasSubstr("refuses the call")));
  });
}

TEST(CallOverRanks, APaddedBatchNeedsPositionsWhereRanksShareSequences) {
  test::run_ranks(4, [](const std::shared_ptr<Communicator>& world) {
    for (const bool flash : {false, true}) {
      const Attention layer = layer_of(Ranks(world, {.tp_degree = 4, .flash_decoding_enabled = flash}));
      EXPECT_EQ(layer.shares_sequences(), flash);
      KvCache cache = layer.make_cache(KvStorage::contiguous, {.slots = 1, .capacity = 64, .dtype = DType::f32});
      const Tensor hidden(DType::f32, {1, 3, 32});
      PaddedAttentionInput input;
      input.hidden_states = hidden;
      input.cache = &cache;
      const auto error = test::error_of([&] { (void)layer.forward(input); });
      EXPECT_THAT(error, flash ? HasSubstr("position_ids is missing") : HasSubstr(""));
      EXPECT_EQ(error.empty(), !flash);
    }
  });
}

TEST(CallOverRanks, WithoutSpansACallContinuesSlot0UnlessRanksShareSequences) {
  test::run_ranks(4, [](const std::shared_ptr<Communicator>& world) {
    for (const bool flash : {false, true}) {
      const Attention layer = layer_of(Ranks(world, {.tp_degree = 4, .flash_decoding_enabled = flash}));
      KvCache cache = layer.make_cache(KvStorage::contiguous, {.slots = 1, .capacity = 64, .dtype = DType::f32});
      decode(layer, cache, {{0, 0, 1}});
      const int64_t before = cache.length(0);
      const Tensor hidden(DType::f32, {1, 32});
      AttentionInput input;
      input.hidden_states = hidden;
      input.cache = &cache;
      const auto refusal = test::error_of([&] { (void)layer.forward(input); });
      EXPECT_THAT(refusal, flash ? HasSubstr("spans are missing") : HasSubstr(""));
      EXPECT_EQ(refusal.empty(), !flash);
      EXPECT_EQ(cache.length(0), flash ? before : before + 1);
    }
  });
}

// A rank's share of no tokens is no cache of one.
TEST(CallOverRanks, ACacheOfSharedTokensNeedsACapacity) {
  test::run_ranks(4, [](const std::shared_ptr<Communicator>& world) {
    AttentionConfig config = small_config();
    config.inference = {};
    const auto weights = test::random_layer(config, 7);
    const Ranks ranks(world, {.tp_degree = 4, .flash_decoding_enabled = true});
    const Attention layer = Attention::load(weights.views(), config, Threads(1), ranks);
    EXPECT_THAT(test::error_of([&] { (void)layer.make_cache(KvStorage::contiguous, {.slots = 1}); }),
                HasSubstr("capacity is 0"));
  });
}

TEST(CallOverRanks, SequenceParallelTakesPackedTokensOfItsOwn) {
  test::run_ranks(2, [](const std::shared_ptr<Communicator>& world) {
    const Attention layer = layer_of(Ranks(world, {.tp_degree = 2, .sequence_parallel_enabled = true}));
    const Tensor hidden(DType::f32, {1, 3, 32});
    PaddedAttentionInput padded;
    padded.hidden_states = hidden;
    EXPECT_THAT(test::error_of([&] { (void)layer.forward(padded); }), HasSubstr("expected packed tokens"));
    const Span span{.slot = 0, .first_position = 0, .count = 3};
    EXPECT_THAT(layer.tokens_of_rank(0, {&span, 1}, nullptr), ::testing::ElementsAre(0));
    EXPECT_THAT(layer.tokens_of_rank(1, {&span, 1}, nullptr), ::testing::ElementsAre(1, 2));
    AttentionInput input;
    input.spans = {&span, 1};
    input.hidden_states = hidden.view().reshape({3, 32});
    EXPECT_THAT(test::error_of([&] { (void)layer.forward(input); }), HasSubstr("has shape [3, 32], expected ["));
  });
}

TEST(CallOverRanks, WhatRanksDoNotReturnIsRefusedByName) {
  test::run_ranks(2, [](const std::shared_ptr<Communicator>& world) {
    const Attention layer = layer_of(Ranks(world, {.tp_degree = 2}));
    const Tensor hidden(DType::f32, {3, 32});
    AttentionInput input;
    input.hidden_states = hidden;
    for (const auto& [name, option] : {std::pair{"lse", &AttentionInput::lse},
                                       {"present_key_value", &AttentionInput::present_key_value},
                                       {"angles", &AttentionInput::angles}}) {
      input.*option = true;
      EXPECT_THAT(test::error_of([&] { (void)layer.forward(input); }), HasSubstr(std::string(name) + " is asked for"));
      input.*option = false;
    }
  });
}

}  // namespace
}  // namespace regard
