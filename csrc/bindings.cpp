// The door between torch and the kernels, and the only file that sees torch: shapes, dtypes and strides
// are checked here, so that the kernels need not. Schemas follow vllm/kernels/reference.py.
//
// The operators are registered with torch itself: the library holds nothing that depends on the version
// of Python, and is loaded with torch.ops.load_library.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>
#include <torch/version.h>

#include "kernels.h"

namespace {

using at::Tensor;

vllm::Type type_of(const Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
              "vllm_cpu: dtype must be float32 or bfloat16, not ", x.scalar_type());
  return x.scalar_type() == at::kFloat ? vllm::Type::f32 : vllm::Type::bf16;
}

void check_same(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "vllm_cpu: ", what, " is ", b.scalar_type(),
              ", expected ", a.scalar_type());
}

void check_rank(const Tensor& x, int64_t rank, const char* what) {
  TORCH_CHECK(x.dim() == rank, "vllm_cpu: ", what, " must have ", rank, " dimensions, not ", x.dim());
}

void check_rows(const Tensor& x, const char* what) {
  TORCH_CHECK(x.size(-1) <= 1 || x.stride(-1) == 1, "vllm_cpu: rows of ", what, " must be contiguous");
}

void check_vector(const Tensor& x, int64_t size, const char* what) {
  TORCH_CHECK(x.dim() == 1 && x.size(0) == size && x.is_contiguous(), "vllm_cpu: ", what,
              " must be contiguous [", size, "], not ", x.sizes());
}

template <class T>
const T* integers(const Tensor& x, int64_t size, const char* what) {
  TORCH_CHECK(x.scalar_type() == c10::CppTypeToScalarType<T>::value, "vllm_cpu: ", what, " must be int",
              8 * sizeof(T), ", not ", x.scalar_type());
  check_vector(x, size, what);
  return x.const_data_ptr<T>();
}

Tensor norm(const Tensor& x, const Tensor* residual, const Tensor& weight, double eps) {
  TORCH_CHECK(x.dim() >= 1, "vllm_cpu: x must have a dimension to norm");
  check_same(x, weight, "weight");
  check_vector(weight, x.size(-1), "weight");
  // Two strides describe every view of a fused output; anything odder is copied.
  const Tensor rows = x.dim() <= 3 && x.stride(-1) == 1 ? x : x.contiguous();
  const int64_t inner = x.dim() == 3 ? x.size(1) : 1;
  Tensor out = at::empty(x.sizes(), x.options());
  vllm::RmsNorm a{};
  a.type = type_of(x);
  a.x = rows.const_data_ptr();
  a.residual = residual == nullptr ? nullptr : residual->data_ptr();
  a.weight = weight.const_data_ptr();
  a.out = out.data_ptr();
  a.width = x.size(-1);
  a.rows = a.width == 0 ? 0 : x.numel() / a.width;
  if (x.dim() <= 3) {
    a.inner = inner;
    a.outer_stride = x.dim() == 1 ? 0 : rows.stride(0);
    a.inner_stride = x.dim() == 3 ? rows.stride(1) : 0;
  } else {
    a.inner = 1;
    a.outer_stride = a.width;
  }
  a.eps = static_cast<float>(eps);
  if (a.rows > 0) vllm::rms_norm(a, at::get_num_threads());
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return norm(x, nullptr, weight, eps);
}

Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  check_rank(x, 2, "x");
  check_same(x, residual, "residual");
  TORCH_CHECK(residual.sizes() == x.sizes() && residual.is_contiguous(),
              "vllm_cpu: residual must be contiguous ", x.sizes(), ", not ", residual.sizes());
  return norm(x, &residual, weight, eps);
}

vllm::Heads heads_of(const Tensor& x, int64_t tokens, const char* what) {
  check_rank(x, 3, what);
  check_rows(x, what);
  TORCH_CHECK(x.size(0) == tokens, "vllm_cpu: ", what, " has ", x.size(0), " tokens, expected ", tokens);
  return {x.data_ptr(), x.size(1), x.stride(0), x.stride(1)};
}

