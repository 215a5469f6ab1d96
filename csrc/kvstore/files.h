// Small things about files: descriptors that close themselves, whole reads and writes, a tree walk.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "status.h"

namespace kvstore {

constexpr size_t PAGE = 4096;  // what direct I/O wants offsets, lengths and addresses aligned to

inline size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

// How many bytes could be read before the file's end; less than `length` is no error. -1: errno.
ssize_t read_at(int fd, void* data, size_t length, off_t offset);
bool write_at(int fd, const void* data, size_t length, off_t offset);

// Make the folder and its parents, 0700, where they are not there.
Status make_folder(const std::string& path);

// Every regular file under `root`, as (path, its name, its status). Links are not followed.
void walk_files(const std::string& root,
                const std::function<void(const std::string&, const char*, const struct stat&)>& visit);
// Delete the folders below `root` that are empty and that nobody changed for `age` seconds.
void remove_empty_folders(const std::string& root, double age);

inline double mtime(const struct stat& s) { return s.st_mtim.tv_sec + s.st_mtim.tv_nsec * 1e-9; }
double wall_clock();

// Memory for one transfer, aligned for direct I/O; a thread's own, kept from call to call.
// Throws std::bad_alloc.
constexpr size_t BOUNCE = 4 << 20;
uint8_t* bounce_buffer();

}  // namespace kvstore
