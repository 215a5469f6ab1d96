// How many bytes lie under a root, kept together by all who write there.
//
// One file, root/.usage, holds the sum; it is changed under a lock of the kernel's (flock), which
// goes when its holder dies. Writers add before they write and subtract after they delete, so a
// writer that dies leaves the sum too high, never too low: the quota holds, and the next count
// (when nothing is left to evict, or by gc) puts the sum right.
#pragma once

#include <mutex>

#include "files.h"

namespace kvstore {

class Quota {
 public:
  Status open(const std::string& root, uint64_t bytes);

  // Add to the sum. False, and nothing is added, when it would pass the quota.
  bool reserve(uint64_t bytes);
  void release(uint64_t bytes);
  uint64_t used();
  // Set the sum to what `count` returns, while nobody may change it.
  void recount(const std::function<uint64_t()>& count);

  uint64_t limit() const { return limit_; }

 private:
  bool change(const std::function<bool(uint64_t&)>& body);

  Fd fd_;
  uint64_t limit_ = 0;  // 0: none
  std::mutex mutex_;    // flock does not tell one thread from another
};

}  // namespace kvstore
