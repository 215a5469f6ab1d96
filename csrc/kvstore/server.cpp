#include "server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>

namespace kvstore {

// What a client holds: found slots, pinned; or slots that it writes, and the pinned prefix of them.
struct Server::Hold {
  Index::Space* space;
  std::vector<Slot> found;
  std::vector<Slot> writing;
  std::vector<int32_t> tokens;  // of a write: all, with the prefix
};

struct Server::Client {
  explicit Client(int fd) : fd(fd) {}
  const int fd;
  Index::Space *tokens = nullptr, *keys = nullptr;  // none before its hello
  bool ignored = false, waits = false;  // for its replies to be read
  std::vector<uint8_t> in, out;
  size_t sent = 0;
  int handed_out = -1;  // a descriptor that goes with the first byte of `out`
  uint64_t next_id = 1;
  std::unordered_map<uint64_t, Hold> holds;
};

Server::Server(std::string path, uint64_t bytes, uint64_t slot_bytes)
    : path_(std::move(path)), bytes_(bytes), fixed_slot_bytes_(slot_bytes) {}

// The folder is made if it is not there; nobody else may enter it.
static Status private_folder(const std::string& path) {
  size_t slash = path.rfind('/');
  std::string folder = slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  if (mkdir(folder.c_str(), 0700) && errno != EEXIST) {
    return Status::system("socket: cannot make the folder " + folder);
  }
  struct stat found;
  if (stat(folder.c_str(), &found)) return Status::system("socket: " + folder);
  if (!S_ISDIR(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 077)) {
    return Status::invalid("socket: the folder " + folder +
                           " must belong to the daemon's user and have mode 0700");
  }
  return {};
}

// Pages that are only allocated are cleared by whoever comes first: let it be us. Reading does it, so
// it does not matter who uses them meanwhile.
void Server::warm() {
  constexpr uint64_t kPart = uint64_t{64} << 20;
  for (uint64_t at = 0; at < bytes_ && !stop_; at += kPart) {
    const uint64_t length = std::min(kPart, bytes_ - at);
    void* base = mmap(nullptr, length, PROT_READ, MAP_SHARED, arena_, at);
    if (base == MAP_FAILED) return;  // then the first user pays
    for (uint64_t i = 0; i < length && !stop_; i += 4096) {
      (void)static_cast<const volatile char*>(base)[i];
    }
    munmap(base, length);
  }
}

Status Server::open(const std::string& path, uint64_t bytes, uint64_t slot_bytes,
                    std::unique_ptr<Server>& out) {
  sockaddr_un name;
  KVS_TRY(wire::address(path, name));
  const uint64_t page = sysconf(_SC_PAGESIZE);
  if (bytes < page || bytes > uint64_t{1} << 46) return Status::invalid("size: out of range");
  if (slot_bytes > bytes) return Status::invalid("slot_bytes is larger than the arena");
  KVS_TRY(private_folder(path));
  std::unique_ptr<Server> server(new Server(path, bytes / page * page, slot_bytes));

  server->lock_ = ::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (server->lock_ < 0) return Status::system("socket: the lock beside it");
  if (flock(server->lock_, LOCK_EX | LOCK_NB)) {
    return Status::invalid("socket: another daemon serves " + path);
  }

  // Sealed, so that no client's access can run past the end; allocated now, so that a machine whose
  // memory is full says so here and does not kill the writer that finds out.
  server->arena_ = memfd_create("kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (server->arena_ < 0) return Status::system("the arena");
  if (ftruncate(server->arena_, server->bytes_) ||
      fallocate(server->arena_, 0, 0, server->bytes_)) {
    return Status::system("size: an arena of " + std::to_string(server->bytes_) + " bytes");
  }
  if (fcntl(server->arena_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
    return Status::system("the arena's seals");
  }

  server->listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (server->listener_ < 0) return Status::system("socket");
  struct stat found;
  if (lstat(path.c_str(), &found) == 0) {
    if (!S_ISSOCK(found.st_mode)) return Status::invalid("socket: " + path + " is no socket");
    if (unlink(path.c_str())) return Status::system("socket: " + path);  // a dead daemon's
  }
  if (bind(server->listener_, reinterpret_cast<sockaddr*>(&name), sizeof name)) {
    return Status::system("socket: " + path);
  }
  server->bound_ = true;
  if (chmod(path.c_str(), 0600) || listen(server->listener_, 128)) {
    return Status::system("socket: " + path);
  }
  server->poll_ = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{.events = EPOLLIN, .data = {.fd = server->listener_}};
  if (server->poll_ < 0 || epoll_ctl(server->poll_, EPOLL_CTL_ADD, server->listener_, &event)) {
    return Status::system("epoll");
  }
  server->listening_ = true;
  server->warming_ = std::thread(&Server::warm, server.get());
  out = std::move(server);
  return {};
}

Server::~Server() {
  stop_ = true;
  if (warming_.joinable()) warming_.join();
  if (bound_) unlink(path_.c_str());
  for (auto& [fd, client] : clients_) close(fd);
  for (int fd : {listener_, poll_, arena_, lock_}) {
    if (fd >= 0) close(fd);
  }
}

Status Server::run(int milliseconds) {
  epoll_event events[64];
  const bool forever = milliseconds < 0;
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  auto millis = [](const timespec& t) { return t.tv_sec * 1000LL + t.tv_nsec / 1000000; };
  const long long end = millis(now) + milliseconds;
  do {
    int wait = forever ? -1 : static_cast<int>(std::max(0LL, end - millis(now)));
    int count = epoll_wait(poll_, events, 64, wait);
    if (count < 0 && errno != EINTR) return Status::system("epoll");
    std::lock_guard lock(mutex_);
    for (int i = 0; i < count; ++i) {
      int fd = events[i].data.fd;
      if (fd == listener_) {
        accept_client();
        continue;
      }
      auto found = clients_.find(fd);
      if (found == clients_.end()) continue;  // left in this round
      Client& client = *found->second;
      if (events[i].events & EPOLLOUT) flush(client);
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(client);
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (forever || millis(now) < end);
  return {};
}

void Server::accept_client() {
  int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE) {  // until a client leaves, else this would spin
      epoll_ctl(poll_, EPOLL_CTL_DEL, listener_, nullptr);
      listening_ = false;
    }
    return;
  }
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  if (!wire::same_user(fd) || clients_.size() >= kMaxClients ||
      epoll_ctl(poll_, EPOLL_CTL_ADD, fd, &event)) {
    close(fd);
    return;
  }
  clients_[fd] = std::make_unique<Client>(fd);
}

void Server::leave(Client& client) {
  for (auto& [id, hold] : client.holds) end(hold, false);
  for (auto* space : {client.tokens, client.keys}) {
    if (space) --space->clients;
  }
  const int fd = client.fd;
  clients_.erase(fd);
  close(fd);
  if (!listening_) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = listener_}};
    listening_ = epoll_ctl(poll_, EPOLL_CTL_ADD, listener_, &event) == 0;
  }
}

