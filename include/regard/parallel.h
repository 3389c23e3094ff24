#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "regard/communicator.h"
#include "regard/dtype.h"
#include "regard/gqa.h"

namespace regard {

/// How context parallelism divides the tokens of a sequence over the rows of ranks.
enum class ContextSplit : uint8_t {
  contiguous,  ///< Row c takes the c-th of cp equal runs [PAR-19].
  strided,     ///< Row c takes positions c, c + cp, ...: causal work is the same for all rows [PAR-20].
};

/// Which collectives bring the rows of decode's data parallelism together [PAR-35]. Rows of a prompt do as AR_AG says.
enum class OutputDispatch : uint8_t {
  AR_AG,  ///< Sum inside the row, then gather the rows.
  RS_AG,  ///< Sum a part each inside the row, then gather the parts of all ranks.
  AG_AR,  ///< Gather the rows' unsummed partial results, then sum.
};

/// How a layer is spread over ranks. Names and defaults are the reference's where it has the flag.
struct ParallelConfig {
  int64_t tp_degree = 1;                   ///< Ranks that share one copy of the weights: all of them [CFG-51], [OV-4].
  int64_t cp_degree = 1;                   ///< Rows that divide a prompt's tokens; divides tp_degree [CFG-52].
  int64_t attention_dp_degree = 1;         ///< Rows that divide the sequences in decode; divides tp_degree [CFG-53].
  bool sequence_parallel_enabled = false;  ///< Each rank passes and gets its own part of the tokens [CFG-54].
  bool flash_decoding_enabled = false;     ///< Ranks with the same KV head share its tokens [CFG-57].
  bool switch_cc = false;                  ///< The second 8x8 mesh [CFG-78].
  GQA gqa = GQA::REPLICATE_TO_TP_DEGREE;   ///< The strategy that is asked for [PROJ-2].
  ContextSplit context_split = ContextSplit::contiguous;
  OutputDispatch output_dispatch = OutputDispatch::AR_AG;
  std::optional<DType> rpl_reduce_dtype;  ///< Type of partial sums on the way: f32 or bf16; f32 [CFG-50].
  /// The same bits whatever the degrees: sums over heads follow a fixed tree.
  bool deterministic = false;
  /// A span of so many tokens or more runs as prefill does, a shorter one as decode, where the two are spread
  /// differently.
  int64_t prefill_tokens = 32;

  /// Throws Error, naming parameter, value and expectation, for degrees that do not fit together.
  void check() const;

  friend bool operator==(const ParallelConfig&, const ParallelConfig&) = default;
};

/// The ranks that compute a model together, and the groups they form. Copies share the communicators.
///
/// Thread safety: as its communicators, of one thread at a time; several threads may read the config, rank and size.
class Ranks {
 public:
  /// One rank.
  Ranks();
  /// Collective over `world`. Throws Error where config.check() does, or if tp_degree is not world's size.
  Ranks(std::shared_ptr<Communicator> world, const ParallelConfig& config);

  [[nodiscard]] const ParallelConfig& config() const { return config_; }
  [[nodiscard]] int64_t rank() const { return world_->rank(); }
  [[nodiscard]] int64_t size() const { return world_->size(); }
  [[nodiscard]] Communicator& world() const { return *world_; }
  [[nodiscard]] const std::shared_ptr<Communicator>& shared_world() const { return world_; }

  /// How one stage is spread: `degree` rows of a mesh.
  struct Stage {
    int64_t degree = 1;
    int64_t row = 0;  ///< This rank's row, and its place in it.
    int64_t column = 0;
    std::shared_ptr<Communicator> in_row;     ///< The tensor-parallel group, ordered by column.
    std::shared_ptr<Communicator> in_column;  ///< One rank of each row, ordered by row.
  };
  [[nodiscard]] const Stage& prefill() const { return prefill_; }
  [[nodiscard]] const Stage& decode() const { return decode_; }

 private:
  ParallelConfig config_;
  std::shared_ptr<Communicator> world_;
  Stage prefill_, decode_;
};

}  // namespace regard
