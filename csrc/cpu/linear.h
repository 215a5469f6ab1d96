// Skinny products, x [T, K] with few rows: what decoding spends its time on. They are bound by reading
// the weights, so each weight is read once from memory, for all tokens, in the order it lies there.
//
// Weights stay [outputs, inputs] as the checkpoint has them. Both operands are contiguous along the
// summed dimension, so sums are kept a vector wide and added across lanes at the end: nothing is
// packed or transposed.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace vllm {
namespace {

constexpr int kOutputs = 4;                      // outputs of a register block
constexpr int kTokens = W == 16 ? 6 : 3;         // tokens of it: 24 of 32 registers hold sums, 12 of 16
constexpr int kCachedBytes = 1 << 18;            // of x, a part that stays in the L2 cache

// out[token[j], o .. o + outputs) for J tokens; x and weight point at row starts.
template <class T, int J>
void linear_block(const Linear& a, int64_t token, int64_t output) {
  const T *w[kOutputs], *x[J];
  const int64_t outputs = a.outputs - output < kOutputs ? a.outputs - output : kOutputs;
  for (int i = 0; i < kOutputs; i++) {
    const int64_t row = output + (i < outputs ? i : 0);
    w[i] = static_cast<const T*>(a.weight) + row * a.weight_stride;
  }
  for (int j = 0; j < J; j++) x[j] = static_cast<const T*>(a.x) + (token + j) * a.x_stride;

  Vec sums[J][kOutputs] = {};
  constexpr int step = Dot<T>::step;
  int64_t k = 0;
  for (; k + step <= a.inputs; k += step) {
    typename Dot<T>::Operand wk[kOutputs];
    for (int i = 0; i < kOutputs; i++) wk[i] = Dot<T>::load(w[i] + k);
    for (int j = 0; j < J; j++) {
      const auto xk = Dot<T>::load(x[j] + k);
      for (int i = 0; i < kOutputs; i++) sums[j][i] = Dot<T>::add(sums[j][i], wk[i], xk);
    }
  }
  if (k < a.inputs) {
    const int rest = static_cast<int>(a.inputs - k);
    for (int j = 0; j < J; j++) {
      const auto xk = dot_tail(x[j] + k, rest);
      for (int i = 0; i < kOutputs; i++)
        sums[j][i] = Dot<T>::add(sums[j][i], dot_tail(w[i] + k, rest), xk);
    }
  }
  for (int j = 0; j < J; j++) {
    float four[W] = {};
    const Four made = sum4(sums[j][0], sums[j][1], sums[j][2], sums[j][3]);
    memcpy(four, &made, sizeof made);
    const int n = static_cast<int>(outputs);
    Vec y = load(four);
    if (a.bias != nullptr) y = y + load(static_cast<const T*>(a.bias) + output, n);
    store(static_cast<T*>(a.out) + (token + j) * a.outputs + output, y, n);
  }
}

template <class T>
void linear_tokens(const Linear& a, int tokens, int64_t token, int64_t output) {
  static_assert(kTokens <= 6);
  switch (tokens) {
    case 1: return linear_block<T, 1>(a, token, output);
    case 2: return linear_block<T, 2>(a, token, output);
    case 3: return linear_block<T, 3>(a, token, output);
    case 4: return linear_block<T, 4>(a, token, output);
    case 5: return linear_block<T, 5>(a, token, output);
    case 6: return linear_block<T, 6>(a, token, output);
  }
}

template <class T>
void linear_outputs(const Linear& a, int64_t begin, int64_t end) {
  int64_t cached = kCachedBytes / static_cast<int64_t>(a.inputs * sizeof(T)) / kTokens * kTokens;
  if (cached < kTokens) cached = kTokens;
  for (int64_t first = 0; first < a.tokens; first += cached) {
    const int64_t last = first + cached < a.tokens ? first + cached : a.tokens;
    for (int64_t output = begin; output < end; output += kOutputs) {
      for (int64_t token = first; token < last;) {
        // Cut evenly: 8 tokens are 4 + 4, not 6 + 2.
        const int64_t left = last - token, cuts = (left + kTokens - 1) / kTokens;
        const int tokens = static_cast<int>((left + cuts - 1) / cuts);
        linear_tokens<T>(a, tokens, token, output);
        token += tokens;
      }
    }
  }
}

}  // namespace
}  // namespace vllm
