#include "files.h"

#include <dirent.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

namespace kvstore {

ssize_t read_at(int fd, void* data, size_t length, off_t offset) {
  size_t done = 0;
  while (done < length) {
    ssize_t got = pread(fd, static_cast<char*>(data) + done, length - done, offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    done += got;
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

Status make_folder(const std::string& path) {
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

namespace {

// Everything in the folder but . and .., as (path, name, status).
void list(const std::string& folder,
          const std::function<void(const std::string&, const char*, const struct stat&)>& visit) {
  std::unique_ptr<DIR, int (*)(DIR*)> open(opendir(folder.c_str()), closedir);
  if (!open) return;
  while (dirent* entry = readdir(open.get())) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    std::string path = folder + "/" + entry->d_name;
    struct stat s;
    if (lstat(path.c_str(), &s) == 0) visit(path, entry->d_name, s);
  }
}

}  // namespace

void walk_files(
    const std::string& root,
    const std::function<void(const std::string&, const char*, const struct stat&)>& visit) {
  list(root, [&](const std::string& path, const char* name, const struct stat& s) {
    if (S_ISDIR(s.st_mode)) walk_files(path, visit);
    if (S_ISREG(s.st_mode)) visit(path, name, s);
  });
}

void remove_empty_folders(const std::string& root, double age) {
  list(root, [&](const std::string& path, const char*, const struct stat& s) {
    if (!S_ISDIR(s.st_mode)) return;
    remove_empty_folders(path, age);
    if (wall_clock() - mtime(s) > age) rmdir(path.c_str());  // refused unless it is empty
  });
}

double wall_clock() {
  auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

uint8_t* bounce_buffer() {
  struct Free {
    void operator()(uint8_t* p) const { free(p); }
  };
  static thread_local std::unique_ptr<uint8_t, Free> buffer;
  if (!buffer) buffer.reset(static_cast<uint8_t*>(aligned_alloc(PAGE, BOUNCE)));
  if (!buffer) throw std::bad_alloc();
  return buffer.get();
}

}  // namespace kvstore
