#include "engine/model_drafter.h"

#include "regard/sampler.h"

namespace regard {
namespace {

KvCacheOptions options_of(const KvCacheOptions& asked, const Model& model, int64_t longest) {
  KvCacheOptions options = asked;
  options.capacity = std::min(asked.capacity, model.spec().context_length);
  options.speculation_length = longest;
  return options;
}

}  // namespace

ModelDrafter::ModelDrafter(const Model& model, int64_t longest, int64_t vocabulary, const KvCacheOptions& cache,
                           Workspace& workspace)
    : model_(model),
      workspace_(workspace),
      length_(longest),
      vocabulary_(std::min(vocabulary, model.spec().vocab_size)),
      caches_(model.make_caches(options_of(cache, model, longest))) {}

void ModelDrafter::extend(std::span<const int32_t> tokens) {
  understands_ &= std::ranges::all_of(tokens, [&](int32_t token) { return token < model_.spec().vocab_size; });
  text_.insert(text_.end(), tokens.begin(), tokens.end());
}

std::vector<int32_t> ModelDrafter::draft(int64_t room) {
  // What came otherwise is the last token, which has to run in any case: its logits are needed.
  cached_ = std::min(cached_, std::ssize(text_) - 1);
  // All tokens but the draft's last run.
  const int64_t count = std::min({length_.wanted(), room, caches_.front().capacity() - std::ssize(text_) + 1});
  std::vector<int32_t> draft;
  if (count < 1 || !understands_) return draft;
  draft.push_back(next_of(std::span(text_).subspan(static_cast<size_t>(cached_))));
  while (std::ssize(draft) < count) draft.push_back(next_of({&draft.back(), 1}));
  return draft;
}

// The most likely token behind those that are cached and these.
int32_t ModelDrafter::next_of(std::span<const int32_t> tokens) {
  const Span span{.slot = 0, .first_position = cached_, .count = std::ssize(tokens)};
  const ConstTensorView logits = model_.forward(tokens, {&span, 1}, caches_, {}, workspace_);
  cached_ += span.count;
  return Sampler({.vocabulary = static_cast<int32_t>(vocabulary_)}).sample(logits[0].elements<float>());
}

}  // namespace regard
