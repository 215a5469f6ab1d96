// The index against a naive twin: random stores, finds, leases, removals, in tight capacities.
//
// Each slot has the content that its writer gave it: the path of tokens that it stands for. Whatever
// is found must have the content of the path that was asked for, and keep it while it is pinned. While
// nothing had to go, what is found is exactly what the twin has.
#include <random>
#include <string>

#include "check.h"
#include "radix.h"

using namespace kvstore;

namespace {

using Path = std::vector<int32_t>;

struct World {
  World(Slot slots, uint64_t capacity, uint32_t unit, unsigned seed)
      : index(slots, seed), content(slots), unit(unit), random(seed) {
    for (int i = 0; i < 2; ++i) {
      Digest name{};
      name[0] = static_cast<uint8_t>(i);
      spaces.push_back(index.space(name, unit, capacity));
    }
    stored.resize(2);
  }

  Path path(size_t units) {
    Path out;
    // Few tokens, in runs, so that paths share much and part anywhere.
    int32_t token = random() % 3;
    for (size_t i = 0; i < units * unit; ++i) {
      if (random() % 6 == 0) token = random() % 3;
      out.push_back(token);
    }
    return out;
  }

  std::string named(size_t s, const Path& p, size_t units) {
    std::string out = std::to_string(s) + ":";
    for (size_t i = 0; i < units * unit; ++i) out += std::to_string(p[i]) + ",";
    return out;
  }

  void look(size_t s, const Path& p, const std::vector<Slot>& found) {
    for (size_t i = 0; i < found.size(); ++i) CHECK(content[found[i]] == named(s, p, i + 1));
  }

  void step() {
    const size_t s = random() % 2;
    auto& space = *spaces[s];
    const Path p = path(random() % 12 + 1);
    const size_t units = p.size() / unit;
    switch (random() % 8) {
      case 0: case 1: case 2: {  // store, as the daemon does
        auto found = index.match(space, p.data(), units);
        look(s, p, found);
        if (found.size() == units) return;
        index.pin(found);
        auto slots = index.allocate(space, units - found.size());
        for (size_t i = 0; i < slots.size(); ++i) content[slots[i]] = named(s, p, found.size() + i + 1);
        held.push_back({s, p, found, slots});
        if (random() % 3) finish(held.size() - 1);  // else somebody else comes between
        return;
      }
      case 3: if (!held.empty()) finish(random() % held.size()); return;
      case 4: {
        auto found = index.match(space, p.data(), units);
        look(s, p, found);
        size_t twin = 0;
        while (twin < units && stored[s].contains(named(s, p, twin + 1))) ++twin;
        CHECK(found.size() <= twin);
        if (index.evicted() == 0) CHECK(found.size() == twin);
        return;
      }
      case 5: {
        auto found = index.match(space, p.data(), units);
        index.pin(found);
        leases.push_back({s, p, found, {}});
        return;
      }
      case 6:
        if (leases.empty()) return;
        look(leases.back().space, leases.back().path, leases.back().found);
        index.unpin(leases.back().found);
        leases.pop_back();
        return;
      case 7:
        if (random() % 4) return;
        if (random() % 20 == 0) {
          index.clear(space);
          stored[s].clear();
        } else if (index.match(space, p.data(), units).size() == units) {
          index.remove(space, p.data(), units);
          const std::string gone = named(s, p, units);
          for (auto it = stored[s].begin(); it != stored[s].end();) {
            it = it->starts_with(gone) ? stored[s].erase(it) : std::next(it);
          }
        }
        return;
    }
  }

  void finish(size_t which) {
    Hold hold = held[which];
    held.erase(held.begin() + which);
    auto& space = *spaces[hold.space];
    if (random() % 5 == 0) {  // its writer died
      index.give_back(space, hold.slots);
    } else {
      std::vector<uint64_t> sums(hold.slots.size(), 7);
      bool in = index.insert(space, hold.path.data(), hold.found.size(), hold.slots, sums.data());
      if (in) {
        for (size_t i = 1; i <= hold.found.size() + hold.slots.size(); ++i) {
          stored[hold.space].insert(named(hold.space, hold.path, i));
        }
      }
    }
    index.unpin(hold.found);
  }

  struct Hold {
    size_t space;
    Path path;
    std::vector<Slot> found, slots;
  };
  Index index;
  std::vector<std::string> content;
  std::vector<Index::Space*> spaces;
  std::vector<std::set<std::string>> stored;
  std::vector<Hold> held, leases;
  const uint32_t unit;
  std::mt19937 random;
};

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const bool tight = seed % 3;
    World world(tight ? 24 : 4096, tight ? 16 : 100000, seed % 2 ? 1 : 3, seed);
    for (int i = 0; i < 1500; ++i) {
      world.step();
      if (world.leases.size() > 4) {
        world.index.unpin(world.leases.front().found);
        world.leases.erase(world.leases.begin());
      }
      std::string fault = world.index.check();
      if (!fault.empty()) fprintf(stderr, "seed %u, step %d: %s\n", seed, i, fault.c_str());
      CHECK(fault.empty());
    }
    for (auto& lease : world.leases) {
      world.look(lease.space, lease.path, lease.found);
      world.index.unpin(lease.found);
    }
    while (!world.held.empty()) world.finish(0);
    CHECK(world.index.num_pinned() == 0);
    CHECK(world.index.check().empty());
    if (tight) CHECK(world.index.evicted() > 0);
  }

  // Long paths cost by their length: a million units are stored and found without a walk back.
  Index large(1 << 20, 1);
  auto* space = large.space({}, 1, 1 << 20);
  Path path(1 << 20);
  std::mt19937 random(1);
  for (auto& token : path) token = static_cast<int32_t>(random());
  auto slots = large.allocate(*space, path.size());
  CHECK(slots.size() == path.size());
  std::vector<uint64_t> sums(path.size());
  CHECK(large.insert(*space, path.data(), 0, slots, sums.data()));
  CHECK(large.match(*space, path.data(), path.size()) == slots);
  CHECK(large.check().empty());

  // A space that nobody uses and that holds nothing is forgotten; others are not.
  Digest name{};
  name[0] = 9;
  large.space(name, 1, 10)->clients = 1;
  large.sweep();
  CHECK(large.num_spaces() == 2);
  large.space(name, 1, 10)->clients = 0;
  large.sweep();
  CHECK(large.num_spaces() == 1);
}
