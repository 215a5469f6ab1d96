// The chunk store: what it stores it gives back, and nothing else; quota, age, dead writers.
#include <signal.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "check.h"
#include "chunks.h"

using namespace kvstore;
namespace fs = std::filesystem;

// Calls of the system that fail when a test wants it: these stand before libc's.
namespace fault {
int countdown = -1;  // so many calls still succeed, then one fails; -1: none does
int reason = ENOSPC;
bool now() {
  if (countdown < 0 || countdown-- > 0) return false;
  errno = reason;
  return true;
}
}  // namespace fault

extern "C" {
ssize_t pread(int fd, void* data, size_t n, off_t at) {
  return fault::now() ? -1 : syscall(SYS_pread64, fd, data, n, at);
}
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) {
  if (!fault::now()) return syscall(SYS_pwrite64, fd, data, n, at);
  if (n > PAGE) syscall(SYS_pwrite64, fd, data, PAGE, at);  // some of it came through
  return -1;
}
int ftruncate(int fd, off_t size) noexcept {
  return fault::now() ? -1 : syscall(SYS_ftruncate, fd, size);
}
int fdatasync(int fd) { return fault::now() ? -1 : syscall(SYS_fdatasync, fd); }
int rename(const char* from, const char* to) noexcept {
  return fault::now() ? -1 : syscall(SYS_rename, from, to);
}
int unlink(const char* path) noexcept { return fault::now() ? -1 : syscall(SYS_unlink, path); }
int flock(int fd, int how) noexcept {
  return how != LOCK_UN && fault::now() ? -1 : syscall(SYS_flock, fd, how);
}
int mkdir(const char* path, mode_t mode) noexcept {
  return fault::now() ? -1 : syscall(SYS_mkdir, path, mode);
}
}

constexpr size_t TOKENS = 4, PIECES = 8, PIECE = 5000;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("kvs-" + std::to_string(getpid()) + "-" +
                                               std::to_string(std::random_device{}()));
  ~Folder() { fs::remove_all(path); }
};

// A chunk whose bytes follow from its number.
struct Content {
  std::vector<uint8_t> bytes;
  int32_t tokens[TOKENS];
  std::vector<kvs_tensor> tensors;
  Digest key;

  Content(int number, bool filled, size_t piece = PIECE) : bytes(PIECES * piece) {
    for (size_t i = 0; filled && i < bytes.size(); ++i) bytes[i] = (i * 31 + number * 7 + i / 251) & 255;
    for (size_t i = 0; i < TOKENS; ++i) tokens[i] = number * 100 + i;
    for (size_t i = 0; i < PIECES; ++i) tensors.push_back({bytes.data() + i * piece, piece});
    key = chain(Digest{}, tokens, TOKENS);
  }
  Chunk chunk() const { return {key, tokens, TOKENS, tensors.data()}; }
};

ChunkStore::Config config_of(const Folder& folder, size_t piece = PIECE) {
  ChunkStore::Config config;
  config.root = folder.path;
  config.space = Digest{1, 2, 3};
  config.pieces = PIECES;
  config.piece_bytes = piece;
  config.threads = 2;
  return config;
}

std::unique_ptr<ChunkStore> open_store(const ChunkStore::Config& config) {
  std::unique_ptr<ChunkStore> store;
  Status status = ChunkStore::open(config, store);
  if (!status.ok()) fprintf(stderr, "%s\n", status.text.c_str());
  CHECK(status.ok());
  return store;
}

bool put(ChunkStore& store, int number, size_t piece = PIECE) {
  Content content(number, true, piece);
  bool ok;
  store.put({content.chunk()}, &ok);
  return ok;
}

// Whether the chunk is found; if it is, it is right.
bool get(ChunkStore& store, int number, size_t piece = PIECE) {
  Content wanted(number, true, piece), got(number, false, piece);
  bool ok;
  store.get({got.chunk()}, &ok);
  CHECK(!ok || got.bytes == wanted.bytes);
  return ok;
}