void rotary(const Tensor& positions, const Tensor& q, const Tensor& k, const Tensor& cos_sin) {
  const int64_t tokens = q.size(0);
  vllm::Rotary a{};
  a.type = type_of(q);
  check_same(q, k, "k");
  a.q = heads_of(q, tokens, "q");
  a.k = heads_of(k, tokens, "k");
  a.positions = integers<int64_t>(positions, tokens, "positions");
  check_rank(cos_sin, 2, "cos_sin");
  TORCH_CHECK(cos_sin.scalar_type() == at::kFloat && cos_sin.is_contiguous() && cos_sin.size(1) % 2 == 0 &&
                  cos_sin.size(1) <= q.size(2) && q.size(2) == k.size(2),
              "vllm_cpu: cos_sin must be contiguous float32 [positions, R] with R even, at most ", q.size(2));
  a.cos_sin = cos_sin.const_data_ptr<float>();
  a.tokens = tokens;
  a.half = cos_sin.size(1) / 2;
  for (int64_t t = 0; t < tokens; t++)
    TORCH_CHECK_INDEX(a.positions[t] >= 0 && a.positions[t] < cos_sin.size(0), "vllm_cpu: position ",
                      a.positions[t], " outside of cos_sin");
  vllm::rotary(a, at::get_num_threads());
}

Tensor silu_and_mul(const Tensor& x) {
  check_rank(x, 2, "x");
  check_rows(x, "x");
  TORCH_CHECK(x.size(1) % 2 == 0, "vllm_cpu: x must have an even number of columns");
  const int64_t width = x.size(1) / 2;
  Tensor out = at::empty({x.size(0), width}, x.options());
  vllm::silu_and_mul({type_of(x), x.const_data_ptr(), out.data_ptr(), x.size(0), width, x.stride(0)},
                     at::get_num_threads());
  return out;
}

void check_arena(const Tensor& kv) {
  check_rank(kv, 5, "kv");
  const int64_t size = kv.size(3), dim = kv.size(4);
  TORCH_CHECK(kv.size(2) == 2 && kv.stride(4) == 1 && kv.stride(3) == dim && kv.stride(2) == size * dim,
              "vllm_cpu: kv must be [N, H, 2, B, D] with contiguous head blocks, not ", kv.sizes());
}

void write_kv(const Tensor& kv, const Tensor& k, const Tensor& v, const Tensor& slots) {
  check_arena(kv);
  check_same(kv, k, "k");
  check_same(kv, v, "v");
  const int64_t tokens = k.size(0), bytes = static_cast<int64_t>(kv.element_size());
  const vllm::Heads keys = heads_of(k, tokens, "k"), values = heads_of(v, tokens, "v");
  for (const Tensor* x : {&k, &v})
    TORCH_CHECK(x->size(1) == kv.size(1) && x->size(2) == kv.size(4), "vllm_cpu: k and v must be [T, ",
                kv.size(1), ", ", kv.size(4), "], not ", x->sizes());
  vllm::WriteKV a{};
  a.kv = static_cast<char*>(kv.data_ptr());
  a.k = static_cast<const char*>(keys.data);
  a.v = static_cast<const char*>(values.data);
  a.slots = integers<int64_t>(slots, tokens, "slots");
  a.tokens = tokens;
  a.heads = kv.size(1);
  a.block_size = kv.size(3);
  a.row_bytes = kv.size(4) * bytes;
  a.block_bytes = kv.stride(0) * bytes;
  a.head_bytes = kv.stride(1) * bytes;
  a.k_token_bytes = keys.token * bytes;
  a.k_head_bytes = keys.head * bytes;
  a.v_token_bytes = values.token * bytes;
  a.v_head_bytes = values.head * bytes;
  for (int64_t t = 0; t < tokens; t++)
    TORCH_CHECK_INDEX(a.slots[t] >= 0 && a.slots[t] < kv.size(0) * a.block_size, "vllm_cpu: slot ",
                      a.slots[t], " outside of the arena");
  vllm::write_kv(a);
}

