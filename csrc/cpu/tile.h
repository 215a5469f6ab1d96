// The register-blocked product that prefill attention and wide linear layers are made of.
//
//     c [R, cols] (+)= a [R, depth] @ b [depth, cols]
//
// `a` is read an element at a time and spread over all lanes, `b` and `c` a vector at a time: no sums
// across lanes. So `b` must have its columns contiguous; operands that have not are transposed when they
// are packed, once for many rows of `a`.
#pragma once

#include "simd.h"

namespace vllm {
namespace {

// A unit is what one lane multiplies: a float, or with AVX-512-BF16 the bits of two bf16, neighbours
// along `depth`. Without that instruction bf16 is widened to float when it is packed.
typedef float Unit __attribute__((may_alias));

template <class T>
struct Units {
  static constexpr int per = 1;                       // elements of a unit
  static constexpr bool as_is = sizeof(T) == sizeof(Unit);  // T's memory can be read as units
  static Vec load(const T* p, int n) { return vllm::load(p, n); }
  static Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
template <>
struct Units<bf16> {
  static constexpr int per = 2;
  static constexpr bool as_is = true;
  static Vec load(const bf16* p, int n) {
    return n == W ? vllm::load(reinterpret_cast<const Unit*>(p)) : (Vec)dot_tail(p, 2 * n);
  }
  static Vec add(Vec sum, Vec a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// One register block. kAdd: add to what c holds.
template <class U, int R, int V, bool kAdd>
void product_block(const Unit* a, int64_t lda, const float* b, int64_t ldb, int depth, float* c, int ldc) {
  Vec sums[R][V] = {};
  if constexpr (kAdd)
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sums[r][v] = load(c + r * ldc + v * W);
  for (int k = 0; k < depth; k++, b += ldb) {
    Vec bk[V];
    for (int v = 0; v < V; v++) bk[v] = load(b + v * W);
    for (int r = 0; r < R; r++) {
      const Vec ak = splat(a[r * lda + k]);
      for (int v = 0; v < V; v++) sums[r][v] = U::add(sums[r][v], ak, bk[v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(c + r * ldc + v * W, sums[r][v]);
}

constexpr int kPanel = 6;               // rows of a product
constexpr int kWide = W == 16 ? 4 : 2;  // vectors of a block: sums fill 24 of 32 registers, 12 of 16

// kPanel rows, any multiple of W columns.
template <class U, bool kAdd>
void product(const Unit* a, int64_t lda, const float* b, int64_t ldb, int depth, float* c, int ldc, int cols) {
  int v = 0;
  for (; v + kWide * W <= cols; v += kWide * W)
    product_block<U, kPanel, kWide, kAdd>(a, lda, b + v, ldb, depth, c + v, ldc);
  if (kWide > 2 && v + 2 * W <= cols) {
    product_block<U, kPanel, 2, kAdd>(a, lda, b + v, ldb, depth, c + v, ldc);
    v += 2 * W;
  }
  for (; v < cols; v += W) product_block<U, kPanel, 1, kAdd>(a, lda, b + v, ldb, depth, c + v, ldc);
}

template <int... I>
void zip(Vec a, Vec b, Vec* out, std::integer_sequence<int, I...>) {
  out[0] = __builtin_shufflevector(a, b, (I / 2 + (I % 2 ? W : 0))...);
  out[1] = __builtin_shufflevector(a, b, (W / 2 + I / 2 + (I % 2 ? W : 0))...);
}

// W x W: zipping the upper with the lower half of the rows log2(W) times turns rows into columns.
inline void transpose(Vec* rows) {
  for (int stage = 1; stage < W; stage *= 2) {
    Vec zipped[W];
    for (int i = 0; i < W / 2; i++)
      zip(rows[i], rows[i + W / 2], zipped + 2 * i, std::make_integer_sequence<int, W>{});
    for (int i = 0; i < W; i++) rows[i] = zipped[i];
  }
}

// out [units, cols]: `cols` rows, a multiple of W, become columns.
template <class T>
void pack_columns(const T* const* rows, int cols, int64_t units, float* out) {
  using U = Units<T>;
  for (int i = 0; i < cols; i += W)
    for (int64_t u = 0; u < units; u += W) {
      const int n = units - u < W ? static_cast<int>(units - u) : W;
      Vec block[W];
      for (int j = 0; j < W; j++) block[j] = U::load(rows[i + j] + u * U::per, n);
      transpose(block);
      for (int j = 0; j < n; j++) store(out + (u + j) * cols + i, block[j]);
    }
}

}  // namespace
}  // namespace vllm
