// How many bytes lie under a root, kept together by all who write there, on all hosts.
//
// One file, root/.usage, holds the sum. Whatever changes it happens under that file's lock (flock,
// which goes when its holder dies), together with the change itself: a file gets its full size when
// it is made, so what is being written counts from its first moment, and a count of the files at
// any time gives the sum. A process that dies between the two steps of a change leaves the sum too
// high, never too low, and the next count puts it right. So the quota is never passed.
//
// A file aside (see `aside`) is locked by its writer for as long as it lives; one that can be
// locked by somebody else has lost its writer.
#pragma once

#include <mutex>

#include "files.h"

namespace kvstore {

constexpr char ASIDE[] = ".new-";  // how the names of files begin that are not whole yet

bool same_file(const std::string& path, const struct stat& s);  // whether the name is still that one's
bool is_aside(const char* name);
bool is_chunk(const char* name);  // 64 hex digits

class Quota {
 public:
  // limit: bytes; 0: none. Fails where the filesystem has no locks and there is a limit.
  Status open(const std::string& root, uint64_t limit);

  enum class Made { YES, FULL, NO };  // NO: errno says why
  // A file aside of `bytes`, open with `flags`. FULL, and nothing is made, if that passes the limit.
  Made make(const std::string& aside, uint64_t bytes, int flags, Fd& out);
  // Turn a file that goes, if its name still belongs to that one, into one aside, of the same size and
  // open with `flags`. False when that cannot be, or would leave the sum above the limit.
  bool reuse(const std::string& path, const struct stat& same, const std::string& aside, int flags,
             Fd& out);
  // Give a file aside its name. One of the same size that has the name already stays instead; one
  // of another size goes. False: the file aside is gone, or the system refused.
  bool publish(const std::string& aside, const std::string& path);
  // Delete a file; with `same`, only if the name still belongs to that one.
  bool remove(const std::string& path, const struct stat* same = nullptr);
  // Delete a file aside if its writer is dead.
  bool remove_abandoned(const std::string& aside);
  // Set the sum to what lies there, without what dead writers left.
  uint64_t recount();

  // Bytes under the root, as far as is known without looking.
  uint64_t sum();

  uint64_t limit() const { return limit_; }
  // Seconds, by the clock that the files' times come from, which may be another host's.
  double now() const;

 private:
  bool change(const std::function<void(uint64_t&)>& body);
  bool lock();
  uint64_t count() const;

  std::string root_;
  Fd fd_;
  pid_t opener_ = 0;
  bool locks_ = true;
  uint64_t limit_ = 0;
  std::mutex mutex_;  // flock does not tell one thread from another
};

}  // namespace kvstore
