// Threads. The only place that knows OpenMP; it is torch's own runtime, so both share one pool.
#pragma once

#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace vllm {

// f(begin, end) over all of [0, n), in chunks of `chunk`, on one thread when there is one chunk only
// or one thread. Chunks are handed out as threads get free: cores may be shared with others.
template <class F>
void parallel(int threads, int64_t n, int64_t chunk, F f) {
  if (threads <= 1 || n <= chunk) {
    if (n > 0) f(0, n);
    return;
  }
  const int64_t chunks = (n + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < chunks; i++) {
    const int64_t begin = i * chunk, end = begin + chunk;
    f(begin, end < n ? end : n);
  }
}

// Which of the threads of `parallel` is asking, from 0.
inline int this_thread() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace vllm
