#include "record.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr char MAGIC[8] = {'V', 'L', 'L', 'M', 'K', 'V', 'C', 0};
constexpr uint32_t VERSION = 1;

// Whether `data` starts with a whole header.
bool header_fits(const uint8_t* data, size_t length, Header& out) {
  if (length < sizeof out) return false;
  memcpy(&out, data, sizeof out);
  if (memcmp(out.magic, MAGIC, sizeof MAGIC) || out.version != VERSION) return false;
  if (out.header_bytes != pages(sizeof out + size_t{out.num_tokens} * 4)) return false;
  if (out.header_bytes > length || out.piece_bytes == 0) return false;
  if (out.pieces > (uint64_t{1} << 48) / out.piece_bytes) return false;
  Header blank = out;
  blank.checksum = 0;
  Checksum sum;
  sum.update(&blank, sizeof blank);
  sum.update(data + sizeof blank, out.header_bytes - sizeof blank);
  return sum.finish() == out.checksum;
}

// Goes through a chunk's tensors as if they were one piece of memory.
class Cursor {
 public:
  Cursor(const kvs_tensor* tensors, size_t piece) : tensor_(tensors), piece_(piece) {}

  template <typename Copy>
  void move(size_t length, Copy copy) {  // copy(tensor memory, offset into the stretch, bytes)
    for (size_t done = 0; done < length;) {
      size_t some = std::min(length - done, piece_ - at_);
      copy(static_cast<uint8_t*>(tensor_->data) + at_, done, some);
      done += some;
      at_ += some;
      if (at_ == piece_) ++tensor_, at_ = 0;
    }
  }

 private:
  const kvs_tensor* tensor_;
  size_t piece_, at_ = 0;
};

// A reading that went wrong: for good if the device says so, else maybe not next time.
Found failed() { return errno == EIO ? Found::DAMAGED : Found::FAILED; }

}  // namespace

bool write_record(int fd, const Shape& shape, const Chunk& chunk) {
  uint8_t* buffer = bounce_buffer();
  Header header{};
  memcpy(header.magic, MAGIC, sizeof MAGIC);
  header.version = VERSION;
  header.header_bytes = shape.header_bytes(chunk.num_tokens);
  memcpy(header.key, chunk.key.data(), 32);
  memcpy(header.space, shape.space.data(), 32);
  header.pieces = shape.pieces;
  header.piece_bytes = shape.piece_bytes;
  header.num_tokens = chunk.num_tokens;

  const size_t head = header.header_bytes, total = shape.payload_bytes();
  Cursor cursor(chunk.tensors, shape.piece_bytes);
  Checksum sum;
  auto fill = [&](uint8_t* to, size_t length) {
    cursor.move(length, [&](uint8_t* from, size_t at, size_t n) { memcpy(to + at, from, n); });
    memset(to + length, 0, pages(length) - length);
    sum.update(to, length);
  };
  // The header knows the payload's checksum, so it is written with it or after it.
  auto finish_header = [&](uint8_t* to) {
    header.payload_checksum = sum.finish();
    memset(to, 0, head);
    memcpy(to, &header, sizeof header);
    memcpy(to + sizeof header, chunk.tokens, chunk.num_tokens * 4);
    header.checksum = checksum(to, head);
    memcpy(to, &header, sizeof header);
  };
  if (head + pages(total) <= BOUNCE) {
    fill(buffer + head, total);
    finish_header(buffer);
    return write_at(fd, buffer, head + pages(total), 0);
  }
  for (size_t done = 0; done < total; done += BOUNCE) {
    size_t some = std::min(total - done, BOUNCE);
    fill(buffer, some);
    if (!write_at(fd, buffer, pages(some), head + done)) return false;
  }
  finish_header(buffer);
  return write_at(fd, buffer, head, 0);
}

Found read_record(int fd, const Shape& shape, const Chunk& chunk) {
  uint8_t* buffer = bounce_buffer();
  const size_t head = shape.header_bytes(chunk.num_tokens), total = shape.payload_bytes();
  const size_t first = std::min(BOUNCE, head + pages(total));
  struct stat s;
  if (fstat(fd, &s)) return failed();
  if (static_cast<uint64_t>(s.st_size) != shape.record_bytes(chunk.num_tokens)) {
    return Found::DAMAGED;
  }
  ssize_t got = read_at(fd, buffer, first, 0);
  if (got < 0) return failed();
  Header header;
  if (got != static_cast<ssize_t>(first) || !header_fits(buffer, first, header) ||
      header.num_tokens != chunk.num_tokens || header.pieces != shape.pieces ||
      header.piece_bytes != shape.piece_bytes || memcmp(header.key, chunk.key.data(), 32) ||
      memcmp(header.space, shape.space.data(), 32) ||
      memcmp(buffer + sizeof header, chunk.tokens, chunk.num_tokens * 4)) {
    return Found::DAMAGED;
  }
  Cursor cursor(chunk.tensors, shape.piece_bytes);
  auto spread = [&](const uint8_t* from, size_t length) {
    cursor.move(length, [&](uint8_t* to, size_t at, size_t n) { memcpy(to, from + at, n); });
  };
  if (first == head + pages(total)) {  // all in the buffer: verified before anybody sees it
    if (checksum(buffer + head, total) != header.payload_checksum) return Found::DAMAGED;
    spread(buffer + head, total);
    return Found::WHOLE;
  }
  Checksum sum;
  for (size_t done = 0; done < total; done += BOUNCE) {
    size_t some = std::min(total - done, BOUNCE);
    got = read_at(fd, buffer, pages(some), head + done);
    if (got < 0) return failed();
    if (got < static_cast<ssize_t>(some)) return Found::DAMAGED;
    sum.update(buffer, some);
    spread(buffer, some);
  }
  return sum.finish() == header.payload_checksum ? Found::WHOLE : Found::DAMAGED;
}

Found check_record(int fd, const std::string& key, const std::string& space) {
  uint8_t* buffer = bounce_buffer();
  struct stat s;
  ssize_t got = fstat(fd, &s) ? -1 : read_at(fd, buffer, BOUNCE, 0);
  if (got < 0) return failed();
  Header header;
  if (!header_fits(buffer, got, header) || hex(header.key, 32) != key ||
      hex(header.space, 32).compare(0, space.size(), space) != 0) {
    return Found::DAMAGED;
  }
  const uint64_t total = header.payload_bytes();
  if (static_cast<uint64_t>(s.st_size) != header.header_bytes + pages(total)) {
    return Found::DAMAGED;
  }
  Checksum sum;
  for (uint64_t done = 0; done < total; done += BOUNCE) {
    size_t some = std::min<uint64_t>(total - done, BOUNCE);
    got = read_at(fd, buffer, some, header.header_bytes + done);
    if (got < 0) return failed();
    if (got != static_cast<ssize_t>(some)) return Found::DAMAGED;
    sum.update(buffer, some);
  }
  return sum.finish() == header.payload_checksum ? Found::WHOLE : Found::DAMAGED;
}

}  // namespace kvstore
