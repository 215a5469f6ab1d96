// Chunk files: content-addressed, written aside and renamed, verified on every read.
//
//     root/.usage                                          the sum of all files' bytes (quota.h)
//     root/<space, 16 hex>/<split hex>/<key, 64 hex>       a record (record.h)
//
// There is no metadata service, since a key names its content: two hosts that write one chunk write
// the same bytes. Recency is the modification time, which readers refresh by themselves: access
// times are not kept by most mounts. The index of what is oldest is a process's own; a scan makes it
// whenever what is known of it has grown old. A full store writes over the file that goes instead of
// deleting it and making another: its place on the disk is there already.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <thread>
#include <unordered_set>

#include "pool.h"
#include "quota.h"
#include "record.h"

namespace kvstore {

class ChunkStore {
 public:
  struct Config {
    std::string root;
    Digest space;
    uint32_t split = 2;
    uint64_t pieces = 0, piece_bytes = 0;  // of a chunk
    uint64_t quota = 0;                    // bytes of all files under the root; 0: none
    double ttl = 0, gc_interval = 0, global_ttl = 0, global_gc_interval = 0;  // seconds; 0: off
    int sync = KVS_SYNC_NONE;
    bool direct = true;
    unsigned threads = 0;
  };

  static Status open(const Config& config, std::unique_ptr<ChunkStore>& out);
  ~ChunkStore();

  // Each chunk's fate; `ok` has room for all. One that is there already is not written again.
  void put(const std::vector<Chunk>& chunks, bool* ok);
  // What stands behind a chunk that is not there is not read: a match ends there.
  void get(const std::vector<Chunk>& chunks, bool* ok);
  bool contains(const Digest& key) const;
  void remove(const Digest& key);
  // Delete what nobody used for `ttl` seconds, under the whole root; returns how many files.
  uint64_t gc(double ttl);
  // Delete all of this space.
  void clear();

  bool direct() const { return direct_; }
  kvs_stats stats();

 private:
  explicit ChunkStore(const Config& config);
  std::string path(const Digest& key) const;
  std::string path(const std::string& name) const;
  Status probe();
  size_t leading(const std::vector<Chunk>& chunks) const;
  bool put_one(const Chunk& chunk);
  bool get_one(const Chunk& chunk);
  Quota::Made make(const std::string& folder, uint64_t bytes, std::string& aside, Fd& out);
  bool evict_one(uint64_t bytes, const std::string& aside, Fd& out);
  void scan();
  void flatten();
  void background();
  uint64_t gc_own();

  struct DigestHash {
    size_t operator()(const Digest& key) const {
      size_t out;
      memcpy(&out, key.data(), sizeof out);
      return out;
    }
  };

  const Config config_;
  const Shape shape_;
  const std::string folder_;
  Quota quota_;
  Pool pool_;
  bool direct_ = false;

  std::mutex evict_mutex_;
  std::multimap<double, std::string> oldest_;  // what eviction looks at next, by time of last use
  double horizon_ = 0;                         // what was used later may stand behind files not in it
  std::mutex own_mutex_;
  std::unordered_set<Digest, DigestHash> own_;  // what this client put, for its own collection
  std::atomic<uint64_t> hits_{0}, misses_{0}, evicted_{0}, damaged_{0};

  std::mutex stop_mutex_;
  std::condition_variable stop_wake_;
  bool stop_ = false;
  std::thread collector_;
};

// The tools' view of a root: whichever spaces are in it.
Status root_stat(const std::string& root, kvs_stats& out);
Status root_gc(const std::string& root, double ttl, uint64_t quota, uint64_t& removed);
Status root_verify(const std::string& root, bool repair, kvs_stats& out);

}  // namespace kvstore
