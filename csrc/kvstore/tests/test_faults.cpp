// A chunk store whose calls of the system fail, one after the other.
#include <sys/syscall.h>

#include "chunk_store.h"

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

// The k-th call of the system fails, for every k. What is read is right or not there; what is there
// counts; and when the fault is over all works again.
void any_call_may_fail() {
  for (bool folders : {false, true}) for (int reason : {ENOSPC, EIO}) {
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
      if (folders) make_folders(folder, 3, 8);
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

int main() {
  any_call_may_fail();
  return 0;
}
