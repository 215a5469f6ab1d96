// x [T, K] @ weight [M, K].T, two ways. Weights stay as the checkpoint has them in both.
//
// Few tokens, as when decoding: bound by reading the weights. Both operands are contiguous along the
// summed dimension, so sums are kept a vector wide and added across lanes at the end: nothing is packed.
//
// Many tokens: lanes are tokens. x is packed with its tokens as columns, once for all outputs, and the
// weights are the operand that is read an element at a time; see tile.h.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "tile.h"

namespace vllm {
namespace {

constexpr int kTokens = W == 16 ? 6 : 3;  // of a register block with 4 outputs: its sums fill 24 of 32
                                          // registers, or 12 of 16
constexpr int kFewTokens = W == 16 ? 28 : 12;  // beyond, adding across lanes and reading weights from the
                                               // cache again for each block of tokens cost more
constexpr int kStrip = 16;                // outputs that are written together
constexpr int kGroup = kLinearGroup;
constexpr int kDepth = kLinearDepth;

// made[j, i] = x[token + j] . weight[output + i] for J tokens and O outputs, a multiple of four. Rows past
// the last output repeat it: what is made of them is not written.
template <class T, int J, int O>
void linear_block(const Linear& a, int64_t token, int64_t output, float* made) {
  constexpr int step = Dot<T>::step;
  const T *w[O], *x[J];
  for (int i = 0; i < O; i++) {
    const int64_t row = output + i < a.outputs ? output + i : a.outputs - 1;
    w[i] = static_cast<const T*>(a.weight) + row * a.weight_stride;
  }
  for (int j = 0; j < J; j++) x[j] = static_cast<const T*>(a.x) + (token + j) * a.x_stride;

  // The machine's own prefetching follows one stream well, but not O short ones.
  const int64_t ahead = O * a.weight_stride;
  Vec sums[J][O] = {};
  int64_t k = 0;
  for (; k + step <= a.inputs; k += step) {
    typename Dot<T>::Operand xk[J];
    for (int j = 0; j < J; j++) xk[j] = Dot<T>::load(x[j] + k);
    for (int i = 0; i < O; i++) {
      const auto wk = Dot<T>::load(w[i] + k);
      __builtin_prefetch(w[i] + k + ahead, 0, 2);
      for (int j = 0; j < J; j++) sums[j][i] = Dot<T>::add(sums[j][i], wk, xk[j]);
    }
  }
  if (const int rest = static_cast<int>(a.inputs - k); rest > 0)
    for (int j = 0; j < J; j++) {
      const auto xk = dot_tail(x[j] + k, rest);
      for (int i = 0; i < O; i++) sums[j][i] = Dot<T>::add(sums[j][i], dot_tail(w[i] + k, rest), xk);
    }
  for (int j = 0; j < J; j++)
    for (int i = 0; i < O; i += 4) {
      const Four four = sum4(sums[j][i], sums[j][i + 1], sums[j][i + 2], sums[j][i + 3]);
      memcpy(made + j * kStrip + i, &four, sizeof four);
    }
}

// kStrip outputs of J tokens. One token has few sums to keep: it takes more outputs at a time.
template <class T, int J>
void linear_strip(const Linear& a, int64_t token, int64_t output) {
  constexpr int O = J == 1 || (J == 2 && W == 16) ? 8 : 4;
  alignas(64) float made[J * kStrip];
  const int count = static_cast<int>(a.outputs - output < kStrip ? a.outputs - output : kStrip);
  for (int i = 0; i < count; i += O) linear_block<T, J, O>(a, token, output + i, made + i);
  for (int j = 0; j < J; j++)
    each_vector(count, [&](int64_t i, int n) {
      Vec y = load(made + j * kStrip + i);
      if (a.bias != nullptr) y = y + load(static_cast<const T*>(a.bias) + output + i, n);
      store(static_cast<T*>(a.out) + (token + j) * a.outputs + output + i, y, n);
    });
}

template <class T>
void linear_tokens(const Linear& a, int tokens, int64_t token, int64_t output) {
  static_assert(kTokens <= 6);
  switch (tokens) {
    case 1: return linear_strip<T, 1>(a, token, output);
    case 2: return linear_strip<T, 2>(a, token, output);
    case 3: return linear_strip<T, 3>(a, token, output);
    case 4: return linear_strip<T, 4>(a, token, output);
    case 5: return linear_strip<T, 5>(a, token, output);
    case 6: return linear_strip<T, 6>(a, token, output);
  }
}

template <class T>
void linear_few(const Linear& a, int64_t begin, int64_t end) {
  for (int64_t output = begin; output < end; output += kStrip)
    for (int64_t token = 0; token < a.tokens;) {
      // Cut evenly: 8 tokens are 4 + 4, not 6 + 2.
      const int64_t left = a.tokens - token, cuts = (left + kTokens - 1) / kTokens;
      const int tokens = static_cast<int>((left + cuts - 1) / cuts);
      linear_tokens<T>(a, tokens, token, output);
      token += tokens;
    }
}

// c [kGroup outputs, tokens] to out, transposed, from token `first` on.
template <class T>
void write_group(const Linear& a, const float* c, int64_t output, int64_t first) {
  const int64_t last = a.tokens - first < kTile ? a.tokens : first + kTile;
  for (int64_t token = first; token < last; token += W)
    for (int o = 0; o < kGroup; o += W) {
      Vec rows[W];
      for (int i = 0; i < W; i++) rows[i] = load(c + (o + i) * kTile + token - first);
      transpose(rows);
      Vec bias{};
      if (a.bias != nullptr) bias = load(static_cast<const T*>(a.bias) + output + o);
      T* out = static_cast<T*>(a.out) + token * a.outputs + output + o;
      for (int t = 0; t < W && token + t < last; t++) store(out + t * a.outputs, rows[t] + bias);
    }
}

// The columns of tile i of the packed x: whole tiles, then what is left, in vectors of any machine.
inline int columns(const Linear& a, int64_t tile) {
  const int64_t left = a.tokens - tile * kTile;
  return left < kTile ? static_cast<int>((left + 15) / 16 * 16) : kTile;
}

// packed [units of K, columns] for each tile of tokens, one after the other.
template <class T>
void linear_pack(const Linear& a, float* packed, int64_t begin, int64_t end) {
  const int64_t units = a.inputs / Units<T>::per;
  for (int64_t tile = begin; tile < end; tile++) {
    const T* rows[kTile];
    for (int64_t i = 0; i < kTile; i++) {
      const int64_t token = tile * kTile + i < a.tokens ? tile * kTile + i : a.tokens - 1;
      rows[i] = static_cast<const T*>(a.x) + token * a.x_stride;
    }
    pack_columns<T>(rows, columns(a, tile), units, packed + tile * kTile * units);
  }
}

template <class T, int R, int V>
void group_blocks(const Unit* weights, int64_t stride, const float* packed, int depth, float* c) {
  static_assert(kGroup % R == 0);
  for (int r = 0; r < kGroup; r += R)
    product_block<Units<T>, R, V, true>(weights + r * stride, stride, packed, V * W, depth, c + r * kTile, kTile);
}

// c [kGroup, cols] += the group's weights @ a part of a packed tile. The narrower the tile, the more rows
// a register block takes, to have as many independent sums.
template <class T>
void group_product(const Unit* weights, int64_t stride, const float* packed, int cols, int depth, float* c) {
  if constexpr (W == 16) {
    switch (cols / W) {
      case 1: return group_blocks<T, 12, 1>(weights, stride, packed, depth, c);
      case 2: return group_blocks<T, 12, 2>(weights, stride, packed, depth, c);
      case 3: return group_blocks<T, 8, 3>(weights, stride, packed, depth, c);
    }
  }
  for (int r = 0; r < kGroup; r += kPanel)
    product<Units<T>, true>(weights + r * stride, stride, packed, cols, depth, c + r * kTile, kTile, cols);
}

// Outputs [begin, end), a multiple of kGroup, of all tokens. scratch [kGroup, kDepth].
template <class T>
void linear_many(const Linear& a, const float* packed, float* scratch, int64_t begin, int64_t end) {
  using U = Units<T>;
  const int64_t units = a.inputs / U::per;
  for (int64_t output = begin; output < end; output += kGroup) {
    const T* weights = static_cast<const T*>(a.weight) + output * a.weight_stride;
    for (int64_t tile = 0; tile * kTile < a.tokens; tile++) {
      const int cols = columns(a, tile);
      const float* part = packed + tile * kTile * units;
      alignas(64) float c[kGroup * kTile] = {};
      for (int64_t u = 0; u < units; u += kDepth, part += kDepth * cols) {
        const int depth = static_cast<int>(units - u < kDepth ? units - u : kDepth);
        if constexpr (U::as_is) {
          const Unit* from = reinterpret_cast<const Unit*>(weights + u * U::per);
          group_product<T>(from, a.weight_stride / U::per, part, cols, depth, c);
        } else {
          for (int r = 0; r < kGroup; r++)
            each_vector(depth, [&](int64_t i, int n) {
              store(scratch + r * kDepth + i, load(weights + r * a.weight_stride + u + i, n), n);
            });
          group_product<T>(scratch, kDepth, part, cols, depth, c);
        }
      }
      write_group<T>(a, c, output, tile * kTile);
    }
  }
}

}  // namespace
}  // namespace vllm
