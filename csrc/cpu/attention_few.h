// Attention of a few rows, as when decoding: one new token and the query heads of one KV head. Bound by
// reading the KVs, so each key and value is read once, for all rows, where it lies: no packing.
#pragma once

#include "attention_rows.h"

namespace vllm {
namespace {

// f(r, count) for rows r .. r + count: fours first, so that a loaded key or value serves four rows.
template <class F>
void each_rows(int rows, F f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) f(r, std::integral_constant<int, 4>{});
  switch (rows - r) {
    case 3: return f(r, std::integral_constant<int, 3>{});
    case 2: return f(r, std::integral_constant<int, 2>{});
    case 1: return f(r, std::integral_constant<int, 1>{});
  }
}

// scores[r, 0..4) = q[r] . keys[0..4) for R rows. q rows are `dim` apart, score rows kTile.
template <class T, int R>
void score4(const T* q, const T* const* keys, int dim, float* scores) {
  Vec sums[R][4] = {};
  constexpr int step = Dot<T>::step;
  int d = 0;
  for (; d + step <= dim; d += step) {
    typename Dot<T>::Operand key[4];
    for (int i = 0; i < 4; i++) key[i] = Dot<T>::load(keys[i] + d);
    for (int r = 0; r < R; r++) {
      const auto qd = Dot<T>::load(q + r * dim + d);
      for (int i = 0; i < 4; i++) sums[r][i] = Dot<T>::add(sums[r][i], qd, key[i]);
    }
  }
  if (d < dim) {
    for (int r = 0; r < R; r++) {
      const auto qd = dot_tail(q + r * dim + d, dim - d);
      for (int i = 0; i < 4; i++)
        sums[r][i] = Dot<T>::add(sums[r][i], qd, dot_tail(keys[i] + d, dim - d));
    }
  }
  for (int r = 0; r < R; r++) {
    const Four made = sum4(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
    memcpy(scores + r * kTile, &made, sizeof made);
  }
}

// sums[r, 0 .. V * W) += sum over n KVs of weights[r, i] * value[i], for R rows.
template <class T, int R, int V>
void mix(const float* weights, const T* const* keys, int64_t to_value, int n, int dim, float* sums) {
  Vec acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = load(sums + r * dim + v * W);
  for (int i = 0; i < n; i++) {
    const T* value = keys[i] + to_value;
    Vec loaded[V];
    for (int v = 0; v < V; v++) loaded[v] = load(value + v * W);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) acc[r][v] = acc[r][v] + loaded[v] * weights[r * kTile + i];
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(sums + r * dim + v * W, acc[r][v]);
}

// Ask for rows that will be read soon: blocks lie anywhere, so the machine cannot guess the next one.
template <class T>
void fetch(const T* const* rows, int64_t offset, int n, int dim) {
  for (int i = 0; i < n; i++) {
    const char* row = reinterpret_cast<const char*>(rows[i] + offset);
    for (int b = 0; b < dim * static_cast<int>(sizeof(T)); b += 64) __builtin_prefetch(row + b, 0, 2);
  }
}

template <class T>
void attend_few(const Attention& a, const Piece& p, float* scratch) {
  const int rows = (p.token_end - p.token) * a.group, dim = a.head_dim;
  float* sums = scratch;
  T* q = reinterpret_cast<T*>(scratch + kFewRows * kMaxHeadDim);
  Row state[kFewRows];
  alignas(64) float scores[kFewRows * kTile];
  const T *keys[kTile], *next[kTile];  // of this tile and the one after it
  memset(sums, 0, rows * dim * sizeof(float));
  for (int r = 0; r < rows; r++) memcpy(q + r * dim, query<T>(a, p, r), dim * sizeof(T));

  constexpr int wide = W == 16 ? 4 : 2;
  const int64_t values = static_cast<int64_t>(a.block_size) * dim;
  find_keys<T>(a, p, p.begin, p.end - p.begin < kTile ? p.end - p.begin : kTile, next);
  for (int begin = p.begin; begin < p.end; begin += kTile) {
    const int n = p.end - begin < kTile ? p.end - begin : kTile;
    const int after = p.end - begin - n < kTile ? p.end - begin - n : kTile;
    memcpy(keys, next, sizeof keys);
    if (after > 0) find_keys<T>(a, p, begin + n, after, next);
    each_rows(rows, [&](int r, auto count) {
      for (int i = 0; i < n; i += 4) {
        if (r == 0) {
          fetch(keys + i, values, 4, dim);
          if (after > 0) fetch(next + i, 0, 4, dim);
        }
        score4<T, count.value>(q + r * dim, keys + i, dim, scores + r * kTile + i);
      }
    });
    for (int r = 0; r < rows; r++) {
      const Range range = seen(a, p, r);
      float* row = scores + r * kTile;
      const int last = range.second < p.end ? range.second : p.end;
      soften(row, row, range.first - begin, last - begin, a.scale * 1.44269504f, state[r],
             sums + r * dim, dim);
    }
    each_rows(rows, [&](int r, auto count) {
      int d = 0;
      for (; d + wide * W <= dim; d += wide * W)
        mix<T, count.value, wide>(scores + r * kTile, keys, values + d, n, dim, sums + r * dim + d);
      for (; d < dim; d += W)
        mix<T, count.value, 1>(scores + r * kTile, keys, values + d, n, dim, sums + r * dim + d);
    });
  }
  finish<T>(a, p, rows, sums, state);
}

}  // namespace
}  // namespace vllm
