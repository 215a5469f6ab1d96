// The bytes of one chunk, as a file or an object holds them:
//
//     header    `Header`, then the tokens, padded to whole pages
//     payload   the pieces one behind the other, padded to whole pages
//
// A record names what it is (key, space, shape, tokens) and what it holds (length, checksum), and a
// reader takes it only if all of that is what the reader asked for.
#pragma once

#include "files.h"
#include "hash.h"

namespace kvstore {

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;  // a multiple of a page
  uint8_t key[32];
  uint8_t space[32];
  uint64_t pieces;
  uint64_t piece_bytes;
  uint64_t payload_checksum;
  uint32_t num_tokens;
  uint32_t reserved[3];
  uint64_t checksum;  // of all header_bytes, this field being 0

  uint64_t payload_bytes() const { return pieces * piece_bytes; }
};
static_assert(sizeof(Header) == 128);  // whole words of the checksum

// What all chunks of a store have in common.
struct Shape {
  Digest space;
  uint64_t pieces, piece_bytes;

  uint64_t header_bytes(size_t num_tokens) const { return pages(sizeof(Header) + num_tokens * 4); }
  uint64_t payload_bytes() const { return pieces * piece_bytes; }
  uint64_t record_bytes(size_t num_tokens) const {
    return header_bytes(num_tokens) + pages(payload_bytes());
  }
};

struct Chunk {
  Digest key;
  const int32_t* tokens;
  size_t num_tokens;
  const kvs_tensor* tensors;  // shape.pieces of shape.piece_bytes each
};

// False: errno says why.
bool write_record(int fd, const Shape& shape, const Chunk& chunk);

enum class Found { WHOLE, DAMAGED, FAILED };  // FAILED: it could not be read now; no verdict
// Fill the chunk's tensors. Unless WHOLE comes of it, what is in them is unspecified.
Found read_record(int fd, const Shape& shape, const Chunk& chunk);

// Whether the file holds a whole record of this key, of a space whose name starts so (both in hex).
Found check_record(int fd, const std::string& key, const std::string& space);

}  // namespace kvstore
