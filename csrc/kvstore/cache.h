// What every store can do; the C interface in terms of C++. See include/vllm/kvstore.h.
#pragma once

#include <memory>
#include <span>

#include "hash.h"
#include "status.h"

namespace kvstore {

using Tokens = std::span<const int32_t>;

// What shapes a cache's bytes. Two caches see each other's tokens only when all of it is equal.
struct Layout {
  std::string space;
  uint32_t layers = 1;
  uint64_t tensor_bytes = 0;
  uint32_t rank = 0, world_size = 1;
  unsigned threads = 0;

  size_t tensors() const { return size_t{layers} * 2; }  // of a token
  uint64_t token_bytes() const { return tensors() * tensor_bytes; }
  // The digest of it all; `kind` tells stores apart that cut tokens differently.
  Digest name(const std::string& kind) const {
    Sha256 sha;
    sha.field("vllm-kvstore-1", 14);
    sha.field(kind.data(), kind.size());
    sha.field(space.data(), space.size());
    uint64_t numbers[4] = {layers, tensor_bytes, rank, world_size};
    sha.field(numbers, sizeof numbers);
    return sha.finish();
  }
};

// What was found stays as it is for as long as this is kept.
using Lease = std::shared_ptr<void>;

class Cache {
 public:
  virtual ~Cache() = default;
  virtual Status update(Tokens prefix, Tokens tokens, const kvs_tensor* tensors, size_t& updated) = 0;
  virtual Status query(Tokens prefix, Tokens tokens, kvs_tensor* tensors, size_t& matched,
                       Lease* lease) = 0;
  virtual Status locate(Tokens, Tokens, const void**, size_t&, Lease&) {
    return Status::invalid("only shared memory has anything in place");
  }
  virtual Status put(const Digest& key, const void* blob, bool& stored) = 0;
  virtual Status get(const Digest& key, void* blob, bool& found) = 0;
  virtual Status contains(std::span<const Digest> keys, uint8_t* out) = 0;
  virtual Status remove(const Digest& key) = 0;
  virtual Status gc(double ttl, uint64_t& removed) = 0;
  virtual Status clear() = 0;
  virtual Status stat(kvs_stats& out) = 0;
  virtual bool attached() = 0;
};

}  // namespace kvstore
