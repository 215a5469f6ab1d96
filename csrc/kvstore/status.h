// What went wrong, if anything: a code of the C interface and a text.
#pragma once

#include <cerrno>
#include <cstring>
#include <string>

#include "vllm/kvstore.h"

namespace kvstore {

struct [[nodiscard]] Status {
  int code = KVS_OK;
  std::string text;

  bool ok() const { return code == KVS_OK; }
  static Status invalid(std::string text) { return {KVS_INVALID, std::move(text)}; }
  static Status closed() { return {KVS_CLOSED, "the cache was closed"}; }
  // `what` with the reason that the system gave for its last failure.
  static Status system(const std::string& what) { return {KVS_IO, what + ": " + strerror(errno)}; }
};

#define KVS_TRY(call)                                   \
  do {                                                  \
    if (auto status = (call); !status.ok()) return status; \
  } while (false)

}  // namespace kvstore
