#include "layers/token_tree.h"

#include <bit>

#include "kernels/panel_elements.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using kernels::kTile;
using kernels::KvPages;
using kernels::KvPanels;
using kernels::PanelElements;
using kernels::PanelSide;
using Memory = Workspace::Memory;

// A head's panel of a page, and the scales of its tokens.
struct HeadPage {
  PanelElements elements;
  float* scales;
};

HeadPage head_page(PanelSide side, const KvPages& kv, int64_t place, int64_t head, const kernels::AttendShape& shape) {
  const KvPanels& panels = side == PanelSide::keys ? kv.keys : kv.values;
  const int64_t width = side == PanelSide::keys ? shape.head_dim : shape.v_head_dim;
  // The pages that are read come through the same type as those that are written.
  auto* data = const_cast<std::byte*>(panels.data) + place * panels.page_bytes + head * panels.head_bytes;
  auto* scales = panels.scales == nullptr
                     ? nullptr
                     : const_cast<float*>(panels.scales) + head * panels.head_scales + place * kv.page_tokens;
  return {.elements = PanelElements(side, panels.type, data, kv.page_tokens, width), .scales = scales};
}

}  // namespace

TokenTree::TokenTree(const Span& span, ConstTensorView mask, TokenShare share) : span_(span), share_(share) {
  const Shape shape{span.count, span.count};
  require(mask.shape() == shape && (mask.dtype() == DType::boolean || mask.dtype() == DType::u8),
          "attention: active_mask of slot {} has shape {} and dtype {}, expected {} and bool or u8", span.slot,
          mask.shape(), name_of(mask.dtype()), shape);
  branches_.resize(static_cast<size_t>(span.count));
  for (int64_t row = 0; row < span.count; ++row) {
    auto& branch = branches_[static_cast<size_t>(row)];
    for (int64_t column = 0; column < span.count; ++column) {
      const bool sees = *mask[row][column].data() != std::byte{0};
      require(!sees || column <= row, "attention: active_mask lets token {} see token {}, which comes later", row,
              column);
      require(sees || column != row, "attention: active_mask hides token {} from itself", row);
      if (sees) branch.push_back(static_cast<int32_t>(column));
    }
  }
}

int64_t TokenTree::pages() const {
  int64_t pages = 0;
  for (int64_t token = 0; token < span_.count; ++token) pages += pages_of(token);
  return pages;
}

void TokenTree::copy_tails(const KvPages& kv, const KvCache* active, const kernels::AttendShape& shape,
                           const KvPages& memory, int64_t first_page, const Threads& threads) {
  places_.resize(static_cast<size_t>(pages()));
  for (size_t i = 0; i < places_.size(); ++i) places_[i] = static_cast<int32_t>(first_page + static_cast<int64_t>(i));
  tails_.clear();
  const int32_t* table = places_.data();
  for (int64_t token = 0; token < span_.count; ++token) {
    KvPages& tail = tails_.emplace_back(memory);
    tail.table = table;
    tail.first_page = tail_start() / kTile;
    tail.page_count = pages_of(token);
    table += tail.page_count;
  }
  const KvPages own_tokens = active == nullptr ? kv : active->view(0);
  const int64_t first_own = active == nullptr ? span_.first_position : 0;
  const auto copy = [&](PanelSide side, int64_t token, int64_t head) {
    const KvPages& tail = tails_[static_cast<size_t>(token)];
    const auto copy_one = [&](const KvPages& pages, int64_t from, int64_t position) {
      const int64_t to = share_.count_below(position);
      const HeadPage source = head_page(side, pages, pages.place_of(from), head, shape);
      const HeadPage target = head_page(side, tail, tail.place_of(to), head, shape);
      target.elements.copy_token(source.elements, pages.offset_of(from), tail.offset_of(to));
      if (source.scales != nullptr && target.scales != nullptr)
        target.scales[tail.offset_of(to)] = source.scales[pages.offset_of(from)];
    };
    for (int64_t position = whole_tail_start(); position < span_.first_position; ++position)
      if (share_.owns(position)) copy_one(kv, share_.count_below(position), position);
    const auto& branch = branches_[static_cast<size_t>(token)];
    for (size_t i = 0; i < branch.size(); ++i) {
      const int64_t position = span_.first_position + static_cast<int64_t>(i);
      if (share_.owns(position)) copy_one(own_tokens, first_own + branch[i], position);
    }
  };
  const int64_t numbers = pages() * kTile * shape.kv_heads * (shape.head_dim + shape.v_head_dim);
  threads.for_work(4 * numbers).for_each(span_.count * shape.kv_heads, [&](int64_t task, int) {
    copy(PanelSide::keys, task / shape.kv_heads, task % shape.kv_heads);
    copy(PanelSide::values, task / shape.kv_heads, task % shape.kv_heads);
  });
}

