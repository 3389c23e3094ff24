#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "regard/block_table.h"
#include "regard/cache.h"

namespace regard {

// The pages of tokens that sequences computed, for later ones that begin with the same tokens: a tree whose edges are
// the tokens of a page, one root a salt. A node holds its page in every layer that keeps all tokens; in layers with
// windows or chunks it may have lost it. All tokens are compared, so that no two prefixes are ever confused.
//
// Pages that no sequence holds go in the order in which they were let go of. Sequences let go of their last page first,
// so that the ends of prefixes go before their beginnings.
class PrefixTree {
 public:
  // The layers have to outlive the tree.
  explicit PrefixTree(std::span<KvCache> layers)
      : layers_(layers), places_(static_cast<size_t>(layers.front().slots())), nodes_of_(layers.size()) {
    for (size_t layer = 0; layer < layers.size(); ++layer)
      nodes_of_[layer].resize(static_cast<size_t>(layers[layer].block_tables().pages()));
  }
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;
  ~PrefixTree();

  [[nodiscard]] int64_t pages() const { return pages_; }
  [[nodiscard]] int64_t evicted() const { return evicted_; }

  // Begins a sequence in an empty slot, with the longest prefix of the tokens that all layers can go on from; returns
  // its length.
  int64_t open(int64_t slot, std::span<const int32_t> tokens, uint64_t salt);
  // How many of the sequence's pages, from its first on, the tree has.
  [[nodiscard]] int64_t pages_of(int64_t slot) const { return at(slot).pages; }
  // Takes in the whole pages of a slot that holds these tokens, those that it has not taken in before.
  void insert(int64_t slot, std::span<const int32_t> tokens);
  // Begins a sequence that has the first `length` tokens of another.
  void fork(int64_t from, int64_t to, int64_t length);
  // Tells that the slot has kept the first `length` tokens alone.
  void go_back(int64_t slot, int64_t length);
  // Lets go of up to `count` pages of a layer that nobody else holds; returns how many.
  int64_t evict(size_t layer, int64_t count);

 private:
  struct Node;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::span<const int32_t> tokens) const;
    size_t operator()(const std::vector<int32_t>& tokens) const { return (*this)(std::span(tokens)); }
  };
  struct Equal {
    using is_transparent = void;
    bool operator()(std::span<const int32_t> a, std::span<const int32_t> b) const;
  };
  using Children = std::unordered_map<std::vector<int32_t>, std::unique_ptr<Node>, Hash, Equal>;
  struct Node {
    Node* parent = nullptr;      // none: a root
    std::vector<int32_t> pages;  // by layer; -1: lost
    Children children;
    const std::vector<int32_t>* tokens = nullptr;  // the key of the parent's children
    uint64_t salt = 0;                             // of a root
  };
  // Where a sequence stands in the tree: a commit goes on from there.
  struct Place {
    uint64_t salt = 0;
    Node* node = nullptr;  // of its last page in the tree; none if it has no page there
    int64_t pages = 0;
  };

  [[nodiscard]] Place& at(int64_t slot) { return places_[static_cast<size_t>(slot)]; }
  [[nodiscard]] const Place& at(int64_t slot) const { return places_[static_cast<size_t>(slot)]; }
  [[nodiscard]] int64_t page_size() const { return layers_.front().block_tables().page_size(); }

  [[nodiscard]] bool keeps_all(size_t layer) const { return layers_[layer].first_seen(layers_[layer].capacity()) == 0; }
  [[nodiscard]] bool can_go_on(std::span<Node* const> path) const;
  [[nodiscard]] Node*& node_of(size_t layer, int32_t page) { return nodes_of_[layer][static_cast<size_t>(page)]; }
  Node* add(Node& parent, std::span<const int32_t> tokens);
  void take_in(Node& node, size_t layer, int32_t page);
  void let_go(Node& node, size_t layer);
  void erase(Node* node);
  [[nodiscard]] static bool is_empty(const Node& node);
  static void go_up(Place& place);
  static void go_up_to_common(Place& place, std::span<const int32_t> tokens);

  std::span<KvCache> layers_;
  std::vector<Place> places_;                 // by slot
  std::vector<std::vector<Node*>> nodes_of_;  // by layer and page
  std::unordered_map<uint64_t, Node> roots_;
  int64_t pages_ = 0;
  int64_t evicted_ = 0;
};

}  // namespace regard
