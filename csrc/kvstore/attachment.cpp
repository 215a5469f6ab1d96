#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <set>

#include "shared_cache.h"

namespace kvstore {

namespace {

// A daemon that says nothing for so long counts as away. Its work on a question takes milliseconds.
constexpr timeval kPatience{1, 0};

Status connect_to(const std::string& path, int& out) {
  sockaddr_un name;
  KVS_TRY(wire::address(path, name));
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::system("socket");
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
  Status status;
  if (connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof name)) {
    status = Status::system("no daemon answers at the socket");
  } else if (!wire::same_user(fd)) {
    status = {KVS_IO, "the daemon at the socket is another user's"};
  }
  if (!status.ok()) {
    close(fd);
    return status;
  }
  out = fd;
  return {};
}

// Those of this process. A child must not keep the connections of its parent open: what the daemon
// holds for a parent that dies would stay held.
std::mutex all_mutex;
std::set<Attachment*> all;

}  // namespace

void Attachment::forked() {
  for (Attachment* one : all) {
    close(one->fd_);
    one->fd_ = -1;
    one->broken_ = true;
  }
  all_mutex.unlock();
}

Status Attachment::attach(const std::string& socket, const wire::Hello& hello,
                          std::shared_ptr<Attachment>& out) {
  static const int registered = pthread_atfork(
      [] { all_mutex.lock(); }, [] { all_mutex.unlock(); }, &Attachment::forked);
  if (registered) return {KVS_IO, "pthread_atfork"};
  std::shared_ptr<Attachment> made(new Attachment);
  KVS_TRY(connect_to(socket, made->fd_));
  KVS_TRY(made->greet(hello));
  std::lock_guard lock(all_mutex);
  all.insert(made.get());
  out = std::move(made);
  return {};
}

Attachment::~Attachment() {
  {
    std::lock_guard lock(all_mutex);
    all.erase(this);
    if (fd_ >= 0) close(fd_);
  }
  if (read_) munmap(read_, arena_.bytes);
  if (write_) munmap(write_, arena_.bytes);
}

// Says what is needed; the answer brings the arena.
Status Attachment::greet(const wire::Hello& hello) {
  wire::Request request{.verb = wire::Verb::hello, .bytes = sizeof hello};
  wire::Reply reply;
  if (!wire::send_all(fd_, {{&request, sizeof request},
                            {const_cast<wire::Hello*>(&hello), sizeof hello}})) {
    return Status::system("the daemon at the socket does not listen");
  }
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part{&reply, sizeof reply};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = recvmsg(fd_, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  int arena = -1;
  cmsghdr* header = got > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof(int))) {
    memcpy(&arena, CMSG_DATA(header), sizeof arena);
  }
  auto finish = [&]() -> Status {
    if (got <= 0 || !wire::receive_all(fd_, reinterpret_cast<char*>(&reply) + got,
                                       sizeof reply - got)) {
      return {KVS_IO, "the daemon at the socket does not answer"};
    }
    if (reply.magic != wire::kMagic || reply.bytes > 4096) {
      return {KVS_IO, "what answers at the socket is no daemon of this version"};
    }
    std::string payload(reply.bytes, 0);
    if (!wire::receive_all(fd_, payload.data(), payload.size())) {
      return {KVS_IO, "the daemon at the socket does not answer"};
    }
    if (reply.code != wire::Code::ok) return Status::invalid(payload);
    if (payload.size() != sizeof arena_) return {KVS_IO, "the daemon describes no arena"};
    memcpy(&arena_, payload.data(), sizeof arena_);
    if (arena_.slot_bytes != hello.slot_bytes || arena_.slots == 0 ||
        arena_.slots > arena_.bytes / arena_.slot_bytes) {
      return {KVS_IO, "the daemon describes an arena that cannot be"};
    }
    return map(arena);
  };
  Status status = finish();
  if (arena >= 0) close(arena);
  return status;
}

Status Attachment::map(int arena) {
  struct stat found;
  int seals = arena < 0 ? -1 : fcntl(arena, F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(arena, &found) ||
      static_cast<uint64_t>(found.st_size) < arena_.bytes) {
    return {KVS_IO, "the daemon's arena is not what it says"};
  }
  // What is found is handed out through a mapping that cannot be written to.
  auto mapped = [&](int protection) {
    void* base = mmap(nullptr, arena_.bytes, protection, MAP_SHARED, arena, 0);
    return base == MAP_FAILED ? nullptr : base;
  };
  read_ = mapped(PROT_READ);
  write_ = mapped(PROT_READ | PROT_WRITE);
  return read_ && write_ ? Status{} : Status::system("mapping the arena");
}

bool Attachment::call(wire::Request request, const std::vector<iovec>& payload, wire::Reply& reply,
                      std::vector<uint32_t>& answer) {
  if (broken_) return false;  // before the lock: a fork's child may find it locked for ever
  std::lock_guard lock(mutex_);
  if (broken_) return false;
  for (auto& part : payload) request.bytes += part.iov_len;
  std::vector<iovec> parts{{&request, sizeof request}};
  parts.insert(parts.end(), payload.begin(), payload.end());
  errno = 0;
  bool good = wire::send_all(fd_, std::move(parts)) &&
              wire::receive_all(fd_, &reply, sizeof reply) && reply.magic == wire::kMagic &&
              reply.bytes <= wire::kMaxPayload && reply.bytes % 4 == 0;
  if (good) {
    answer.resize(reply.bytes / 4);
    good = wire::receive_all(fd_, answer.data(), reply.bytes) && reply.code == wire::Code::ok;
  }
  if (!good) {
    // An answer that comes too late would be taken for the next one's: no further question.
    hangs_ = errno == EAGAIN || errno == EWOULDBLOCK;
    broken_ = true;
  }
  return good;
}

void Attachment::release(uint64_t id) {
  if (broken_) return;
  std::lock_guard lock(mutex_);
  if (broken_) return;  // all ends with the connection, which ends when nobody looks any more
  wire::Request request{.verb = wire::Verb::release, .id = id};
  if (!wire::send_all(fd_, {{&request, sizeof request}})) broken_ = true;
}

Status daemon_stat(const std::string& socket, kvs_stats& out) {
  int fd;
  KVS_TRY(connect_to(socket, fd));
  wire::Request request{.verb = wire::Verb::stat};
  wire::Reply reply;
  bool good = wire::send_all(fd, {{&request, sizeof request}}) &&
              wire::receive_all(fd, &reply, sizeof reply) && reply.magic == wire::kMagic &&
              reply.bytes == sizeof out && wire::receive_all(fd, &out, sizeof out);
  close(fd);
  if (!good) return {KVS_IO, "the daemon at the socket does not answer"};
  --out.clients;  // this question's
  return {};
}

}  // namespace kvstore
