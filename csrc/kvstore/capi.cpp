// The C interface: arguments are checked here, exceptions end here.
#include <exception>
#include <mutex>
#include <unordered_map>

#include "chunks.h"
#include "file_cache.h"
#include "server.h"
#include "shared_cache.h"

using namespace kvstore;

struct kvs_cache {
  Layout layout;
  std::mutex mutex;
  std::shared_ptr<Cache> impl;  // none once it is closed; a call in progress keeps its own
  uint64_t last_lease = 0;
  std::unordered_map<uint64_t, Lease> leases;

  uint64_t keep(Lease lease) {
    std::lock_guard lock(mutex);
    leases[++last_lease] = std::move(lease);
    return last_lease;
  }

  std::shared_ptr<Cache> open() {
    std::lock_guard lock(mutex);
    return impl;
  }
};

struct kvs_server {
  std::unique_ptr<Server> impl;
};

namespace {

thread_local std::string error_text;

template <typename Body>
int guarded(Body body) {
  Status status;
  try {
    status = body();
  } catch (const std::exception& e) {
    status = {KVS_IO, e.what()};
  }
  error_text = std::move(status.text);
  return status.code;
}

// body(cache) on a cache that is open.
template <typename Body>
int with(kvs_cache* cache, Body body) {
  return guarded([&]() -> Status {
    if (!cache) return Status::invalid("cache is null");
    auto impl = cache->open();
    return impl ? body(*impl) : Status::closed();
  });
}

Status check(const kvs_layout* in, Layout& out) {
  if (!in) return Status::invalid("layout is null");
  if (in->layers == 0) return Status::invalid("layers is 0");
  if (in->tensor_bytes == 0) return Status::invalid("tensor_bytes is 0");
  if (in->tensor_bytes > (uint64_t{1} << 40) / in->layers) {
    return Status::invalid("a token is larger than a terabyte");
  }
  uint32_t world = in->world_size ? in->world_size : 1;
  if (in->rank >= world) return Status::invalid("rank is not below world_size");
  out = {in->space ? in->space : "", in->layers, in->tensor_bytes, in->rank, world, in->threads};
  return {};
}

Status check(const kvs_cache& cache, const int32_t* prefix, size_t num_prefix, const int32_t* tokens,
             size_t num_tokens, const kvs_tensor* tensors, bool may_be_empty) {
  if (num_prefix && !prefix) return Status::invalid("prefix is null");
  if (num_tokens && !tokens) return Status::invalid("tokens is null");
  if (num_tokens && !tensors) return Status::invalid("tensors is null");
  const size_t each = cache.layout.tensors();
  for (size_t i = 0; i < num_tokens * each; ++i) {
    if (!tensors[i].data && may_be_empty && tensors[i].length == 0) continue;
    const char* fault = !tensors[i].data ? "has no data"
                        : tensors[i].length != cache.layout.tensor_bytes
                            ? "is not of tensor_bytes"
                            : nullptr;
    if (!fault) continue;
    return Status::invalid("the " + std::string(i % 2 ? "V" : "K") + " of token " +
                           std::to_string(i / each) + ", layer " + std::to_string(i % each / 2) +
                           " " + fault);
  }
  return {};
}

template <typename Kind, typename Config>
int opened(const kvs_layout* layout, const Config* config, kvs_cache** out) {
  return guarded([&]() -> Status {
    Layout checked;
    KVS_TRY(check(layout, checked));
    if (!config || !out) return Status::invalid("config or out is null");
    std::shared_ptr<Cache> impl;
    KVS_TRY(Kind::open(checked, *config, impl));
    *out = new kvs_cache{.layout = checked, .mutex = {}, .impl = std::move(impl), .leases = {}};
    return {};
  });
}

}  // namespace

