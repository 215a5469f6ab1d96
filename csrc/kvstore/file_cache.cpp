#include "file_cache.h"

#include <algorithm>

namespace kvstore {

Status FileCache::open(const Layout& layout, const kvs_file_config& config,
                       std::shared_ptr<Cache>& out) {
  if (!config.root || !*config.root) return Status::invalid("root is empty");
  if (config.chunk_tokens < 1 || config.chunk_tokens > 65536) {
    return Status::invalid("chunk_tokens is not from 1 to 65536");
  }
  if (config.split < 1 || config.split > 4) return Status::invalid("split is not from 1 to 4");
  if (config.sync < KVS_SYNC_NONE || config.sync > KVS_SYNC_ALL) {
    return Status::invalid("sync is none of KVS_SYNC_*");
  }
  std::shared_ptr<FileCache> cache(new FileCache(layout, config.chunk_tokens));
  cache->space_ = layout.name("files/" + std::to_string(config.chunk_tokens));
  ChunkStore::Config store;
  store.root = config.root;
  store.space = cache->space_;
  store.split = config.split;
  store.pieces = layout.tensors() * config.chunk_tokens;
  store.piece_bytes = layout.tensor_bytes;
  store.quota = config.quota_bytes;
  store.ttl = config.ttl;
  store.gc_interval = config.gc_interval;
  store.global_ttl = config.global_ttl;
  store.global_gc_interval = config.global_gc_interval;
  store.sync = config.sync;
  store.direct = config.direct != 0;
  store.threads = layout.threads;
  KVS_TRY(ChunkStore::open(store, cache->store_));
  out = std::move(cache);
  return {};
}

// The whole chunks of `tokens`. *parent: the key of the prefix's last chunk (the space's without one).
std::vector<Chunk> FileCache::cut(Tokens prefix, Tokens tokens, const kvs_tensor* tensors,
                                  Digest* parent) const {
  Digest key = space_;
  for (size_t at = 0; at + chunk_ <= prefix.size(); at += chunk_) {
    key = chain(key, prefix.data() + at, chunk_);
  }
  if (parent) *parent = key;
  std::vector<Chunk> chunks;
  for (size_t at = 0; at + chunk_ <= tokens.size(); at += chunk_) {
    key = chain(key, tokens.data() + at, chunk_);
    chunks.push_back({key, tokens.data() + at, chunk_, tensors + at * layout_.tensors()});
  }
  return chunks;
}

static size_t leading(const bool* ok, size_t count) { return std::find(ok, ok + count, false) - ok; }

Status FileCache::in_chunks(Tokens prefix) const {
  if (prefix.size() % chunk_ == 0) return {};
  return Status::invalid("prefix has " + std::to_string(prefix.size()) +
                         " tokens, no multiple of the chunk of " + std::to_string(chunk_));
}

Status FileCache::update(Tokens prefix, Tokens tokens, const kvs_tensor* tensors, size_t& updated) {
  updated = 0;
  KVS_TRY(in_chunks(prefix));
  Digest parent;
  auto chunks = cut(prefix, tokens, tensors, &parent);
  if (!prefix.empty() && !store_->contains(parent)) return {};
  auto ok = std::make_unique<bool[]>(chunks.size());
  store_->put(chunks, ok.get());
  updated = leading(ok.get(), chunks.size()) * chunk_;
  return {};
}

Status FileCache::query(Tokens prefix, Tokens tokens, kvs_tensor* tensors, size_t& matched,
                        Lease*) {
  matched = 0;
  KVS_TRY(in_chunks(prefix));
  for (size_t i = 0; i < tokens.size() * layout_.tensors(); ++i) {
    if (!tensors[i].data) return Status::invalid("tensors[" + std::to_string(i) + "] has no data");
  }
  auto chunks = cut(prefix, tokens, tensors, nullptr);
  auto ok = std::make_unique<bool[]>(chunks.size());
  store_->get(chunks, ok.get());
  matched = leading(ok.get(), chunks.size()) * chunk_;
  return {};
}

Status FileCache::keyed() const {
  if (chunk_ == 1) return {};
  return Status::invalid("blobs by key need chunk_tokens of 1");
}

// The tensors of one blob, which lie one behind the other.
std::vector<kvs_tensor> FileCache::pieces(const void* blob) const {
  std::vector<kvs_tensor> out(layout_.tensors());
  auto* bytes = static_cast<uint8_t*>(const_cast<void*>(blob));  // written only where it may be
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = {bytes + i * layout_.tensor_bytes, layout_.tensor_bytes};
  }
  return out;
}

// A chunk that is one blob has no tokens: the key alone names it.
Status FileCache::put(const Digest& key, const void* blob, bool& stored) {
  KVS_TRY(keyed());
  auto tensors = pieces(blob);
  store_->put({{key, nullptr, 0, tensors.data()}}, &stored);
  return {};
}

Status FileCache::get(const Digest& key, void* blob, bool& found) {
  KVS_TRY(keyed());
  auto tensors = pieces(blob);
  store_->get({{key, nullptr, 0, tensors.data()}}, &found);
  return {};
}

Status FileCache::contains(std::span<const Digest> keys, uint8_t* out) {
  KVS_TRY(keyed());
  for (size_t i = 0; i < keys.size(); ++i) out[i] = store_->contains(keys[i]);
  return {};
}

Status FileCache::remove(const Digest& key) {
  KVS_TRY(keyed());
  store_->remove(key);
  return {};
}

Status FileCache::gc(double ttl, uint64_t& removed) {
  removed = store_->gc(ttl);
  return {};
}

Status FileCache::clear() {
  store_->clear();
  return {};
}

Status FileCache::stat(kvs_stats& out) {
  out = store_->stats();
  return {};
}

}  // namespace kvstore
