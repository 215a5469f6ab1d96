// The shared KV store: KV tensors of tokens, kept for other requests, processes and hosts.
//
// Two stores behind one interface:
//
//   shared memory   a daemon owns an arena and a radix tree of tokens; clients map the arena and
//                   read it in place. Matches are token by token.
//   files           one file a chunk of tokens under a folder, named by a chained SHA-256. Matches
//                   are chunk by chunk; any POSIX filesystem, local or distributed, will do.
//
// Words used below. A cache stores for each token `layers` pairs (K, V) of `tensor_bytes` each. What
// two caches must have in common to see each other's tokens is their `space`: a text that names the
// model and all that shapes its KVs; layers, tensor_bytes, rank and world size join it by themselves.
// Arrays of tensors are flat: the K of token i and layer j is tensors[(i * layers + j) * 2], the V
// stands behind it.
//
// Cached data may be lost at any time, and is never wrong: what cannot be read and verified counts as
// not being there. A call returns KVS_OK, or a negative code with a text in kvs_error(). A daemon that
// is away is no error: nothing matches, nothing is stored, and the connection comes back by itself.
//
// All functions may be called from several threads at once, on one cache too, but kvs_free alone.
#ifndef VLLM_KVSTORE_H_
#define VLLM_KVSTORE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVS_API __attribute__((visibility("default")))

enum {
  KVS_OK = 0,
  KVS_INVALID = -1,  // an argument; the text names it
  KVS_IO = -2,       // the system refused something; the text says what
  KVS_CLOSED = -3,   // the cache was closed
};

// Files reach the disk: not before the system writes them; data before the rename; data and name.
enum { KVS_SYNC_NONE = 0, KVS_SYNC_DATA = 1, KVS_SYNC_ALL = 2 };

typedef struct kvs_cache kvs_cache;

typedef struct {
  void* data;
  size_t length;
} kvs_tensor;

typedef struct {
  const char* space;      // see above; may be empty
  uint32_t layers;        // > 0
  uint64_t tensor_bytes;  // of one K or V of one token and layer, > 0
  uint32_t rank;
  uint32_t world_size;  // 0 counts as 1
  uint32_t threads;     // that copy or do I/O; 0: as many as is sensible
} kvs_layout;

typedef struct {
  const char* root;           // folder, made with mode 0700
  uint32_t chunk_tokens;      // a file, 1 to 65536
  uint32_t split;             // hex digits of a folder's name, 1 to 4
  uint64_t quota_bytes;       // of all files under the root; 0: none
  double ttl, gc_interval;    // seconds: this client's own files; interval 0: off
  double global_ttl, global_gc_interval;  // seconds: all files under the root; interval 0: off
  int32_t sync;               // KVS_SYNC_*
  int32_t direct;             // 1: direct I/O if a probe says it works; 0: buffered
} kvs_file_config;

typedef struct {
  const char* socket;  // of the daemon
  uint64_t capacity;   // tokens that this space may hold, > 0; the largest that a client asked for
  int32_t checksums;   // 1: record one a token, and find only what has it. A space of its own
  int32_t lazy;        // 1: open even if the daemon is away
  double retry;        // seconds between tries to reach a daemon that is away, > 0
} kvs_shared_config;

typedef struct {
  uint64_t bytes;           // of payload and headers, now
  uint64_t capacity_bytes;  // 0: unbounded
  uint64_t entries;         // tokens in shared memory; files, of a root (kvs_root_*)
  uint64_t pinned;          // slots under a lease or being written
  uint64_t clients;         // connections
  uint64_t hits, misses;    // tokens asked for and found, or not; this client's or this daemon's
  uint64_t evicted;         // entries
  uint64_t damaged;         // files that did not verify
  uint64_t direct;          // 1: a cache's files are read and written past the page cache
} kvs_stats;

// The text of this thread's last error; valid until its next call.
KVS_API const char* kvs_error(void);

// ---- a cache ------------------------------------------------------------------------------------

// A daemon that cannot serve this layout, or is not there and should be, is an error.
KVS_API int kvs_open_shared(const kvs_layout* layout, const kvs_shared_config* config,
                            kvs_cache** out);
KVS_API int kvs_open_files(const kvs_layout* layout, const kvs_file_config* config, kvs_cache** out);

// Store the tensors of `tokens`, which follow `prefix`. *updated: how many leading tokens of `tokens`
// are stored now, by this call or before it. A prefix that is not there itself stores nothing.
// Files: the prefix is a multiple of the chunk; a last, broken chunk of `tokens` is left out.
KVS_API int kvs_update(kvs_cache* cache, const int32_t* prefix, size_t num_prefix,
                       const int32_t* tokens, size_t num_tokens, const kvs_tensor* tensors,
                       size_t* updated);

