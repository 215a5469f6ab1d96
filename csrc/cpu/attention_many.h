// Attention of many rows, as when prefilling: bound by arithmetic. Each tile of KVs is packed once
// for up to kManyRows rows, into the order in which a register-blocked product wants it.
#pragma once

#include "attention_rows.h"
#include "tile.h"

namespace vllm {
namespace {

static_assert(kManyRows % kPanel == 0);

// One row's weights, the left operand of the product with the values.
template <class T>
void pack_weights(const float* weights, float* out) {
  if constexpr (Units<T>::per == 2) {
    for (int i = 0; i < kTile; i += W) store(reinterpret_cast<bf16*>(out) + i, load(weights + i));
  } else {
    memcpy(out, weights, kTile * sizeof(float));
  }
}

// out [units of n, D]: the values lie as the product wants them, but for the pairing of bf16.
template <class T>
void pack_values(const T* const* keys, int64_t to_value, int n, int dim, float* out) {
  for (int i = 0; i < n; i += Units<T>::per, out += dim)
    for (int d = 0; d < dim; d += W) {
      const Vec value = load(keys[i] + to_value + d);
      if constexpr (Units<T>::per == 2) {
        const BitVec next = i + 1 < n ? (BitVec)load(keys[i + 1] + to_value + d) : BitVec{};
        store(out + d, (Vec)((BitVec)value >> 16 | next));
      } else {
        store(out + d, value);
      }
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
    pack_columns<T>(keys, kTile, units, packed_keys);
    pack_values<T>(keys, values, n, dim, packed_values);
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
        pack_weights<T>(scores + r * kTile, weights + r * (kTile / U::per));
      }
      product<U, true>(weights, kTile / U::per, packed_values, dim, (n + U::per - 1) / U::per,
                       sums + panel * dim, dim, dim);
    }
  }
  finish<T>(a, p, rows, sums, state);
}

}  // namespace
}  // namespace vllm
