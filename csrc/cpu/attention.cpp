// Attention as a whole: a mixed batch of decodes and prefills is cut into pieces, one KV head each, and
// long ones are cut along their KVs too when there are fewer pieces than threads can share
// (Dao et al. 2023, Flash-Decoding); their partial results are merged at the end.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace vllm {
namespace {

constexpr int kShortest = 256;  // KVs: a shorter part is not worth its merge

struct Job {
  Piece piece;
  int64_t cost;
};

struct Merge {
  Piece piece;
  int parts;
};

int rows(const Attention& a, const Piece& p) { return (p.token_end - p.token) * a.group; }

bool few(const Attention& a, const Piece& p) { return rows(a, p) <= kFewRows; }

// Work of a piece, in the time of one row over one KV; few rows are bound by reading the KV.
int64_t cost(const Attention& a, const Piece& p) {
  return static_cast<int64_t>(p.end - p.begin) * std::max(rows(a, p), kFewRows);
}

std::vector<Job> cut_queries(const Attention& a) {
  std::vector<Job> jobs;
  for (int s = 0; s < a.sequences; s++) {
    const int count = a.query_start[s + 1] - a.query_start[s];
    const int step = count * a.group <= kFewRows ? std::max(count, 1) : std::max(kManyRows / a.group, 1);
    for (int token = 0; token < count; token += step) {
      const int token_end = std::min(token + step, count);
      for (int h = 0; h < a.heads; h++) {
        const int start = length_of(a, s, h) - count;
        const int begin = a.window > 0 ? std::max(start + token - a.window + 1, 0) : 0;
        const Piece p{s, h, token, token_end, begin, start + token_end, nullptr};
        jobs.push_back({p, cost(a, p)});
      }
    }
  }
  return jobs;
}

// Cut the pieces that are more than half a thread's share; `memory` will hold their partials.
std::vector<Merge> cut_kvs(const Attention& a, std::vector<Job>& jobs, int threads,
                           Scratch& memory) {
  int64_t total = 0, needed = 0;
  for (const Job& job : jobs) total += job.cost;
  const int64_t share = total / (2 * threads) + 1;
  std::vector<Merge> merges;
  std::vector<Job> cut;
  for (const Job& job : jobs) {
    const int length = job.piece.end - job.piece.begin;
    const int parts =
        static_cast<int>(std::min<int64_t>((job.cost + share - 1) / share, length / kShortest));
    if (parts < 2) {
      cut.push_back(job);
      continue;
    }
    merges.push_back({job.piece, parts});
    needed += static_cast<int64_t>(parts) * rows(a, job.piece) * (a.head_dim + 2);
  }
  memory = scratch(needed);
  float* next = memory.get();
  for (Merge& merge : merges) {
    merge.piece.partial = next;
    const int length = merge.piece.end - merge.piece.begin;
    for (int i = 0; i < merge.parts; i++) {
      Piece p = merge.piece;
      p.begin = merge.piece.begin + static_cast<int>(static_cast<int64_t>(length) * i / merge.parts);
      p.end = merge.piece.begin + static_cast<int>(static_cast<int64_t>(length) * (i + 1) / merge.parts);
      p.partial = next;
      next += static_cast<int64_t>(rows(a, p)) * (a.head_dim + 2);
      cut.push_back({p, cost(a, p)});
    }
  }
  jobs = std::move(cut);
  return merges;
}

}  // namespace

void attention(const Attention& a, int threads) {
  const Kernels& k = chosen();
  std::vector<Job> jobs = cut_queries(a);
  Scratch partials;
  std::vector<Merge> merges;
  int64_t total = 0;
  for (const Job& job : jobs) total += job.cost;
  if (total * a.head_dim < 1 << 19) threads = 1;  // less than it costs to wake threads
  if (threads > 1) {
    merges = cut_kvs(a, jobs, threads, partials);
    // Longest first, so that no thread starts a long piece when the others are done.
    std::stable_sort(jobs.begin(), jobs.end(), [](const Job& x, const Job& y) { return x.cost > y.cost; });
  }
  const int64_t count = static_cast<int64_t>(jobs.size());
  const Scratch own = scratch(threads * kScratch);
  parallel(threads, count, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) {
      const Piece& p = jobs[i].piece;
      (few(a, p) ? k.attend_few : k.attend_many)(a, p, own.get() + thread * kScratch);
    }
  });
  parallel(threads, static_cast<int64_t>(merges.size()), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) k.merge(a, merges[i].piece, merges[i].parts);
  });
}

}  // namespace vllm
