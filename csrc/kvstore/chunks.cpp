#include "chunks.h"

#include <sys/random.h>

#include <algorithm>

namespace kvstore {

constexpr char MAGIC[8] = {'V', 'L', 'L', 'M', 'K', 'V', 'C', 0};
constexpr uint32_t VERSION = 1;
constexpr char ASIDE[] = ".new-";
constexpr double ABANDONED = 3600;  // seconds after which a file aside has lost its writer
constexpr double TOUCH = 60;        // seconds that a recency may lag behind
constexpr size_t OWN_LIMIT = 1 << 20;

namespace {

bool is_chunk(const char* name) {
  return strlen(name) == 64 && strspn(name, "0123456789abcdef") == 64;
}

// Whether these are a header's bytes, whole: the one that stands at the head of `data`.
bool header_fits(const uint8_t* data, size_t length, Header& out) {
  if (length < sizeof out) return false;
  memcpy(&out, data, sizeof out);
  if (memcmp(out.magic, MAGIC, sizeof MAGIC) || out.version != VERSION) return false;
  if (out.header_bytes != pages(sizeof out + size_t{out.num_tokens} * 4)) return false;
  if (out.header_bytes > length || out.piece_bytes == 0) return false;
  if (out.pieces > (uint64_t{1} << 48) / out.piece_bytes) return false;
  Header blank = out;
  blank.checksum = 0;
  Checksum sum;
  sum.update(&blank, sizeof blank);
  sum.update(data + sizeof blank, out.header_bytes - sizeof blank);
  return sum.finish() == out.checksum;
}

// Goes through a chunk's tensors as if they were one piece of memory.
class Cursor {
 public:
  Cursor(const kvs_tensor* tensors, size_t piece) : tensor_(tensors), piece_(piece) {}

  template <typename Copy>
  void move(size_t length, Copy copy) {  // copy(tensor memory, offset into the stretch, bytes)
    for (size_t done = 0; done < length;) {
      size_t some = std::min(length - done, piece_ - at_);
      copy(static_cast<uint8_t*>(tensor_->data) + at_, done, some);
      done += some;
      at_ += some;
      if (at_ == piece_) ++tensor_, at_ = 0;
    }
  }

