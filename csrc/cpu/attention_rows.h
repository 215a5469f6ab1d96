// What both attention kernels share: where KVs lie, one row's step of the online softmax (Milakov and
// Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022, FlashAttention), and writing rows out.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace vllm {
namespace {

// Below any score, yet finite: the difference of two of these is 0, that of two infinities is not.
constexpr float kLowest = -1e30f;

struct Row {
  float highest = kLowest;  // score so far, times log2(e)
  float weight = 0;         // sum of 2^(score - highest)
};

template <class T>
const T* query(const Attention& a, const Piece& p, int row) {
  const int64_t token = a.query_start[p.sequence] + p.token + row / a.group;
  const int64_t head = static_cast<int64_t>(p.head) * a.group + row % a.group;
  return static_cast<const T*>(a.q) + token * a.q_token + head * a.q_head;
}

// The KVs that a row sees, [first, second): those up to its own position and inside the window.
struct Range {
  int first, second;
};
inline Range seen(const Attention& a, const Piece& p, int row) {
  const int count = a.query_start[p.sequence + 1] - a.query_start[p.sequence];
  const int position = length_of(a, p.sequence, p.head) - count + p.token + row / a.group;
  const int first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
  return {first, position + 1};
}

// Where the keys of KVs [begin, begin + n) are; values stand B * D further on. The rest of `keys`
// repeats the last one, so that kernels may read whole groups of keys and mask what they made of it.
template <class T>
void find_keys(const Attention& a, const Piece& p, int begin, int n, const T** keys) {
  const int32_t* table = a.tables + p.sequence * a.table_stride + p.head * a.table_head;
  const T* head = static_cast<const T*>(a.kv) + p.head * a.kv_head;
  for (int i = 0; i < n;) {
    const int block = (begin + i) / a.block_size, offset = (begin + i) % a.block_size;
    const T* key = head + table[block] * a.kv_block + static_cast<int64_t>(offset) * a.head_dim;
    for (int o = offset; o < a.block_size && i < n; o++, i++, key += a.head_dim) keys[i] = key;
  }
  for (int i = n; i < kTile; i++) keys[i] = keys[n - 1];
}

// One row, one tile: scores of kTile KVs, of which [first, last) count, become weights relative to the
// row's highest score so far, and `sums` [D], made with an older one, is brought down to it.
inline void soften(const float* scores, float* weights, int first, int last, float scale, Row& row,
                   float* sums, int dim) {
  Vec score[kTile / W];
  for (int i = 0; i < kTile / W; i++) score[i] = load(scores + i * W) * scale;
  if (first > 0 || last < kTile) {
    IntVec at;
    for (int i = 0; i < W; i++) at[i] = i;
    for (int i = 0; i < kTile / W; i++, at += W)
      score[i] = at >= first && at < last ? score[i] : splat(-__builtin_inff());
  }
  Vec top = score[0];
  for (int i = 1; i < kTile / W; i++) top = max(top, score[i]);
  const float now = highest(top);
  const float highest = now > row.highest ? now : row.highest;
  Vec weight{};
  for (int i = 0; i < kTile / W; i++) {
    const Vec v = exp2(score[i] - highest);
    weight = weight + v;
    store(weights + i * W, v);
  }
  if (highest > row.highest) {
    const Vec less = exp2(splat(row.highest - highest));
    for (int d = 0; d < dim; d += W) store(sums + d, load(sums + d) * less);
    row.weight *= less[0];
    row.highest = highest;
  }
  row.weight += sum(weight);
}

template <class T>
T* output(const Attention& a, const Piece& p, int row) {
  const int64_t token = a.query_start[p.sequence] + p.token + row / a.group;
  const int64_t head = static_cast<int64_t>(p.head) * a.group + row % a.group;
  return static_cast<T*>(a.out) + (token * a.heads * a.group + head) * a.head_dim;
}

// Rows are done: to `out`, or to the piece's partial when others hold the rest of the KVs.
template <class T>
void finish(const Attention& a, const Piece& p, int rows, const float* sums, const Row* state) {
  for (int r = 0; r < rows; r++, sums += a.head_dim) {
    if (p.partial != nullptr) {
      float* partial = p.partial + static_cast<int64_t>(r) * (a.head_dim + 2);
      memcpy(partial, sums, a.head_dim * sizeof(float));
      partial[a.head_dim] = state[r].highest;
      partial[a.head_dim + 1] = state[r].weight;
    } else {
      T* out = output<T>(a, p, r);
      for (int d = 0; d < a.head_dim; d += W) store(out + d, load(sums + d) / state[r].weight);
    }
  }
}

template <class T>
void merge_parts(const Attention& a, const Piece& p, int parts) {
  const int rows = (p.token_end - p.token) * a.group, dim = a.head_dim;
  const int64_t next = static_cast<int64_t>(rows) * (dim + 2);
  for (int r = 0; r < rows; r++) {
    const float* first = p.partial + static_cast<int64_t>(r) * (dim + 2);
    float sums[kMaxHeadDim] = {};
    Row all;
    for (int i = 0; i < parts; i++) {
      const float highest = first[i * next + dim];
      all.highest = highest > all.highest ? highest : all.highest;
    }
    for (int i = 0; i < parts; i++) {
      const float* part = first + i * next;
      const Vec share = exp2(splat(part[dim] - all.highest));
      all.weight += part[dim + 1] * share[0];
      for (int d = 0; d < dim; d += W) store(sums + d, load(sums + d) + load(part + d) * share);
    }
    T* out = output<T>(a, p, r);
    for (int d = 0; d < dim; d += W) store(out + d, load(sums + d) / all.weight);
  }
}

}  // namespace
}  // namespace vllm
