#include "support/rank_scene.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <ostream>

namespace regard::test {
namespace {

constexpr int64_t kCapacity = 4096;

bool one_in(int times) { return *rc::gen::inRange(0, times) == times - 1; }

ParallelConfig any_parallel(const RankWishes& wishes) {
  ParallelConfig p;
  p.tp_degree = *rc::gen::elementOf(wishes.ranks);
  p.cp_degree = any_divisor(p.tp_degree);
  p.attention_dp_degree = any_divisor(p.tp_degree);
  p.sequence_parallel_enabled = one_in(3);
  p.flash_decoding_enabled = one_in(3);
  p.deterministic = one_in(2);
  if (!p.flash_decoding_enabled && one_in(4)) p.gqa = GQA::CONVERT_TO_MHA;
  if (p.cp_degree > 1 && one_in(2)) p.context_split = ContextSplit::strided;
  p.output_dispatch = *rc::gen::element(OutputDispatch::AR_AG, OutputDispatch::RS_AG, OutputDispatch::AG_AR);
  if (!p.deterministic && one_in(4)) p.rpl_reduce_dtype = DType::bf16;
  p.prefill_tokens = *rc::gen::element<int64_t>(2, 8, 32);
  return p;
}

void share_tokens(RankScene& scene) {
  AttentionConfig& config = scene.layer.config;
  config.num_key_value_heads = 1;
  config.sliding_window = config.attention_chunk_size = 0;
  draw_storage(scene.layer);
  scene.parallel.flash_decoding_enabled = true;
  scene.parallel.gqa = GQA::REPLICATE_TO_TP_DEGREE;
}

// Random hidden rows of one call; residuals are those of the call after it.
Tensor hidden_of(const RankScene& scene, const Layer& layer, size_t call) {
  int64_t tokens = 0;
  for (const Span& span : scene.calls[call]) tokens += span.count;
  return layer.text(tokens, call);
}

Tensor rows_of(const Tensor& all, std::span<const int64_t> tokens) {
  Tensor rows(all.dtype(), {static_cast<int64_t>(tokens.size()), all.shape()[1]});
  const auto bytes = static_cast<size_t>(all.shape()[1]) * size_of(all.dtype());
  for (size_t i = 0; i < tokens.size(); ++i)
    std::memcpy(rows.view().data() + i * bytes, all.view().data() + static_cast<size_t>(tokens[i]) * bytes, bytes);
  return rows;
}

void scatter_rows(const Tensor& rows, std::span<const int64_t> tokens, Tensor& all) {
  const auto bytes = static_cast<size_t>(all.shape()[1]) * size_of(all.dtype());
  for (size_t i = 0; i < tokens.size(); ++i)
    std::memcpy(all.view().data() + static_cast<size_t>(tokens[i]) * bytes, rows.view().data() + i * bytes, bytes);
}

struct Results {
  std::vector<Tensor> outputs;
  std::vector<int64_t> sent;
};

// What one call of the layer computes of a call of the scene.
struct Piece {
  std::vector<Span> spans;
  std::vector<int64_t> rows;  // of the scene's call
};

std::vector<Piece> pieces_of(const RankScene& scene, std::span<const Span> spans, int64_t cut) {
  std::vector<Piece> pieces(2);
  int64_t row = 0;
  const auto add = [&row](Piece& piece, Span span, int64_t first, int64_t count) {
    if (count == 0) return;
    span.first_position += first;
    span.count = count;
    piece.spans.push_back(span);
    for (int64_t i = 0; i < count; ++i) piece.rows.push_back(row++);
  };
  for (const Span& span : spans) {
    const bool whole = cut == 0 || !scene.with_cache || !scene.drafts.empty() || !scene.layer.config.is_causal ||
                       span.slot == -1 || span.prefix > 0;
    const int64_t early = whole ? span.count : span.count * cut / 3;
    add(pieces[0], span, 0, early);
    add(pieces[1], span, early, span.count - early);
  }
  std::erase_if(pieces, [](const Piece& piece) { return piece.spans.empty(); });
  return pieces;
}

// The rows of all ranks, of which this one has own_rows, of `tokens` rows in all.
Tensor gathered(const Ranks& ranks, const Tensor& own, std::span<const int64_t> own_rows, int64_t tokens) {
  Tensor all(own.dtype(), {tokens, own.shape()[1]});
  scatter_rows(own, own_rows, all);
  const size_t bytes = static_cast<size_t>(all.shape().elements()) * size_of(all.dtype());
  std::vector<std::vector<std::byte>> parts(static_cast<size_t>(ranks.size()), std::vector<std::byte>(bytes));
  const std::vector<std::span<std::byte>> receive(parts.begin(), parts.end());
  ranks.world().all_gather({all.view().data(), bytes}, receive);
  for (const auto& part : parts)
    for (size_t i = 0; i < bytes; ++i) all.view().data()[i] |= part[i];
  return all;
}

Results run(const RankScene& scene, const Layer& layer, const Ranks& ranks, const RankSchedule& schedule = {}) {
  const Attention attention = Attention::load(layer.weights(), layer.config(), Threads(1), ranks);
  Workspace workspace(schedule.threads);
  KvCache cache = layer.make_cache_of(attention, scene.slots, kCapacity, scene.speculation_length);
  std::vector<float> gain(static_cast<size_t>(layer.config().input_size()), 1.25F);
  Results results;
  for (size_t call = 0; call < scene.calls.size(); ++call) {
    const std::vector<Span>& spans = scene.calls[call];
    const auto drafts = scene.drafts.empty() ? std::vector<RankDraft>(spans.size()) : scene.drafts[call];
    std::vector<Tensor> trees;
    trees.reserve(drafts.size());  // views stay
    std::vector<ConstTensorView> masks;
    for (const RankDraft& draft : drafts)
      masks.emplace_back(draft.tree.count() == 0 ? ConstTensorView() : trees.emplace_back(draft.tree.mask()).view());
    const bool scattered = ranks.config().sequence_parallel_enabled;
    const Tensor hidden = hidden_of(scene, layer, call);
    std::optional<Tensor> outputs;
    results.sent.push_back(0);
    for (const Piece& piece : pieces_of(scene, spans, schedule.cut)) {
      AttentionInput input;
      input.spans = piece.spans;
      input.cache = scene.with_cache ? &cache : nullptr;
      input.workspace = &workspace;
      if (!trees.empty()) input.active_masks = masks;
      const auto own = attention.tokens_of_rank(ranks.rank(), input.spans, input.cache, input.active_masks);
      const Tensor of_piece = rows_of(hidden, piece.rows);
      const Tensor passed = scattered ? rows_of(of_piece, own) : of_piece;
      input.hidden_states = passed;
      if (scene.with_norm) {
        input.rmsnorm = ConstTensorView(gain.data(), {layer.config().input_size()});
        input.residual = passed;
      }
      const int64_t sent_before = ranks.world().bytes_sent();
      Tensor out = attention.forward(input).hidden_states;
      results.sent.back() += ranks.world().bytes_sent() - sent_before;
      // Everybody gets everything, to be compared.
      if (scattered) out = gathered(ranks, out, own, of_piece.shape()[0]);
      if (!outputs) outputs.emplace(out.dtype(), Shape{hidden.shape()[0], out.shape()[1]});
      scatter_rows(out, piece.rows, *outputs);
    }
    results.outputs.push_back(std::move(*outputs));
    for (size_t i = 0; i < spans.size(); ++i)
      if (const auto& accepted = drafts[i].accepted; !accepted.empty())
        attention.accept(cache, spans[i].slot, spans[i].first_position, accepted);
  }
  return results;
}

}  // namespace

int64_t any_divisor(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d <= number; ++d)
    if (number % d == 0) divisors.push_back(d);
  return *rc::gen::elementOf(divisors);
}

