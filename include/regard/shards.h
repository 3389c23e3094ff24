#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "regard/checkpoint.h"
#include "regard/gqa.h"

namespace regard {

struct ShardOptions {
  int64_t tp_degree = 1;                  ///< Ranks that share the model, 1 to 1024.
  GQA gqa = GQA::REPLICATE_TO_TP_DEGREE;  ///< The strategy that is asked for [PROJ-2].
  bool overwrite = false;                 ///< Files in the way that no earlier call wrote are replaced too.
};

/// One rank's file.
struct SavedShard {
  std::filesystem::path path;
  int64_t bytes = 0;
  int64_t tensors = 0;
};

/// Cuts a model for ranks and writes one file of tensors for each, so that a rank reads only what it computes with:
/// the query, key and value rows and output columns of its heads, and its columns of the MLP. Embedding, output head,
/// norms and biases of sums are in every file. Quantised blocks stay as they are where the cuts lie between them;
/// columns that are cut through blocks are stored as f32, with the same values. `folder` is made if it is not there.
/// It also gets manifest.json and the metadata and tokenizer of the model; Checkpoint::open_shard reads it. Files are
/// replaced as a whole, and the manifest is finished last. Throws Error for a model of an unknown family, weights that
/// disagree with its metadata, or files in the way.
std::vector<SavedShard> save_shards(const Checkpoint& checkpoint, const std::filesystem::path& folder,
                                    const ShardOptions& options);

}  // namespace regard
