// Which instruction set: the best that the machine has, or what VLLM_CPU_ISA asks for.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace vllm {

extern const Kernels base;
#if defined(VLLM_X86)
extern const Kernels avx2, avx512, avx512bf16;
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool (*runs)();
};

// Worst first.
const Candidate kCandidates[] = {
    {&base, [] { return true; }},
#if defined(VLLM_X86)
    {&avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
    {&avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {&avx512bf16, [] { return static_cast<bool>(__builtin_cpu_supports("avx512bf16")); }},
#endif
};

const Kernels& find(const char* name) {
  std::string known;
  for (int i = 0; const Kernels* table = supported(i); i++) {
    if (strcmp(table->name, name) == 0) return *table;
    known += std::string(known.empty() ? "" : ", ") + table->name;
  }
  throw std::invalid_argument(std::string("instruction set '") + name + "' is not one that runs here: " +
                              known);
}

const Kernels& best() {
  if (const char* asked = getenv("VLLM_CPU_ISA"); asked != nullptr && *asked != 0) return find(asked);
  int i = 0;
  while (supported(i + 1) != nullptr) i++;
  return *supported(i);
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table = &best();
  return table;
}

}  // namespace

const Kernels* supported(int i) {
  // Each set contains those before it, so the first that does not run ends the list.
  constexpr int count = sizeof kCandidates / sizeof *kCandidates;
  return i < count && kCandidates[i].runs() ? kCandidates[i].table : nullptr;
}

bool has_amx() {
#if defined(VLLM_X86)
  return __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

const Kernels& chosen() { return *current(); }

void choose(const char* name) { current() = &find(name); }

}  // namespace vllm