std::vector<std::optional<TokenTree>> make_trees(std::string_view caller, std::span<const Span> spans,
                                                 std::span<const ConstTensorView> active_masks, bool is_causal,
                                                 TokenShare share) {
  if (active_masks.empty()) return {};
  require(active_masks.size() == spans.size(), "{}: active_masks has {} masks, expected {}, one a span", caller,
          active_masks.size(), spans.size());
  require(is_causal, "{}: active_masks are given, but the mask is not causal", caller);
  std::vector<std::optional<TokenTree>> trees(spans.size());
  for (size_t i = 0; i < trees.size(); ++i)
    if (!active_masks[i].empty()) trees[i].emplace(spans[i], active_masks[i], share);
  return trees;
}

void check_prefixes(std::string_view caller, std::span<const Span> spans, bool is_causal,
                    std::span<const ConstTensorView> active_masks) {
  for (size_t i = 0; i < spans.size(); ++i) {
    const Span& span = spans[i];
    if (span.prefix == 0) continue;
    require(span.prefix > 0 && span.prefix <= span.count,
            "{}: the span of slot {} has a prefix of {} tokens, expected 0 to its count {}; a prefix comes in one call",
            caller, span.slot, span.prefix, span.count);
    require(is_causal,
            "{}: the span of slot {} has a prefix, but the mask is not causal: all its tokens see each other", caller,
            span.slot);
    require(i >= active_masks.size() || active_masks[i].empty(),
            "{}: the span of slot {} has a prefix and an active mask, expected one of them", caller, span.slot);
  }
}

void copy_tails(std::span<std::optional<TokenTree>> trees, std::span<const Span> spans, const KvCache& cache,
                std::span<const std::optional<KvCache>> active, const kernels::AttendShape& shape,
                Workspace& workspace) {
  const auto branches = [&](size_t i) { return trees[i].has_value() && spans[i].slot != -1; };
  int64_t pages = 0;
  KvPages places;
  for (size_t i = 0; i < trees.size(); ++i) {
    if (!branches(i)) continue;
    pages += trees[i]->pages();
    places = cache.view(spans[i].slot);
  }
  if (pages == 0) return;
  Memory& memory = workspace.memory();
  const auto lay_out = [&](KvPanels& side, int64_t width, Memory::Piece data, Memory::Piece scales) {
    side.head_bytes = width * kernels::info_of(side.type).bytes_per_two_k / 2;
    side.page_bytes = shape.kv_heads * side.head_bytes;
    side.data = memory.matrix(data, pages, kernels::round_up(side.page_bytes, 4) / 4).data();
    if (side.scales != nullptr) side.scales = memory.matrix(scales, pages, shape.kv_heads * kTile).as<float>();
    side.head_scales = pages * kTile;
  };
  places.page_tokens = kTile;
  places.page_shift = std::countr_zero(static_cast<uint64_t>(kTile));
  lay_out(places.keys, shape.head_dim, Memory::Piece::tail_keys, Memory::Piece::tail_key_scales);
  lay_out(places.values, kernels::round_up(shape.v_head_dim, kTile), Memory::Piece::tail_values,
          Memory::Piece::tail_value_scales);
  int64_t first_page = 0;
  for (size_t i = 0; i < trees.size(); ++i) {
    if (!branches(i)) continue;
    trees[i]->copy_tails(cache.view(spans[i].slot), active.empty() ? nullptr : &*active[i], shape, places, first_page,
                         workspace.threads());
    first_page += trees[i]->pages();
  }
}

}  // namespace regard
