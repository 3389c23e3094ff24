#include "cache/prefix_tree.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "regard/block_table.h"

namespace regard {

size_t PrefixTree::Hash::operator()(std::span<const int32_t> tokens) const {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
}

bool PrefixTree::Equal::operator()(std::span<const int32_t> a, std::span<const int32_t> b) const {
  return std::ranges::equal(a, b);
}

// Level by level, as a long text is a deep tree.
PrefixTree::~PrefixTree() {
  std::vector<Children> left;
  for (auto& [salt, root] : roots_) left.push_back(std::move(root.children));
  while (!left.empty()) {
    const Children level = std::move(left.back());
    left.pop_back();
    for (const auto& [tokens, node] : level) left.push_back(std::move(node->children));
  }
}

// Whether every layer holds what the token after these pages sees.
bool PrefixTree::can_go_on(std::span<Node* const> path) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const int64_t page_size = layers_[layer].block_tables().page_size();
    const int64_t length = static_cast<int64_t>(path.size()) * page_size;
    for (auto page = static_cast<size_t>(layers_[layer].first_seen(length) / page_size); page < path.size(); ++page)
      if (path[page]->pages[layer] < 0) return false;
  }
  return true;
}

int64_t PrefixTree::open(int64_t slot, std::span<const int32_t> tokens, uint64_t salt) {
  at(slot) = {.salt = salt};
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return 0;
  const auto page_tokens = static_cast<size_t>(page_size());
  std::vector<Node*> path;
  for (Node* node = &root->second; tokens.size() >= page_tokens; tokens = tokens.subspan(page_tokens)) {
    const auto child = node->children.find(tokens.first(page_tokens));
    if (child == node->children.end()) break;
    path.push_back(node = child->second.get());
  }
  while (!path.empty() && !can_go_on(path)) path.pop_back();
  if (path.empty()) return 0;
  const auto length = static_cast<int64_t>(path.size() * page_tokens);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    std::vector<int32_t> pages(path.size(), -1);
    for (auto page = static_cast<size_t>(layers_[layer].first_seen(length)) / page_tokens; page < path.size(); ++page)
      pages[page] = path[page]->pages[layer];
    layers_[layer].block_tables().share(slot, pages, length);
  }
  at(slot).node = path.back();
  at(slot).pages = static_cast<int64_t>(path.size());
  return length;
}

void PrefixTree::insert(int64_t slot, std::span<const int32_t> tokens) {
  const auto page_tokens = static_cast<size_t>(page_size());
  Place& place = at(slot);
  go_up_to_common(place, tokens);
  tokens = tokens.subspan(static_cast<size_t>(place.pages) * page_tokens);
  if (tokens.size() < page_tokens) return;
  if (place.pages == 0) {
    place.node = &roots_[place.salt];
    place.node->salt = place.salt;
  }
  for (; tokens.size() >= page_tokens; tokens = tokens.subspan(page_tokens)) {
    Node& parent = *place.node;
    const auto child = parent.children.find(tokens.first(page_tokens));
    place.node = child == parent.children.end() ? add(parent, tokens.first(page_tokens)) : child->second.get();
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const int32_t own = layers_[layer].block_tables().page_of(slot, place.pages);
      if (place.node->pages[layer] < 0 && own >= 0) take_in(*place.node, layer, own);
    }
    ++place.pages;
  }
  // At the end of a chunk a sequence holds nothing, and others may have lost what was before.
  if (is_empty(*place.node)) erase(place.node);
}

// Whoever appended below its length has other tokens now.
void PrefixTree::go_up_to_common(Place& place, std::span<const int32_t> tokens) {
  Place common = place;
  for (Place at = place; at.pages > 0; go_up(at)) {
    const auto page_tokens = at.node->tokens->size();
    const auto first = static_cast<size_t>(at.pages - 1) * page_tokens;
    if (first + page_tokens <= tokens.size() &&
        std::ranges::equal(tokens.subspan(first, page_tokens), *at.node->tokens))
      continue;
    common = at;
    go_up(common);
  }
  place = common;
}

void PrefixTree::fork(int64_t from, int64_t to, int64_t length) {
  at(to) = at(from);
  while (at(to).pages > length / page_size()) go_up(at(to));
}

void PrefixTree::go_back(int64_t slot, int64_t length) {
  while (at(slot).pages > length / page_size()) go_up(at(slot));
}

// A root may go while sequences have none of its pages.
void PrefixTree::go_up(Place& place) { place.node = --place.pages > 0 ? place.node->parent : nullptr; }

PrefixTree::Node* PrefixTree::add(Node& parent, std::span<const int32_t> tokens) {
  auto made = std::make_unique<Node>();
  made->parent = &parent;
  made->pages.assign(layers_.size(), -1);
  const auto [place, added] =
      parent.children.emplace(std::vector<int32_t>(tokens.begin(), tokens.end()), std::move(made));
  Node* node = place->second.get();
  node->tokens = &place->first;
  ++pages_;
  return node;
}

void PrefixTree::take_in(Node& node, size_t layer, int32_t page) {
  layers_[layer].block_tables().retain(page);
  node.pages[layer] = page;
  node_of(layer, page) = &node;
}

void PrefixTree::let_go(Node& node, size_t layer) {
  const int32_t page = std::exchange(node.pages[layer], -1);
  if (page < 0) return;
  node_of(layer, page) = nullptr;
  layers_[layer].block_tables().release(page);
}

// Erases a node without children, and those before it that are left without children and pages: where all layers have
// windows or chunks, nodes lose one page after the other.
void PrefixTree::erase(Node* node) {
  do {
    for (size_t layer = 0; layer < layers_.size(); ++layer) let_go(*node, layer);
    // Sequences stand at pages that are not theirs where another one had computed the same.
    for (Place& place : places_)
      if (place.node == node) go_up(place);
    --pages_;
    Node* const parent = node->parent;
    parent->children.erase(parent->children.find(*node->tokens));
    node = parent;
  } while (node->parent != nullptr && is_empty(*node));
  if (node->parent == nullptr && node->children.empty()) roots_.erase(node->salt);
}

bool PrefixTree::is_empty(const Node& node) {
  return node.children.empty() && std::ranges::all_of(node.pages, [](int32_t page) { return page < 0; });
}

int64_t PrefixTree::evict(size_t layer, int64_t count) {
  const bool needed = keeps_all(layer);
  KvCache& cache = layers_[layer];
  int64_t freed = 0;
  int32_t page = cache.block_tables().next_unused();
  while (page >= 0 && freed < count) {
    Node* const node = node_of(layer, page);
    // Others may retain pages too. And a sequence may still hold the pages that follow, if it computed this one itself.
    if (node == nullptr || cache.block_tables().reference_count(page) > 1 || (needed && !node->children.empty())) {
      page = cache.block_tables().next_unused(page);
      continue;
    }
    ++freed;
    ++evicted_;
    let_go(*node, layer);
    // Without the page of a layer that keeps all, the others are of no use.
    if (needed || is_empty(*node)) erase(node);
    page = cache.block_tables().next_unused();
  }
  return freed;
}

}  // namespace regard
