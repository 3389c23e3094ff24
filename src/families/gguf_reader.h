#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "regard/checkpoint.h"

namespace regard {

// Typed look-ups in GGUF metadata under an architecture's prefix, and which tensors there are. Integers pass as
// numbers, nothing else as something else. The reader remembers which keys were asked for; see require_all_understood.
class GgufReader {
 public:
  GgufReader(const Checkpoint& checkpoint, std::string architecture)
      : checkpoint_(checkpoint), architecture_(std::move(architecture)) {}

  [[nodiscard]] const std::string& architecture() const { return architecture_; }
  [[nodiscard]] bool has(const std::string& key) const { return lookup(key) != nullptr; }
  [[nodiscard]] std::optional<int64_t> integer(const std::string& key) const;
  [[nodiscard]] std::optional<double> number(const std::string& key) const;
  [[nodiscard]] std::optional<bool> boolean(const std::string& key) const;
  [[nodiscard]] std::optional<std::string> text(const std::string& key) const;
  // One integer for all layers, or a list with one for each. Throws Error for a list of another length.
  [[nodiscard]] std::vector<int64_t> integers_by_layer(const std::string& key, int64_t layers, int64_t otherwise) const;
  // An integer from 1 to `most`.
  [[nodiscard]] int64_t size(const std::string& key, int64_t most) const;
  // A finite number of 0 or more.
  [[nodiscard]] double eps(const std::string& key, double otherwise) const;

  [[nodiscard]] bool has_tensor(const std::string& name) const { return checkpoint_.find(name) != nullptr; }
  [[nodiscard]] const Checkpoint& checkpoint() const { return checkpoint_; }

  // These keys are known not to matter.
  void ignore(std::initializer_list<const char*> keys) const { seen_.insert(keys.begin(), keys.end()); }
  // Throws Error for a key of the architecture that was neither asked for nor ignored and whose value may have an
  // effect.
  void require_all_understood() const;

 private:
  [[nodiscard]] const MetaValue* lookup(const std::string& key) const;
  template <class T>
  [[nodiscard]] std::optional<T> find(const std::string& key, const char* kind) const;

  const Checkpoint& checkpoint_;
  std::string architecture_;
  mutable std::set<std::string, std::less<>> seen_;
};

}  // namespace regard
