#include "cache/prefix_tree.h"

#include <algorithm>
#include <string_view>

namespace regard {

size_t PrefixTree::Hash::operator()(std::span<const int32_t> tokens) const {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
}

bool PrefixTree::Equal::operator()(std::span<const int32_t> a, std::span<const int32_t> b) const {
  return std::ranges::equal(a, b);
}

// Whether every layer holds what the token after these pages sees.
bool PrefixTree::can_go_on(std::span<Node* const> path) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const int64_t page_size = layers_[layer].page_size();
    const int64_t length = static_cast<int64_t>(path.size()) * page_size;
    for (auto page = static_cast<size_t>(layers_[layer].first_seen(length) / page_size); page < path.size(); ++page)
      if (path[page]->pages[layer] < 0) return false;
  }
  return true;
}

int64_t PrefixTree::share(int64_t slot, std::span<const int32_t> tokens, uint64_t salt) {
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return 0;
  const auto page_size = static_cast<size_t>(layers_[0].page_size());
  std::vector<Node*> path;
  for (Node* node = &root->second; tokens.size() >= page_size; tokens = tokens.subspan(page_size)) {
    const auto child = node->children.find(tokens.first(page_size));
    if (child == node->children.end()) break;
    path.push_back(node = child->second.get());
  }
  while (!path.empty() && !can_go_on(path)) path.pop_back();
  if (path.empty()) return 0;
  touch(path.back());
  const auto length = static_cast<int64_t>(path.size() * page_size);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    std::vector<int32_t> pages(path.size(), -1);
    for (auto page = static_cast<size_t>(layers_[layer].first_seen(length)) / page_size; page < path.size(); ++page)
      pages[page] = path[page]->pages[layer];
    layers_[layer].share(slot, pages, length);
  }
  return length;
}

void PrefixTree::insert(int64_t slot, std::span<const int32_t> tokens, uint64_t salt) {
  const auto page_size = static_cast<size_t>(layers_[0].page_size());
  Node* node = &roots_[salt];
  for (int64_t page = 0; tokens.size() >= page_size; ++page, tokens = tokens.subspan(page_size)) {
    const auto child = node->children.find(tokens.first(page_size));
    node = child == node->children.end() ? add(*node, tokens.first(page_size)) : child->second.get();
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const int32_t own = layers_[layer].page_of(slot, page);
      if (node->pages[layer] >= 0 || own < 0) continue;
      layers_[layer].retain(own);
      node->pages[layer] = own;
    }
  }
  touch(node);
}

PrefixTree::Node* PrefixTree::add(Node& parent, std::span<const int32_t> tokens) {
  const auto [place, added] =
      parent.children.emplace(std::vector<int32_t>(tokens.begin(), tokens.end()), std::make_unique<Node>());
  Node* node = place->second.get();
  node->parent = &parent;
  node->pages.assign(layers_.size(), -1);
  node->tokens = &place->first;
  node->place = recent_.insert(recent_.begin(), node);
  return node;
}

// From the node up to the root: the more pages a prefix has, the earlier it may go.
void PrefixTree::touch(Node* node) {
  for (; node->parent != nullptr; node = node->parent) recent_.splice(recent_.begin(), recent_, node->place);
}

void PrefixTree::erase(Node& node) {
  for (size_t layer = 0; layer < layers_.size(); ++layer)
    if (node.pages[layer] >= 0) layers_[layer].release(node.pages[layer]);
  recent_.erase(node.place);
  Children& siblings = node.parent->children;
  siblings.erase(siblings.find(*node.tokens));
}

int64_t PrefixTree::evict(size_t layer, int64_t count) {
  const bool needed = keeps_all(layer);
  int64_t freed = 0;
  if (all_in_use_[layer]) return 0;
  for (auto place = recent_.end(); place != recent_.begin() && freed < count;) {
    Node& node = **--place;
    const int32_t page = node.pages[layer];
    if (page < 0 || layers_[layer].holders(page) > 1 || (needed && !node.children.empty())) continue;
    ++freed;
    ++evicted_;
    if (needed) {
      // Without this layer's page the others are of no use.
      ++place;
      erase(node);
    } else {
      layers_[layer].release(page);
      node.pages[layer] = -1;
    }
  }
  // The next call need not look through them all again.
  all_in_use_[layer] = needed && freed < count;
  return freed;
}

}  // namespace regard
