#include "radix.h"

#include <algorithm>

namespace kvstore {

struct Index::Node {
  Space* space = nullptr;
  Node* parent = nullptr;
  Node *first_child = nullptr, *next = nullptr, *previous = nullptr;  // siblings, in a list
  std::vector<int32_t> tokens;  // slots.size() units
  std::vector<Slot> slots;
  uint64_t used = 0;  // the clock at its last use
  bool listed = false;
};

bool Index::Older::operator()(const Node* a, const Node* b) const {
  return a->used != b->used ? a->used < b->used : a < b;
}

Index::Index(Slot slots, uint64_t seed) : seed_(seed), slots_(slots) {
  free_.reserve(slots);
  for (Slot slot = slots; slot-- > 0;) free_.push_back(slot);
}

Index::~Index() {
  for (auto& [name, space] : spaces_) clear(*space);
}

Index::Space* Index::space(const Digest& name, uint32_t unit, uint64_t capacity) {
  auto& space = spaces_[name];
  if (!space) {
    space = std::make_unique<Space>();
    space->unit = unit;
    space->capacity = 0;
    space->root = std::make_unique<Node>();
    space->root->space = space.get();
  }
  if (space->unit != unit) return nullptr;
  space->capacity = std::max(space->capacity, capacity);
  return space.get();
}

void Index::sweep() {
  std::erase_if(spaces_, [](const auto& entry) {
    return entry.second->used == 0 && entry.second->clients == 0;
  });
}

uint64_t Index::hash(const int32_t* unit, uint32_t length) const {
  uint64_t h = seed_;
  for (uint32_t i = 0; i < length; ++i) {
    h = (h ^ static_cast<uint32_t>(unit[i])) * 0x9E3779B97F4A7C15;
    h ^= h >> 32;
  }
  return h;
}

Index::Node* Index::child(Space& space, const Node* node, const int32_t* unit) const {
  auto found = space.edges.find({node, hash(unit, space.unit)});
  if (found == space.edges.end()) return nullptr;
  return std::equal(unit, unit + space.unit, found->second->tokens.begin()) ? found->second
                                                                            : nullptr;
}

Index::Place Index::walk(Space& space, const int32_t* tokens, size_t units) {
  Place place{space.root.get(), 0, 0};
  const uint32_t unit = space.unit;
  while (place.matched < units) {
    Node* next = child(space, place.node, tokens + place.matched * unit);
    if (!next) break;
    size_t most = std::min(next->slots.size(), units - place.matched), same = 1;
    const int32_t* rest = tokens + place.matched * unit;
    while (same < most && std::equal(rest + same * unit, rest + (same + 1) * unit,
                                     next->tokens.begin() + same * unit)) {
      ++same;
    }
    place = {next, same, place.matched + same};
    if (same < next->slots.size()) break;
  }
  return place;
}

void Index::list(Node* node) {
  bool may = node->parent && !node->first_child && !node->listed &&
             slots_[node->slots.back()].pins == 0;
  if (may) {
    node->space->leaves.insert(node);
    node->listed = true;
  }
}

void Index::unlist(Node* node) {
  if (node->listed) node->space->leaves.erase(node);
  node->listed = false;
}

void Index::touch(Node* node) {
  ++clock_;
  for (; node; node = node->parent) {
    bool listed = node->listed;
    unlist(node);
    node->used = clock_;
    if (listed) list(node);
  }
}

std::vector<Slot> Index::match(Space& space, const int32_t* tokens, size_t units) {
  Place place = walk(space, tokens, units);
  touch(place.node);
  std::vector<Slot> out(place.matched);
  size_t end = place.matched;
  for (Node* node = place.node; node->parent; node = node->parent) {
    size_t count = node == place.node ? place.offset : node->slots.size();
    end -= count;
    std::copy_n(node->slots.begin(), count, out.begin() + end);
  }
  return out;
}

void Index::pin(const std::vector<Slot>& slots) {
  for (Slot slot : slots) {
    SlotInfo& info = slots_[slot];
    if (info.pins++) continue;
    ++pinned_;
    if (info.owner && info.owner->slots.back() == slot) unlist(info.owner);
  }
}

void Index::unpin(const std::vector<Slot>& slots) {
  for (Slot slot : slots) {
    SlotInfo& info = slots_[slot];
    if (--info.pins) continue;
    --pinned_;
    if (!info.owner) {
      free_.push_back(slot);  // it was forgotten while it was read
    } else if (info.owner->slots.back() == slot) {
      list(info.owner);
    }
  }
}

// The slot leaves the tree.
void Index::drop(Slot slot) {
  slots_[slot].owner = nullptr;
  if (slots_[slot].pins == 0) free_.push_back(slot);
}

void Index::adopt(Node* parent, Node* node) {
  node->parent = parent;
  node->previous = nullptr;
  node->next = parent->first_child;
  if (node->next) node->next->previous = node;
  parent->first_child = node;
  parent->space->edges[{parent, hash(node->tokens.data(), parent->space->unit)}] = node;
}

void Index::detach(Node* node) {
  node->space->edges.erase({node->parent, hash(node->tokens.data(), node->space->unit)});
  if (node->next) node->next->previous = node->previous;
  (node->previous ? node->previous->next : node->parent->first_child) = node->next;
}

// Cut an edge: a new node takes its first `offset` units and stands above the old one. Returns it.
Index::Node* Index::split(Node* node, size_t offset) {
  const uint32_t unit = node->space->unit;
  auto* upper = new Node;
  upper->space = node->space;
  upper->used = node->used;
  upper->tokens.assign(node->tokens.begin(), node->tokens.begin() + offset * unit);
  upper->slots.assign(node->slots.begin(), node->slots.begin() + offset);
  Node* parent = node->parent;
  detach(node);
  node->tokens.erase(node->tokens.begin(), node->tokens.begin() + offset * unit);
  node->slots.erase(node->slots.begin(), node->slots.begin() + offset);
  for (Slot slot : upper->slots) slots_[slot].owner = upper;
  adopt(parent, upper);
  adopt(upper, node);
  return upper;
}

// After a child or units went: become one node with an only child, and be listed if a leaf now.
void Index::settle(Node* node) {
  if (!node->parent) return;
  Node* only = node->first_child;
  if (only && !only->next) {
    bool listed = only->listed;
    unlist(only);
    Node* parent = node->parent;
    detach(only);
    detach(node);
    only->tokens.insert(only->tokens.begin(), node->tokens.begin(), node->tokens.end());
    only->slots.insert(only->slots.begin(), node->slots.begin(), node->slots.end());
    for (Slot slot : node->slots) slots_[slot].owner = only;
    delete node;
    adopt(parent, only);
    if (listed) list(only);
  } else {
    list(node);
  }
}

// Take up to `count` units off a leaf's end, up to the first that is pinned. Returns how many.
size_t Index::trim(Node* leaf, size_t count) {
  unlist(leaf);
  Space& space = *leaf->space;
  size_t taken = 0;
  while (taken < count && taken < leaf->slots.size() &&
         slots_[leaf->slots[leaf->slots.size() - 1 - taken]].pins == 0) {
    drop(leaf->slots[leaf->slots.size() - 1 - taken]);
    ++taken;
  }
  space.used -= taken;
  if (taken == leaf->slots.size()) {
    Node* parent = leaf->parent;
    detach(leaf);
    delete leaf;
    settle(parent);
  } else {
    leaf->slots.resize(leaf->slots.size() - taken);
    leaf->tokens.resize(leaf->slots.size() * space.unit);
    list(leaf);
  }
  return taken;
}

// Free slots by forgetting what was used longest ago, in one space or in all. False: all is pinned.
bool Index::evict(Space* space, size_t count) {
  Node* oldest = nullptr;
  auto consider = [&](Space& s) {
    if (s.leaves.empty()) return;
    Node* leaf = *s.leaves.begin();
    if (!oldest || leaf->used < oldest->used) oldest = leaf;
  };
  if (space) {
    consider(*space);
  } else {
    for (auto& [name, s] : spaces_) consider(*s);
  }
  if (!oldest) return false;
  evicted_ += trim(oldest, count);
  return true;
}

std::vector<Slot> Index::allocate(Space& space, size_t count) {
  count = std::min<uint64_t>(count, space.capacity);
  while (space.used + count > space.capacity) {
    if (!evict(&space, space.used + count - space.capacity)) {
      count = space.capacity - space.used;
      break;
    }
  }
  while (free_.size() < count && evict(nullptr, count - free_.size())) {
  }
  count = std::min(count, free_.size());
  std::vector<Slot> out(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - count);
  space.used += count;
  pin(out);
  return out;
}

void Index::give_back(Space& space, const std::vector<Slot>& slots) {
  space.used -= slots.size();
  unpin(slots);
}

bool Index::insert(Space& space, const int32_t* tokens, size_t first,
                   const std::vector<Slot>& slots, const uint64_t* checksums) {
  const size_t units = first + slots.size();
  Place place = walk(space, tokens, units);
  if (place.matched < first || slots.empty()) {
    give_back(space, slots);
    return slots.empty();
  }
  size_t there = place.matched - first;  // stored by somebody else meanwhile
  Node* node = place.node;
  if (there < slots.size()) {
    const int32_t* rest = tokens + place.matched * space.unit;
    if (node->parent && place.offset < node->slots.size()) node = split(node, place.offset);
    if (space.edges.contains({node, hash(rest, space.unit)})) {  // another unit's hash: stored not
      settle(node);
      give_back(space, slots);
      return false;
    }
    bool grows = node->parent && !node->first_child;  // a leaf: its edge becomes longer
    if (!grows) {
      auto* leaf = new Node;
      leaf->space = &space;
      leaf->tokens.assign(rest, rest + space.unit);
      leaf->slots.push_back(slots[there]);
      adopt(node, leaf);
      node = leaf;
    } else {
      unlist(node);
    }
    size_t have = grows ? there : there + 1;
    node->tokens.insert(node->tokens.end(), tokens + (first + have) * space.unit,
                        tokens + units * space.unit);
    node->slots.insert(node->slots.end(), slots.begin() + have, slots.end());
    for (size_t i = there; i < slots.size(); ++i) {
      slots_[slots[i]].owner = node;
      slots_[slots[i]].checksum = checksums[i];
    }
  }
  touch(node);
  space.used -= there;
  unpin(slots);  // those without an owner become free, the leaf's last lists it
  return true;
}

void Index::prune(Node* node, size_t from) {
  // Children before their parents: a node is forgotten when nothing stands behind it.
  std::vector<Node*> order;
  for (Node* c = node->first_child; c; c = c->next) order.push_back(c);
  for (size_t i = 0; i < order.size(); ++i) {
    for (Node* c = order[i]->first_child; c; c = c->next) order.push_back(c);
  }
  Space& space = *node->space;
  auto shorten = [&](Node* n, size_t keep) {
    unlist(n);
    space.used -= n->slots.size() - keep;
    for (size_t i = keep; i < n->slots.size(); ++i) drop(n->slots[i]);
    if (keep == 0 && n->parent) {
      detach(n);
      delete n;
      return true;
    }
    n->slots.resize(keep);
    n->tokens.resize(keep * space.unit);
    return false;
  };
  while (!order.empty()) {
    shorten(order.back(), 0);
    order.pop_back();
  }
  Node* parent = node->parent;
  settle(shorten(node, from) ? parent : node);
}

void Index::remove(Space& space, const int32_t* tokens, size_t units) {
  Place place = walk(space, tokens, units);
  if (units && place.matched == units) prune(place.node, place.offset - 1);
}

void Index::clear(Space& space) { prune(space.root.get(), 0); }

std::string Index::check() const {
  size_t owned = 0, pinned = 0;
  for (auto& [name, space] : spaces_) {
    size_t units = 0, nodes = 0, leaves = 0;
    std::vector<const Node*> stack{space->root.get()};
    while (!stack.empty()) {
      const Node* node = stack.back();
      stack.pop_back();
      if (node->parent) {
        ++nodes;
        if (node->slots.empty()) return "an edge is empty";
        if (node->tokens.size() != node->slots.size() * space->unit) return "tokens against slots";
        if (node->first_child && !node->first_child->next) return "an only child";
        if (node->used > node->parent->used) return "used later than its parent";
        auto edge = space->edges.find({node->parent, hash(node->tokens.data(), space->unit)});
        if (edge == space->edges.end() || edge->second != node) return "an edge is not listed";
        bool may = !node->first_child && slots_[node->slots.back()].pins == 0;
        if (may != node->listed) return "what may be evicted is not what is listed";
        leaves += node->listed;
        if (node->listed && !space->leaves.contains(const_cast<Node*>(node))) {
          return "a leaf is out of order";
        }
        for (Slot slot : node->slots) {
          if (slots_[slot].owner != node) return "a slot has another owner";
        }
        units += node->slots.size();
      }
      for (const Node* c = node->first_child; c; c = c->next) {
        if (c->parent != node) return "a child has another parent";
        stack.push_back(c);
      }
    }
    if (nodes != space->edges.size()) return "edges without nodes";
    if (leaves != space->leaves.size()) return "leaves without nodes";
    if (units > space->used) return "more is stored than used";
    if (space->used > space->capacity) return "over the capacity";
    owned += units;
  }
  std::vector<bool> is_free(slots_.size());
  for (Slot slot : free_) {
    if (is_free[slot] || slots_[slot].owner || slots_[slot].pins) return "a free slot is in use";
    is_free[slot] = true;
  }
  size_t loose = 0;  // pinned and in no tree
  for (auto& info : slots_) {
    pinned += info.pins > 0;
    loose += info.pins > 0 && !info.owner;
  }
  if (pinned != pinned_) return "the count of pinned slots";
  if (owned + loose + free_.size() != slots_.size()) return "a slot is lost";
  return {};
}

}  // namespace kvstore