std::vector<fs::path> files(const Folder& folder) {
  std::vector<fs::path> out;
  for (auto& entry : fs::recursive_directory_iterator(folder.path)) {
    if (entry.is_regular_file() && entry.path().filename() != ".usage") out.push_back(entry.path());
  }
  return out;
}

uint64_t bytes_there(const Folder& folder) {
  Fd lock(open((folder.path / ".usage").c_str(), O_RDWR));  // no file is seen under both its names
  CHECK(flock(lock.get(), LOCK_EX) == 0);
  uint64_t sum = 0;
  walk_files(folder.path, [&](const std::string&, const char* name, const struct stat& s) {
    if (name != std::string(".usage")) sum += s.st_size;
  });
  return sum;
}

uint64_t sum_kept(const Folder& folder) {
  uint64_t sum[2] = {};
  std::ifstream(folder.path / ".usage", std::ios::binary).read(reinterpret_cast<char*>(sum), 16);
  CHECK(sum[1] == ~sum[0]);
  return sum[0];
}

void set_age(const fs::path& path, double seconds) {
  struct stat s;
  CHECK(stat(path.c_str(), &s) == 0);
  timespec times[2] = {{0, UTIME_OMIT}, {s.st_mtim.tv_sec - static_cast<time_t>(seconds), 0}};
  CHECK(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
}

fs::path file_of(const Folder& folder, int number) {
  std::string name = hex(Content(number, false).key.data(), 32);
  for (auto& path : files(folder)) {
    if (path.filename() == name) return path;
  }
  return {};
}

void gives_back_what_it_stores() {
  for (bool direct : {false, true}) {
    for (size_t piece : {size_t{3}, PIECE, size_t{1} << 20}) {  // 8 MiB: more than one transfer
      Folder folder;
      auto config = config_of(folder, piece);
      config.direct = direct;
      config.sync = direct ? KVS_SYNC_ALL : KVS_SYNC_DATA;
      auto store = open_store(config);
      CHECK(!direct || store->direct());
      CHECK(!get(*store, 1, piece));
      CHECK(put(*store, 1, piece) && put(*store, 1, piece) && put(*store, 2, piece));
      CHECK(get(*store, 1, piece) && get(*store, 2, piece) && !get(*store, 3, piece));
      CHECK(get(*open_store(config), 1, piece));
      store->remove(Content(1, false).key);
      CHECK(!get(*store, 1, piece) && get(*store, 2, piece));
      store->clear();
      CHECK(!get(*store, 2, piece) && files(folder).empty() && sum_kept(folder) == 0);
    }
  }
}

void notices_every_damage() {
  Folder folder;
  auto store = open_store(config_of(folder));
  auto damage = [&](auto spoil) {
    CHECK(put(*store, 1) && get(*store, 1));
    spoil(file_of(folder, 1));
    CHECK(!get(*store, 1));
    CHECK(!get(*store, 1) && put(*store, 1) && get(*store, 1));  // it was deleted, and comes back
  };
  const size_t head = 4096, whole = fs::file_size([&] { put(*store, 1); return file_of(folder, 1); }());
  auto flip = [](size_t at) {
    return [at](const fs::path& path) {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      char byte = file.get() ^ 4;
      file.seekp(at);
      file.put(byte);
    };
  };
  for (size_t at = 0; at < sizeof(Header) + TOKENS * 4; ++at) damage(flip(at));  // the header, byte by byte
  for (size_t at : {head - 1, head, head + PIECES * PIECE / 2, head + PIECES * PIECE - 1}) damage(flip(at));
  for (size_t size : {size_t{0}, size_t{1}, head, whole - 4096, whole - 1, whole + 1}) {
    damage([&](const fs::path& path) { fs::resize_file(path, size); });
  }
  CHECK(put(*store, 2));
  damage([&](const fs::path& path) {  // another chunk's bytes
    fs::copy_file(file_of(folder, 2), path, fs::copy_options::overwrite_existing);
  });
  damage([&](const fs::path& path) {  // the same key's bytes of another cache
    auto config = config_of(folder);
    config.space = Digest{9};
    auto other = open_store(config);
    CHECK(put(*other, 1));
    for (auto& p : files(folder)) {
      if (p.filename() == path.filename() && p != path) {
        fs::copy_file(p, path, fs::copy_options::overwrite_existing);
      }
    }
  });
  CHECK(get(*store, 2));
  CHECK(store->stats().damaged > 0);
}

void equal_tokens_behind_other_prefixes_are_other_chunks() {
  Folder folder;
  auto store = open_store(config_of(folder));
  Content first(1, true), second(1, true), got(1, false);
  second.key = chain(first.key, second.tokens, TOKENS);
  second.bytes[0] ^= 1;
  bool ok[2];
  store->put({first.chunk(), second.chunk()}, ok);
  CHECK(ok[0] && ok[1]);
  fs::path one = file_of(folder, 1);
  for (auto& path : files(folder)) {
    if (path != one) fs::copy_file(one, path, fs::copy_options::overwrite_existing);
  }
  got.key = second.key;
  store->get({got.chunk()}, ok);
  CHECK(!ok[0] && get(*store, 1));
}

void a_file_of_another_size_is_written_anew() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  uint64_t before = sum_kept(folder);
  fs::resize_file(file_of(folder, 1), 4096);
  CHECK(put(*store, 1) && get(*store, 1));
  CHECK(sum_kept(folder) == 2 * before - 4096);  // it never counted for less than it was
  uint64_t removed;
  CHECK(root_gc(folder.path, 0, 0, removed).ok() && sum_kept(folder) == before);
}

