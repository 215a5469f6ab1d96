// Whole operations but attention: cut into chunks worth a thread's time.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace vllm {
namespace {

// Waking threads costs a few microseconds, in which one core moves about this many elements.
constexpr int64_t kWorth = 1 << 15;

int64_t rows_worth(int64_t row_elements) { return std::max<int64_t>(1, kWorth / std::max<int64_t>(1, row_elements)); }

}  // namespace

void rms_norm(const RmsNorm& a, int threads) {
  const Kernels& k = chosen();
  parallel(threads, a.rows, rows_worth(a.width), [&](int64_t b, int64_t e) { k.rms_norm(a, b, e); });
}

void rotary(const Rotary& a, int threads) {
  const Kernels& k = chosen();
  const int64_t elements = (a.q.heads + a.k.heads) * 2 * a.half;
  parallel(threads, a.tokens, rows_worth(elements), [&](int64_t b, int64_t e) { k.rotary(a, b, e); });
}

void silu_and_mul(const SiluAndMul& a, int threads) {
  const Kernels& k = chosen();
  parallel(threads, a.tokens, rows_worth(2 * a.width),
           [&](int64_t b, int64_t e) { k.silu_and_mul(a, b, e); });
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

void linear(const Linear& a, int threads) {
  const Kernels& k = chosen();
  // A multiple of four outputs, as the kernel takes them; at least 64 KiB of bf16 weights.
  const int64_t chunk = (rows_worth(a.inputs) + 3) / 4 * 4;
  parallel(threads, a.outputs, chunk, [&](int64_t b, int64_t e) { k.linear(a, b, e); });
}

}  // namespace vllm