void check_head_blocks(const Tensor& blocks) {
  check_rank(blocks, 4, "blocks");
  TORCH_CHECK(blocks.size(1) == 2 && blocks.is_contiguous(),
              "vllm_cpu: blocks must be contiguous head blocks [*, 2, B, D], not ", blocks.sizes());
}

void check_slots(const int64_t* slots, int64_t count, const Tensor& blocks) {
  const int64_t limit = blocks.size(0) * blocks.size(2);
  for (int64_t i = 0; i < count; i++)
    TORCH_CHECK_INDEX(slots[i] >= 0 && slots[i] < limit, "vllm_cpu: slot ", slots[i],
                      " outside of the arena");
}

void write_kv_heads(const Tensor& blocks, const Tensor& k, const Tensor& v, const Tensor& slots) {
  check_head_blocks(blocks);
  check_same(blocks, k, "k");
  check_same(blocks, v, "v");
  const int64_t tokens = k.size(0), bytes = static_cast<int64_t>(blocks.element_size());
  const vllm::Heads keys = heads_of(k, tokens, "k"), values = heads_of(v, tokens, "v");
  TORCH_CHECK(k.size(1) == v.size(1) && k.size(2) == blocks.size(3) && v.size(2) == blocks.size(3),
              "vllm_cpu: k and v must be [T, H, ", blocks.size(3), "], not ", k.sizes(), " and ", v.sizes());
  check_rank(slots, 2, "slots");
  TORCH_CHECK(slots.size(0) == tokens && slots.size(1) == k.size(1) && slots.is_contiguous() &&
                  slots.scalar_type() == at::kLong,
              "vllm_cpu: slots must be contiguous int64 [", tokens, ", ", k.size(1), "]");
  vllm::WriteKVHeads a{};
  a.blocks = static_cast<char*>(blocks.data_ptr());
  a.k = static_cast<const char*>(keys.data);
  a.v = static_cast<const char*>(values.data);
  a.slots = slots.const_data_ptr<int64_t>();
  a.tokens = tokens;
  a.heads = k.size(1);
  a.block_size = blocks.size(2);
  a.row_bytes = blocks.size(3) * bytes;
  a.k_token_bytes = keys.token * bytes;
  a.k_head_bytes = keys.head * bytes;
  a.v_token_bytes = values.token * bytes;
  a.v_head_bytes = values.head * bytes;
  check_slots(a.slots, slots.numel(), blocks);
  vllm::write_kv_heads(a);
}

void copy_kv(const Tensor& blocks, const Tensor& source, const Tensor& target) {
  check_head_blocks(blocks);
  vllm::CopyKV a{};
  a.blocks = static_cast<char*>(blocks.data_ptr());
  a.count = source.numel();
  a.source = integers<int64_t>(source, a.count, "source");
  a.target = integers<int64_t>(target, a.count, "target");
  a.block_size = blocks.size(2);
  a.row_bytes = blocks.size(3) * static_cast<int64_t>(blocks.element_size());
  check_slots(a.source, a.count, blocks);
  check_slots(a.target, a.count, blocks);
  vllm::copy_kv(a, at::get_num_threads());
}

// Tables, lengths and starts come from bookkeeping elsewhere: a mistake there shall be an error here, not
// a read of foreign memory. heads: 1 where all heads share a table.
void check_batch(const vllm::Attention& a, int64_t tokens, int64_t blocks, int64_t table_width, int heads) {
  TORCH_CHECK_INDEX(a.query_start[0] == 0 && a.query_start[a.sequences] == tokens,
                    "vllm_cpu: query_start must go from 0 to the number of tokens, ", tokens);
  for (int s = 0; s < a.sequences; s++) {
    const int32_t count = a.query_start[s + 1] - a.query_start[s];
    for (int h = 0; h < heads; h++) {
      const int32_t length = vllm::length_of(a, s, h);
      const int64_t used = (static_cast<int64_t>(length) + a.block_size - 1) / a.block_size;
      TORCH_CHECK_INDEX(count >= 0 && length >= count && used <= table_width, "vllm_cpu: sequence ", s,
                        " has ", count, " new tokens, ", length, " KVs and ", table_width, " blocks of ",
                        a.block_size);
      const int32_t* table = a.tables + s * a.table_stride + h * a.table_head;
      for (int64_t i = 0; count > 0 && i < used; i++)
        TORCH_CHECK_INDEX(table[i] >= 0 && table[i] < blocks, "vllm_cpu: block ", table[i], " of sequence ",
                          s, " outside of the arena");
    }
  }
}

