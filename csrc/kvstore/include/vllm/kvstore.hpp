// The shared KV store in C++: kvstore.h with values, vectors and lifetimes. Link libvllm_kvstore.
//
//   std::shared_ptr<KVCache> cache;
//   Status status = KVCache::Make(SharedMemoryConfig{.socket = "/run/me/kv.sock"},
//                                 {.tensor_bytes = 1024, .layers = 2}, cache);
//   size_t updated = 0, matched = 0;
//   cache->Update(tokens, tensors, updated);       // tensors[token][layer] = {K, V}
//   Match match;
//   cache->Query(tokens, found, matched, &match);  // found: filled, or pointed into shared memory
//
// What a call does, what it guarantees and which errors it has is said in kvstore.h, at the function
// of its name. No call throws, but for want of memory. All calls may come from several threads.
#ifndef VLLM_KVSTORE_HPP_
#define VLLM_KVSTORE_HPP_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vllm/kvstore.h"

namespace vllm::kvstore {

class [[nodiscard]] Status {
 public:
  Status() = default;
  explicit Status(int code) : code_(code), text_(code == KVS_OK ? "" : kvs_error()) {}
  Status(int code, std::string text) : code_(code), text_(std::move(text)) {}
  bool ok() const { return code_ == KVS_OK; }
  int code() const { return code_; }  // KVS_*
  const std::string& text() const { return text_; }

 private:
  int code_ = KVS_OK;
  std::string text_;
};

using Tokens = std::vector<int32_t>;
using LLMKV = kvs_tensor;                                            // {data, length}
using KVList = std::vector<std::vector<std::pair<LLMKV, LLMKV>>>;    // [token][layer] = {K, V}
using Key = std::array<uint8_t, 32>;

// What shapes a cache's bytes. Caches that differ in any of it see nothing of each other.
struct Layout {
  uint64_t tensor_bytes = 10;  // of one K or V of one token and layer
  uint32_t layers = 1;
  std::string space;  // names the model and whatever else its KVs depend on
  uint32_t rank = 0, world_size = 1;
  uint32_t threads = 0;  // that copy or do I/O; 0: as many as is sensible
};

// The daemon that `vllm kvstore serve` runs.
struct SharedMemoryConfig {
  std::string socket;
  uint64_t capacity = 1024;  // tokens
  bool checksums = false;
  bool lazy = false;  // the daemon need not be there yet
  double retry = 3;   // seconds
};

struct FileConfig {
  std::string root;
  uint32_t chunk_tokens = 16;
  uint32_t split = 2;
  uint64_t quota_bytes = 0;
  double ttl = 1800, gc_interval = 1800;
  double global_ttl = 10800, global_gc_interval = 0;  // 0: off
  int sync = KVS_SYNC_NONE;
  bool direct = true;
};

// Keeps what a query pointed into shared memory as it is, for as long as it lives.
class Match {
 public:
  Match() = default;
  Match(std::shared_ptr<kvs_cache> cache, uint64_t lease) : cache_(std::move(cache)), lease_(lease) {}
  Match(Match&& other) noexcept { *this = std::move(other); }
  Match& operator=(Match&& other) noexcept {
    std::swap(cache_, other.cache_);
    std::swap(lease_, other.lease_);
    return *this;
  }
  ~Match() {
    if (lease_) kvs_release(cache_.get(), lease_);
  }

 private:
  std::shared_ptr<kvs_cache> cache_;
  uint64_t lease_ = 0;
};

class KVCache {
 public:
  static Status Make(const SharedMemoryConfig& config, const Layout& layout,
                     std::shared_ptr<KVCache>& out) {
    kvs_layout l = c(layout);
    kvs_shared_config given{config.socket.c_str(), config.capacity, config.checksums, config.lazy,
                            config.retry};
    return Wrap(layout, out, [&](kvs_cache** cache) { return kvs_open_shared(&l, &given, cache); });
  }

  static Status Make(const FileConfig& config, const Layout& layout, std::shared_ptr<KVCache>& out) {
    kvs_layout l = c(layout);
    kvs_file_config given{config.root.c_str(), config.chunk_tokens,  config.split,
                          config.quota_bytes,  config.ttl,           config.gc_interval,
                          config.global_ttl,   config.global_gc_interval, config.sync,
                          config.direct};
    return Wrap(layout, out, [&](kvs_cache** cache) { return kvs_open_files(&l, &given, cache); });
  }

  Status Update(const Tokens& tokens, const KVList& tensors, size_t& updated) {
    return Update({}, tokens, tensors, updated);
  }

