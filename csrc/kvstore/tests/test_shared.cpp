// Processes that read, write and die at any moment, on one small arena: nobody reads what is torn or
// another's, and what the dead held comes back.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <random>
#include <thread>

#include "check.h"
#include "hash.h"
#include "server.h"

using namespace kvstore;

namespace {

constexpr uint64_t kTensor = 96, kToken = kTensor * 2;  // one layer
constexpr size_t kSlots = 300, kLength = 24, kGets = 1'000'000;

struct Counts {
  std::atomic<uint64_t> gets, found, wrong, stored, errors;
};

struct Client {
  Client(const char* socket, int checksums) {
    kvs_layout layout{.space = "", .layers = 1, .tensor_bytes = kTensor, .rank = 0, .world_size = 1,
                      .threads = 1};
    kvs_shared_config config{socket, 1000, checksums, 1, 0.01};
    CHECK(kvs_open_shared(&layout, &config, &cache) == KVS_OK);
  }
  ~Client() { kvs_free(cache); }
  kvs_cache* cache = nullptr;
};

// The content of a token depends on all of its path, so another's or a half of two shows.
void content(uint64_t path, uint64_t* out) {
  for (size_t i = 0; i < kToken / 8; ++i) {
    path = path * 6364136223846793005 + 1442695040888963407;
    out[i] = path;
  }
}

std::vector<int32_t> some_path(std::mt19937_64& random) {
  std::vector<int32_t> path(kLength);
  int32_t token = static_cast<int32_t>(random() % 4);
  for (auto& t : path) {
    if (random() % 10 == 0) token = static_cast<int32_t>(random() % 4);
    t = token;
  }
  return path;
}

void child(const char* socket, Counts& counts, unsigned seed) {
  std::mt19937_64 random(seed);
  Client client(socket, seed % 2);
  std::vector<uint64_t> expected(kLength * kToken / 8), copy(expected.size());
  std::vector<kvs_tensor> tensors(kLength * 2);
  for (;;) {
    auto path = some_path(random);
    uint64_t so_far = 0;
    for (size_t i = 0; i < kLength; ++i) {
      so_far = (so_far + static_cast<uint64_t>(path[i]) + 1) * 0x9E3779B97F4A7C15;
      content(so_far, expected.data() + i * kToken / 8);
    }
    size_t done = 0;
    if (random() % 3 == 0) {
      for (size_t i = 0; i < tensors.size(); ++i) {
        tensors[i] = {expected.data() + i * kTensor / 8, kTensor};
      }
      if (kvs_update(client.cache, nullptr, 0, path.data(), kLength, tensors.data(), &done)) {
        ++counts.errors;
      }
      counts.stored += done;
      continue;
    }
    const bool in_place = random() % 2;
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors[i] = in_place ? kvs_tensor{nullptr, 0} : kvs_tensor{copy.data() + i * kTensor / 8, kTensor};
    }
    uint64_t lease = 0;
    if (kvs_query(client.cache, nullptr, 0, path.data(), kLength, tensors.data(), &done, &lease)) {
      ++counts.errors;
    }
    for (int look = 0; look < (in_place ? 2 : 1); ++look) {
      for (size_t i = 0; i < done * 2; ++i) {
        if (memcmp(tensors[i].data, expected.data() + i * kTensor / 8, kTensor)) ++counts.wrong;
      }
      if (in_place && done && random() % 8 == 0) std::this_thread::yield();
    }
    if (lease && kvs_release(client.cache, lease)) ++counts.errors;
    counts.gets += kLength;
    counts.found += done;
  }
}

}  // namespace

int main() {
  char folder[] = "/tmp/kvs_shared_XXXXXX";
  CHECK(mkdtemp(folder));
  const std::string socket = std::string(folder) + "/s";
  auto* counts = new (mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Counts{};

  // The children come from a process without threads; this one serves and kills.
  std::vector<pid_t> children(4);
  unsigned seed = 0;
  auto spawn = [&] {
    pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // a check that fails ends them too
      child(socket.c_str(), *counts, ++seed);
      _exit(0);
    }
    ++seed;
    return pid;
  };
  for (auto& pid : children) pid = spawn();

  std::unique_ptr<Server> server;
  Status status = Server::open(socket, (kSlots * kToken / 4096 + 1) * 4096, kToken, server);
  if (!status.ok()) fprintf(stderr, "%s\n", status.text.c_str());
  CHECK(status.ok());

  std::mt19937 random(1);
  size_t kills = 0;
  while (counts->gets < kGets) {
    CHECK(server->run(random() % 20 + 1).ok());
    CHECK(server->check().empty());
    auto& victim = children[random() % children.size()];
    kill(victim, SIGKILL);
    waitpid(victim, nullptr, 0);
    ++kills;
    victim = spawn();
  }
  for (pid_t pid : children) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  CHECK(server->run(50).ok());

  kvs_stats stats = server->stats();
  printf("%lu gets, %lu found, %lu stored, %zu killed, %lu evicted, %lu in use\n",
         counts->gets.load(), counts->found.load(), counts->stored.load(), kills, stats.evicted,
         stats.entries);
  CHECK(counts->wrong == 0);
  CHECK(counts->errors == 0);
  CHECK(counts->found > kGets / 50);
  CHECK(stats.evicted > kGets / 100);
  CHECK(kills > 20);
  CHECK(stats.clients == 0);
  CHECK(stats.pinned == 0);
  CHECK(server->check().empty());

  // All of the arena can be used: none of it is lost to the dead.
  std::thread serving([&] { CHECK(server->run(1000).ok()); });
  {
    Client client(socket.c_str(), 0);
    std::vector<int32_t> path(stats.capacity_bytes / kToken);
    for (size_t i = 0; i < path.size(); ++i) path[i] = 1000 + static_cast<int32_t>(i);
    std::vector<char> byte(kTensor, 'x');
    std::vector<kvs_tensor> tensors(path.size() * 2, {byte.data(), kTensor});
    size_t done = 0;
    CHECK(kvs_update(client.cache, nullptr, 0, path.data(), path.size(), tensors.data(), &done) == 0);
    CHECK(done == path.size());
  }
  serving.join();
  server.reset();
  unlink((socket + ".lock").c_str());
  CHECK(rmdir(folder) == 0);
}