// What both kinds of attention share.
vllm::Attention attention_of(const Tensor& q, const Tensor& kv, int64_t heads, const Tensor& query_start,
                             int64_t sequences, double scale, Tensor& out) {
  check_same(kv, q, "q");
  const vllm::Heads queries = heads_of(q, q.size(0), "q");
  const int64_t dim = kv.size(-1);
  TORCH_CHECK(q.size(2) == dim && dim % 16 == 0 && dim <= vllm::kMaxHeadDim,
              "vllm_cpu: head size must be that of kv, a multiple of 16, at most ", vllm::kMaxHeadDim,
              "; q has ", q.size(2), ", kv ", dim);
  TORCH_CHECK(heads > 0 && q.size(1) % heads == 0 && q.size(1) / heads <= vllm::kManyRows, "vllm_cpu: ",
              q.size(1), " query heads for ", heads, " KV heads");
  out = at::empty(q.sizes(), q.options());
  vllm::Attention a{};
  a.type = type_of(q);
  a.q = queries.data;
  a.out = out.data_ptr();
  a.kv = kv.const_data_ptr();
  a.query_start = integers<int32_t>(query_start, sequences + 1, "query_start");
  a.q_token = queries.token;
  a.q_head = queries.head;
  a.kv_block = kv.stride(0);
  a.sequences = static_cast<int>(sequences);
  a.heads = static_cast<int>(heads);
  a.group = static_cast<int>(q.size(1) / heads);
  a.block_size = static_cast<int>(kv.size(-2));
  a.head_dim = static_cast<int>(dim);
  a.scale = static_cast<float>(scale);
  return a;
}

Tensor attention(const Tensor& q, const Tensor& kv, const Tensor& block_tables, const Tensor& query_start,
                 const Tensor& seq_lens, double scale, int64_t window) {
  check_arena(kv);
  const int64_t sequences = seq_lens.size(0);
  Tensor out;
  vllm::Attention a = attention_of(q, kv, kv.size(1), query_start, sequences, scale, out);
  check_rank(block_tables, 2, "block_tables");
  check_rows(block_tables, "block_tables");
  TORCH_CHECK(block_tables.scalar_type() == at::kInt && block_tables.size(0) == sequences,
              "vllm_cpu: block_tables must be int32 [", sequences, ", blocks]");
  a.tables = block_tables.const_data_ptr<int32_t>();
  a.lengths = integers<int32_t>(seq_lens, sequences, "seq_lens");
  a.kv_head = kv.stride(1);
  a.table_stride = block_tables.stride(0);
  a.length_stride = 1;
  a.window = static_cast<int>(window);
  check_batch(a, q.size(0), kv.size(0), block_tables.size(1), 1);
  if (q.size(0) > 0) vllm::attention(a, at::get_num_threads());
  return out;
}