// Find the tensors of the longest leading run of `tokens` (behind `prefix`) that is stored.
// A tensor with data is filled (its length must be tensor_bytes). Shared memory also takes tensors
// without data and points them into the arena: good until *lease is released; lease may be NULL
// only where all have data, and is 0 when nothing is held. The arena's pages cannot be written through
// such pointers. What lies behind the match is unspecified.
KVS_API int kvs_query(kvs_cache* cache, const int32_t* prefix, size_t num_prefix,
                      const int32_t* tokens, size_t num_tokens, kvs_tensor* tensors, size_t* matched,
                      uint64_t* lease);
// The same, shared memory only, with one pointer a token: all its tensors lie one behind the other.
KVS_API int kvs_locate(kvs_cache* cache, const int32_t* prefix, size_t num_prefix,
                       const int32_t* tokens, size_t num_tokens, const void** where, size_t* matched,
                       uint64_t* lease);
// Also after kvs_close.
KVS_API int kvs_release(kvs_cache* cache, uint64_t lease);

// The same store by key: blobs of 2 * layers * tensor_bytes under 32 bytes that name them.
// kvs_get: *found is 0 when the key is not there or does not verify; then the blob is unspecified.
KVS_API int kvs_put(kvs_cache* cache, const uint8_t* key, const void* blob, int* stored);
KVS_API int kvs_get(kvs_cache* cache, const uint8_t* key, void* blob, int* found);
KVS_API int kvs_contains(kvs_cache* cache, const uint8_t* keys, size_t num_keys, uint8_t* out);
KVS_API int kvs_remove(kvs_cache* cache, const uint8_t* key);

// Files: delete what was not used for `ttl` seconds, and what dead writers left; *removed: files.
// Shared memory needs none: what is least recently used goes when room is needed.
KVS_API int kvs_gc(kvs_cache* cache, double ttl, uint64_t* removed);
// Forget everything of this space (shared memory) or under this root and space (files).
KVS_API int kvs_clear(kvs_cache* cache);
KVS_API int kvs_stat(kvs_cache* cache, kvs_stats* out);
// Whether the daemon is connected now (shared memory); an open cache of files always is.
KVS_API int kvs_attached(kvs_cache* cache);
// End its threads and, with the last lease, its connection; later calls return KVS_CLOSED. What was
// found in place stays good until it is released, or until kvs_free releases all.
KVS_API int kvs_close(kvs_cache* cache);
KVS_API void kvs_free(kvs_cache* cache);

// ---- the daemon ---------------------------------------------------------------------------------

typedef struct kvs_server kvs_server;

// An arena of `bytes`, allocated here and touched page by page while it serves, and a socket, 0600,
// in a folder that only we may enter. Its slots are of slot_bytes (2 * layers * tensor_bytes of a
// layout); 0: of what the first client needs, and anew whenever nothing is stored and nobody is
// connected.
KVS_API int kvs_server_open(const char* socket, uint64_t bytes, uint64_t slot_bytes,
                            kvs_server** out);
// Serve for so long (milliseconds; negative: until an error).
KVS_API int kvs_server_run(kvs_server* server, int milliseconds);
KVS_API int kvs_server_stat(kvs_server* server, kvs_stats* out);
// KVS_INVALID, with a text, when an invariant of the index does not hold. For tests.
KVS_API int kvs_server_check(kvs_server* server);
KVS_API void kvs_server_free(kvs_server* server);
// What a running daemon counts, asked over its socket.
KVS_API int kvs_daemon_stat(const char* socket, kvs_stats* out);

// ---- a folder, whoever's files are in it --------------------------------------------------------

KVS_API int kvs_root_stat(const char* root, kvs_stats* out);
// Down to `quota_bytes` (0: no such bound), without what was not used for `ttl` seconds (0: likewise).
KVS_API int kvs_root_gc(const char* root, double ttl, uint64_t quota_bytes, uint64_t* removed);
// Read every file; out->damaged of out->entries do not verify, and are deleted with `repair`.
KVS_API int kvs_root_verify(const char* root, int repair, kvs_stats* out);

// SHA-256 and the checksum of payloads, for tests and tools.
KVS_API void kvs_sha256(const void* data, size_t length, uint8_t* out);
KVS_API uint64_t kvs_checksum(const void* data, size_t length);

#ifdef __cplusplus
}
#endif
#endif