// `stored`: the index has taken the written slots.
void Server::end(Hold& hold, bool stored) {
  if (!stored) index_->give_back(*hold.space, hold.writing);
  index_->unpin(hold.found);
}

void Server::receive(Client& client) {
  uint8_t buffer[1 << 16];
  ssize_t got = recv(client.fd, buffer, sizeof buffer, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return leave(client);
  if (client.ignored) return;
  client.in.insert(client.in.end(), buffer, buffer + got);
  size_t at = 0;
  while (!client.ignored && client.in.size() - at >= sizeof(wire::Request)) {
    wire::Request request;
    memcpy(&request, client.in.data() + at, sizeof request);
    if (request.magic != wire::kMagic || request.bytes > wire::kMaxPayload) {
      refuse(client, "not of this version of the store");
      break;
    }
    if (client.in.size() - at - sizeof request < request.bytes) {
      client.in.reserve(at + sizeof request + request.bytes);
      break;
    }
    // Aligned for what it holds: a request's payload is copied only where it is looked at.
    std::vector<uint64_t> payload((request.bytes + 7) / 8);
    memcpy(payload.data(), client.in.data() + at + sizeof request, request.bytes);
    at += sizeof request + request.bytes;
    answer(client, request, reinterpret_cast<const uint8_t*>(payload.data()));
  }
  if (client.ignored || at == client.in.size()) {
    client.in = {};
  } else {
    client.in.erase(client.in.begin(), client.in.begin() + at);
  }
  flush(client);
}

void Server::flush(Client& client) {
  while (client.sent < client.out.size()) {
    iovec part{client.out.data() + client.sent, client.out.size() - client.sent};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    if (client.handed_out >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      memcpy(CMSG_DATA(header), &client.handed_out, sizeof(int));
    }
    ssize_t sent = sendmsg(client.fd, &message, MSG_NOSIGNAL);
    if (sent < 0) break;  // full: later; gone: the next read says so
    client.handed_out = -1;
    client.sent += sent;
  }
  if (client.sent == client.out.size()) {
    client.out.clear();
    client.sent = 0;
  }
  // While a reply waits to be read, no further request is taken up.
  if (bool waits = !client.out.empty(); waits != client.waits) {
    client.waits = waits;
    epoll_event event{.events = waits ? EPOLLOUT : EPOLLIN, .data = {.fd = client.fd}};
    epoll_ctl(poll_, EPOLL_CTL_MOD, client.fd, &event);
  }
}

void Server::reply(Client& client, wire::Reply reply, std::vector<iovec> payload) {
  for (auto& part : payload) reply.bytes += part.iov_len;
  auto append = [&](const void* data, size_t bytes) {
    auto* first = static_cast<const uint8_t*>(data);
    client.out.insert(client.out.end(), first, first + bytes);
  };
  append(&reply, sizeof reply);
  for (auto& part : payload) append(part.iov_base, part.iov_len);
}

// Ignored from now on: what it has mapped it may still be writing to.
void Server::refuse(Client& client, const std::string& text) {
  reply(client, {.code = wire::Code::refused}, {{const_cast<char*>(text.data()), text.size()}});
  client.ignored = true;
}

void Server::answer(Client& client, const wire::Request& request, const uint8_t* payload) {
  using wire::Verb;
  if (request.verb == Verb::stat) {
    kvs_stats stats = count();
    return reply(client, {}, {{&stats, sizeof stats}});
  }
  if (request.verb == Verb::hello) {
    if (client.tokens || request.bytes != sizeof(wire::Hello)) return refuse(client, "a bad hello");
    wire::Hello hello_;
    memcpy(&hello_, payload, sizeof hello_);
    return hello(client, hello_);
  }
  if (!client.tokens) return refuse(client, "no hello");

  const bool by_key = request.flags & wire::kByKey;
  const size_t unit = by_key ? wire::kKeyUnit : 1;
  const size_t units = request.bytes / (unit * sizeof(int32_t));
  auto* tokens = reinterpret_cast<const int32_t*>(payload);
  const bool whole = request.bytes == units * unit * sizeof(int32_t) && units <= wire::kMaxUnits;
  switch (request.verb) {
    case Verb::match:
    case Verb::reserve:
      if (!whole || request.first > units) return refuse(client, "a bad request");
      return request.verb == Verb::match ? match(client, request, tokens, units)
                                         : reserve(client, request, tokens, units);
    case Verb::commit:
      return commit(client, request, payload);
    case Verb::release:
      if (auto found = client.holds.find(request.id); found != client.holds.end()) {
        end(found->second, false);
        client.holds.erase(found);
      }
      return;
    case Verb::contains:
      if (!whole || !by_key) return refuse(client, "a bad request");
      return contains(client, tokens, units);
    case Verb::remove:
      if (!whole) return refuse(client, "a bad request");
      index_->remove(by_key ? *client.keys : *client.tokens, tokens, units);
      return reply(client, {});
    case Verb::clear:
      index_->clear(*client.tokens);
      index_->clear(*client.keys);
      return reply(client, {});
    default:
      return refuse(client, "a bad request");
  }
}

void Server::hello(Client& client, const wire::Hello& hello) {
  auto others = [&] {
    return std::any_of(clients_.begin(), clients_.end(),
                       [](auto& entry) { return entry.second->tokens != nullptr; });
  };
  if (hello.slot_bytes == 0 || hello.slot_bytes > bytes_) {
    return refuse(client, "a token of " + std::to_string(hello.slot_bytes) +
                              " bytes does not fit the arena of " + std::to_string(bytes_));
  }
  const uint64_t wanted = fixed_slot_bytes_ ? fixed_slot_bytes_ : hello.slot_bytes;
  const bool unused = !index_ || (index_->num_free() == index_->num_slots() && !others());
  if (wanted != slot_bytes_ && unused) {
    if (index_) evicted_before_ += index_->evicted();
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) return refuse(client, "no random numbers");
    slot_bytes_ = wanted;
    index_ = std::make_unique<Index>(
        static_cast<Slot>(std::min<uint64_t>(bytes_ / wanted, kMaxSlots)), seed);
  }
  if (hello.slot_bytes != slot_bytes_) {
    return refuse(client, "this daemon's slots are of " + std::to_string(slot_bytes_) +
                              " bytes and a token needs " + std::to_string(hello.slot_bytes) +
                              ": start another daemon for it");
  }
  if (index_->num_spaces() + 2 > kMaxSpaces) {
    index_->sweep();
    if (index_->num_spaces() + 2 > kMaxSpaces) return refuse(client, "too many spaces are in use");
  }
  auto name_of = [&](const char* kind) {
    Sha256 sha;
    sha.field(hello.name.data(), hello.name.size());
    sha.field(kind, strlen(kind));
    return sha.finish();
  };
  client.tokens = index_->space(name_of("tokens"), 1, hello.capacity);
  client.keys = index_->space(name_of("keys"), wire::kKeyUnit, hello.capacity);
  ++client.tokens->clients;
  ++client.keys->clients;
  wire::Arena arena{bytes_, index_->num_slots(), slot_bytes_};
  client.handed_out = arena_;
  reply(client, {}, {{&arena, sizeof arena}});
}