Tensor attention_heads(const Tensor& q, const Tensor& blocks, const Tensor& tables, const Tensor& query_start,
                       const Tensor& lengths, double scale) {
  check_head_blocks(blocks);
  check_rank(tables, 3, "tables");
  check_rows(tables, "tables");
  const int64_t sequences = tables.size(0), heads = tables.size(1);
  TORCH_CHECK(tables.scalar_type() == at::kInt, "vllm_cpu: tables must be int32 [S, H, blocks]");
  check_rank(lengths, 2, "lengths");
  check_rows(lengths, "lengths");
  TORCH_CHECK(lengths.scalar_type() == at::kInt && lengths.size(0) == sequences && lengths.size(1) == heads,
              "vllm_cpu: lengths must be int32 [", sequences, ", ", heads, "]");
  Tensor out;
  vllm::Attention a = attention_of(q, blocks, heads, query_start, sequences, scale, out);
  a.tables = tables.const_data_ptr<int32_t>();
  a.lengths = lengths.const_data_ptr<int32_t>();
  a.table_stride = tables.stride(0);
  a.table_head = tables.stride(1);
  a.length_stride = lengths.stride(0);
  a.length_head = lengths.stride(1);
  check_batch(a, q.size(0), blocks.size(0), tables.size(2), a.heads);
  if (q.size(0) > 0) vllm::attention(a, at::get_num_threads());
  return out;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_rank(x, 2, "x");
  check_rank(weight, 2, "weight");
  check_same(x, weight, "weight");
  check_rows(x, "x");
  check_rows(weight, "weight");
  TORCH_CHECK(x.size(1) == weight.size(1), "vllm_cpu: x ", x.sizes(), " and weight ", weight.sizes(),
              " do not fit");
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
  vllm::Linear a{};
  a.type = type_of(x);
  a.x = x.const_data_ptr();
  a.weight = weight.const_data_ptr();
  if (bias.has_value()) {
    check_same(x, *bias, "bias");
    check_vector(*bias, weight.size(0), "bias");
    a.bias = bias->const_data_ptr();
  }
  a.out = out.data_ptr();
  a.tokens = x.size(0);
  a.inputs = x.size(1);
  a.outputs = weight.size(0);
  a.x_stride = x.stride(0);
  a.weight_stride = weight.stride(0);
  vllm::linear(a, at::get_num_threads());
  return out;
}

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (int i = 0; const vllm::Kernels* table = vllm::supported(i); i++) names.emplace_back(table->name);
  return names;
}

}  // namespace

TORCH_LIBRARY(vllm_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor");
  m.def("rotary(Tensor positions, Tensor(a!) q, Tensor(b!) k, Tensor cos_sin) -> ()");
  m.def("silu_and_mul(Tensor x) -> Tensor");
  m.def("write_kv(Tensor(a!) kv, Tensor k, Tensor v, Tensor slots) -> ()");
  m.def(
      "attention(Tensor q, Tensor kv, Tensor block_tables, Tensor query_start, Tensor seq_lens, "
      "float scale, int window) -> Tensor");
  m.def("write_kv_heads(Tensor(a!) blocks, Tensor k, Tensor v, Tensor slots) -> ()");
  m.def(
      "attention_heads(Tensor q, Tensor blocks, Tensor tables, Tensor query_start, Tensor lengths, "
      "float scale) -> Tensor");
  m.def("copy_kv(Tensor(a!) blocks, Tensor source, Tensor target) -> ()");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  // The instruction set: those that run here (worst first), the one in use, and a switch for tests.
  m.def("isas() -> str[]", [] { return supported(); });
  m.def("isa() -> str", [] { return std::string(vllm::chosen().name); });
  m.def("set_isa(str name) -> ()", [](const std::string& name) { vllm::choose(name.c_str()); });
  m.def("has_amx() -> bool", [] { return vllm::has_amx(); });
  // The library fits one release of torch only.
  m.def("torch_version() -> str", [] { return std::string(TORCH_VERSION); });
}

TORCH_LIBRARY_IMPL(vllm_cpu, CPU, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("add_rms_norm", add_rms_norm);
  m.impl("rotary", rotary);
  m.impl("silu_and_mul", silu_and_mul);
  m.impl("write_kv", write_kv);
  m.impl("attention", attention);
  m.impl("write_kv_heads", write_kv_heads);
  m.impl("attention_heads", attention_heads);
  m.impl("copy_kv", copy_kv);
  m.impl("linear", linear);
}
