// The daemon: owns the arena and its index, and answers clients one request at a time.
//
// It never copies what is cached. Clients write into slots that are reserved for them and say so when
// they are done; what they find is pinned for them until they release it or their connection ends. A
// process's connection ends when the process is gone, so its slots can be given away then: nothing of
// it can still write. That is why a client that breaks the protocol is not thrown out but ignored
// until it leaves by itself.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>

#include "radix.h"
#include "wire.h"

namespace kvstore {

class Server {
 public:
  // slot_bytes 0: what the first client needs, and again when nothing is stored and nobody is there.
  static Status open(const std::string& socket, uint64_t bytes, uint64_t slot_bytes,
                     std::unique_ptr<Server>& out);
  ~Server();

  Status run(int milliseconds);
  kvs_stats stats();
  std::string check();

 private:
  struct Client;
  struct Hold;
  Server(std::string path, uint64_t bytes, uint64_t slot_bytes);

  void warm();
  void accept_client();
  void receive(Client& client);
  void flush(Client& client);
  kvs_stats count() const;
  void leave(Client& client);
  void end(Hold& hold, bool stored);
  void answer(Client& client, const wire::Request& request, const uint8_t* payload);
  void reply(Client& client, wire::Reply reply, std::vector<iovec> payload = {});
  void refuse(Client& client, const std::string& text);

  void hello(Client& client, const wire::Hello& hello);
  void match(Client& client, const wire::Request& request, const int32_t* tokens, size_t units);
  void reserve(Client& client, const wire::Request& request, const int32_t* tokens, size_t units);
  void commit(Client& client, const wire::Request& request, const uint8_t* sums);
  void contains(Client& client, const int32_t* keys, size_t count);

  static constexpr size_t kMaxClients = 1024, kMaxSpaces = 4096, kMaxHolds = 4096,
                          kMaxSlots = 1 << 24;  // what is kept of a slot beside it is then small

  const std::string path_;
  const uint64_t bytes_, fixed_slot_bytes_;
  uint64_t slot_bytes_ = 0;  // 0: no client has come yet
  int lock_ = -1, arena_ = -1, listener_ = -1, poll_ = -1;
  bool bound_ = false, listening_ = false;
  std::unique_ptr<Index> index_;
  std::unordered_map<int, std::unique_ptr<Client>> clients_;  // by descriptor
  uint64_t hits_ = 0, misses_ = 0, evicted_before_ = 0;
  std::thread warming_;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;  // run() against stats() and check()
};

}  // namespace kvstore
