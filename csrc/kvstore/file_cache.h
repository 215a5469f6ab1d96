// A cache over chunk files: tokens are cut into chunks, each named by a key chained from its space.
#pragma once

#include <memory>

#include "cache.h"
#include "chunks.h"

namespace kvstore {

class FileCache : public Cache {
 public:
  static Status open(const Layout& layout, const kvs_file_config& config,
                     std::shared_ptr<Cache>& out);

  Status update(Tokens prefix, Tokens tokens, const kvs_tensor* tensors, size_t& updated) override;
  Status query(Tokens prefix, Tokens tokens, kvs_tensor* tensors, size_t& matched,
               Lease* lease) override;
  Status put(const Digest& key, const void* blob, bool& stored) override;
  Status get(const Digest& key, void* blob, bool& found) override;
  Status contains(std::span<const Digest> keys, uint8_t* out) override;
  Status remove(const Digest& key) override;
  Status gc(double ttl, uint64_t& removed) override;
  Status clear() override;
  Status stat(kvs_stats& out) override;
  bool attached() override { return true; }

 private:
  FileCache(const Layout& layout, uint32_t chunk) : layout_(layout), chunk_(chunk) {}
  std::vector<Chunk> cut(Tokens prefix, Tokens tokens, const kvs_tensor* tensors,
                         Digest* parent) const;
  std::vector<kvs_tensor> pieces(const void* blob) const;
  Status in_chunks(Tokens prefix) const;
  Status keyed() const;

  const Layout layout_;
  const uint32_t chunk_;  // tokens of a file
  Digest space_;
  std::unique_ptr<ChunkStore> store_;
};

}  // namespace kvstore
