// Whole operations but attention: cut into chunks worth a thread's time.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace vllm {
namespace {

// Waking threads costs a few microseconds, in which one core moves about this many elements.
constexpr int64_t kWorth = 1 << 15;

constexpr int64_t kWorthProducts = 1 << 20;  // and about as many multiplications
constexpr int64_t kShallow = 512;            // inputs of a layer whose sums across lanes show

int64_t rows_worth(int64_t elements) {
  return std::max<int64_t>(1, kWorth / std::max<int64_t>(1, elements));
}

}  // namespace

void rms_norm(const RmsNorm& a, int threads) {
  const Kernels& k = chosen();
  parallel(threads, a.rows, rows_worth(a.width), [&](int64_t b, int64_t e, int) { k.rms_norm(a, b, e); });
}

void rotary(const Rotary& a, int threads) {
  const Kernels& k = chosen();
  const int64_t elements = (a.q.heads + a.k.heads) * 2 * a.half;
  parallel(threads, a.tokens, rows_worth(elements), [&](int64_t b, int64_t e, int) { k.rotary(a, b, e); });
}

void silu_and_mul(const SiluAndMul& a, int threads) {
  const Kernels& k = chosen();
  parallel(threads, a.tokens, rows_worth(2 * a.width),
           [&](int64_t b, int64_t e, int) { k.silu_and_mul(a, b, e); });
}

void write_kv(const WriteKV& a) {
  for (int64_t t = 0; t < a.tokens; t++) {
    const int64_t block = a.slots[t] / a.block_size, offset = a.slots[t] % a.block_size;
    char* row = a.kv + block * a.block_bytes + offset * a.row_bytes;
    for (int64_t h = 0; h < a.heads; h++, row += a.head_bytes) {
      memcpy(row, a.k + t * a.k_token_bytes + h * a.k_head_bytes, a.row_bytes);
      memcpy(row + a.block_size * a.row_bytes, a.v + t * a.v_token_bytes + h * a.v_head_bytes, a.row_bytes);
    }
  }
}

void write_kv_heads(const WriteKVHeads& a) {
  for (int64_t t = 0; t < a.tokens; t++)
    for (int64_t h = 0; h < a.heads; h++) {
      const int64_t slot = a.slots[t * a.heads + h], block = slot / a.block_size;
      char* row = a.blocks + (2 * block * a.block_size + slot % a.block_size) * a.row_bytes;
      memcpy(row, a.k + t * a.k_token_bytes + h * a.k_head_bytes, a.row_bytes);
      memcpy(row + a.block_size * a.row_bytes, a.v + t * a.v_token_bytes + h * a.v_head_bytes, a.row_bytes);
    }
}

void copy_kv(const CopyKV& a, int threads) {
  const auto row = [&](int64_t slot) {
    return a.blocks + (2 * (slot / a.block_size) * a.block_size + slot % a.block_size) * a.row_bytes;
  };
  parallel(threads, a.count, rows_worth(a.row_bytes), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      if (i + 8 < end) __builtin_prefetch(row(a.source[i + 8]));
      const char* from = row(a.source[i]);
      char* to = row(a.target[i]);
      memcpy(to, from, a.row_bytes);
      memcpy(to + a.block_size * a.row_bytes, from + a.block_size * a.row_bytes, a.row_bytes);
    }
  });
}

void linear(const Linear& a, int threads) {
  const Kernels& k = chosen();
  int64_t done = 0;
  // Rows of weights must start on whole units, pairs of bf16.
  const int64_t few = a.inputs < kShallow ? std::min<int64_t>(k.few_tokens, 12) : k.few_tokens;
  if (a.tokens > few && a.inputs % 2 == 0 && a.weight_stride % 2 == 0) {
    const int64_t groups = a.outputs / kLinearGroup, tiles = (a.tokens + kTile - 1) / kTile;
    const Scratch packed = scratch((a.tokens + 15) / 16 * 16 * a.inputs);
    const int64_t block = kLinearGroup * kLinearDepth;
    const Scratch blocks = scratch(threads * block);
    parallel(threads, tiles, 1, [&](int64_t b, int64_t e, int) { k.linear_pack(a, packed.get(), b, e); });
    const int64_t work = std::max<int64_t>(1, kLinearGroup * a.inputs * a.tokens);
    parallel(threads, groups, std::max<int64_t>(1, kWorthProducts / work),
             [&](int64_t b, int64_t e, int thread) {
               k.linear_many(a, packed.get(), blocks.get() + thread * block, b * kLinearGroup,
                             e * kLinearGroup);
             });
    done = groups * kLinearGroup;
  }
  // At least 64 KiB of bf16 weights; large layers in few chunks, since each reads on past its end. A
  // multiple of 16 outputs, as the kernel takes them.
  const int64_t rest = a.outputs - done;
  const int64_t chunk = (std::max(rows_worth(a.inputs), rest / (4 * threads)) + 15) / 16 * 16;
  parallel(threads, rest, chunk,
           [&](int64_t b, int64_t e, int) { k.linear_few(a, done + b, done + e); });
}

}  // namespace vllm