  // The tensors of `tokens`, which follow `prefix`.
  Status Update(const Tokens& prefix, const Tokens& tokens, const KVList& tensors, size_t& updated) {
    updated = 0;
    std::vector<kvs_tensor> flat;
    if (Status status = Flatten(tokens, tensors, flat); !status.ok()) return status;
    return Status(kvs_update(cache_.get(), prefix.data(), prefix.size(), tokens.data(),
                             tokens.size(), flat.data(), &updated));
  }

  Status Query(const Tokens& tokens, KVList& tensors, size_t& matched, Match* match = nullptr) {
    return Query({}, tokens, tensors, matched, match);
  }

  // Fills tensors that have data. Those without are pointed into shared memory; that takes a `match`.
  Status Query(const Tokens& prefix, const Tokens& tokens, KVList& tensors, size_t& matched,
               Match* match = nullptr) {
    matched = 0;
    std::vector<kvs_tensor> flat;
    if (Status status = Flatten(tokens, tensors, flat); !status.ok()) return status;
    uint64_t lease = 0;
    Status status(kvs_query(cache_.get(), prefix.data(), prefix.size(), tokens.data(),
                            tokens.size(), flat.data(), &matched, match ? &lease : nullptr));
    if (!status.ok()) return status;
    if (match) *match = Match(cache_, lease);
    for (size_t i = 0; i < matched; ++i) {
      for (size_t j = 0; j < layers_; ++j) {
        const kvs_tensor* pair = &flat[(i * layers_ + j) * 2];
        tensors[i][j] = {pair[0], pair[1]};
      }
    }
    return status;
  }

  // Update and Query work on all tokens at once themselves: the original's names for it.
  Status BatchedUpdate(const Tokens& tokens, const KVList& tensors, size_t& updated) {
    return Update(tokens, tensors, updated);
  }
  Status BatchedQuery(const Tokens& tokens, KVList& tensors, size_t& matched, Match* match = nullptr) {
    return Query(tokens, tensors, matched, match);
  }

  // Blobs of 2 * layers * tensor_bytes under keys of their own.
  Status Put(const Key& key, const void* blob, bool& stored) {
    int done = 0;
    Status status(kvs_put(cache_.get(), key.data(), blob, &done));
    stored = done != 0;
    return status;
  }
  Status Get(const Key& key, void* blob, bool& found) {
    int done = 0;
    Status status(kvs_get(cache_.get(), key.data(), blob, &done));
    found = done != 0;
    return status;
  }

  // Deletes the files that were not used for `ttl` seconds.
  Status GC(double ttl, uint64_t& removed) { return Status(kvs_gc(cache_.get(), ttl, &removed)); }
  Status Stat(kvs_stats& out) { return Status(kvs_stat(cache_.get(), &out)); }
  Status Close() { return Status(kvs_close(cache_.get())); }

  // Everything that caches of this layout hold, whoever stored it.
  template <typename Config>
  static Status ClearGlobalCache(const Config& config, const Layout& layout) {
    std::shared_ptr<KVCache> cache;
    if (Status status = Make(config, layout, cache); !status.ok()) return status;
    return Status(kvs_clear(cache->cache_.get()));
  }

 private:
  KVCache(kvs_cache* cache, size_t layers) : cache_(cache, kvs_free), layers_(layers) {}

  static kvs_layout c(const Layout& l) {
    return {l.space.c_str(), l.layers, l.tensor_bytes, l.rank, l.world_size, l.threads};
  }

  template <typename Open>
  static Status Wrap(const Layout& layout, std::shared_ptr<KVCache>& out, Open open) {
    kvs_cache* cache = nullptr;
    Status status(open(&cache));
    if (status.ok()) out.reset(new KVCache(cache, layout.layers));
    return status;
  }

  Status Flatten(const Tokens& tokens, const KVList& tensors, std::vector<kvs_tensor>& flat) const {
    if (tensors.size() != tokens.size()) {
      return {KVS_INVALID, std::to_string(tokens.size()) + " tokens, but tensors of " +
                               std::to_string(tensors.size())};
    }
    flat.reserve(tokens.size() * layers_ * 2);
    for (auto& token : tensors) {
      if (token.size() != layers_) return {KVS_INVALID, "a token has not one pair a layer"};
      for (auto& [k, v] : token) {
        flat.push_back(k);
        flat.push_back(v);
      }
    }
    return {};
  }

  std::shared_ptr<kvs_cache> cache_;
  const size_t layers_;
};

}  // namespace vllm::kvstore

#endif
