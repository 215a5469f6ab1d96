// What goes: by quota the least recently used, by age what nobody used, and what dead writers left.
#include <algorithm>
#include <tuple>

#include "chunks.h"

namespace kvstore {

constexpr size_t OLDEST_LIMIT = 1 << 16;
constexpr double TIDY = 3600;  // seconds after which an empty folder goes

// What was used longest ago goes: it becomes the file aside if it has as many bytes, and otherwise it
// is deleted. False when there is nothing that can go.
bool ChunkStore::evict_one(uint64_t bytes, const std::string& aside, Fd& out) {
  std::lock_guard lock(evict_mutex_);
  for (bool scanned = false;;) {
    if (oldest_.empty() || (!scanned && oldest_.begin()->first > horizon_)) {
      if (scanned) return false;
      scan();
      scanned = true;
      continue;
    }
    auto first = oldest_.extract(oldest_.begin());
    const std::string& where = first.mapped();
    struct stat s;
    if (lstat(where.c_str(), &s)) continue;
    if (mtime(s) > first.key()) {  // used since
      first.key() = mtime(s);
      oldest_.insert(std::move(first));
    } else if ((static_cast<uint64_t>(s.st_size) == bytes &&
                quota_.reuse(where, s, aside, O_RDWR, out)) ||
               quota_.remove(where, &s)) {
      ++evicted_;
      return true;
    }
  }
}

void ChunkStore::scan() {
  oldest_.clear();
  horizon_ = quota_.now();
  std::vector<std::string> asides;
  walk_files(config_.root, [&](const std::string& path, const char* name, const struct stat& s) {
    if (is_aside(name)) asides.push_back(path);
    if (!is_chunk(name)) return;
    oldest_.emplace(mtime(s), path);
    if (oldest_.size() <= OLDEST_LIMIT) return;
    auto last = std::prev(oldest_.end());
    horizon_ = std::min(horizon_, last->first);
    oldest_.erase(last);
  });
  for (auto& aside : asides) quota_.remove_abandoned(aside);
}

// Chunks that an earlier version left one folder deeper.
void ChunkStore::flatten() {
  walk_files(folder_, [&](const std::string& path, const char* name, const struct stat&) {
    if (!is_chunk(name) || std::count(path.begin() + folder_.size(), path.end(), '/') != 3) return;
    rename(path.c_str(), this->path(name).c_str());
  });
}

// Files that `old` says are too old, and what dead writers left; returns how many went.
static uint64_t collect(Quota& quota, const std::string& folder, double ttl) {
  uint64_t removed = 0;
  const double now = quota.now();
  std::vector<std::pair<std::string, double>> old;
  std::vector<std::string> asides;
  walk_files(folder, [&](const std::string& path, const char* name, const struct stat& s) {
    if (is_chunk(name) && now - mtime(s) > ttl) old.emplace_back(path, mtime(s));
    if (is_aside(name)) asides.push_back(path);
  });
  for (auto& [path, when] : old) {
    struct stat s;
    if (lstat(path.c_str(), &s) == 0 && mtime(s) <= when) removed += quota.remove(path, &s);
  }
  for (auto& aside : asides) removed += quota.remove_abandoned(aside);
  remove_empty_folders(folder, TIDY);
  return removed;
}

uint64_t ChunkStore::gc(double ttl) { return collect(quota_, config_.root, ttl); }

void ChunkStore::clear() {
  std::vector<std::string> paths;
  walk_files(folder_, [&](const std::string& path, const char* name, const struct stat&) {
    if (is_chunk(name)) paths.push_back(path);
  });
  for (auto& path : paths) quota_.remove(path);
  collect(quota_, folder_, 0);
  remove_empty_folders(folder_, 0);
}

// What this client put and nobody used since.
uint64_t ChunkStore::gc_own() {
  std::vector<Digest> keys;
  {
    std::lock_guard lock(own_mutex_);
    keys.assign(own_.begin(), own_.end());
  }
  uint64_t removed = 0;
  const double now = quota_.now();
  for (auto& key : keys) {
    std::string where = path(key);
    struct stat s;
    if (lstat(where.c_str(), &s) == 0) {
      if (now - mtime(s) <= config_.ttl) continue;
      removed += quota_.remove(where, &s);
    }
    std::lock_guard lock(own_mutex_);
    own_.erase(key);
  }
  return removed;
}

void ChunkStore::background() {
  using Clock = std::chrono::steady_clock;
  auto after = [](double s) {  // as the clock's largest value does not bear adding to
    auto bounded = std::chrono::duration<double>(std::min(s, 1e8));
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(bounded);
  };
  const double never = 1e8;
  const double own = config_.gc_interval > 0 ? config_.gc_interval : never;
  const double all = config_.global_gc_interval > 0 ? config_.global_gc_interval : never;
  auto next_own = after(own), next_all = after(all);
  std::unique_lock lock(stop_mutex_);
  while (!stop_wake_.wait_until(lock, std::min(next_own, next_all), [&] { return stop_; })) {
    lock.unlock();
    try {
      if (Clock::now() >= next_own) gc_own(), next_own = after(own);
      if (Clock::now() >= next_all) gc(config_.global_ttl), next_all = after(all);
    } catch (const std::exception&) {  // out of memory: at the next interval, then
      next_own = after(own), next_all = after(all);
    }
    lock.lock();
  }
}

// ---- a root -------------------------------------------------------------------------------------

static Status is_root(const std::string& root) {
  struct stat s;
  if (stat(root.c_str(), &s)) return Status::system("cannot use the folder " + root);
  return S_ISDIR(s.st_mode) ? Status{} : Status::invalid(root + " is no folder");
}

Status root_stat(const std::string& root, kvs_stats& out) {
  KVS_TRY(is_root(root));
  walk_files(root, [&](const std::string&, const char* name, const struct stat& s) {
    if (is_chunk(name)) ++out.entries;
    if (is_chunk(name) || is_aside(name)) out.bytes += s.st_size;
  });
  return {};
}

Status root_gc(const std::string& root, double ttl, uint64_t limit, uint64_t& removed) {
  KVS_TRY(is_root(root));
  Quota quota;
  KVS_TRY(quota.open(root, 0));
  removed = ttl > 0 ? collect(quota, root, ttl) : 0;
  uint64_t left = quota.recount();
  if (limit == 0 || left <= limit) return {};
  std::vector<std::tuple<double, std::string, uint64_t>> files;
  walk_files(root, [&](const std::string& path, const char* name, const struct stat& s) {
    if (is_chunk(name)) files.emplace_back(mtime(s), path, s.st_size);
  });
  std::sort(files.begin(), files.end());
  for (auto& [when, path, size] : files) {
    if (left <= limit) break;
    if (!quota.remove(path)) continue;
    left -= std::min(left, size);
    ++removed;
  }
  return {};
}

Status root_verify(const std::string& root, bool repair, kvs_stats& out) {
  KVS_TRY(is_root(root));
  Quota quota;
  if (repair) KVS_TRY(quota.open(root, 0));
  std::vector<std::pair<std::string, std::string>> files;
  walk_files(root, [&](const std::string& path, const char* name, const struct stat&) {
    if (is_chunk(name)) files.emplace_back(path, name);
  });
  for (auto& [path, name] : files) {
    Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat s;
    if (!fd || fstat(fd.get(), &s)) continue;  // gone since
    std::string space = path.substr(root.size() + 1);
    space.resize(std::min(space.size(), space.find('/')));
    Found found = check_record(fd.get(), name, space);
    if (found != Found::WHOLE && !same_file(path, s)) continue;  // written over meanwhile
    ++out.entries;
    out.bytes += s.st_size;
    if (found == Found::WHOLE) continue;
    ++out.damaged;
    if (repair && found == Found::DAMAGED) quota.remove(path, &s);
  }
  if (repair) quota.recount();
  return {};
}

}  // namespace kvstore