void Server::match(Client& client, const wire::Request& request, const int32_t* tokens,
                   size_t units) {
  auto& space = request.flags & wire::kByKey ? *client.keys : *client.tokens;
  auto slots = index_->match(space, tokens, units);
  const size_t first = request.first;
  slots.erase(slots.begin(), slots.begin() + std::min(slots.size(), first));
  // Who holds more than it can ever read finds nothing new before it releases some.
  if (client.holds.size() >= kMaxHolds) slots.clear();
  hits_ += slots.size();
  misses_ += units - first - slots.size();
  std::vector<uint64_t> sums;
  wire::Reply out{.first = first, .count = slots.size()};
  if (slots.empty()) return reply(client, out);
  if (request.flags & wire::kWithSums) {
    for (Slot slot : slots) sums.push_back(index_->sum(slot));
  }
  index_->pin(slots);
  out.id = client.next_id++;
  reply(client, out, {{slots.data(), slots.size() * sizeof(Slot)}, {sums.data(), sums.size() * 8}});
  client.holds[out.id] = {.space = &space, .found = std::move(slots), .writing = {}, .tokens = {}};
}

void Server::reserve(Client& client, const wire::Request& request, const int32_t* tokens,
                     size_t units) {
  auto& space = request.flags & wire::kByKey ? *client.keys : *client.tokens;
  auto found = index_->match(space, tokens, units);
  wire::Reply out{.first = found.size()};
  if (found.size() < request.first || found.size() == units || client.holds.size() >= kMaxHolds) {
    return reply(client, out);
  }
  index_->pin(found);  // else room for what follows could be made of what it follows
  auto slots = index_->allocate(space, units - found.size());
  if (slots.empty()) {
    index_->unpin(found);
    return reply(client, out);
  }
  out.count = slots.size();
  out.id = client.next_id++;
  reply(client, out, {{slots.data(), slots.size() * sizeof(Slot)}});
  std::vector<int32_t> named(tokens, tokens + (found.size() + slots.size()) * space.unit);
  client.holds[out.id] = {.space = &space,
                          .found = std::move(found),
                          .writing = std::move(slots),
                          .tokens = std::move(named)};
}

