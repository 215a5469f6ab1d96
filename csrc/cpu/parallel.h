// Threads. The only place that knows OpenMP; it is torch's own runtime, so both share one pool.
#pragma once

#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace vllm {

// f(begin, end, thread) over all of [0, n), in chunks of `chunk`; `thread` counts from 0 and is below
// `threads`. One chunk, or one thread, runs where it is. Chunks are handed out as threads get free: cores
// may be shared with others.
template <class F>
void parallel(int threads, int64_t n, int64_t chunk, F f) {
  if (threads <= 1 || n <= chunk) {
    if (n > 0) f(0, n, 0);
    return;
  }
  const int64_t chunks = (n + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < chunks; i++) {
    const int64_t begin = i * chunk, end = begin + chunk;
#if defined(_OPENMP)
    f(begin, end < n ? end : n, omp_get_thread_num());
#else
    f(begin, end < n ? end : n, 0);
#endif
  }
}

}  // namespace vllm
