// A cache in a daemon's shared memory: the client's side.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>

#include "cache.h"
#include "pool.h"
#include "wire.h"

namespace kvstore {

// A connection and the arena that came over it. Whoever reads or writes the arena keeps it, so the
// connection, and with it what the daemon holds for us, lasts as long as anybody looks.
class Attachment {
 public:
  static Status attach(const std::string& socket, const wire::Hello& hello,
                       std::shared_ptr<Attachment>& out);
  ~Attachment();

  // One question and its answer. False: the connection is of no use any more, for anybody.
  bool call(wire::Request request, const std::vector<iovec>& payload, wire::Reply& reply,
            std::vector<uint32_t>& answer);
  void release(uint64_t id);
  bool broken() const { return broken_; }
  bool hangs() const { return hangs_; }  // it broke for want of an answer in time

  // Null where the daemon names a slot that is not there.
  const uint8_t* reads(uint32_t slot) const { return at(read_, slot); }
  uint8_t* writes(uint32_t slot) const { return at(write_, slot); }

 private:
  Attachment() = default;
  Attachment(const Attachment&) = delete;
  uint8_t* at(void* base, uint32_t slot) const {
    return slot < arena_.slots ? static_cast<uint8_t*>(base) + slot * arena_.slot_bytes : nullptr;
  }
  Status greet(const wire::Hello& hello);
  Status map(int arena);
  static void forked();

  int fd_ = -1;
  wire::Arena arena_{};
  void *read_ = nullptr, *write_ = nullptr;  // what is handed out cannot be written to
  std::atomic<bool> broken_ = false, hangs_ = false;
  std::mutex mutex_;  // a question at a time
};

class SharedCache : public Cache {
 public:
  static Status open(const Layout& layout, const kvs_shared_config& config,
                     std::shared_ptr<Cache>& out);

  Status update(Tokens prefix, Tokens tokens, const kvs_tensor* tensors, size_t& updated) override;
  Status query(Tokens prefix, Tokens tokens, kvs_tensor* tensors, size_t& matched,
               Lease* lease) override;
  Status locate(Tokens prefix, Tokens tokens, const void** where, size_t& matched,
                Lease& lease) override;
  Status put(const Digest& key, const void* blob, bool& stored) override;
  Status get(const Digest& key, void* blob, bool& found) override;
  Status contains(std::span<const Digest> keys, uint8_t* out) override;
  Status remove(const Digest& key) override;
  Status gc(double, uint64_t& removed) override {
    removed = 0;  // what is least recently used goes by itself
    return {};
  }
  Status clear() override;
  Status stat(kvs_stats& out) override;
  bool attached() override { return attachment() != nullptr; }

 private:
  SharedCache(const Layout& layout, const kvs_shared_config& config);
  struct Found;
  std::shared_ptr<Attachment> attachment();
  void postpone();
  std::shared_ptr<Attachment> ask(const wire::Request& request, const std::vector<iovec>& payload,
                                  wire::Reply& reply, std::vector<uint32_t>& answer);
  Found find(const std::vector<iovec>& parts, size_t first, size_t units, uint32_t flags);
  void forget(const std::vector<iovec>& parts, uint32_t flags);
  size_t store(const std::vector<iovec>& parts, size_t first, size_t units, uint32_t flags,
               const std::function<void(size_t, uint8_t*)>& write);
  void each(size_t count, const std::function<void(size_t)>& body);

  const Layout layout_;
  const std::string socket_;
  const bool checksums_;
  const std::chrono::duration<double> retry_;
  wire::Hello hello_;
  Pool pool_;
  std::mutex mutex_;
  std::shared_ptr<Attachment> attachment_;
  std::chrono::steady_clock::time_point next_try_{};
  std::atomic<uint64_t> damaged_ = 0;
};

// What the daemon of a socket counts, whatever it serves.
Status daemon_stat(const std::string& socket, kvs_stats& out);

}  // namespace kvstore