std::ostream& operator<<(std::ostream& out, const RankScene& scene) {
  const ParallelConfig& p = scene.parallel;
  out << p.tp_degree << " ranks, cp " << p.cp_degree << ", dp " << p.attention_dp_degree
      << (p.sequence_parallel_enabled ? ", sp" : "") << (p.flash_decoding_enabled ? ", flash" : "")
      << (p.deterministic ? ", deterministic" : "") << ", strategy " << name_of(p.gqa)
      << (p.context_split == ContextSplit::strided ? ", strided" : "") << ", dispatch "
      << static_cast<int>(p.output_dispatch) << (p.rpl_reduce_dtype ? ", sums in bf16" : "") << ", prefill from "
      << p.prefill_tokens << " on" << (scene.with_cache ? "" : ", no cache")
      << (scene.with_norm ? ", norm and residual" : "");
  if (const int64_t piece = scene.layer.config.inference.windowed_context_encoding_size; piece > 0)
    out << ", decode in pieces of " << piece;
  out << "; " << scene.slots << " slots;";
  for (size_t call = 0; call < scene.calls.size(); ++call) {
    out << " [";
    for (size_t i = 0; i < scene.calls[call].size(); ++i) {
      const Span& span = scene.calls[call][i];
      const RankDraft draft = scene.drafts.empty() ? RankDraft() : scene.drafts[call][i];
      out << " " << span.slot << "@" << span.first_position << "+" << span.count;
      if (span.prefix > 0) out << " prefix " << span.prefix;
      for (const int64_t parent : draft.tree.parents) out << "," << parent;
      if (!draft.accepted.empty()) out << " of which " << draft.accepted.size() << " stay";
    }
    out << " ]";
  }
  return out << "; " << scene.layer;
}

