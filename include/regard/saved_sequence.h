#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "regard/cache.h"
#include "regard/model.h"

namespace regard {

/// Writes a slot's sequence of all layers to a safetensors file: keys and values with the bits that are stored, which
/// do not depend on storage or page size, and the tokens, of which the first `length` are those that the slot holds;
/// any after them have not run yet. Layers with a window or chunk write what they still hold. The file is never seen
/// half-written. `model` names the model, as digest_of does: keys of another one of the same shape mean nothing. Throws
/// Error for no layers, layers whose slots hold different lengths or nothing, fewer or negative tokens, and when the
/// file can't be written.
void save_sequence(const std::string& path, std::span<const KvCache> layers, int64_t slot,
                   std::span<const int32_t> tokens, std::string_view model = {});

/// The same of a model's caches on all of its ranks, of which each has the keys and values of some heads: rank 0 writes
/// those of all into one file, which does not depend on the ranks. Collective. Throws Error also for ranks that divide
/// sequences or their tokens in decode, and, over several ranks, for caches with given scales.
void save_sequence(const std::string& path, const Model& model, std::span<const KvCache> layers, int64_t slot,
                   std::span<const int32_t> tokens, std::string_view digest = {});

/// The tokens of a saved sequence, by which caches can be sized. Throws Error for a file that is none.
[[nodiscard]] std::vector<int32_t> saved_tokens(const std::string& path);

/// Makes an empty slot of all layers the sequence that was saved, and returns its tokens. Caches of any storage and
/// page size take it if their layers' number, heads, widths, types, scaling and given scales are those of the file. A
/// layer with a window or chunk takes the pages of what its last token sees; a contiguous cache needs all tokens.
/// Throws Error with the field for all else that the file may hold, for a file that was not saved with `model` (unless
/// that is empty), for a slot in use and too small capacities before any layer changes; where a layer can't go on from
/// what the file holds or lacks pages, all are empty again.
std::vector<int32_t> restore_sequence(const std::string& path, std::span<KvCache> layers, int64_t slot,
                                      std::string_view model = {});

/// The same into a model's caches on all of its ranks, each of which reads the file and takes its heads. Collective.
/// Throws Error also as save_sequence does, and where ranks read different files.
std::vector<int32_t> restore_sequence(const std::string& path, const Model& model, std::span<KvCache> layers,
                                      int64_t slot, std::string_view digest = {});

}  // namespace regard
