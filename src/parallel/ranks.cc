#include <fmt/ranges.h>

#include "parallel/rank_order.h"
#include "regard/parallel.h"
#include "tensor/fail.h"

namespace regard {
namespace {

std::vector<int64_t> divisors_of(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t divisor = 1; divisor <= number; ++divisor)
    if (number % divisor == 0) divisors.push_back(divisor);
  return divisors;
}

void check_degree(std::string_view name, int64_t degree, int64_t tp) {
  require(degree >= 1, "parallel: {} is {}, expected 1 or more", name, degree);
  require(tp % degree == 0, "parallel: {} is {}, but has to divide tp_degree {}, expected one of {}", name, degree, tp,
          fmt::join(divisors_of(tp), ", "));
}

// A single row is the world itself; its columns are single ranks.
Ranks::Stage make_stage(const std::shared_ptr<Communicator>& world, int64_t degree, bool switch_cc) {
  const RankMesh mesh(world->size(), degree, switch_cc);
  Ranks::Stage stage{.degree = degree, .row = mesh.row_of(world->rank()), .column = mesh.column_of(world->rank())};
  const auto split = [&](int64_t color, int64_t key) {
    return world->split(static_cast<int>(color), static_cast<int>(key));
  };
  stage.in_row = degree == 1 ? world : split(stage.row, stage.column);
  stage.in_column = degree == 1 ? Communicator::single() : split(stage.column, stage.row);
  return stage;
}

}  // namespace

void ParallelConfig::check() const {
  require(tp_degree >= 1, "parallel: tp_degree is {}, expected 1 or more", tp_degree);
  check_degree("cp_degree", cp_degree, tp_degree);
  check_degree("attention_dp_degree", attention_dp_degree, tp_degree);
  require(prefill_tokens >= 0, "parallel: prefill_tokens is {}, expected 0 or more", prefill_tokens);
  require(context_split == ContextSplit::contiguous || cp_degree > 1,
          "parallel: context_split is strided and cp_degree is 1, expected a cp_degree of 2 or more");
  require(!flash_decoding_enabled || gqa == GQA::REPLICATE_TO_TP_DEGREE,
          "parallel: flash_decoding_enabled is true and gqa is CONVERT_TO_MHA, expected REPLICATE_TO_TP_DEGREE, since "
          "ranks share the tokens of a KV head that each has a copy of");
  const DType sums = rpl_reduce_dtype.value_or(DType::f32);
  require(sums == DType::f32 || sums == DType::bf16, "parallel: rpl_reduce_dtype is {}, expected f32 or bf16",
          name_of(sums));
  require(
      !deterministic || sums == DType::f32,
      "parallel: rpl_reduce_dtype is {} and deterministic is true, expected f32: what is rounded on the way depends "
      "on the degrees",
      name_of(sums));
}

Ranks::Ranks() : world_(Communicator::single()) { prefill_ = decode_ = make_stage(world_, 1, false); }

Ranks::Ranks(std::shared_ptr<Communicator> world, const ParallelConfig& config)
    : config_(config), world_(std::move(world)) {
  config_.check();
  require(config_.tp_degree == world_->size(), "parallel: tp_degree is {}, but there are {} ranks, expected as many",
          config_.tp_degree, world_->size());
  prefill_ = make_stage(world_, config_.cp_degree, config_.switch_cc);
  decode_ = config_.attention_dp_degree == config_.cp_degree
                ? prefill_
                : make_stage(world_, config_.attention_dp_degree, config_.switch_cc);
}

}  // namespace regard