extern "C" {

const char* kvs_error(void) { return error_text.c_str(); }

int kvs_open_files(const kvs_layout* layout, const kvs_file_config* config, kvs_cache** out) {
  return opened<FileCache>(layout, config, out);
}

int kvs_open_shared(const kvs_layout* layout, const kvs_shared_config* config, kvs_cache** out) {
  return opened<SharedCache>(layout, config, out);
}

int kvs_update(kvs_cache* cache, const int32_t* prefix, size_t num_prefix, const int32_t* tokens,
               size_t num_tokens, const kvs_tensor* tensors, size_t* updated) {
  return with(cache, [&](Cache& c) -> Status {
    *updated = 0;
    KVS_TRY(check(*cache, prefix, num_prefix, tokens, num_tokens, tensors, false));
    return c.update({prefix, num_prefix}, {tokens, num_tokens}, tensors, *updated);
  });
}

int kvs_query(kvs_cache* cache, const int32_t* prefix, size_t num_prefix, const int32_t* tokens,
              size_t num_tokens, kvs_tensor* tensors, size_t* matched, uint64_t* lease) {
  return with(cache, [&](Cache& c) -> Status {
    *matched = 0;
    if (lease) *lease = 0;
    KVS_TRY(check(*cache, prefix, num_prefix, tokens, num_tokens, tensors, true));
    Lease held;
    KVS_TRY(c.query({prefix, num_prefix}, {tokens, num_tokens}, tensors, *matched,
                    lease ? &held : nullptr));
    if (held) *lease = cache->keep(std::move(held));
    return {};
  });
}

int kvs_locate(kvs_cache* cache, const int32_t* prefix, size_t num_prefix, const int32_t* tokens,
               size_t num_tokens, const void** where, size_t* matched, uint64_t* lease) {
  return with(cache, [&](Cache& c) -> Status {
    *matched = 0;
    *lease = 0;
    if (num_prefix && !prefix) return Status::invalid("prefix is null");
    if (num_tokens && (!tokens || !where)) return Status::invalid("tokens or where is null");
    Lease held;
    KVS_TRY(c.locate({prefix, num_prefix}, {tokens, num_tokens}, where, *matched, held));
    if (held) *lease = cache->keep(std::move(held));
    return {};
  });
}

int kvs_release(kvs_cache* cache, uint64_t lease) {
  return guarded([&]() -> Status {
    if (!cache) return Status::invalid("cache is null");
    std::unique_lock lock(cache->mutex);
    auto found = cache->leases.extract(lease);
    lock.unlock();  // its end talks to the daemon
    if (lease && found.empty()) return Status::invalid("there is no such lease");
    return {};
  });
}

static Digest digest(const uint8_t* key) {
  Digest out;
  memcpy(out.data(), key, out.size());
  return out;
}

int kvs_put(kvs_cache* cache, const uint8_t* key, const void* blob, int* stored) {
  return with(cache, [&](Cache& c) -> Status {
    if (!key || !blob) return Status::invalid("key or blob is null");
    bool done = false;
    KVS_TRY(c.put(digest(key), blob, done));
    *stored = done;
    return {};
  });
}

int kvs_get(kvs_cache* cache, const uint8_t* key, void* blob, int* found) {
  return with(cache, [&](Cache& c) -> Status {
    if (!key || !blob) return Status::invalid("key or blob is null");
    bool done = false;
    KVS_TRY(c.get(digest(key), blob, done));
    *found = done;
    return {};
  });
}

int kvs_contains(kvs_cache* cache, const uint8_t* keys, size_t num_keys, uint8_t* out) {
  return with(cache, [&](Cache& c) -> Status {
    if (num_keys && (!keys || !out)) return Status::invalid("keys or out is null");
    return c.contains({reinterpret_cast<const Digest*>(keys), num_keys}, out);
  });
}

int kvs_remove(kvs_cache* cache, const uint8_t* key) {
  return with(cache, [&](Cache& c) -> Status {
    if (!key) return Status::invalid("key is null");
    return c.remove(digest(key));
  });
}

int kvs_gc(kvs_cache* cache, double ttl, uint64_t* removed) {
  return with(cache, [&](Cache& c) -> Status {
    if (!(ttl >= 0)) return Status::invalid("ttl is negative");
    return c.gc(ttl, *removed);
  });
}

int kvs_clear(kvs_cache* cache) {
  return with(cache, [](Cache& c) { return c.clear(); });
}

int kvs_stat(kvs_cache* cache, kvs_stats* out) {
  return with(cache, [&](Cache& c) { return c.stat(*out); });
}

int kvs_attached(kvs_cache* cache) {
  auto impl = cache ? cache->open() : nullptr;
  return impl && impl->attached();
}

int kvs_close(kvs_cache* cache) {
  return guarded([&]() -> Status {
    if (!cache) return Status::invalid("cache is null");
    std::shared_ptr<Cache> impl;  // ends here, or with the last call in progress
    std::lock_guard lock(cache->mutex);
    std::swap(impl, cache->impl);
    return {};
  });
}

void kvs_free(kvs_cache* cache) { delete cache; }

int kvs_server_open(const char* socket, uint64_t bytes, uint64_t slot_bytes, kvs_server** out) {
  return guarded([&]() -> Status {
    if (!socket || !out) return Status::invalid("socket or out is null");
    auto made = std::make_unique<kvs_server>();
    KVS_TRY(Server::open(socket, bytes, slot_bytes, made->impl));
    *out = made.release();
    return {};
  });
}

int kvs_server_run(kvs_server* server, int milliseconds) {
  return guarded([&] { return server->impl->run(milliseconds); });
}

int kvs_server_stat(kvs_server* server, kvs_stats* out) {
  return guarded([&]() -> Status {
    *out = server->impl->stats();
    return {};
  });
}

int kvs_server_check(kvs_server* server) {
  return guarded([&]() -> Status {
    std::string fault = server->impl->check();
    return fault.empty() ? Status{} : Status::invalid(fault);
  });
}

void kvs_server_free(kvs_server* server) { delete server; }

int kvs_daemon_stat(const char* socket, kvs_stats* out) {
  *out = {};
  return guarded([&]() -> Status {
    if (!socket) return Status::invalid("socket is null");
    return daemon_stat(socket, *out);
  });
}

int kvs_root_stat(const char* root, kvs_stats* out) {
  *out = {};
  return guarded([&] { return root_stat(root, *out); });
}

int kvs_root_gc(const char* root, double ttl, uint64_t quota_bytes, uint64_t* removed) {
  return guarded([&] { return root_gc(root, ttl, quota_bytes, *removed); });
}

int kvs_root_verify(const char* root, int repair, kvs_stats* out) {
  *out = {};
  return guarded([&] { return root_verify(root, repair != 0, *out); });
}

void kvs_sha256(const void* data, size_t length, uint8_t* out) {
  Sha256 sha;
  sha.update(data, length);
  Digest digest = sha.finish();
  memcpy(out, digest.data(), digest.size());
}

uint64_t kvs_checksum(const void* data, size_t length) { return checksum(data, length); }

}  // extern "C"
