#include "files.h"

#include <dirent.h>

#include <chrono>
#include <cstdlib>
#include <memory>

namespace kvstore {

ssize_t read_at(int fd, void* data, size_t length, off_t offset) {
  size_t done = 0;
  while (done < length) {
    ssize_t got = pread(fd, static_cast<char*>(data) + done, length - done, offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    done += got;
    if (got % PAGE) break;  // the end; direct I/O cannot go on from here
  }
  return done;
}

bool write_at(int fd, const void* data, size_t length, off_t offset) {
  size_t done = 0;
  while (done < length) {
    ssize_t put = pwrite(fd, static_cast<const char*>(data) + done, length - done, offset + done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    done += put;
  }
  return true;
}

Status private_folder(const std::string& path) {
  for (size_t at = 1; at <= path.size(); ++at) {
    if (at != path.size() && path[at] != '/') continue;
    if (mkdir(path.substr(0, at).c_str(), 0700) && errno != EEXIST) {
      return Status::system("cannot make the folder " + path);
    }
  }
  struct stat s;
  if (stat(path.c_str(), &s)) return Status::system("cannot use the folder " + path);
  if (!S_ISDIR(s.st_mode)) return Status::invalid(path + " is no folder");
  return {};
}

void walk_files(
    const std::string& root, double tidy,
    const std::function<void(const std::string&, const char*, const struct stat&)>& visit) {
  std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(root.c_str()), closedir);
  if (!folder) return;
  while (dirent* entry = readdir(folder.get())) {
    const char* name = entry->d_name;
    if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
    std::string path = root + "/" + name;
    struct stat s;
    if (lstat(path.c_str(), &s)) continue;
    if (S_ISDIR(s.st_mode)) {
      walk_files(path, tidy, visit);
      if (tidy > 0 && wall_clock() - mtime(s) > tidy) rmdir(path.c_str());
    } else if (S_ISREG(s.st_mode)) {
      visit(path, name, s);
    }
  }
}

double wall_clock() {
  auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

uint8_t* bounce_buffer() {
  struct Free {
    void operator()(uint8_t* p) const { free(p); }
  };
  static thread_local std::unique_ptr<uint8_t, Free> buffer(
      static_cast<uint8_t*>(aligned_alloc(PAGE, BOUNCE)));
  return buffer.get();
}

}  // namespace kvstore
