// Memory for the length of a call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace vllm {

struct FreeScratch {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
};

using Scratch = std::unique_ptr<float[], FreeScratch>;

// Not initialised, aligned to a cache line.
inline Scratch scratch(int64_t floats) {
  return Scratch(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t{64})));
}

}  // namespace vllm