void a_link_or_folder_is_no_chunk() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1) && put(*store, 2));
  fs::path one = file_of(folder, 1), two = file_of(folder, 2);
  fs::remove(one);
  fs::create_symlink(two, one);
  CHECK(!get(*store, 1) && !store->contains(Content(1, false).key));
  fs::remove(one);
  CHECK(mkfifo(one.c_str(), 0600) == 0);  // opening one would wait for a writer
  CHECK(!get(*store, 1) && get(*store, 2));
}

void keeps_spaces_and_shapes_apart() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  auto config = config_of(folder);
  config.space = Digest{1, 2, 4};
  CHECK(!get(*open_store(config), 1));
  CHECK(get(*store, 1));
}

void refuses_a_folder_that_others_write() {
  Folder folder;
  auto config = config_of(folder);
  open_store(config);
  for (auto& entry : fs::directory_iterator(folder.path)) {
    if (entry.is_directory()) fs::permissions(entry.path(), fs::perms(0770));
  }
  std::unique_ptr<ChunkStore> store;
  CHECK(ChunkStore::open(config, store).code == KVS_INVALID);
}

void is_private() {
  Folder folder;
  umask(0);
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  for (auto& entry : fs::recursive_directory_iterator(folder.path)) {
    auto mode = entry.status().permissions();
    CHECK(mode == (entry.is_directory() ? fs::perms(0700) : fs::perms(0600)));
  }
  umask(022);
}

void evicts_the_least_recently_used() {
  Folder folder;
  auto config = config_of(folder);
  uint64_t each = Shape{config.space, PIECES, PIECE}.record_bytes(TOKENS);
  config.quota = 4 * each;
  auto store = open_store(config);
  for (int i = 0; i < 4; ++i) {
    CHECK(put(*store, i));
    set_age(file_of(folder, i), 1000 - i);
  }
  CHECK(get(*store, 0));  // refreshes it
  CHECK(put(*store, 4));
  CHECK(!get(*store, 1) && get(*store, 0) && get(*store, 4));
  // What came after the scan counts too, though it is not in the index: 4 is older than all now.
  for (int i : {0, 2, 3}) CHECK(get(*store, i));
  set_age(file_of(folder, 4), 5000);
  for (int i : {0, 2, 3}) CHECK(put(*store, i));
  CHECK(put(*store, 5));
  CHECK(!get(*store, 4) && get(*store, 0) && get(*store, 2) && get(*store, 3));
  CHECK(bytes_there(folder) == sum_kept(folder));
  // A smaller quota is kept from the next chunk on; one that no chunk fits stores nothing.
  store.reset();
  config.quota = 2 * each;
  CHECK(put(*open_store(config), 6) && bytes_there(folder) <= config.quota);
  config.quota = each - 1;
  CHECK(!put(*open_store(config), 7));
}

