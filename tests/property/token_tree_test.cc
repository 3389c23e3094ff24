// Tokens that branch, as drafts of Medusa and EAGLE do: each has the bits of its own branch decoded alone, on every
// storage and under every mask [MASK-11], [MASK-12], [GAP-26]; and accepting a branch leaves what decoding it would
// have left [KV-9].
#include <gtest/gtest.h>

#include <cstring>

#include "support/draft_tree.h"
#include "support/property.h"
#include "support/session.h"

namespace regard::test {
namespace {

// Rows of `hidden`, in this order.
Tensor rows_of(const Tensor& hidden, const std::vector<int64_t>& rows) {
  Tensor chosen(hidden.dtype(), {static_cast<int64_t>(rows.size()), hidden.shape()[1]});
  for (size_t i = 0; i < rows.size(); ++i) {
    const ConstTensorView row = hidden.view()[rows[i]];
    std::memcpy(chosen.view()[static_cast<int64_t>(i)].data(), row.data(),
                static_cast<size_t>(row.shape().elements()) * size_of(row.dtype()));
  }
  return chosen;
}

// As slot 0's tokens from `first` on.
std::vector<TokenOutput> run(const Layer& layer, KvCache& cache, Workspace& workspace, const Tensor& hidden,
                             int64_t first, const ConstTensorView& mask = {}) {
  const Span span{.slot = 0, .first_position = first, .count = hidden.shape()[0]};
  const auto masks = mask.empty() ? std::span<const ConstTensorView>() : std::span(&mask, 1);
  return forward(layer, cache, workspace, hidden, {&span, 1}, masks);
}

struct Scene {
  LayerCase layer;
  int64_t prompt;
};

std::ostream& operator<<(std::ostream& out, const Scene& scene) {
  return out << "prompt of " << scene.prompt << ", " << scene.layer;
}

Scene any_scene() {
  const bool is_long = *rc::gen::inRange(0, 3) == 0;
  const int64_t longest = is_long ? 600 : 60;
  Scene scene{.layer = *layer_cases({.bidirectional = false, .longest_text = longest, .small = is_long}),
              .prompt = *rc::gen::inRange<int64_t>(1, longest)};
  return scene;
}

TEST(TokenTree, EachTokenHasTheBitsOfItsBranchAlone) {
  check_property(250, [] {
    const Scene scene = any_scene();
    RC_LOG() << scene << '\n';
    const Layer layer(scene.layer);
    const DraftTree tree = any_draft_tree(*rc::gen::inRange<int64_t>(1, 13));
    const int64_t count = tree.count();
    const Tensor prompt = layer.text(scene.prompt, 0);
    const Tensor draft = layer.text(count, 1);
    Workspace workspace(2);
    KvCache cache = layer.make_cache(1, scene.prompt + count, count);
    (void)run(layer, cache, workspace, prompt, 0);
    const Tensor mask = tree.mask();
    const auto outputs = run(layer, cache, workspace, draft, scene.prompt, mask);

    KvCache plain = layer.make_contiguous_cache(1, scene.prompt + count);
    (void)run(layer, plain, workspace, prompt, 0);
    for (int64_t token = 0; token < count; ++token) {
      const auto branch = tree.branch(token);
      const auto alone = run(layer, plain, workspace, rows_of(draft, branch), scene.prompt);
      RC_ASSERT(first_difference(std::span(&outputs[static_cast<size_t>(token)], 1), std::span(&alone.back(), 1)) ==
                "");
    }

    // The accepted branch stays, and what follows has the bits that it has after plain decoding.
    const auto accepted = tree.branch(*rc::gen::inRange<int64_t>(0, count));
    cache.accept(0, scene.prompt, accepted);
    plain.truncate(0, scene.prompt);
    (void)run(layer, plain, workspace, rows_of(draft, accepted), scene.prompt);
    const auto length = scene.prompt + static_cast<int64_t>(accepted.size());
    RC_ASSERT(cache.length(0) == length);
    if (length == cache.capacity()) return;
    const Tensor next = layer.text(1, 2);
    RC_ASSERT(
        first_difference(run(layer, cache, workspace, next, length), run(layer, plain, workspace, next, length)) == "");
  });
}

// Trees, chunks of prompts and decoded tokens in one call; skipped tokens have a tree, too.
TEST(TokenTree, TreesMixWithOtherSpans) {
  check_property(60, [] {
    const Scene scene = any_scene();
    RC_LOG() << scene << '\n';
    const Layer layer(scene.layer);
    const DraftTree tree = any_draft_tree(*rc::gen::inRange<int64_t>(1, 9));
    const int64_t count = tree.count();
    const Tensor mask = tree.mask();
    const int64_t capacity = scene.prompt + count;
    KvCache cache = layer.make_cache(3, capacity, count);
    KvCache plain = layer.make_contiguous_cache(3, capacity);
    Workspace workspace(2);
    const auto spans_of = [&](int64_t first, int64_t tokens) {
      return std::vector<Span>{{.slot = 2, .first_position = first, .count = tokens},
                               {.slot = -1, .first_position = 0, .count = tokens},
                               {.slot = 0, .first_position = first, .count = tokens}};
    };
    const Tensor prompts = layer.text(3 * scene.prompt, 0);
    const Tensor drafts = layer.text(3 * count, 1);
    for (KvCache* target : {&cache, &plain})
      (void)forward(layer, *target, workspace, prompts, spans_of(0, scene.prompt));
    const std::vector<ConstTensorView> masks = {ConstTensorView(), mask, mask};
    const auto mixed = forward(layer, cache, workspace, drafts, spans_of(scene.prompt, count), masks);
    const auto linear = forward(layer, plain, workspace, drafts, spans_of(scene.prompt, count));
    const auto part = [&](const std::vector<TokenOutput>& all, int64_t span) {
      return std::span(all).subspan(static_cast<size_t>(span * count), static_cast<size_t>(count));
    };
    RC_ASSERT(first_difference(part(mixed, 0), part(linear, 0)) == "");
    // The tree alone.
    plain.truncate(0, scene.prompt);
    const Tensor own = rows_of(drafts, [&] {
      std::vector<int64_t> rows;
      for (int64_t i = 0; i < count; ++i) rows.push_back(2 * count + i);
      return rows;
    }());
    RC_ASSERT(first_difference(part(mixed, 2), run(layer, plain, workspace, own, scene.prompt, mask)) == "");
  });
}

}  // namespace
}  // namespace regard::test
