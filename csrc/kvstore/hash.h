// SHA-256 (FIPS 180-4) names contents; XXH64 (Collet) finds damage.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace kvstore {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void update(const void* data, size_t length);
  // A field of a record: its length goes first, so that no two records read the same.
  void field(const void* data, size_t length);
  Digest finish();

 private:
  void block(const uint8_t* data);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t rest_[64];
  uint64_t length_ = 0;
};

// The key of the chunk that holds `tokens` behind the chunk of key `parent` (or the space itself).
Digest chain(const Digest& parent, const int32_t* tokens, size_t num_tokens);

std::string hex(const uint8_t* data, size_t length);

// In pieces: all but the last are multiples of 32 bytes.
class Checksum {
 public:
  void update(const void* data, size_t length);
  uint64_t finish() const;

 private:
  static constexpr uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F,
                            P3 = 0x165667B19E3779F9, P4 = 0x85EBCA77C2B2AE63,
                            P5 = 0x27D4EB2F165667C5;
  static uint64_t round(uint64_t lane, uint64_t word);
  static uint64_t merge(uint64_t hash, uint64_t lane);

  uint64_t lanes_[4] = {P1 + P2, P2, 0, 0 - P1};
  uint8_t tail_[32];
  size_t tail_length_ = 0;
  uint64_t length_ = 0;
};

uint64_t checksum(const void* data, size_t length);

}  // namespace kvstore