 private:
  const kvs_tensor* tensor_;
  size_t piece_, at_ = 0;
};

}  // namespace

ChunkStore::ChunkStore(const Config& config)
    : config_(config),
      folder_(config.root + "/" + hex(config.space.data(), 8)),
      pool_(config.threads ? config.threads : 8) {}

Status ChunkStore::open(const Config& config, std::unique_ptr<ChunkStore>& out) {
  std::unique_ptr<ChunkStore> store(new ChunkStore(config));
  KVS_TRY(private_folder(store->folder_));
  KVS_TRY(store->quota_.open(config.root, config.quota));
  if (config.direct) {  // does it work here? Try.
    std::string probe = store->folder_ + "/" + ASIDE + std::to_string(getpid()) + "-probe";
    Fd fd(::open(probe.c_str(), O_CREAT | O_RDWR | O_DIRECT | O_CLOEXEC | O_NOFOLLOW, 0600));
    uint8_t* page = bounce_buffer();
    memset(page, 0, PAGE);
    store->direct_ = fd && write_at(fd.get(), page, PAGE, 0) &&
                     read_at(fd.get(), page, PAGE, 0) == static_cast<ssize_t>(PAGE);
    unlink(probe.c_str());
  }
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

uint64_t ChunkStore::file_bytes(size_t num_tokens) const {
  return pages(sizeof(Header) + num_tokens * 4) + pages(config_.pieces * config_.piece_bytes);
}

std::string ChunkStore::path(const Digest& key) const {
  std::string name = hex(key.data(), key.size());
  return folder_ + "/" + name.substr(0, config_.split) + "/" +
         name.substr(config_.split, config_.split) + "/" + name;
}

bool ChunkStore::contains(const Digest& key) const {
  struct stat s;
  return lstat(path(key).c_str(), &s) == 0 && S_ISREG(s.st_mode);
}

void ChunkStore::put(const std::vector<Chunk>& chunks, bool* ok) {
  pool_.run(chunks.size(), [&](size_t i) { ok[i] = put_one(chunks[i]); });
}

void ChunkStore::get(const std::vector<Chunk>& chunks, bool* ok) {
  pool_.run(chunks.size(), [&](size_t i) { ok[i] = get_one(chunks[i]); });
  for (size_t i = 0; i < chunks.size(); ++i) {
    (ok[i] ? hits_ : misses_) += std::max<size_t>(1, chunks[i].num_tokens);
  }
}

bool ChunkStore::put_one(const Chunk& chunk) {
  std::string where = path(chunk.key);
  const uint64_t bytes = file_bytes(chunk.num_tokens);
  struct stat s;
  if (lstat(where.c_str(), &s) == 0 && static_cast<uint64_t>(s.st_size) == bytes) {
    utimensat(AT_FDCWD, where.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
    return true;
  }
  if (!make_room(bytes)) return false;

  // A name that no other writer has, on this host or another, now or before.
  uint64_t random[2] = {names_++, static_cast<uint64_t>(getpid())};
  if (getrandom(random, sizeof random, 0) != sizeof random) {
    random[1] ^= static_cast<uint64_t>(wall_clock() * 1e9) << 20;
  }
  std::string folder = where.substr(0, where.rfind('/'));
  std::string aside = folder + "/" + ASIDE + hex(reinterpret_cast<uint8_t*>(random), 16);
  bool written = write(chunk, aside, true);
  if (!written && errno == ENOENT && private_folder(folder).ok()) written = write(chunk, aside, true);
  // link() and not rename(): of two writers one wins, and the other knows that its bytes are not kept.
  bool linked = written && link(aside.c_str(), where.c_str()) == 0;
  bool there = linked || (written && errno == EEXIST);
  if (written && !there) {  // a filesystem without links
    linked = there = rename(aside.c_str(), where.c_str()) == 0;
  }
  unlink(aside.c_str());
  if (!linked) quota_.release(bytes);
  if (linked && config_.sync == KVS_SYNC_ALL) {
    Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    fsync(fd.get());
  }
  if (linked && config_.gc_interval > 0) {
    std::lock_guard lock(own_mutex_);
    if (own_.size() < OWN_LIMIT) own_.insert(where);
  }
  return there;
}

bool ChunkStore::write(const Chunk& chunk, const std::string& aside, bool exclusive) {
  int flags = O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW | (exclusive ? O_EXCL : O_TRUNC);
  Fd fd(::open(aside.c_str(), flags | (direct_ ? O_DIRECT : 0), 0600));
  if (!fd) return false;
  uint8_t* buffer = bounce_buffer();

  Header header{};
  memcpy(header.magic, MAGIC, sizeof MAGIC);
  header.version = VERSION;
  header.header_bytes = pages(sizeof header + chunk.num_tokens * 4);
  memcpy(header.key, chunk.key.data(), 32);
  memcpy(header.space, config_.space.data(), 32);
  header.pieces = config_.pieces;
  header.piece_bytes = config_.piece_bytes;
  header.num_tokens = chunk.num_tokens;

  // The payload first, as far as the buffer reaches; one write carries header and payload if it does.
  const size_t head = header.header_bytes, total = header.payload_bytes();
  Cursor cursor(chunk.tensors, config_.piece_bytes);
  Checksum sum;
  auto fill = [&](uint8_t* to, size_t length) {
    cursor.move(length, [&](uint8_t* from, size_t at, size_t n) { memcpy(to + at, from, n); });
    memset(to + length, 0, pages(length) - length);
    sum.update(to, length);
  };
  auto finish_header = [&](uint8_t* to) {
    header.payload_checksum = sum.finish();
    memset(to, 0, head);
    memcpy(to, &header, sizeof header);
    memcpy(to + sizeof header, chunk.tokens, chunk.num_tokens * 4);
    header.checksum = checksum(to, head);
    memcpy(to, &header, sizeof header);
  };
  if (head + pages(total) <= BOUNCE) {
    fill(buffer + head, total);
    finish_header(buffer);
    if (!write_at(fd.get(), buffer, head + pages(total), 0)) return false;
  } else {
    for (size_t done = 0; done < total; done += BOUNCE) {
      size_t some = std::min(total - done, BOUNCE);
      fill(buffer, some);
      if (!write_at(fd.get(), buffer, pages(some), head + done)) return false;
    }
    finish_header(buffer);
    if (!write_at(fd.get(), buffer, head, 0)) return false;
  }
  return config_.sync == KVS_SYNC_NONE || fdatasync(fd.get()) == 0;
}

bool ChunkStore::get_one(const Chunk& chunk) {
  std::string where = path(chunk.key);
  int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;
  Fd fd(::open(where.c_str(), flags | (direct_ ? O_DIRECT : 0)));
  if (!fd) return false;
  uint8_t* buffer = bounce_buffer();
  const size_t head = pages(sizeof(Header) + chunk.num_tokens * 4);
  const size_t total = config_.pieces * config_.piece_bytes;

  auto whole = [&]() {
    size_t first = std::min(BOUNCE, head + pages(total));
    ssize_t got = read_at(fd.get(), buffer, first, 0);
    Header header;
    if (got != static_cast<ssize_t>(first) || !header_fits(buffer, first, header)) return false;
    if (header.header_bytes != head || header.num_tokens != chunk.num_tokens) return false;
    if (header.pieces != config_.pieces || header.piece_bytes != config_.piece_bytes) return false;
    if (memcmp(header.key, chunk.key.data(), 32)) return false;
    if (memcmp(header.space, config_.space.data(), 32)) return false;
    if (memcmp(buffer + sizeof header, chunk.tokens, chunk.num_tokens * 4)) return false;

    Cursor cursor(chunk.tensors, config_.piece_bytes);
    auto spread = [&](const uint8_t* from, size_t length) {
      cursor.move(length, [&](uint8_t* to, size_t at, size_t n) { memcpy(to, from + at, n); });
    };
    if (first == head + pages(total)) {  // all in the buffer: verified before anybody sees it
      if (checksum(buffer + head, total) != header.payload_checksum) return false;
      spread(buffer + head, total);
      return true;
    }
    Checksum sum;
    for (size_t done = 0; done < total; done += BOUNCE) {
      size_t some = std::min(total - done, BOUNCE);
      if (read_at(fd.get(), buffer, pages(some), head + done) < static_cast<ssize_t>(some)) {
        return false;
      }
      sum.update(buffer, some);
      spread(buffer, some);
    }
    return sum.finish() == header.payload_checksum;
  };
  if (!whole()) {
    ++damaged_;
    forget(where, fd.get());
    return false;
  }
  struct stat s;
  double lag = config_.ttl > 0 ? std::min(TOUCH, config_.ttl / 8) : TOUCH;
  if (fstat(fd.get(), &s) == 0 && wall_clock() - mtime(s) > lag) futimens(fd.get(), nullptr);
  return true;
}

// Delete a file that did not verify, unless another has taken its place since it was opened.
void ChunkStore::forget(const std::string& where, int fd) {
  struct stat mine, there;
  if (fstat(fd, &mine) || lstat(where.c_str(), &there)) return;
  if (mine.st_ino != there.st_ino || mine.st_dev != there.st_dev) return;
  if (unlink(where.c_str()) == 0) quota_.release(mine.st_size);
}

void ChunkStore::remove(const Digest& key) {
  std::string where = path(key);
  struct stat s;
  if (lstat(where.c_str(), &s) == 0 && unlink(where.c_str()) == 0) quota_.release(s.st_size);
}

// Take `bytes` of the quota, deleting what was used longest ago. False when they cannot be had.
bool ChunkStore::make_room(uint64_t bytes) {
  if (config_.quota && bytes > config_.quota) return false;
  bool counted = false;
  while (!quota_.reserve(bytes)) {
    std::lock_guard lock(evict_mutex_);
    if (oldest_.empty()) {
      if (counted) return false;
      counted = true;
      quota_.recount([&] {
        uint64_t sum = 0;
        walk_files(config_.root, 0, [&](const std::string& p, const char* name, const struct stat& s) {
          if (is_chunk(name)) oldest_.emplace(mtime(s), p);
          if (name[0] != '.' || !strncmp(name, ASIDE, strlen(ASIDE))) sum += s.st_size;
        });
        return sum;
      });
      continue;
    }
    auto first = oldest_.extract(oldest_.begin());
    const std::string& where = first.mapped();
    struct stat s;
    if (lstat(where.c_str(), &s)) continue;
    if (mtime(s) > first.key()) {  // used since
      double now = mtime(s);
      first.key() = now;
      oldest_.insert(std::move(first));
    } else if (unlink(where.c_str()) == 0) {
      quota_.release(s.st_size);
      ++evicted_;
    }
  }
  return true;
}

void ChunkStore::clear() {
  walk_files(folder_, 1e-9, [&](const std::string& p, const char*, const struct stat& s) {
    if (unlink(p.c_str()) == 0) quota_.release(s.st_size);
  });
}

uint64_t ChunkStore::gc(double ttl) {
  uint64_t removed = 0;
  double now = wall_clock();
  walk_files(config_.root, ABANDONED, [&](const std::string& p, const char* name, const struct stat& s) {
    double age = now - mtime(s);
    bool aside = !strncmp(name, ASIDE, strlen(ASIDE));
    if (!(aside ? age > ABANDONED : is_chunk(name) && age > ttl)) return;
    if (unlink(p.c_str()) == 0) {
      quota_.release(s.st_size);
      ++removed;
    }
  });
  return removed;
}

uint64_t ChunkStore::gc_own() {
  std::vector<std::string> paths;
  {
    std::lock_guard lock(own_mutex_);
    paths.assign(own_.begin(), own_.end());
  }
  uint64_t removed = 0;
  double now = wall_clock();
  for (auto& p : paths) {
    struct stat s;
    bool there = lstat(p.c_str(), &s) == 0;
    if (there && now - mtime(s) <= config_.ttl) continue;
    if (there && unlink(p.c_str()) == 0) {
      quota_.release(s.st_size);
      ++removed;
    }
    std::lock_guard lock(own_mutex_);
    own_.erase(p);
  }
  return removed;
}

void ChunkStore::background() {
  using Clock = std::chrono::steady_clock;
  auto seconds = [](double s) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
  };
  constexpr double never = 1e9;
  double own = config_.gc_interval > 0 ? config_.gc_interval : never;
  double all = config_.global_gc_interval > 0 ? config_.global_gc_interval : never;
  auto next_own = Clock::now() + seconds(own), next_all = Clock::now() + seconds(all);
  std::unique_lock lock(stop_mutex_);
  while (!stop_wake_.wait_until(lock, std::min(next_own, next_all), [&] { return stop_; })) {
    lock.unlock();
    auto now = Clock::now();
    if (now >= next_own) {
      gc_own();
      next_own = now + seconds(own);
    }
    if (now >= next_all) {
      gc(config_.global_ttl);
      next_all = now + seconds(all);
    }
    lock.lock();
  }
}

kvs_stats ChunkStore::stats() {
  kvs_stats out{};
  root_stat(config_.root, out).ok();
  out.capacity_bytes = config_.quota;
  out.hits = hits_;
  out.misses = misses_;
  out.evicted = evicted_;
  out.damaged = damaged_;
  return out;
}

// ---- a root -------------------------------------------------------------------------------------

Status root_stat(const std::string& root, kvs_stats& out) {
  struct stat s;
  if (stat(root.c_str(), &s)) return Status::system("cannot use the folder " + root);
  walk_files(root, 0, [&](const std::string&, const char* name, const struct stat& s) {
    if (is_chunk(name)) ++out.entries;
    if (is_chunk(name) || !strncmp(name, ASIDE, strlen(ASIDE))) out.bytes += s.st_size;
  });
  return {};
}

Status root_gc(const std::string& root, double ttl, uint64_t limit, uint64_t& removed) {
  struct stat s;
  if (stat(root.c_str(), &s)) return Status::system("cannot use the folder " + root);
  Quota quota;
  KVS_TRY(quota.open(root, limit));
  double now = wall_clock();
  removed = 0;
  quota.recount([&] {
    std::multimap<double, std::pair<std::string, uint64_t>> kept;
    uint64_t sum = 0;
    auto drop = [&](const std::string& p) { removed += unlink(p.c_str()) == 0; };
    walk_files(root, ABANDONED, [&](const std::string& p, const char* name, const struct stat& s) {
      double age = now - mtime(s);
      bool aside = !strncmp(name, ASIDE, strlen(ASIDE));
      if (!aside && !is_chunk(name)) return;
      if (aside ? age > ABANDONED : ttl > 0 && age > ttl) return drop(p);
      sum += s.st_size;
      if (!aside) kept.emplace(mtime(s), std::pair(p, s.st_size));
    });
    for (auto& [when, file] : kept) {
      if (limit == 0 || sum <= limit) break;
      drop(file.first);
      sum -= file.second;
    }
    return sum;
  });
  return {};
}

Status root_verify(const std::string& root, bool repair, kvs_stats& out) {
  struct stat s;
  if (stat(root.c_str(), &s)) return Status::system("cannot use the folder " + root);
  Quota quota;
  if (repair) KVS_TRY(quota.open(root, 0));
  walk_files(root, 0, [&](const std::string& p, const char* name, const struct stat& s) {
    if (!is_chunk(name)) return;
    ++out.entries;
    out.bytes += s.st_size;
    Fd fd(::open(p.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    auto whole = [&] {
      uint8_t* buffer = bounce_buffer();
      ssize_t got = fd ? read_at(fd.get(), buffer, BOUNCE, 0) : -1;
      Header header;
      if (got < 0 || !header_fits(buffer, got, header)) return false;
      if (hex(header.key, 32) != name) return false;
      if (hex(header.space, 8) != p.substr(root.size() + 1, 16)) return false;
      Checksum sum;
      for (size_t done = 0; done < header.payload_bytes(); done += BOUNCE) {
        size_t some = std::min(header.payload_bytes() - done, BOUNCE);
        if (read_at(fd.get(), buffer, some, header.header_bytes + done) != static_cast<ssize_t>(some)) {
          return false;
        }
        sum.update(buffer, some);
      }
      return sum.finish() == header.payload_checksum;
    };
    if (whole()) return;
    ++out.damaged;
    if (repair && unlink(p.c_str()) == 0) quota.release(s.st_size);
  });
  return {};
}

}  // namespace kvstore
