#include "quota.h"

#include <sys/file.h>

namespace kvstore {

constexpr double ABANDONED = 3600;  // seconds, where locks do not tell whether a writer lives

bool same_file(const std::string& path, const struct stat& s) {
  struct stat now;
  return lstat(path.c_str(), &now) == 0 && now.st_ino == s.st_ino && now.st_dev == s.st_dev;
}

bool is_aside(const char* name) { return !strncmp(name, ASIDE, sizeof ASIDE - 1); }

bool is_chunk(const char* name) {
  return strlen(name) == 64 && strspn(name, "0123456789abcdef") == 64;
}

Status Quota::open(const std::string& root, uint64_t limit) {
  root_ = root;
  limit_ = limit;
  opener_ = getpid();
  std::string path = root + "/.usage";
  fd_ = Fd(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd_) return Status::system("cannot write in the folder " + root);
  locks_ = lock();
  if (locks_) flock(fd_.get(), LOCK_UN);
  if (!locks_ && limit) {
    return Status::invalid("a quota needs a filesystem with locks, which that of " + root + " has not");
  }
  if (limit) recount();  // after a crash of the machine the sum may be older than the files
  return {};
}

bool Quota::lock() {
  while (flock(fd_.get(), LOCK_EX)) {
    if (errno != EINTR) return false;
  }
  return true;
}

// The sum stands there twice, the second time inverted: what is torn or missing is counted anew.
bool Quota::change(const std::function<void(uint64_t&)>& body) {
  std::lock_guard guard(mutex_);
  uint64_t sum[2] = {0, 0};
  if (!locks_) {
    body(sum[0]);
    return true;
  }
  if (opener_ != getpid()) {  // forked: a descriptor shared with the parent shares its lock
    opener_ = getpid();
    fd_ = Fd(::open((root_ + "/.usage").c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  }
  if (!lock()) return false;
  if (pread(fd_.get(), sum, sizeof sum, 0) != sizeof sum || sum[1] != ~sum[0]) sum[0] = count();
  body(sum[0]);
  sum[1] = ~sum[0];
  bool kept = write_at(fd_.get(), sum, sizeof sum, 0);
  int reason = errno;
  flock(fd_.get(), LOCK_UN);
  errno = reason;
  return kept;
}

Quota::Made Quota::make(const std::string& aside, uint64_t bytes, int flags, Fd& out) {
  Made made = Made::FULL;
  int reason = 0;
  bool kept = change([&](uint64_t& sum) {
    if (limit_ && (bytes > limit_ || sum > limit_ - bytes)) return;
    Fd fd(::open(aside.c_str(), flags | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd && (!locks_ || flock(fd.get(), LOCK_EX | LOCK_NB) == 0)) {
      uint64_t next[2] = {sum + bytes, ~(sum + bytes)};  // before the file has its size: see above
      if ((!locks_ || write_at(fd_.get(), next, sizeof next, 0)) &&
          ftruncate(fd.get(), bytes) == 0) {
        sum += bytes;
        out = std::move(fd);
        made = Made::YES;
        return;
      }
    }
    reason = errno;
    made = Made::NO;
    if (fd) unlink(aside.c_str());
  });
  if (kept) {
    errno = reason;
    return made;
  }
  if (made == Made::YES) unlink(aside.c_str());
  out = Fd();
  return Made::NO;
}

bool Quota::reuse(const std::string& path, const struct stat& same, const std::string& aside,
                  int flags, Fd& out) {
  bool kept = change([&](uint64_t& sum) {
    // A file with a second name somewhere is not ours alone to write over.
    if (sum > limit_ || same.st_nlink != 1 || !same_file(path, same)) return;
    if (rename(path.c_str(), aside.c_str())) return;
    Fd fd(::open(aside.c_str(), flags | O_CLOEXEC | O_NOFOLLOW));
    if (fd && flock(fd.get(), LOCK_EX | LOCK_NB) == 0) {
      out = std::move(fd);
    } else if (unlink(aside.c_str()) == 0) {
      sum -= std::min<uint64_t>(sum, same.st_size);
    }
  });
  if (!kept && out) {
    unlink(aside.c_str());
    out = Fd();
  }
  return static_cast<bool>(out);
}

bool Quota::publish(const std::string& aside, const std::string& path) {
  bool there = false;
  bool kept = change([&](uint64_t& sum) {
    struct stat mine, old;
    if (lstat(aside.c_str(), &mine)) return;
    bool taken = lstat(path.c_str(), &old) == 0;
    if (taken && S_ISREG(old.st_mode) && old.st_size == mine.st_size) {
      there = true;
    } else if (rename(aside.c_str(), path.c_str()) == 0) {
      there = true;
      if (taken) sum -= std::min<uint64_t>(sum, old.st_size);
      return;
    }
    if (unlink(aside.c_str()) == 0) sum -= std::min<uint64_t>(sum, mine.st_size);
  });
  return kept && there;
}

bool Quota::remove(const std::string& path, const struct stat* same) {
  bool removed = false;
  change([&](uint64_t& sum) {
    struct stat s;
    if (lstat(path.c_str(), &s) || !S_ISREG(s.st_mode)) return;
    if (same && !same_file(path, *same)) return;
    if (unlink(path.c_str())) return;
    removed = true;
    sum -= std::min<uint64_t>(sum, s.st_size);
  });
  return removed;
}

bool Quota::remove_abandoned(const std::string& aside) {
  bool removed = false;
  double now = this->now();
  change([&](uint64_t& sum) {
    Fd fd(::open(aside.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat s;
    if (!fd || fstat(fd.get(), &s) || !S_ISREG(s.st_mode)) return;
    bool dead = locks_ ? flock(fd.get(), LOCK_EX | LOCK_NB) == 0 : now - mtime(s) > ABANDONED;
    if (!dead || unlink(aside.c_str())) return;
    removed = true;
    sum -= std::min<uint64_t>(sum, s.st_size);
  });
  return removed;
}

uint64_t Quota::count() const {
  uint64_t sum = 0;
  walk_files(root_, [&](const std::string&, const char* name, const struct stat& s) {
    if (is_chunk(name) || is_aside(name)) sum += s.st_size;
  });
  return sum;
}

uint64_t Quota::recount() {
  std::vector<std::string> asides;
  walk_files(root_, [&](const std::string& path, const char* name, const struct stat&) {
    if (is_aside(name)) asides.push_back(path);
  });
  for (auto& aside : asides) remove_abandoned(aside);
  uint64_t out = 0;
  change([&](uint64_t& sum) { out = sum = count(); });
  return out;
}

uint64_t Quota::sum() {
  uint64_t out = 0;
  change([&](uint64_t& sum) { out = sum; });
  return out;
}

double Quota::now() const {
  struct stat s;
  if (futimens(fd_.get(), nullptr) || fstat(fd_.get(), &s)) return wall_clock();
  return mtime(s);
}

}  // namespace kvstore
