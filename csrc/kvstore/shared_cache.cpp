#include "shared_cache.h"

#include <algorithm>

#include "copy.h"

namespace kvstore {

using wire::Verb;

namespace {

unsigned sensible(unsigned threads) {
  return threads ? std::min(threads, 256u) : std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
}

// 0 says that there is none.
uint64_t sum_of(const void* data, size_t bytes) {
  uint64_t sum = checksum(data, bytes);
  return sum ? sum : 1;
}

iovec part(const void* data, size_t bytes) { return {const_cast<void*>(data), bytes}; }

std::vector<iovec> parts_of(Tokens prefix, Tokens tokens) {
  return {part(prefix.data(), prefix.size_bytes()), part(tokens.data(), tokens.size_bytes())};
}

std::vector<iovec> parts_of(const Digest& key) { return {part(key.data(), key.size())}; }

Status bounded(size_t units) {
  if (units <= wire::kMaxUnits) return {};
  return Status::invalid("tokens: more than " + std::to_string(wire::kMaxUnits) + " in one call");
}

// Ends a lease or a write with the daemon.
struct Held {
  std::shared_ptr<Attachment> attachment;
  uint64_t id;
  ~Held() { attachment->release(id); }
};

}  // namespace

// Slots in place and what keeps them there; empty: nothing was found.
struct SharedCache::Found {
  std::shared_ptr<Held> held;
  std::vector<const uint8_t*> units;
};

SharedCache::SharedCache(const Layout& layout, const kvs_shared_config& config)
    : layout_(layout),
      socket_(config.socket),
      checksums_(config.checksums != 0),
      retry_(config.retry),
      hello_{layout.name(checksums_ ? "shared/xxh64" : "shared"), layout.token_bytes(),
             config.capacity},
      pool_(sensible(layout.threads)) {}

Status SharedCache::open(const Layout& layout, const kvs_shared_config& config,
                         std::shared_ptr<Cache>& out) {
  if (!config.socket) return Status::invalid("socket is null");
  sockaddr_un name;
  KVS_TRY(wire::address(config.socket, name));
  if (config.capacity == 0) return Status::invalid("capacity is 0");
  if (!(config.retry > 0 && config.retry < 1e6)) return Status::invalid("retry: out of range");
  std::shared_ptr<SharedCache> cache(new SharedCache(layout, config));
  if (!config.lazy) {
    KVS_TRY(Attachment::attach(cache->socket_, cache->hello_, cache->attachment_));
  }
  out = std::move(cache);
  return {};
}

// The connection; made anew when the last one broke, but not more often than `retry_` says.
std::shared_ptr<Attachment> SharedCache::attachment() {
  std::lock_guard lock(mutex_);
  if (attachment_ && !attachment_->broken()) return attachment_;
  const auto now = std::chrono::steady_clock::now();
  if (!attachment_ && now < next_try_) return nullptr;
  attachment_.reset();  // its leases keep it
  if (!Attachment::attach(socket_, hello_, attachment_).ok()) {
    postpone();
  }
  return attachment_;
}

// From now on, since finding out may have taken long. Under the lock.
void SharedCache::postpone() {
  attachment_.reset();
  next_try_ = std::chrono::steady_clock::now() +
              std::chrono::duration_cast<std::chrono::steady_clock::duration>(retry_);
}

// Null: the daemon is away. One that was started anew is asked once more.
std::shared_ptr<Attachment> SharedCache::ask(const wire::Request& request,
                                             const std::vector<iovec>& payload, wire::Reply& reply,
                                             std::vector<uint32_t>& answer) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    auto attached = attachment();
    if (!attached) return nullptr;
    if (attached->call(request, payload, reply, answer)) return attached;
    if (attached->hangs()) {
      std::lock_guard lock(mutex_);
      if (attachment_ == attached) postpone();
      return nullptr;
    }
  }
  return nullptr;
}

// body(0) ... body(count - 1), each of a token's bytes, on as many threads as that is worth.
void SharedCache::each(size_t count, const std::function<void(size_t)>& body) {
  constexpr size_t kPiece = 1 << 18;  // bytes that are worth a thread's while
  const size_t some = std::max<size_t>(1, kPiece / layout_.token_bytes());
  const size_t pieces = (count + some - 1) / some;
  pool_.run(pieces, [&](size_t piece) {
    for (size_t i = piece * some; i < std::min(count, (piece + 1) * some); ++i) body(i);
  });
}

