// Attention of many rows, as when prefilling: bound by arithmetic. Each tile of KVs is packed once
// for up to kManyRows rows, into the order in which a register-blocked product wants it.
#pragma once

#include "attention_rows.h"

namespace vllm {
namespace {

constexpr int kPanel = 6;                 // rows of a register block
constexpr int kWide = W == 16 ? 4 : 2;    // vectors of it: 24 of 32 registers hold sums, 12 of 16
static_assert(kManyRows % kPanel == 0);

// A unit is what one lane multiplies: a float, or with AVX-512-BF16 a pair of bf16 along the summed
// dimension. Without that instruction bf16 is widened to float when it is packed.
template <class T>
struct Units {
  using Unit = float;
  static constexpr int per = 1;  // elements of a unit
  static Vec load(const T* p, int n) { return vllm::load(p, n); }
  static Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
  static void pack_weights(const float* weights, float* out) { memcpy(out, weights, kTile * 4); }
  static void pack_values(const T* const* keys, int64_t to_value, int n, int dim, float* out) {
    for (int i = 0; i < n; i++)
      for (int d = 0; d < dim; d += W) store(out + i * dim + d, vllm::load(keys[i] + to_value + d));
  }
};

#if defined(__AVX512BF16__)
template <>
struct Units<bf16> {
  using Unit = float;  // the bits of two bf16
  static constexpr int per = 2;
  static Vec load(const bf16* p, int n) { return (Vec)dot_tail(p, 2 * n); }
  static Vec add(Vec sum, Vec a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
  static void pack_weights(const float* weights, float* out) {
    for (int i = 0; i < kTile; i += W) store(reinterpret_cast<bf16*>(out) + i, vllm::load(weights + i));
  }
  static void pack_values(const bf16* const* keys, int64_t to_value, int n, int dim, float* out) {
    for (int i = 0; i < n; i += 2) {
      const bf16* even = keys[i] + to_value;
      const bf16* odd = keys[i + 1] + to_value;
      for (int d = 0; d < dim; d += W) {
        const BitVec low = (BitVec)vllm::load(even + d) >> 16;
        const BitVec high = i + 1 < n ? (BitVec)vllm::load(odd + d) : BitVec{};
        store(out + i / 2 * dim + d, (Vec)(low | high));
      }
    }
  }
};
#endif

// c[kPanel, V * W] (+)= a [kPanel, depth] @ b [depth, V * W], in units.
template <class U, int V, bool kAdd>
void product_block(const float* a, int lda, const float* b, int ldb, int depth, float* c, int ldc) {
  Vec acc[kPanel][V] = {};
  if constexpr (kAdd)
    for (int r = 0; r < kPanel; r++)
      for (int v = 0; v < V; v++) acc[r][v] = load(c + r * ldc + v * W);
  for (int k = 0; k < depth; k++) {
    Vec bk[V];
    for (int v = 0; v < V; v++) bk[v] = load(b + k * ldb + v * W);
    for (int r = 0; r < kPanel; r++) {
      const Vec ak = splat(a[r * lda + k]);
      for (int v = 0; v < V; v++) acc[r][v] = U::add(acc[r][v], ak, bk[v]);
    }
  }
  for (int r = 0; r < kPanel; r++)
    for (int v = 0; v < V; v++) store(c + r * ldc + v * W, acc[r][v]);
}

template <class U, bool kAdd>
void product(const float* a, int lda, const float* b, int ldb, int depth, float* c, int ldc, int cols) {
  int v = 0;
  for (; v + kWide * W <= cols; v += kWide * W)
    product_block<U, kWide, kAdd>(a, lda, b + v, ldb, depth, c + v, ldc);
  if (kWide > 2 && v + 2 * W <= cols) {
    product_block<U, 2, kAdd>(a, lda, b + v, ldb, depth, c + v, ldc);
    v += 2 * W;
  }
  for (; v < cols; v += W) product_block<U, 1, kAdd>(a, lda, b + v, ldb, depth, c + v, ldc);
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

// out [units of D, kTile] = the keys, transposed.
template <class T>
void pack_keys(const T* const* keys, int dim, float* out) {
  using U = Units<T>;
  const int units = dim / U::per;
  for (int i = 0; i < kTile; i += W)
    for (int u = 0; u < units; u += W) {
      const int n = units - u < W ? units - u : W;
      Vec rows[W];
      for (int j = 0; j < W; j++) rows[j] = U::load(keys[i + j] + u * U::per, n);
      transpose(rows);
      for (int j = 0; j < n; j++) store(out + (u + j) * kTile + i, rows[j]);
    }
}

template <class T>
void attend_many(const Attention& a, const Piece& p, float* scratch) {
  using U = Units<T>;
  const int rows = (p.token_end - p.token) * a.group, dim = a.head_dim, units = dim / U::per;
  const int padded = (rows + kPanel - 1) / kPanel * kPanel;
  float* sums = scratch;                       // [padded, D]
  float* q = sums + kManyRows * kMaxHeadDim;   // [padded, units]
  float* packed_keys = q + kManyRows * kMaxHeadDim;         // [units, kTile]
  float* packed_values = packed_keys + kTile * kMaxHeadDim;  // [kTile / per, D]
  Row state[kManyRows];
  memset(sums, 0, padded * dim * sizeof(float));
  memset(q, 0, padded * units * sizeof(float));
  for (int r = 0; r < rows; r++)
    for (int u = 0; u < units; u += W) {
      const int n = units - u < W ? units - u : W;
      store(q + r * units + u, U::load(query<T>(a, p, r) + u * U::per, n), n);
    }

  const T* keys[kTile];
  alignas(64) float scores[kPanel * kTile], weights[kPanel * kTile / U::per];
  const int64_t values = static_cast<int64_t>(a.block_size) * dim;
  for (int begin = p.begin; begin < p.end; begin += kTile) {
    const int n = p.end - begin < kTile ? p.end - begin : kTile;
    find_keys<T>(a, p, begin, n, keys);
    pack_keys<T>(keys, dim, packed_keys);
    U::pack_values(keys, values, n, dim, packed_values);
    for (int panel = 0; panel < rows; panel += kPanel) {
      const int last = (panel + kPanel < rows ? panel + kPanel : rows) - 1;
      if (seen(a, p, last).second <= begin || seen(a, p, panel).first >= begin + n) continue;
      product<U, false>(q + panel * units, units, packed_keys, kTile, units, scores, kTile, kTile);
      for (int r = 0; r < kPanel; r++) {
        const int row = panel + r < rows ? panel + r : last;  // rows of the padding: like the last
        const Range range = seen(a, p, row);
        const int end = range.second < p.end ? range.second : p.end;
        soften(scores + r * kTile, scores + r * kTile, range.first - begin, end - begin,
               a.scale * 1.44269504f, state[panel + r], sums + (panel + r) * dim, dim);
        U::pack_weights(scores + r * kTile, weights + r * (kTile / U::per));
      }
      product<U, true>(weights, kTile / U::per, packed_values, dim, (n + U::per - 1) / U::per,
                       sums + panel * dim, dim, dim);
    }
  }
  finish<T>(a, p, rows, sums, state);
}

}  // namespace
}  // namespace vllm
