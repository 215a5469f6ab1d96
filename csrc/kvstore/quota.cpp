#include "quota.h"

#include <sys/file.h>

namespace kvstore {

Status Quota::open(const std::string& root, uint64_t bytes) {
  limit_ = bytes;
  std::string path = root + "/.usage";
  fd_ = Fd(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600));
  return fd_ ? Status{} : Status::system("cannot write in the folder " + root);
}

bool Quota::change(const std::function<bool(uint64_t&)>& body) {
  std::lock_guard lock(mutex_);
  while (flock(fd_.get(), LOCK_EX)) {
    if (errno != EINTR) return false;
  }
  uint64_t sum = 0;
  if (pread(fd_.get(), &sum, sizeof sum, 0) != sizeof sum) sum = 0;
  bool ok = body(sum) && pwrite(fd_.get(), &sum, sizeof sum, 0) == sizeof sum;
  flock(fd_.get(), LOCK_UN);
  return ok;
}

bool Quota::reserve(uint64_t bytes) {
  return change([&](uint64_t& sum) {
    if (limit_ && sum + bytes > limit_) return false;
    sum += bytes;
    return true;
  });
}

void Quota::release(uint64_t bytes) {
  change([&](uint64_t& sum) {
    sum -= std::min(sum, bytes);
    return true;
  });
}

uint64_t Quota::used() {
  uint64_t out = 0;
  change([&](uint64_t& sum) {
    out = sum;
    return true;
  });
  return out;
}

void Quota::recount(const std::function<uint64_t()>& count) {
  change([&](uint64_t& sum) {
    sum = count();
    return true;
  });
}

}  // namespace kvstore
