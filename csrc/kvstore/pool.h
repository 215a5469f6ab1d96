// Threads that carry out loops; the caller takes part, so a loop always ends.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace kvstore {

class Pool {
 public:
  explicit Pool(unsigned threads) {
    for (unsigned i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  // body(0) ... body(count - 1), in any order and at once; returns when all have returned.
  void run(size_t count, const std::function<void(size_t)>& body) {
    if (count == 0) return;
    auto loop = std::make_shared<Loop>(count, &body);
    if (count > 1 && !workers_.empty()) {
      {
        std::lock_guard lock(mutex_);
        loops_.push_back(loop);
      }
      wake_.notify_all();
    }
    take_part(*loop);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return loop->left == 0; });
    std::erase(loops_, loop);
  }

 private:
  struct Loop {
    Loop(size_t count, const std::function<void(size_t)>* body)
        : count(count), left(count), body(body) {}
    const size_t count;
    std::atomic<size_t> next{0}, left;
    const std::function<void(size_t)>* body;
  };

  void take_part(Loop& loop) {
    for (size_t i; (i = loop.next++) < loop.count;) {
      (*loop.body)(i);
      if (--loop.left == 0) {
        std::lock_guard lock(mutex_);  // else the caller may look just before and sleep just after
        done_.notify_all();
      }
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || !loops_.empty(); });
      if (stop_) return;
      auto loop = loops_.front();
      if (loop->next >= loop->count) {  // all handed out
        loops_.pop_front();
        continue;
      }
      lock.unlock();
      take_part(*loop);
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<std::shared_ptr<Loop>> loops_;
  std::vector<std::thread> workers_;
  bool stop_ = false;
};

}  // namespace kvstore