void Server::commit(Client& client, const wire::Request& request, const uint8_t* payload) {
  auto found = client.holds.find(request.id);
  if (found == client.holds.end() || found->second.writing.empty()) {
    return refuse(client, "a commit of nothing");
  }
  Hold& hold = found->second;
  std::vector<uint64_t> sums(hold.writing.size());
  if (request.bytes) {
    if (request.bytes != sums.size() * 8) return refuse(client, "a bad commit");
    memcpy(sums.data(), payload, request.bytes);
  }
  wire::Reply out;
  if (index_->insert(*hold.space, hold.tokens.data(), hold.found.size(), hold.writing,
                     sums.data())) {
    out.count = hold.writing.size();
  }
  end(hold, true);
  client.holds.erase(found);
  reply(client, out);
}

void Server::contains(Client& client, const int32_t* keys, size_t count) {
  std::vector<uint8_t> there((count + 3) / 4 * 4);  // answers are whole words
  for (size_t i = 0; i < count; ++i) {
    there[i] = index_->match(*client.keys, keys + i * wire::kKeyUnit, 1).size() == 1;
  }
  reply(client, {.count = count}, {{there.data(), there.size()}});
}

kvs_stats Server::count() const {
  kvs_stats stats{};
  stats.clients = clients_.size();
  stats.capacity_bytes = bytes_;
  stats.hits = hits_;
  stats.misses = misses_;
  stats.evicted = evicted_before_;
  if (index_) {
    stats.entries = index_->num_slots() - index_->num_free();
    stats.bytes = stats.entries * slot_bytes_;
    stats.pinned = index_->num_pinned();
    stats.evicted += index_->evicted();
  }
  return stats;
}

kvs_stats Server::stats() {
  std::lock_guard lock(mutex_);
  return count();
}

std::string Server::check() {
  std::lock_guard lock(mutex_);
  if (!index_) return {};
  size_t holds = 0;
  for (auto& [fd, client] : clients_) {
    for (auto& [id, hold] : client->holds) holds += hold.found.size() + hold.writing.size();
  }
  if (holds == 0 && index_->num_pinned()) return "pins without a client that holds them";
  return index_->check();
}

}  // namespace kvstore
