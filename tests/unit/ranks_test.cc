#include <gtest/gtest.h>

#include "regard/parallel.h"
#include "support/expect_error.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

TEST(ParallelConfig, DefaultsAreOneRank) {
  ParallelConfig().check();
  const Ranks ranks;
  EXPECT_EQ(ranks.rank(), 0);
  EXPECT_EQ(ranks.size(), 1);
  EXPECT_EQ(ranks.prefill().in_row->size(), 1);
  EXPECT_EQ(ranks.decode().in_column->size(), 1);
}

TEST(ParallelConfig, AcceptsEveryDegreeThatDividesTp) {
  for (const int64_t cp : {1, 2, 3, 4, 6, 12})
    for (const int64_t dp : {1, 2, 3, 4, 6, 12})
      ParallelConfig{.tp_degree = 12, .cp_degree = cp, .attention_dp_degree = dp}.check();
  ParallelConfig{.tp_degree = 32, .cp_degree = 4, .attention_dp_degree = 8}.check();
}

TEST(ParallelConfig, NamesWhatDoesNotFit) {
  const struct {
    ParallelConfig config;
    const char* message;
  } cases[] = {
      {{.tp_degree = 0}, "parallel: tp_degree is 0, expected 1 or more"},
      {{.cp_degree = -1}, "parallel: cp_degree is -1, expected 1 or more"},
      {{.attention_dp_degree = 0}, "parallel: attention_dp_degree is 0, expected 1 or more"},
      {{.tp_degree = 32, .cp_degree = 7},
       "parallel: cp_degree is 7, but has to divide tp_degree 32, expected one of 1, 2, 4, 8, 16, 32"},
      {{.tp_degree = 32, .cp_degree = 4, .attention_dp_degree = 3},
       "parallel: attention_dp_degree is 3, but has to divide tp_degree 32, expected one of 1, 2, 4, 8, 16, 32"},
      {{.tp_degree = 2, .cp_degree = 4}, "expected one of 1, 2"},
      {{.prefill_tokens = -1}, "parallel: prefill_tokens is -1, expected 0 or more"},
      {{.tp_degree = 2, .context_split = ContextSplit::strided}, "context_split is strided and cp_degree is 1"},
      {{.flash_decoding_enabled = true, .gqa = GQA::CONVERT_TO_MHA}, "flash_decoding_enabled is true and gqa is"},
      {{.rpl_reduce_dtype = DType::f16}, "parallel: rpl_reduce_dtype is f16, expected f32 or bf16"},
      {{.rpl_reduce_dtype = DType::bf16, .deterministic = true}, "rpl_reduce_dtype is bf16 and deterministic is true"},
  };
  for (const auto& wrong : cases) EXPECT_ERROR(wrong.config.check(), wrong.message);
}

TEST(Ranks, TpDegreeIsTheNumberOfRanks) {
  EXPECT_ERROR(Ranks(Communicator::single(), {.tp_degree = 2}),
               "parallel: tp_degree is 2, but there are 1 ranks, expected as many");
}

// [PAR-2]: cp 4 has rows of two ranks, dp 2 rows of four.
TEST(Ranks, RowsAreConsecutiveAndColumnsGoAcross) {
  run_ranks(8, [](const std::shared_ptr<Communicator>& world) {
    const Ranks ranks(world, {.tp_degree = 8, .cp_degree = 4, .attention_dp_degree = 2});
    const int rank = world->rank();
    EXPECT_EQ(ranks.prefill().degree, 4);
    EXPECT_EQ(ranks.prefill().row, rank / 2);
    EXPECT_EQ(ranks.prefill().column, rank % 2);
    EXPECT_EQ(ranks.prefill().in_row->gather(rank), (std::vector{rank / 2 * 2, rank / 2 * 2 + 1}));
    EXPECT_EQ(ranks.prefill().in_column->gather(rank),
              (std::vector{rank % 2, rank % 2 + 2, rank % 2 + 4, rank % 2 + 6}));
    EXPECT_EQ(ranks.decode().degree, 2);
    EXPECT_EQ(ranks.decode().row, rank / 4);
    EXPECT_EQ(ranks.decode().column, rank % 4);
    EXPECT_EQ(ranks.decode().in_row->rank(), rank % 4);
    EXPECT_EQ(ranks.decode().in_column->gather(rank), (std::vector{rank % 4, rank % 4 + 4}));
  });
}

// [PAR-3]: blocks of 16 ranks, of which the middle eight are the second row.
TEST(Ranks, SixtyFourRanksInEightRowsFollowTheEightByEightMesh) {
  run_ranks(64, [](const std::shared_ptr<Communicator>& world) {
    const Ranks ranks(world, {.tp_degree = 64, .cp_degree = 8});
    const int rank = world->rank();
    if (rank == 12) {
      EXPECT_EQ(ranks.prefill().row, 0);
      EXPECT_EQ(ranks.prefill().column, 4);
    }
    const auto in_row = ranks.prefill().in_row->gather(rank);
    const auto in_column = ranks.prefill().in_column->gather(rank);
    if (rank == 0) {
      EXPECT_EQ(in_row, (std::vector{0, 1, 2, 3, 12, 13, 14, 15}));
      EXPECT_EQ(in_column, (std::vector{0, 4, 16, 20, 32, 36, 48, 52}));
    }
    const Ranks contiguous(world, {.tp_degree = 64, .cp_degree = 8, .switch_cc = true});
    EXPECT_EQ(contiguous.prefill().row, rank / 8);
  });
}

TEST(Ranks, OneRowIsEverybody) {
  run_ranks(4, [](const std::shared_ptr<Communicator>& world) {
    const Ranks ranks(world, {.tp_degree = 4});
    for (const Ranks::Stage* stage : {&ranks.prefill(), &ranks.decode()}) {
      EXPECT_EQ(stage->degree, 1);
      EXPECT_EQ(stage->column, world->rank());
      EXPECT_EQ(stage->in_row->size(), 4);
      EXPECT_EQ(stage->in_column->size(), 1);
    }
  });
}

}  // namespace
}  // namespace regard::test