SharedCache::Found SharedCache::find(const std::vector<iovec>& parts, size_t first, size_t units,
                                     uint32_t flags) {
  Found out;
  if (checksums_) flags |= wire::kWithSums;
  wire::Reply reply;
  std::vector<uint32_t> answer;
  auto attached = ask({.verb = Verb::match, .flags = flags, .first = first}, parts, reply, answer);
  if (!attached || reply.count == 0) return out;
  const size_t words = flags & wire::kWithSums ? 3 : 1;  // a slot, or a slot and a checksum
  auto held = std::make_shared<Held>(attached, reply.id);
  if (reply.count > units - first || answer.size() != reply.count * words) return out;
  for (size_t i = 0; i < reply.count; ++i) {
    const uint8_t* unit = attached->reads(answer[i]);
    if (!unit) return out;
    out.units.push_back(unit);
  }
  out.held = std::move(held);
  if (!checksums_) return out;

  std::vector<uint8_t> good(out.units.size());
  each(out.units.size(), [&](size_t i) {
    uint64_t sum;
    memcpy(&sum, answer.data() + reply.count + i * 2, sizeof sum);
    good[i] = sum_of(out.units[i], layout_.token_bytes()) == sum;
  });
  size_t whole = std::find(good.begin(), good.end(), 0) - good.begin();
  if (whole < out.units.size()) {
    ++damaged_;
    out.units.resize(whole);
    const uint32_t unit = flags & wire::kByKey ? wire::kKeyUnit : 1;
    std::vector<int32_t> named;  // up to and with what is damaged: it and what follows is forgotten
    for (auto& p : parts) {
      auto* tokens = static_cast<const int32_t*>(p.iov_base);
      named.insert(named.end(), tokens, tokens + p.iov_len / sizeof(int32_t));
    }
    named.resize((first + whole + 1) * unit);
    forget({part(named.data(), named.size() * sizeof(int32_t))}, flags);
  }
  return out;
}

void SharedCache::forget(const std::vector<iovec>& parts, uint32_t flags) {
  wire::Reply reply;
  std::vector<uint32_t> answer;
  ask({.verb = Verb::remove, .flags = flags & wire::kByKey}, parts, reply, answer);
}

// How many units behind `first` are stored in the end; write(i, where) brings unit i behind it.
size_t SharedCache::store(const std::vector<iovec>& parts, size_t first, size_t units,
                          uint32_t flags,
                          const std::function<void(size_t, uint8_t*)>& write) {
  wire::Reply reply;
  std::vector<uint32_t> slots;
  auto attached = ask({.verb = Verb::reserve, .flags = flags, .first = first}, parts, reply, slots);
  if (!attached || reply.first < first || reply.first > units) return 0;
  const size_t there = reply.first - first, count = reply.count;
  if (count == 0) return there;
  auto held = std::make_shared<Held>(attached, reply.id);
  if (count > units - reply.first || slots.size() != count) return 0;
  for (uint32_t slot : slots) {
    if (!attached->writes(slot)) return 0;
  }
  std::vector<uint64_t> sums(checksums_ ? count : 0);
  each(count, [&](size_t i) {
    uint8_t* where = attached->writes(slots[i]);
    write(there + i, where);
    if (checksums_) sums[i] = sum_of(where, layout_.token_bytes());
  });
  wire::Request commit{.verb = Verb::commit, .id = reply.id};
  if (!attached->call(commit, {part(sums.data(), sums.size() * sizeof sums[0])}, reply, slots)) {
    return 0;
  }
  return there + (reply.count == count ? count : 0);
}

Status SharedCache::update(Tokens prefix, Tokens tokens, const kvs_tensor* tensors,
                           size_t& updated) {
  KVS_TRY(bounded(prefix.size() + tokens.size()));
  const size_t each_token = layout_.tensors(), bytes = layout_.tensor_bytes;
  const bool much = tokens.size() * layout_.token_bytes() >= kStreamFrom;
  auto copy = [&](uint8_t* to, const uint8_t* from, size_t n) {
    much ? stream(to, from, n) : void(memcpy(to, from, n));
  };
  updated = store(parts_of(prefix, tokens), prefix.size(), prefix.size() + tokens.size(), 0,
                  [&](size_t i, uint8_t* where) {
                    in_runs(tensors + i * each_token, each_token, bytes,
                            [&](size_t at, const uint8_t* from, size_t run) {
                              copy(where + at, from, run);
                            });
                  });
  return {};
}