constexpr int64_t kLongestDraft = 8;

// Of a span of a few tokens.
RankDraft any_draft(const RankScene& scene, const Span& span) {
  const bool fits = scene.layer.config.is_causal && span.count <= kLongestDraft;
  if (!scene.with_cache || !fits || span.slot == -1 || one_in(4)) return {};
  RankDraft draft;
  if (one_in(2)) {
    draft.tree = any_draft_tree(span.count);
    draft.accepted = draft.tree.branch(*rc::gen::inRange<int64_t>(0, span.count));
  } else {
    const int64_t staying = *rc::gen::inRange<int64_t>(1, span.count + 1);
    for (int64_t i = 0; i < staying; ++i) draft.accepted.push_back(i);
  }
  return draft;
}

// Pools have room for so many tokens at once.
int64_t any_prefix(const RankScene& scene, const Span& span, const RankDraft& draft) {
  if (!scene.layer.config.is_causal || draft.tree.count() > 0 || !one_in(3)) return 0;
  const bool has_pool = scene.with_cache && scene.layer.storage != KvStorage::contiguous;
  return *rc::gen::inRange<int64_t>(1, (has_pool ? std::min(span.count, KvCache::kTokensAtOnce) : span.count) + 1);
}

rc::Gen<RankScene> rank_scenes(RankWishes wishes) {
  return rc::gen::exec([wishes] {
    RankScene scene;
    scene.layer = *layer_cases({.bidirectional = true, .longest_text = wishes.longest_text, .small = wishes.small});
    scene.parallel = any_parallel(wishes);
    if (wishes.shared_tokens) share_tokens(scene);
    if (wishes.given_scales) {
      scene.layer.cache_dtype = *rc::gen::element(DType::i8, DType::f8_e4m3, DType::f8_e5m2);
      scene.layer.scaling = *rc::gen::element(KvScaling::per_tensor, KvScaling::per_head, KvScaling::per_channel);
    }
    scene.slots = *rc::gen::inRange<int64_t>(1, 5);
    if (wishes.drafts) scene.speculation_length = kLongestDraft;
    scene.with_cache = !one_in(5);
    scene.with_norm = scene.layer.config.rms_norm_eps.has_value();
    if (one_in(6))
      scene.layer.config.inference.windowed_context_encoding_size =
          *rc::gen::inRange<int64_t>(1, std::min<int64_t>(wishes.longest_text, KvCache::kTokensAtOnce) + 1);
    // Later calls of a bidirectional layer would change what earlier tokens see.
    const int calls = scene.layer.config.is_causal && scene.with_cache ? *rc::gen::inRange(1, 6) : 1;
    std::vector<int64_t> lengths(static_cast<size_t>(scene.slots), 0);
    for (int call = 0; call < calls; ++call) {
      std::vector<Span> spans;
      std::vector<RankDraft> drafts;
      for (int64_t slot = 0; slot < scene.slots; ++slot) {
        if (one_in(4) && !(slot + 1 == scene.slots && spans.empty())) continue;
        int64_t& length = lengths[static_cast<size_t>(slot)];
        const bool all_kept = scene.layer.config.sliding_window == 0 && scene.layer.config.attention_chunk_size == 0;
        if (one_in(8)) length = 0;                                                      // another sequence begins
        if (all_kept && one_in(6)) length = *rc::gen::inRange<int64_t>(0, length + 1);  // some tokens are taken back
        int64_t count = one_in(2) ? *rc::gen::inRange<int64_t>(1, wishes.drafts ? 9 : 4)
                                  : *rc::gen::inRange<int64_t>(1, wishes.longest_text + 1);
        // The next draft comes to the end of a run of tokens that one rank keeps.
        if (wishes.drafts && wishes.shared_tokens && one_in(2))
          count = 2 * 256 - length % 256 + *rc::gen::inRange<int64_t>(-6, 2);
        if (length + count > kCapacity) length = 0;
        const bool nobody = one_in(10);
        spans.push_back({.slot = nobody ? -1 : slot, .first_position = length, .count = count});
        drafts.push_back(wishes.drafts ? any_draft(scene, spans.back()) : RankDraft());
        spans.back().prefix = any_prefix(scene, spans.back(), drafts.back());
        const auto accepted = static_cast<int64_t>(drafts.back().accepted.size());
        if (!nobody) length += accepted > 0 ? accepted : count;
      }
      scene.calls.push_back(spans);
      scene.drafts.push_back(drafts);
    }
    return scene;
  });
}

