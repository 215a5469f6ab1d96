// The CPU kernels: plain C++ on pointers and strides, torch is not seen here.
//
// Two layers. `vllm::rms_norm(...)` and its sisters take a whole operation, cut it into pieces and
// run them on threads. Each piece is done by a function of `Kernels`, a table of single-threaded
// kernels; there is one table an instruction set, and `chosen()` is the best that the machine has.
//
// Shapes are named as in vllm/kernels/ops.py: T tokens, S sequences, Q query heads, H KV heads,
// D head size, N blocks, B block size. Strides count elements unless their name ends in `_bytes`.
#pragma once

#include <cstdint>

namespace vllm {

enum class Type { f32, bf16 };

// out = x / rms(x) * weight. Row r of x is at (r / inner) * outer_stride + (r % inner) * inner_stride,
// so that the heads of a fused qkv output need no copy. With `residual` (contiguous rows),
// residual += x comes first and the sum is what is normed. out [rows, width] is contiguous.
struct RmsNorm {
  Type type;
  const void* x;
  void* residual;  // or nullptr
  const void* weight;
  void* out;
  int64_t rows, inner, outer_stride, inner_stride, width;
  float eps;
};

// Rows of heads: element d of head h of token t is at t * token + h * head + d.
struct Heads {
  void* data;
  int64_t heads, token, head;
};

// Half-split rotary embedding, in place: the first 2 * half dimensions of each head turn.
struct Rotary {
  Type type;
  Heads q, k;
  const int64_t* positions;  // [T]
  const float* cos_sin;      // [max_position, 2 * half], contiguous
  int64_t tokens, half;
};

// out[t] = silu(x[t, :width]) * x[t, width:]. x [T, 2 * width] with rows `stride` apart.
struct SiluAndMul {
  Type type;
  const void* x;
  void* out;  // [T, width], contiguous
  int64_t tokens, width, stride;
};

// Rows of `row_bytes` go to kv[slot / B, h, 0 or 1, slot % B].
struct WriteKV {
  char* kv;
  const char *k, *v;
  const int64_t* slots;  // [T]
  int64_t tokens, heads, block_size, row_bytes;
  int64_t block_bytes, head_bytes;  // strides of kv; a head block [2, B, D] is contiguous
  int64_t k_token_bytes, k_head_bytes, v_token_bytes, v_head_bytes;
};

// As WriteKV, with a slot of its own for each head: to blocks[slot / B, 0 or 1, slot % B].
struct WriteKVHeads {
  char* blocks;  // [head blocks, 2, B, D], contiguous
  const char *k, *v;
  const int64_t* slots;  // [T, H]
  int64_t tokens, heads, block_size, row_bytes;
  int64_t k_token_bytes, k_head_bytes, v_token_bytes, v_head_bytes;
};

// Single KVs, key and value, from slot to slot of head blocks. No slot is in both.
struct CopyKV {
  char* blocks;  // [head blocks, 2, B, D], contiguous
  const int64_t *source, *target;  // [count]
  int64_t count, block_size, row_bytes;
};

// out = x @ weight.T + bias.
struct Linear {
  Type type;
  const void* x;       // [T, inputs], rows x_stride apart
  const void* weight;  // [outputs, inputs], rows weight_stride apart
  const void* bias;    // [outputs] or nullptr
  void* out;           // [T, outputs], contiguous
  int64_t tokens, inputs, outputs, x_stride, weight_stride;
};

// Causal attention of the last tokens of each sequence over its blocks. KV head h of sequence s has its
// blocks at tables[s * table_stride + h * table_head] on, kv_head * h into each, and its length at
// lengths[s * length_stride + h * length_head]. The heads of a dense sequence share table and length (both
// head strides are 0); those of a compressed one have their own, over head blocks (kv_head is 0).
struct Attention {
  Type type;
  const void* q;  // [T, Q, D]: token stride q_token, head stride q_head
  void* out;      // [T, Q, D], contiguous
  const void* kv;  // blocks of [2, B, D] a head, kv_block apart
  const int32_t* tables;
  const int32_t* query_start;  // [S + 1]
  const int32_t* lengths;
  int64_t q_token, q_head, kv_block, kv_head, table_stride, table_head, length_stride, length_head;
  int sequences, heads, group, block_size, head_dim;  // group = Q / H
  float scale;
  int window;  // 0: none
};

static inline int length_of(const Attention& a, int sequence, int head) {
  return a.lengths[sequence * a.length_stride + head * a.length_head];
}

// The queries of tokens [token, token_end) of sequence `sequence` (counted from its first new token)
// and of the `group` query heads of one KV head, over the KVs [begin, end). Its rows are
// (token, query head) pairs, token-major.
struct Piece {
  int sequence, head, token, token_end, begin, end;
  float* partial;  // nullptr: `out` is written; else rows x (D + 2): unnormalised sums, max, weight
};

// Blocks of linear layers with many tokens: outputs at a time, and how deep a part of their weights stays
// in the L2 cache beside the part of x that it is multiplied with.
constexpr int kLinearGroup = 48;
constexpr int kLinearDepth = 1024;

constexpr int kMaxHeadDim = 256;
constexpr int kFewRows = 8;    // most rows of a piece for attend_few: beyond, packing pays
constexpr int kManyRows = 96;  // and for attend_many
constexpr int kTile = 64;      // KVs that attention takes at a time

// Scratch that a thread must bring to attend_few and attend_many, in floats, 64-byte aligned.
constexpr int64_t kScratch = (2 * kTile + 2 * kManyRows) * kMaxHeadDim;

// Single-threaded kernels over rows, tokens or outputs [begin, end).
struct Kernels {
  const char* name;
  int64_t few_tokens;  // most tokens for which linear_few is faster (measured), with inputs enough
  void (*rms_norm)(const RmsNorm&, int64_t begin, int64_t end);
  void (*rotary)(const Rotary&, int64_t begin, int64_t end);
  void (*silu_and_mul)(const SiluAndMul&, int64_t begin, int64_t end);
  void (*linear_few)(const Linear&, int64_t begin, int64_t end);
  // Many tokens: first tiles [begin, end) of kTile tokens are packed, then groups of outputs are made
  // with them. packed: [T, inputs] floats with T padded to a multiple of 16; scratch: a group's block.
  void (*linear_pack)(const Linear&, float* packed, int64_t begin, int64_t end);
  void (*linear_many)(const Linear&, const float* packed, float* scratch, int64_t begin, int64_t end);
  void (*attend_few)(const Attention&, const Piece&, float* scratch);
  void (*attend_many)(const Attention&, const Piece&, float* scratch);
  // Write `out` for a piece whose KVs were split into `parts` partials, one after the other.
  void (*merge)(const Attention&, const Piece&, int parts);
};

// The table in use: the best that the machine has, or what VLLM_CPU_ISA asks for.
const Kernels& chosen();
// Use the table of that name. Throws std::invalid_argument when the machine or the build lacks it.
void choose(const char* name);
// The i-th table that this machine can run, worst first; nullptr past the last.
const Kernels* supported(int i);
// Whether the machine has matrix units for bf16, which these kernels do not use.
bool has_amx();

void rms_norm(const RmsNorm&, int threads);
void rotary(const Rotary&, int threads);
void silu_and_mul(const SiluAndMul&, int threads);
void write_kv(const WriteKV&);
void write_kv_heads(const WriteKVHeads&);
void copy_kv(const CopyKV&, int threads);
void linear(const Linear&, int threads);
void attention(const Attention&, int threads);

}  // namespace vllm
