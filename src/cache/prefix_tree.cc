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
  touch(path.back());
  const auto length = static_cast<int64_t>(path.size() * page_tokens);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    std::vector<int32_t> pages(path.size(), -1);
    for (auto page = static_cast<size_t>(layers_[layer].first_seen(length)) / page_tokens; page < path.size(); ++page)
      pages[page] = path[page]->pages[layer];
    layers_[layer].share(slot, pages, length);
  }
  at(slot).node = path.back();
  at(slot).pages = static_cast<int64_t>(path.size());
  return length;
}

void PrefixTree::insert(int64_t slot, std::span<const int32_t> tokens) {
  const auto page_tokens = static_cast<size_t>(page_size());
  Place& place = at(slot);
  if (place.pages == 0) place.node = &roots_[place.salt];
  tokens = tokens.subspan(static_cast<size_t>(place.pages) * page_tokens);
  for (; tokens.size() >= page_tokens; tokens = tokens.subspan(page_tokens)) {
    Node& parent = *place.node;
    const auto child = parent.children.find(tokens.first(page_tokens));
    place.node = child == parent.children.end() ? add(parent, tokens.first(page_tokens)) : child->second.get();
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const int32_t own = layers_[layer].page_of(slot, place.pages);
      int32_t& known = place.node->pages[layer];
      if (known >= 0 || own < 0) continue;
      layers_[layer].retain(own);
      known = own;
    }
    ++place.pages;
  }
  touch(place.node);
}

void PrefixTree::fork(int64_t from, int64_t to, int64_t length) {
  at(to) = at(from);
  while (at(to).pages > length / page_size()) go_up(at(to));
}

void PrefixTree::go_back(int64_t slot, int64_t length) {
  while (at(slot).pages > length / page_size()) go_up(at(slot));
  std::fill(all_in_use_.begin(), all_in_use_.end(), false);
}

void PrefixTree::go_up(Place& place) {
  place.node = place.node->parent;
  --place.pages;
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
  // Sequences stand at pages that are not theirs where another one had computed the same.
  for (Place& place : places_)
    if (place.node == &node) go_up(place);
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
