// Vectors of float as wide as the file is compiled for: 16 lanes with AVX-512, 8 with AVX2, else 4.
//
// The kernels are written once over these names and compiled once an instruction set (see
// CMakeLists.txt). Most of it is the compiler's own vector extension; intrinsics stand only where
// the compiler emits something worse, or has no word for it (bf16 dot products).
//
// Everything is in an anonymous namespace. Were it not, the linker would keep one copy of each inline
// function, perhaps the AVX-512 one, and call it on a machine that has no AVX-512.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vllm {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));
typedef uint32_t BitVec __attribute__((vector_size(4 * W)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * W)));
typedef float Four __attribute__((vector_size(16)));

struct bf16 {
  uint16_t bits;
};

inline Vec splat(float x) { return x - Vec{}; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

// ---- memory: floats stay, bf16 widens on load and rounds to nearest even on store

inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline Vec load(const bf16* p) {
#if defined(__AVX512F__)
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)((BitVec)_mm512_cvtepu16_epi32(h) << 16);
#elif defined(__AVX2__)
  __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)((BitVec)_mm256_cvtepu16_epi32(h) << 16);
#else
  HalfBits h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, BitVec) << 16);
#endif
}

inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

inline void store(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &h, sizeof h);
#else
  BitVec bits = (BitVec)v;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bits = v == v ? bits : BitVec{} + 0x7fc0;  // rounding must not turn a NaN into an infinity
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)bits));
#else
  HalfBits h = __builtin_convertvector(bits, HalfBits);
  memcpy(p, &h, sizeof h);
#endif
#endif
}

// The first n lanes; the rest read as zero and are not written.
template <class T>
inline Vec load(const T* p, int n) {
  if (n == W) return load(p);
  T some[W] = {};
  memcpy(some, p, n * sizeof(T));
  return load(some);
}

template <class T>
inline void store(T* p, Vec v, int n) {
  if (n == W) return store(p, v);
  T some[W];
  store(some, v);
  memcpy(p, some, n * sizeof(T));
}

// f(i, lanes) for each vector of n elements; only the last may have fewer than W lanes.
template <class F>
inline void each_vector(int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, W);
  if (i < n) f(i, static_cast<int>(n - i));
}

// ---- sums across lanes

template <class V, int... I>
inline auto low_half(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, I...);
}

template <class V, int... I>
inline auto high_half(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (static_cast<int>(sizeof...(I)) + I)...);
}

// v's lanes brought together, four at a time.
template <class V, class F>
inline Four fold(V v, F both) {
  constexpr int lanes = sizeof(V) / 4;
  if constexpr (lanes == 4) {
    return v;
  } else {
    constexpr auto half = std::make_integer_sequence<int, lanes / 2>{};
    return fold(both(low_half(v, half), high_half(v, half)), both);
  }
}

inline float sum(Vec v) {
  const Four f = fold(v, [](auto a, auto b) { return a + b; });
  return (f[0] + f[2]) + (f[1] + f[3]);
}

inline float highest(Vec v) {
  const Four f = fold(v, [](auto a, auto b) { return a > b ? a : b; });
  const float a = f[0] > f[2] ? f[0] : f[2], b = f[1] > f[3] ? f[1] : f[3];
  return a > b ? a : b;
}

template <int... I>
inline Vec pair_sums(Vec a, Vec b, std::integer_sequence<int, I...>) {
  // In each group of four lanes: a0+a2, b0+b2, a1+a3, b1+b3 (the machine's unpack instructions).
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + (I % 2 ? W : 0))...) +
         __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + 2 + (I % 2 ? W : 0))...);
}

template <int... I>
inline Vec quad_sums(Vec ab, Vec cd, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(ab, cd, (I / 4 * 4 + I % 2 + (I % 4 / 2 ? W : 0))...) +
         __builtin_shufflevector(ab, cd, (I / 4 * 4 + I % 2 + 2 + (I % 4 / 2 ? W : 0))...);
}

// The sums of four vectors at once, for a third of the shuffles of four single sums.
inline Four sum4(Vec a, Vec b, Vec c, Vec d) {
  constexpr auto lanes = std::make_integer_sequence<int, W>{};
  return fold(quad_sums(pair_sums(a, b, lanes), pair_sums(c, d, lanes), lanes),
              [](auto x, auto y) { return x + y; });
}

// ---- exp

// 2^x within 2 ulp; exactly 0 below 2^-125, so that masked scores (-inf) vanish. x must be <= 127.
inline Vec exp2(Vec x) {
  const Vec shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec whole = (x + shift) - shift;
  Vec f = x - whole;  // in [-0.5, 0.5]
  Vec p = splat(0.00015353362f);
  p = p * f + splat(0.00133988739f);
  p = p * f + splat(0.00961843692f);
  p = p * f + splat(0.0555033237f);
  p = p * f + splat(0.240226477f);
  p = p * f + splat(0.693147182f);
  p = p * f + splat(1.f);
  IntVec exponent = __builtin_convertvector(whole, IntVec) << 23;
  return x < -125.f ? Vec{} : (Vec)((IntVec)p + exponent);
}

// ---- dot products: `step` elements of each operand at a time, summed into W float lanes

template <class T>
struct Dot;

template <>
struct Dot<float> {
  static constexpr int step = W;
  using Operand = Vec;
  static Operand load(const float* p) { return vllm::load(p); }
  static Vec add(Vec sum, Operand a, Operand b) { return sum + a * b; }
};

template <>
struct Dot<bf16> {
  static constexpr int step = 2 * W;
#if defined(__AVX512BF16__)
  using Operand = __m512bh;
  static Operand load(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Vec add(Vec sum, Operand a, Operand b) { return (Vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
  // A dot product does not care for the order of its terms: taking even and odd elements apart costs
  // a shift and a mask, keeping their order would cost two shuffles more.
  struct Operand {
    Vec even, odd;
  };
  static Operand load(const bf16* p) {
    BitVec both;
    memcpy(&both, p, sizeof both);
    return {(Vec)(both << 16), (Vec)(both & 0xffff0000u)};
  }
  static Vec add(Vec sum, Operand a, Operand b) { return sum + a.even * b.even + a.odd * b.odd; }
#endif
};

// The first n elements, n < step; the rest are zero.
template <class T>
inline typename Dot<T>::Operand dot_tail(const T* p, int n) {
  T some[Dot<T>::step] = {};
  memcpy(some, p, n * sizeof(T));
  return Dot<T>::load(some);
}

}  // namespace
}  // namespace vllm