Status SharedCache::query(Tokens prefix, Tokens tokens, kvs_tensor* tensors, size_t& matched,
                          Lease* lease) {
  KVS_TRY(bounded(prefix.size() + tokens.size()));
  const size_t each_token = layout_.tensors(), bytes = layout_.tensor_bytes;
  const size_t all = tokens.size() * each_token;
  auto empty = [](const kvs_tensor& tensor) { return !tensor.data; };
  const bool points = std::any_of(tensors, tensors + all, empty);
  const bool copies = !std::all_of(tensors, tensors + all, empty);
  if (points && !lease) {
    return Status::invalid("lease is null, and there are tensors without data");
  }
  auto found = find(parts_of(prefix, tokens), prefix.size(), prefix.size() + tokens.size(), 0);
  const bool much = found.units.size() * layout_.token_bytes() >= kStreamFrom;
  if (copies) {
    each(found.units.size(), [&](size_t i) {
      in_runs(tensors + i * each_token, each_token, bytes,
              [&](size_t at, uint8_t* to, size_t run) {
                if (!to) return;
                much ? stream(to, found.units[i] + at, run)
                     : void(memcpy(to, found.units[i] + at, run));
              });
    });
  }
  if (points) {
    for (size_t i = 0; i < found.units.size() * each_token; ++i) {
      if (tensors[i].data) continue;
      tensors[i] = {const_cast<uint8_t*>(found.units[i / each_token] + i % each_token * bytes), bytes};
    }
  }
  if (points) *lease = std::move(found.held);
  matched = found.units.size();
  return {};
}

Status SharedCache::locate(Tokens prefix, Tokens tokens, const void** where, size_t& matched,
                           Lease& lease) {
  KVS_TRY(bounded(prefix.size() + tokens.size()));
  auto found = find(parts_of(prefix, tokens), prefix.size(), prefix.size() + tokens.size(), 0);
  std::copy(found.units.begin(), found.units.end(), where);
  matched = found.units.size();
  lease = std::move(found.held);
  return {};
}

Status SharedCache::put(const Digest& key, const void* blob, bool& stored) {
  stored = store(parts_of(key), 0, 1, wire::kByKey, [&](size_t, uint8_t* where) {
             memcpy(where, blob, layout_.token_bytes());
           }) == 1;
  return {};
}

Status SharedCache::get(const Digest& key, void* blob, bool& found) {
  auto there = find(parts_of(key), 0, 1, wire::kByKey);
  found = !there.units.empty();
  if (found) memcpy(blob, there.units[0], layout_.token_bytes());
  return {};
}

Status SharedCache::contains(std::span<const Digest> keys, uint8_t* out) {
  KVS_TRY(bounded(keys.size()));
  std::fill_n(out, keys.size(), 0);
  wire::Reply reply;
  std::vector<uint32_t> answer;
  // Answers are whole words, so the last may have more bytes than there are keys.
  if (ask({.verb = Verb::contains, .flags = wire::kByKey}, {part(keys.data(), keys.size_bytes())},
          reply, answer) &&
      answer.size() * 4 >= keys.size()) {
    memcpy(out, answer.data(), keys.size());
  }
  return {};
}

Status SharedCache::remove(const Digest& key) {
  forget(parts_of(key), wire::kByKey);
  return {};
}

Status SharedCache::clear() {
  wire::Reply reply;
  std::vector<uint32_t> answer;
  ask({.verb = Verb::clear}, {}, reply, answer);
  return {};
}

Status SharedCache::stat(kvs_stats& out) {
  wire::Reply reply;
  std::vector<uint32_t> answer;
  if (ask({.verb = Verb::stat}, {}, reply, answer) && answer.size() * 4 == sizeof out) {
    memcpy(&out, answer.data(), sizeof out);
  }
  out.damaged = damaged_;
  return {};
}

}  // namespace kvstore
