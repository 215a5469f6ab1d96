// Norms, rotary embedding and the gated activation: memory-bound, one pass where one suffices.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace vllm {
namespace {

template <class T>
void rms_norm_rows(const RmsNorm& a, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t r = begin; r < end; r++) {
    const T* x = static_cast<const T*>(a.x) + r / a.inner * a.outer_stride + r % a.inner * a.inner_stride;
    Vec squares{};
    if (a.residual != nullptr) {
      T* residual = static_cast<T*>(a.residual) + r * a.width;
      each_vector(a.width, [&](int64_t i, int n) {
        store(residual + i, load(x + i, n) + load(residual + i, n), n);
        Vec rounded = load(residual + i, n);  // what is normed is the sum as it was kept
        squares = squares + rounded * rounded;
      });
      x = residual;
    } else {
      each_vector(a.width, [&](int64_t i, int n) {
        Vec v = load(x + i, n);
        squares = squares + v * v;
      });
    }
    const float scale = 1.f / __builtin_sqrtf(sum(squares) / static_cast<float>(a.width) + a.eps);
    T* out = static_cast<T*>(a.out) + r * a.width;
    each_vector(a.width, [&](int64_t i, int n) {
      store(out + i, load(x + i, n) * scale * load(weight + i, n), n);
    });
  }
}

template <class T>
void turn(const Heads& heads, int64_t t, const float* cos, int64_t half) {
  const float* sin = cos + half;
  for (int64_t h = 0; h < heads.heads; h++) {
    T* x = static_cast<T*>(heads.data) + t * heads.token + h * heads.head;
    each_vector(half, [&](int64_t i, int n) {
      Vec a = load(x + i, n), b = load(x + half + i, n);
      Vec c = load(cos + i, n), s = load(sin + i, n);
      store(x + i, a * c - b * s, n);
      store(x + half + i, b * c + a * s, n);
    });
  }
}

template <class T>
void rotary_tokens(const Rotary& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; t++) {
    const float* cos = a.cos_sin + a.positions[t] * 2 * a.half;
    turn<T>(a.q, t, cos, a.half);
    turn<T>(a.k, t, cos, a.half);
  }
}

template <class T>
void silu_and_mul_tokens(const SiluAndMul& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; t++) {
    const T* gate = static_cast<const T*>(a.x) + t * a.stride;
    const T* up = gate + a.width;
    T* out = static_cast<T*>(a.out) + t * a.width;
    each_vector(a.width, [&](int64_t i, int n) {
      Vec g = load(gate + i, n);
      Vec falling = exp2(min(g * -1.44269504f, splat(126.f)));  // e^-g; 126 keeps it finite
      store(out + i, g / (falling + 1.f) * load(up + i, n), n);
    });
  }
}

}  // namespace
}  // namespace vllm