std::vector<Tensor> outputs_of_one_rank(const RankScene& scene, const Layer& layer) {
  ParallelConfig alone;
  alone.deterministic = scene.parallel.deterministic;
  return run(scene, layer, Ranks(Communicator::single(), alone)).outputs;
}

std::vector<Tensor> outputs_of(const RankScene& scene, const Layer& layer, const std::shared_ptr<Communicator>& world,
                               const RankSchedule& schedule) {
  return run(scene, layer, Ranks(world, scene.parallel), schedule).outputs;
}

std::vector<int64_t> bytes_sent_in(const RankScene& scene, const Layer& layer,
                                   const std::shared_ptr<Communicator>& world) {
  return run(scene, layer, Ranks(world, scene.parallel)).sent;
}

namespace {

// "" if all numbers of a row are as a function of the row in `theirs` wants them.
template <class Fine>
std::string first_difference(const std::vector<Tensor>& ours, const std::vector<Tensor>& theirs, Fine fine) {
  for (size_t call = 0; call < ours.size(); ++call) {
    const Tensor a = convert(ours[call], DType::f32);
    const Tensor b = convert(theirs[call], DType::f32);
    if (a.shape() != b.shape()) return "call " + std::to_string(call) + ": another shape";
    const int64_t width = a.shape()[1];
    for (int64_t token = 0; token < a.shape()[0]; ++token) {
      const auto row = [&](const Tensor& t) {
        return t.elements<float>().subspan(static_cast<size_t>(token * width), static_cast<size_t>(width));
      };
      double largest = 0;
      for (const float x : row(b)) largest = std::max(largest, std::abs(static_cast<double>(x)));
      for (size_t i = 0; i < row(a).size(); ++i)
        if (!fine(row(a)[i], row(b)[i], largest))
          return "call " + std::to_string(call) + ", token " + std::to_string(token) + ", column " + std::to_string(i) +
                 ": " + std::to_string(row(a)[i]) + " instead of " + std::to_string(row(b)[i]);
    }
  }
  return "";
}

}  // namespace

std::string bit_difference(const std::vector<Tensor>& ours, const std::vector<Tensor>& theirs) {
  return first_difference(ours, theirs, [](float x, float y, double) { return std::memcmp(&x, &y, sizeof x) == 0; });
}

std::string difference(const RankScene& scene, const std::vector<Tensor>& ours, const std::vector<Tensor>& theirs) {
  if (scene.parallel.deterministic) return bit_difference(ours, theirs);
  // Of sums in another order, of rounding to the output's type, and of partial sums' rounding on the way.
  double tolerance = 1e-5;
  if (scene.layer.hidden_dtype != DType::f32) tolerance += scene.layer.hidden_dtype == DType::bf16 ? 0.0079 : 0.00098;
  if (scene.parallel.rpl_reduce_dtype) tolerance += 0.0079 * 4;
  return first_difference(ours, theirs, [tolerance](float x, float y, double largest) {
    return std::abs(static_cast<double>(x) - static_cast<double>(y)) <= tolerance * largest;
  });
}

}  // namespace regard::test
