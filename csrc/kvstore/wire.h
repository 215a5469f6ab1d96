// What daemon and clients say to each other over the socket: a header, then `bytes` of payload.
//
//   verb      payload                    reply
//   hello     Hello                      Arena, and the arena's descriptor
//   match     tokens                     count slots behind `first` (then count checksums); id: a lease
//   reserve   tokens                     first: stored already; count slots to write; id: of the write
//   commit    checksums, or nothing      count: units that are stored now
//   release   -                          none: the lease or write `id` ends
//   contains  keys                       a byte a key
//   remove    tokens                     -
//   clear     -                          -
//   stat      -                          kvs_stats
//
// Both ends run on one machine and were built from one header, which `magic` says; lengths, counts
// and slots are checked on both sides all the same.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "hash.h"
#include "status.h"

namespace kvstore::wire {

constexpr uint32_t kMagic = 0x32534b56;           // "VKS2"
constexpr uint64_t kMaxUnits = 1 << 20;           // of one call
constexpr uint64_t kMaxPayload = kMaxUnits * 32;  // a unit is a key at most
constexpr uint32_t kKeyUnit = 8;                  // a key as a unit of tokens

enum class Verb : uint32_t { hello, match, reserve, commit, release, contains, remove, clear, stat };
enum class Code : uint32_t { ok, refused };  // refused: the payload is a text
enum : uint32_t { kByKey = 1, kWithSums = 2 };

struct Request {
  uint32_t magic = kMagic;
  Verb verb = Verb::hello;
  uint32_t flags = 0;
  uint32_t zero = 0;
  uint64_t id = 0, first = 0, bytes = 0;
};

struct Reply {
  uint32_t magic = kMagic;
  Code code = Code::ok;
  uint64_t id = 0, first = 0, count = 0, bytes = 0;
};

struct Hello {
  Digest name;
  uint64_t slot_bytes, capacity;
};

struct Arena {
  uint64_t bytes, slots, slot_bytes;
};

static_assert(sizeof(Request) == 40 && sizeof(Reply) == 40);

// All of the parts, or false. The vectors are used up.
inline bool send_all(int fd, std::vector<iovec> parts) {
  size_t at = 0;
  while (at < parts.size()) {
    msghdr message{};
    message.msg_iov = parts.data() + at;
    message.msg_iovlen = parts.size() - at;
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    while (at < parts.size() && static_cast<size_t>(sent) >= parts[at].iov_len) {
      sent -= parts[at++].iov_len;
    }
    if (at < parts.size()) {
      parts[at].iov_base = static_cast<char*>(parts[at].iov_base) + sent;
      parts[at].iov_len -= sent;
    }
  }
  return true;
}

inline bool receive_all(int fd, void* data, size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes) {
    ssize_t got = recv(fd, at, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    bytes -= got;
  }
  return true;
}

// Whether whoever is at the other end runs as we do.
inline bool same_user(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

inline Status address(const std::string& path, sockaddr_un& out) {
  out = {};
  out.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof out.sun_path) {
    return Status::invalid("socket: a path of 1 to " + std::to_string(sizeof out.sun_path - 1) +
                           " characters");
  }
  memcpy(out.sun_path, path.data(), path.size());
  return {};
}

}  // namespace kvstore::wire
