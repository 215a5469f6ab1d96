// Copies of many megabytes: past the caches, which would first read what is about to be overwritten.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "vllm/kvstore.h"

namespace kvstore {

// What is larger than this in all does not stay in the caches anyway.
constexpr size_t kStreamFrom = 8 << 20;

inline void stream(uint8_t* to, const uint8_t* from, size_t bytes) {
#ifdef __SSE2__
  size_t head = std::min<size_t>(-reinterpret_cast<uintptr_t>(to) & 15, bytes);
  memcpy(to, from, head);
  to += head, from += head, bytes -= head;
  for (; bytes >= 64; to += 64, from += 64, bytes -= 64) {
    auto* in = reinterpret_cast<const __m128i*>(from);
    auto* out = reinterpret_cast<__m128i*>(to);
    __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
    __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
  _mm_sfence();
#endif
  memcpy(to, from, bytes);
}

// Between tensors and memory where they lie one behind the other; those that do so too go as one.
// copy(offset in that memory, the tensors' data or null, bytes).
template <typename Copy>
void in_runs(const kvs_tensor* tensors, size_t count, size_t bytes, Copy copy) {
  for (size_t i = 0, end; i < count; i = end) {
    auto* start = static_cast<uint8_t*>(tensors[i].data);
    for (end = i + 1; start && end < count && tensors[end].data == start + (end - i) * bytes; ++end) {
    }
    copy(i * bytes, start, (end - i) * bytes);
  }
}

}  // namespace kvstore
