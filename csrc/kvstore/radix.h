// The daemon's index: who is in which slot of the arena, who reads it, and what goes next.
//
// A space is a radix tree with path compression. Its edges carry units of `unit` tokens each, and
// every unit of an edge has a slot:
//
//     root --[5 7 9]--> A --[2 2]--> B          5 7 9 2 2   and   5 7 9 8   are stored,
//                         \-[8]----> C          in six slots
//
//  * an edge is not empty; below the root no node has exactly one child (else they would be one node)
//  * a node was used no later than its parent, so least recently used is always a leaf; eviction
//    takes units off a leaf's end, and whatever is in the tree has all of its prefix in it
//  * a pinned slot keeps its content, in the tree or not, until its last pin goes
//
// Finding n tokens costs O(n) whatever is stored: one hash an edge, one comparison a token.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "hash.h"

namespace kvstore {

using Slot = uint32_t;

class Index {
  struct Node;
  struct EdgeKey {
    const Node* parent;
    uint64_t hash;  // of the edge's first unit
    bool operator==(const EdgeKey&) const = default;
  };
  struct EdgeHash {
    size_t operator()(const EdgeKey& key) const {
      return key.hash ^ (reinterpret_cast<uintptr_t>(key.parent) * 0x9E3779B97F4A7C15);
    }
  };
  struct Older {
    bool operator()(const Node* a, const Node* b) const;
  };

 public:
  // One cache's tree. Units in use, being written included, stay within the capacity.
  struct Space {
    uint32_t unit;
    uint64_t capacity;
    uint64_t used = 0;
    uint32_t clients = 0;  // that are attached; the owner of the index counts

   private:
    friend class Index;
    std::unique_ptr<Node> root;
    std::unordered_map<EdgeKey, Node*, EdgeHash> edges;
    std::set<Node*, Older> leaves;  // those that eviction may take from: the last slot is not pinned
  };

  // The seed keeps others from choosing tokens whose hashes meet.
  Index(Slot slots, uint64_t seed);
  ~Index();

  Space* space(const Digest& name, uint32_t unit, uint64_t capacity);
  size_t num_spaces() const { return spaces_.size(); }
  // Forget spaces that hold nothing and have no clients.
  void sweep();

  // The slots of the longest leading run of units that is stored; it counts as used now.
  std::vector<Slot> match(Space& space, const int32_t* tokens, size_t units);

  void pin(const std::vector<Slot>& slots);
  void unpin(const std::vector<Slot>& slots);

  // Up to `count` slots to write, of this space's capacity; less when what is stored is pinned.
  std::vector<Slot> allocate(Space& space, size_t count);
  void give_back(Space& space, const std::vector<Slot>& slots);

  // Attach written slots as units [first, first + slots.size()) of `tokens`. Units that somebody else
  // stored meanwhile keep theirs. False, and all are given back, when units before `first` are gone.
  bool insert(Space& space, const int32_t* tokens, size_t first, const std::vector<Slot>& slots,
              const uint64_t* checksums);

  // Forget the last unit of `tokens`, and whatever is stored behind it.
  void remove(Space& space, const int32_t* tokens, size_t units);
  void clear(Space& space);

  uint64_t sum(Slot slot) const { return slots_[slot].checksum; }
  size_t num_slots() const { return slots_.size(); }
  size_t num_free() const { return free_.size(); }
  size_t num_pinned() const { return pinned_; }
  uint64_t evicted() const { return evicted_; }
  // What does not hold of the above; empty when all does. O(slots).
  std::string check() const;

 private:
  struct SlotInfo {
    Node* owner = nullptr;
    uint32_t pins = 0;
    uint64_t checksum = 0;
  };
  // Where a walk ended: `node`, of whose edge `offset` units matched (the root has none).
  struct Place {
    Node* node;
    size_t offset;
    size_t matched;  // units altogether
  };

  uint64_t hash(const int32_t* unit, uint32_t length) const;
  Place walk(Space& space, const int32_t* tokens, size_t units);
  Node* child(Space& space, const Node* node, const int32_t* unit) const;
  void touch(Node* node);
  void list(Node* node);
  void unlist(Node* node);
  Node* split(Node* node, size_t offset);
  void adopt(Node* parent, Node* node);
  void detach(Node* node);
  void settle(Node* node);
  size_t trim(Node* leaf, size_t count);
  bool evict(Space* space, size_t count);
  void drop(Slot slot);
  void prune(Node* node, size_t from);

  const uint64_t seed_;
  std::vector<SlotInfo> slots_;
  std::vector<Slot> free_;
  std::map<Digest, std::unique_ptr<Space>> spaces_;
  uint64_t clock_ = 0, evicted_ = 0;
  size_t pinned_ = 0;
};

}  // namespace kvstore
