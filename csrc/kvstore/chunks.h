// Chunk files: content-addressed, written aside and renamed, verified on every read.
//
//     root/<space, 16 hex>/<split hex>/<split hex>/<key, 64 hex>
//
//     header    4,096 bytes, or more for many tokens (see `Header`), then the tokens
//     payload   the pieces one behind the other, padded to a page
//
// There is no metadata service, since a key names its content: two hosts that write one chunk write
// the same bytes. Recency is the modification time, which readers refresh by themselves: access
// times are not kept by most mounts.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <thread>
#include <unordered_set>
#include <vector>

#include "files.h"
#include "hash.h"
#include "pool.h"
#include "quota.h"

namespace kvstore {

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;  // a multiple of a page
  uint8_t key[32];
  uint8_t space[32];
  uint64_t pieces;
  uint64_t piece_bytes;
  uint64_t payload_checksum;
  uint32_t num_tokens;
  uint32_t reserved[3];
  uint64_t checksum;  // of the header's bytes, this field being 0

  uint64_t payload_bytes() const { return pieces * piece_bytes; }
};
static_assert(sizeof(Header) == 128);  // Checksum wants multiples of 32

class ChunkStore {
 public:
  struct Config {
    std::string root;
    Digest space;
    uint32_t split = 2;
    uint64_t pieces = 0, piece_bytes = 0;  // of a chunk
    uint64_t quota = 0;
    double ttl = 0, gc_interval = 0, global_ttl = 0, global_gc_interval = 0;
    int sync = KVS_SYNC_NONE;
    bool direct = true;
    unsigned threads = 0;
  };
  struct Chunk {
    Digest key;
    const int32_t* tokens;
    size_t num_tokens;
    const kvs_tensor* tensors;  // config.pieces of config.piece_bytes each
  };

  static Status open(const Config& config, std::unique_ptr<ChunkStore>& out);
  ~ChunkStore();

  // Each chunk's fate; `ok` has room for all. One that is there already is not written again.
  void put(const std::vector<Chunk>& chunks, bool* ok);
  void get(const std::vector<Chunk>& chunks, bool* ok);
  bool contains(const Digest& key) const;
  void remove(const Digest& key);
  uint64_t gc(double ttl);
  void clear();

  bool direct() const { return direct_; }
  uint64_t file_bytes(size_t num_tokens) const;
  kvs_stats stats();

 private:
  explicit ChunkStore(const Config& config);
  std::string path(const Digest& key) const;
  bool put_one(const Chunk& chunk);
  bool get_one(const Chunk& chunk);
  bool write(const Chunk& chunk, const std::string& aside, bool exclusive);
  bool make_room(uint64_t bytes);
  void forget(const std::string& path, int fd);
  void background();
  uint64_t gc_own();

  const Config config_;
  const std::string folder_;
  Quota quota_;
  Pool pool_;
  bool direct_ = false;
  std::mutex evict_mutex_;
  std::multimap<double, std::string> oldest_;  // what eviction looks at next; rebuilt by a scan
  std::mutex own_mutex_;
  std::unordered_set<std::string> own_;  // what this client wrote or used, for its own collection
  std::atomic<uint64_t> hits_{0}, misses_{0}, evicted_{0}, damaged_{0}, names_{0};

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