void age_is_of_use_and_not_of_reading_times() {
  Folder folder;
  auto config = config_of(folder);
  auto store = open_store(config);
  for (int i = 0; i < 3; ++i) {
    CHECK(put(*store, i));
    set_age(file_of(folder, i), 100);
  }
  CHECK(get(*store, 1) && put(*store, 2));
  CHECK(store->gc(50) == 1);
  CHECK(!get(*store, 0) && get(*store, 1) && get(*store, 2));
  CHECK(bytes_there(folder) == sum_kept(folder));
}

void collects_in_the_background() {
  Folder folder;
  auto config = config_of(folder);
  auto other = open_store(config);
  CHECK(put(*other, 1) && put(*other, 2));
  set_age(file_of(folder, 1), 100);
  set_age(file_of(folder, 2), 100);
  config.ttl = 0.4, config.gc_interval = 0.05;
  auto store = open_store(config);
  CHECK(put(*store, 3));
  for (int i = 0; i < 20; ++i) {  // in use: it stays
    usleep(40'000);
    CHECK(get(*store, 3));
  }
  CHECK(!file_of(folder, 1).empty());  // another client's
  for (int i = 0; i < 100 && !file_of(folder, 3).empty(); ++i) usleep(20'000);
  CHECK(file_of(folder, 3).empty() && !file_of(folder, 1).empty());
  config.gc_interval = 0, config.global_ttl = 50, config.global_gc_interval = 0.05;
  auto global = open_store(config);
  for (int i = 0; i < 100 && !files(folder).empty(); ++i) usleep(20'000);
  CHECK(files(folder).empty());
}

void a_dead_writers_file_goes_and_a_living_ones_stays() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  Quota quota;
  CHECK(quota.open(folder.path, 0).ok());
  std::string aside = folder.path / (std::string(ASIDE) + "0123");
  Fd living;
  CHECK(quota.make(aside, 1000, O_RDWR, living) == Quota::Made::YES);
  CHECK(bytes_there(folder) == sum_kept(folder));
  CHECK(store->gc(1e6) == 0 && fs::exists(aside));
  { Fd closed = std::move(living); }
  CHECK(store->gc(1e6) == 1 && !fs::exists(aside));
  CHECK(bytes_there(folder) == sum_kept(folder) && get(*store, 1));
}

void a_wrong_sum_is_put_right() {
  Folder folder;
  auto config = config_of(folder);
  auto store = open_store(config);
  for (int i = 0; i < 3; ++i) CHECK(put(*store, i));
  for (auto nonsense : {"short", "as long as it should be, and more"}) {
    std::ofstream(folder.path / ".usage", std::ios::binary) << nonsense;
    CHECK(put(*store, nonsense[0]) && sum_kept(folder) == bytes_there(folder));
  }
  uint64_t high = uint64_t{1} << 60, both[2] = {high, ~high};
  std::ofstream(folder.path / ".usage", std::ios::binary).write(reinterpret_cast<char*>(both), 16);
  config.quota = 1 << 20;
  CHECK(put(*open_store(config), 4) && get(*store, 0) && sum_kept(folder) == bytes_there(folder));
}

// Many processes write, read and collect; some are killed in the middle. The quota holds at every
// look, nobody reads a wrong byte, and what is left is whole.
void many_processes() {
  Folder folder;
  auto config = config_of(folder);
  uint64_t each = Shape{config.space, PIECES, PIECE}.record_bytes(TOKENS);
  config.quota = 20 * each;
  open_store(config);
  auto worker = [&](int seed) {
    auto store = open_store(config);
    std::mt19937 random(seed);
    for (int i = 0; i < 1000; ++i) {
      int number = random() % 60;
      if (random() % 3 == 0) {
        put(*store, number);
      } else {
        get(*store, number);
      }
      if (random() % 300 == 0) store->gc(0.05);
    }
  };
  std::vector<pid_t> children;
  auto start = [&](int seed) {
    fflush(stderr);
    pid_t child = fork();
    if (child == 0) {
      worker(seed);
      _exit(0);
    }
    children.push_back(child);
  };
  for (int i = 0; i < 4; ++i) start(i);
  std::mt19937 random(99);
  int killed = 0;
  for (int seed = 100; seed < 130; ++seed) {
    start(seed);
    usleep(5'000 + random() % 30'000);
    killed += kill(children.back(), SIGKILL) == 0;
    CHECK(bytes_there(folder) <= config.quota);
  }
  CHECK(killed == 30);
  for (pid_t child : children) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    CHECK(bytes_there(folder) <= config.quota);
  }
  kvs_stats seen{};
  CHECK(root_verify(folder.path, false, seen).ok() && seen.damaged == 0 && seen.entries > 0);
  CHECK(sum_kept(folder) >= bytes_there(folder));
  uint64_t removed = 0;
  CHECK(root_gc(folder.path, 0, 5 * each, removed).ok());
  CHECK(bytes_there(folder) <= 5 * each && sum_kept(folder) == bytes_there(folder));
  for (auto& path : files(folder)) CHECK(is_chunk(path.filename().c_str()));
}

// The k-th call of the system fails, for every k. What is read is right or not there; what is there
// counts; and when the fault is over all works again.
void any_call_may_fail() {
  for (int reason : {ENOSPC, EIO}) {
    fault::reason = reason;
    bool failed = true;
    for (int k = 0; failed; ++k) {
      Folder folder;
      auto config = config_of(folder);
      config.quota = 3 * Shape{config.space, PIECES, PIECE}.record_bytes(TOKENS);
      config.sync = KVS_SYNC_ALL;
      config.threads = 1;
      auto store = open_store(config);
      for (int i = 0; i < 3; ++i) CHECK(put(*store, i));
      fault::countdown = k;
      bool stored = put(*store, 3);  // something must go for it
      get(*store, 3);
      get(*store, 2);
      store->gc(1e6);
      failed = fault::countdown < 0;
      fault::countdown = -1;
      CHECK(stored || failed);
      CHECK(sum_kept(folder) >= bytes_there(folder) && bytes_there(folder) <= config.quota);
      for (int i = 3; i < 8; ++i) CHECK(put(*store, i) && get(*store, i));
      CHECK(bytes_there(folder) <= config.quota);
      uint64_t removed;
      CHECK(root_gc(folder.path, 0, 0, removed).ok() && sum_kept(folder) == bytes_there(folder));
      CHECK(k < 200);
    }
  }
}

void a_root_is_verified_and_repaired() {
  Folder folder;
  auto store = open_store(config_of(folder));
  for (int i = 0; i < 5; ++i) CHECK(put(*store, i));
  fs::resize_file(file_of(folder, 0), 5000);
  fs::copy_file(file_of(folder, 1), file_of(folder, 2), fs::copy_options::overwrite_existing);
  kvs_stats seen{};
  CHECK(root_verify(folder.path, false, seen).ok() && seen.entries == 5 && seen.damaged == 2);
  seen = {};
  CHECK(root_verify(folder.path, true, seen).ok() && seen.damaged == 2);
  seen = {};
  CHECK(root_verify(folder.path, true, seen).ok() && seen.entries == 3 && seen.damaged == 0);
  CHECK(sum_kept(folder) == bytes_there(folder));
  CHECK(!root_verify(folder.path.string() + "-not-there", false, seen).ok());
}

int main() {
  gives_back_what_it_stores();
  notices_every_damage();
  equal_tokens_behind_other_prefixes_are_other_chunks();
  a_file_of_another_size_is_written_anew();
  a_link_or_folder_is_no_chunk();
  keeps_spaces_and_shapes_apart();
  refuses_a_folder_that_others_write();
  is_private();
  evicts_the_least_recently_used();
  age_is_of_use_and_not_of_reading_times();
  collects_in_the_background();
  a_dead_writers_file_goes_and_a_living_ones_stays();
  a_wrong_sum_is_put_right();
  a_root_is_verified_and_repaired();
  any_call_may_fail();
  many_processes();
  return 0;
}
