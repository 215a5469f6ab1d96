#include "chunks.h"

#include <sys/random.h>

#include <algorithm>
#include <cmath>
#include <exception>

namespace kvstore {

constexpr double TOUCH = 10;  // seconds that a recency may lag behind
constexpr size_t OWN_LIMIT = 1 << 18;

static bool turn_direct(int fd) { return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT) == 0; }

ChunkStore::ChunkStore(const Config& config)
    : config_(config),
      shape_{config.space, config.pieces, config.piece_bytes},
      folder_(config.root + "/" + hex(config.space.data(), 8)),
      pool_(config.threads ? config.threads : 8) {}

Status ChunkStore::open(const Config& config, std::unique_ptr<ChunkStore>& out) {
  std::unique_ptr<ChunkStore> store(new ChunkStore(config));
  KVS_TRY(make_folder(store->folder_));
  KVS_TRY(store->quota_.open(config.root, config.quota));
  store->flatten();
  KVS_TRY(store->probe());
  if (config.gc_interval > 0 || config.global_gc_interval > 0) {
    store->collector_ = std::thread(&ChunkStore::background, store.get());
  }
  out = std::move(store);
  return {};
}

ChunkStore::~ChunkStore() {
  {
    std::lock_guard lock(stop_mutex_);
    stop_ = true;
  }
  stop_wake_.notify_all();
  if (collector_.joinable()) collector_.join();
}

// See on a file of our own whether direct I/O works here, and by what user this filesystem knows us:
// what another user can write in the folder, we would read as ours.
Status ChunkStore::probe() {
  std::string aside;
  Fd fd;
  uid_t us = geteuid();
  struct stat s;
  if (make(folder_, PAGE, aside, fd) == Quota::Made::YES) {
    uint8_t* page = bounce_buffer();
    memset(page, 0, PAGE);
    if (fstat(fd.get(), &s) == 0) us = s.st_uid;
    direct_ = config_.direct && turn_direct(fd.get()) && write_at(fd.get(), page, PAGE, 0) &&
              read_at(fd.get(), page, PAGE, 0) == static_cast<ssize_t>(PAGE);
    quota_.remove(aside);
  }
  if (lstat(folder_.c_str(), &s)) return Status::system("cannot use the folder " + folder_);
  if (!S_ISDIR(s.st_mode) || s.st_uid != us || s.st_mode & 022) {
    return Status::invalid("others than this user can write in " + folder_);
  }
  return {};
}

std::string ChunkStore::path(const Digest& key) const { return path(hex(key.data(), key.size())); }

std::string ChunkStore::path(const std::string& name) const {
  return folder_ + "/" + name.substr(0, config_.split) + "/" + name;
}

bool ChunkStore::contains(const Digest& key) const {
  struct stat s;
  return lstat(path(key).c_str(), &s) == 0 && S_ISREG(s.st_mode);
}

// How many leading chunks have a file. Whether it is whole is seen when it is read.
size_t ChunkStore::leading(const std::vector<Chunk>& chunks) const {
  size_t count = 0;
  while (count < chunks.size() && contains(chunks[count].key)) ++count;
  return count;
}

// What throws in a thread of the pool would end the process: to the caller it is a miss.
void ChunkStore::put(const std::vector<Chunk>& chunks, bool* ok) {
  pool_.run(chunks.size(), [&](size_t i) {
    ok[i] = false;
    try {
      ok[i] = put_one(chunks[i]);
    } catch (const std::exception&) {
    }
  });
}

void ChunkStore::get(const std::vector<Chunk>& chunks, bool* ok) {
  const size_t there = leading(chunks);
  pool_.run(chunks.size(), [&](size_t i) {
    ok[i] = false;
    if (i < there) try {
      ok[i] = get_one(chunks[i]);
    } catch (const std::exception&) {
    }
    (ok[i] ? hits_ : misses_) += std::max<size_t>(1, chunks[i].num_tokens);
  });
}

bool ChunkStore::put_one(const Chunk& chunk) {
  const std::string where = path(chunk.key), folder = where.substr(0, where.rfind('/'));
  const uint64_t bytes = shape_.record_bytes(chunk.num_tokens);
  struct stat s;
  bool there = lstat(where.c_str(), &s) == 0 && S_ISREG(s.st_mode) &&
               static_cast<uint64_t>(s.st_size) == bytes;
  if (there) {
    utimensat(AT_FDCWD, where.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
  } else {
    std::string aside;
    Fd fd;
    if (make(folder, bytes, aside, fd) != Quota::Made::YES) return false;
    if (direct_) turn_direct(fd.get());
    bool written = write_record(fd.get(), shape_, chunk) &&
                   (config_.sync == KVS_SYNC_NONE || fdatasync(fd.get()) == 0);
    there = written && quota_.publish(aside, where);
    if (!written) quota_.remove(aside);
    if (there && config_.sync == KVS_SYNC_ALL) {
      Fd entries(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      there = entries && fsync(entries.get()) == 0;
    }
  }
  if (there && config_.gc_interval > 0) {
    std::lock_guard lock(own_mutex_);
    if (own_.size() < OWN_LIMIT) own_.insert(chunk.key);
  }
  return there;
}

// A file aside in `folder`, under a name that no other writer has, on this host or another, now or
// before. What was used longest ago goes until there is room.
Quota::Made ChunkStore::make(const std::string& folder, uint64_t bytes, std::string& aside, Fd& out) {
  uint8_t random[16];
  if (getrandom(random, sizeof random, 0) != sizeof random) return Quota::Made::NO;
  aside = folder + "/" + ASIDE + hex(random, sizeof random);
  for (bool recounted = false, made_folder = false;;) {
    Quota::Made made = quota_.make(aside, bytes, O_RDWR, out);
    if (made == Quota::Made::NO && errno == ENOENT && !made_folder) {
      made_folder = true;
      if (make_folder(folder).ok()) continue;
    }
    if (made != Quota::Made::FULL || bytes > quota_.limit()) return made;
    if (evict_one(bytes, aside, out)) {
      if (out) return Quota::Made::YES;
      continue;
    }
    if (recounted) return made;
    recounted = true;
    quota_.recount();
  }
}

bool ChunkStore::get_one(const Chunk& chunk) {
  std::string where = path(chunk.key);
  int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  Fd fd(::open(where.c_str(), flags | (direct_ ? O_DIRECT : 0)));
  if (!fd) return false;
  Found found = read_record(fd.get(), shape_, chunk);
  struct stat s;
  if (found != Found::WHOLE) {
    // Not there as far as anybody can tell; a file that has taken its place since may be.
    if (found == Found::DAMAGED && fstat(fd.get(), &s) == 0 && quota_.remove(where, &s)) ++damaged_;
    return false;
  }
  double lag = TOUCH;
  if (config_.ttl > 0) lag = std::min(lag, config_.ttl / 8);
  if (config_.global_ttl > 0) lag = std::min(lag, config_.global_ttl / 8);
  if (fstat(fd.get(), &s) == 0 && std::abs(wall_clock() - mtime(s)) > lag) futimens(fd.get(), nullptr);
  return true;
}

void ChunkStore::remove(const Digest& key) { quota_.remove(path(key)); }

kvs_stats ChunkStore::stats() {
  kvs_stats out{};
  out.bytes = quota_.sum();
  out.capacity_bytes = config_.quota;
  out.hits = hits_;
  out.misses = misses_;
  out.evicted = evicted_;
  out.damaged = damaged_;
  out.direct = direct_;
  return out;
}

}  // namespace kvstore
