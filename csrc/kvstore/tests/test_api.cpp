// The C++ interface as a program that links the library has it: both stores, by the header alone.
#include <atomic>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "check.h"
#include "vllm/kvstore.hpp"

using namespace vllm::kvstore;

namespace {

constexpr size_t kTensor = 24, kLayers = 3;

struct Values {
  explicit Values(size_t tokens, char start = 0) : bytes(tokens * kLayers * 2 * kTensor) {
    if (start) {
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(start + i * 7);
    }
    for (size_t i = 0; i < tokens; ++i) {
      list.emplace_back();
      for (size_t j = 0; j < kLayers; ++j) {
        char* at = bytes.data() + (i * kLayers + j) * 2 * kTensor;
        list.back().push_back({{at, kTensor}, {at + kTensor, kTensor}});
      }
    }
  }
  std::vector<char> bytes;
  KVList list;
};

KVList nowhere(size_t tokens) {
  return KVList(tokens, std::vector<std::pair<LLMKV, LLMKV>>(kLayers));
}

template <typename Config>
void both(const Config& config) {
  const Layout layout{.tensor_bytes = kTensor, .layers = kLayers, .space = "test"};
  std::shared_ptr<KVCache> cache, other;
  CHECK(KVCache::Make(config, layout, cache).ok());
  const Tokens tokens{1, 2, 3, 4};
  Values given(4, 'a'), found(4);
  size_t count = 0;
  CHECK(cache->Update(tokens, given.list, count).ok() && count == 4);
  CHECK(cache->Query(tokens, found.list, count).ok() && count == 4);
  CHECK(found.bytes == given.bytes);
  Values tail(2), more(2, 'x');
  CHECK(cache->Query({1, 2}, {3, 4}, tail.list, count).ok() && count == 2);
  CHECK(!memcmp(tail.bytes.data(), given.bytes.data() + given.bytes.size() / 2, tail.bytes.size()));
  CHECK(cache->Update(tokens, {5, 6}, more.list, count).ok() && count == 2);
  CHECK(cache->Update({9, 9}, {5, 6}, more.list, count).ok() && count == 0);  // no such prefix
  CHECK(cache->BatchedUpdate({7, 8}, more.list, count).ok() && count == 2);
  CHECK(cache->BatchedQuery({7, 8}, tail.list, count).ok() && tail.bytes == more.bytes);

  CHECK(KVCache::Make(config, {kTensor, kLayers, "another"}, other).ok());
  CHECK(other->Query(tokens, found.list, count).ok() && count == 0);

  Status status = cache->Update({1}, given.list, count);
  CHECK(status.code() == KVS_INVALID && status.text().find("1 tokens") != std::string::npos);
  uint64_t removed = 0;
  CHECK(cache->GC(1e6, removed).ok() && removed == 0);
  kvs_stats stats{};
  CHECK(cache->Stat(stats).ok() && stats.bytes > 0 && stats.hits > 0);
  CHECK(KVCache::ClearGlobalCache(config, layout).ok());
  CHECK(cache->Query(tokens, found.list, count).ok() && count == 0);
  CHECK(cache->Close().ok());
  CHECK(cache->Query(tokens, found.list, count).code() == KVS_CLOSED);
  CHECK(!KVCache::Make(config, {0, kLayers}, other).ok());
}

}  // namespace

int main() {
  char folder[] = "/tmp/kvs_api_XXXXXX";
  CHECK(mkdtemp(folder));
  both(FileConfig{.root = std::string(folder) + "/files", .chunk_tokens = 2});

  const std::string socket = std::string(folder) + "/run/s";
  std::shared_ptr<KVCache> cache;
  const Layout layout{.tensor_bytes = kTensor, .layers = kLayers};
  CHECK(KVCache::Make(SharedMemoryConfig{.socket = socket}, layout, cache).code() == KVS_IO);
  kvs_server* server = nullptr;
  CHECK(kvs_server_open(socket.c_str(), 1 << 20, 0, &server) == KVS_OK);
  std::atomic<bool> stop = false;
  std::thread serving([&] {
    while (!stop) CHECK(kvs_server_run(server, 5) == KVS_OK);
  });
  both(SharedMemoryConfig{.socket = socket});

  // In place: held by the match, in spite of the cache's end.
  const SharedMemoryConfig config{.socket = socket, .capacity = 4};
  CHECK(KVCache::Make(config, layout, cache).ok());
  Values given(4, 'a'), other(4, 'q');
  KVList found = nowhere(4);
  size_t count = 0;
  CHECK(cache->Update({1, 2, 3, 4}, given.list, count).ok() && count == 4);
  CHECK(cache->Query({1, 2, 3, 4}, found, count).code() == KVS_INVALID);  // nothing would hold them
  Match match;
  CHECK(cache->Query({1, 2, 3, 4}, found, count, &match).ok() && count == 4);
  CHECK(cache->Update({6, 7, 8, 9}, other.list, count).ok() && count == 0);  // all is held
  CHECK(cache->Close().ok());
  cache.reset();
  CHECK(!memcmp(found[3][2].second.data, given.list[3][2].second.data, kTensor));
  CHECK(found[3][2].second.length == kTensor);
  CHECK(KVCache::Make(config, layout, cache).ok());
  CHECK(cache->Update({6, 7, 8, 9}, other.list, count).ok() && count == 0);
  match = {};
  CHECK(cache->Update({6, 7, 8, 9}, other.list, count).ok() && count == 4);

  Key key{};
  std::vector<char> blob(kLayers * 2 * kTensor, 'b'), out(blob.size());
  bool done = false;
  CHECK(cache->Put(key, blob.data(), done).ok() && done);
  CHECK(cache->Get(key, out.data(), done).ok() && done && out == blob);
  stop = true;
  serving.join();
  kvs_stats stats{};
  CHECK(kvs_server_check(server) == KVS_OK);
  CHECK(kvs_server_stat(server, &stats) == KVS_OK && stats.clients == 1);
  kvs_server_free(server);
  CHECK(cache->Query({6, 7, 8, 9}, given.list, count).ok() && count == 0);  // away is no error
  std::filesystem::remove_all(folder);
}
