// Every kernel for one instruction set. Compiled once a set, with that set's flags and
// VLLM_VARIANT as the name of its table; see CMakeLists.txt.
#include "attention_few.h"
#include "attention_many.h"
#include "elementwise.h"
#include "kernels.h"
#include "linear.h"

#define VLLM_TEXT_(x) #x
#define VLLM_TEXT(x) VLLM_TEXT_(x)

namespace vllm {
namespace {

// The kernel for the argument's type.
template <class Args, auto F32, auto BF16, class... Rest>
void typed(const Args& a, Rest... rest) {
  a.type == Type::f32 ? F32(a, rest...) : BF16(a, rest...);
}

}  // namespace

extern const Kernels VLLM_VARIANT;
const Kernels VLLM_VARIANT = {
    VLLM_TEXT(VLLM_VARIANT),
    kFewTokens,
    typed<RmsNorm, rms_norm_rows<float>, rms_norm_rows<bf16>, int64_t, int64_t>,
    typed<Rotary, rotary_tokens<float>, rotary_tokens<bf16>, int64_t, int64_t>,
    typed<SiluAndMul, silu_and_mul_tokens<float>, silu_and_mul_tokens<bf16>, int64_t, int64_t>,
    typed<Linear, linear_few<float>, linear_few<bf16>, int64_t, int64_t>,
    typed<Linear, linear_pack<float>, linear_pack<bf16>, float*, int64_t, int64_t>,
    typed<Linear, linear_many<float>, linear_many<bf16>, const float*, float*, int64_t, int64_t>,
    typed<Attention, attend_few<float>, attend_few<bf16>, const Piece&, float*>,
    typed<Attention, attend_many<float>, attend_many<bf16>, const Piece&, float*>,
    typed<Attention, merge_parts<float>, merge_parts<bf16>, const Piece&, int>,
};

}  // namespace vllm
