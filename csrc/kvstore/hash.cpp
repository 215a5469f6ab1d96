#include "hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvstore {
namespace {

constexpr uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint64_t load64(const uint8_t* p) {
  uint64_t word;
  memcpy(&word, p, 8);
  return word;
}

}  // namespace

void Sha256::block(const uint8_t* data) {
  uint32_t w[64];
  for (int i = 0; i < 16; ++i) {
    uint32_t word;
    memcpy(&word, data + 4 * i, 4);
    w[i] = __builtin_bswap32(word);
  }
  for (int i = 16; i < 64; ++i) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) + w[i - 7] +
           (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
  }
  uint32_t s[8];
  memcpy(s, state_, sizeof s);
  for (int i = 0; i < 64; ++i) {
    uint32_t e = std::rotr(s[4], 6) ^ std::rotr(s[4], 11) ^ std::rotr(s[4], 25);
    uint32_t a = std::rotr(s[0], 2) ^ std::rotr(s[0], 13) ^ std::rotr(s[0], 22);
    uint32_t t1 = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
    uint32_t t2 = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += t1;
    s[0] = t1 + t2;
  }
  for (int i = 0; i < 8; ++i) state_[i] += s[i];
}

void Sha256::update(const void* data, size_t length) {
  auto* p = static_cast<const uint8_t*>(data);
  size_t held = length_ % 64;
  length_ += length;
  if (held) {
    size_t take = std::min(length, 64 - held);
    memcpy(rest_ + held, p, take);
    p += take;
    length -= take;
    if (held + take < 64) return;
    block(rest_);
  }
  for (; length >= 64; p += 64, length -= 64) block(p);
  if (length) memcpy(rest_, p, length);
}

void Sha256::field(const void* data, size_t length) {
  uint64_t size = length;
  update(&size, sizeof size);
  update(data, length);
}

Digest Sha256::finish() {
  uint64_t bits = __builtin_bswap64(length_ * 8);
  static constexpr uint8_t pad[64] = {0x80};
  update(pad, (length_ % 64 < 56 ? 56 : 120) - length_ % 64);
  update(&bits, 8);
  Digest out;
  for (int i = 0; i < 8; ++i) {
    uint32_t word = __builtin_bswap32(state_[i]);
    memcpy(out.data() + 4 * i, &word, 4);
  }
  return out;
}

Digest chain(const Digest& parent, const int32_t* tokens, size_t num_tokens) {
  Sha256 sha;
  sha.update(parent.data(), parent.size());
  sha.update(tokens, num_tokens * sizeof *tokens);
  return sha.finish();
}

std::string hex(const uint8_t* data, size_t length) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < length; ++i) {
    out += digits[data[i] >> 4];
    out += digits[data[i] & 15];
  }
  return out;
}

uint64_t Checksum::round(uint64_t lane, uint64_t word) {
  return std::rotl(lane + word * P2, 31) * P1;
}

uint64_t Checksum::merge(uint64_t hash, uint64_t lane) {
  return (hash ^ round(0, lane)) * P1 + P4;
}

void Checksum::update(const void* data, size_t length) {
  auto* p = static_cast<const uint8_t*>(data);
  length_ += length;
  uint64_t a = lanes_[0], b = lanes_[1], c = lanes_[2], d = lanes_[3];
  for (; length >= 32; p += 32, length -= 32) {
    a = round(a, load64(p));
    b = round(b, load64(p + 8));
    c = round(c, load64(p + 16));
    d = round(d, load64(p + 24));
  }
  lanes_[0] = a, lanes_[1] = b, lanes_[2] = c, lanes_[3] = d;
  if (length) memcpy(tail_, p, length);
  tail_length_ = length;
}

uint64_t Checksum::finish() const {
  uint64_t hash = P5;
  if (length_ >= 32) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (uint64_t lane : lanes_) hash = merge(hash, lane);
  }
  hash += length_;
  const uint8_t* p = tail_;
  size_t left = tail_length_;
  for (; left >= 8; p += 8, left -= 8) {
    hash = std::rotl(hash ^ round(0, load64(p)), 27) * P1 + P4;
  }
  if (left >= 4) {
    uint32_t word;
    memcpy(&word, p, 4);
    hash = std::rotl(hash ^ (word * P1), 23) * P2 + P3;
    p += 4, left -= 4;
  }
  for (; left; ++p, --left) hash = std::rotl(hash ^ (*p * P5), 11) * P1;
  hash = (hash ^ (hash >> 33)) * P2;
  hash = (hash ^ (hash >> 29)) * P3;
  return hash ^ (hash >> 32);
}

uint64_t checksum(const void* data, size_t length) {
  Checksum sum;
  sum.update(data, length);
  return sum.finish();
}

}  // namespace kvstore
