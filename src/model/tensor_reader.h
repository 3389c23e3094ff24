#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "families/tensor_names.h"
#include "regard/checkpoint.h"
#include "regard/linear.h"

namespace regard {

// One matrix of a model or of a layer: a part of tensor_names.h, with the numbers that its names take.
struct TensorPlace {
  std::string_view part;
  int64_t layer = 0;
  int64_t expert = 0;
};

// Reads the tensors of a checkpoint by what they are, and remembers which were read, so that none is passed over in
// silence.
class TensorReader {
 public:
  TensorReader(const Checkpoint& checkpoint, TensorNames names) : checkpoint_(checkpoint), names_(std::move(names)) {}

  [[nodiscard]] const Checkpoint& checkpoint() const { return checkpoint_; }
  [[nodiscard]] const TensorNames& names() const { return names_; }

  // The stored matrix that holds the part's `rows` rows; `rows_of` says which. Throws Error if there is none, or of
  // another shape, or of a type that this version does not read.
  [[nodiscard]] StoredMatrix matrix(const TensorPlace& place, int64_t rows, int64_t columns);
  // The rows of `matrix` that are the part, of which it has `count`; empty: all, as stored.
  [[nodiscard]] std::vector<int64_t> rows_of(const TensorPlace& place, int64_t count) const;
  // The vector under the part's name, as f32. Throws Error if it has not `size` numbers, or there is none.
  [[nodiscard]] std::vector<float> vector(const TensorPlace& place, int64_t size);
  // The bias beside the part's matrix, one number for each stored row, as f32. Throws Error if there is none.
  [[nodiscard]] std::vector<float> bias(const TensorPlace& place);
  // Also known, though not needed.
  void mark_read(const std::string& name) { read_.insert(name); }

  // Throws Error, naming some of them, for tensors that nobody read, among those whose names begin with `prefix`.
  void require_all_read(std::string_view prefix = "") const;

 private:
  // The tensor of that name, or one expert's part of it.
  [[nodiscard]] StoredTensor stored(const std::string& name, const TensorName& spelled, int64_t expert);

  const Checkpoint& checkpoint_;
  TensorNames names_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace regard
