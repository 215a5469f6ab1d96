// The Python binding, `vllm._kvstore`: the C interface with Python's types. No torch.
//
// Tokens are lists of ints or int32 arrays. Tensors are lists of KVTensor pairs, [token][layer] ->
// (K, V), or an array of addresses [tokens, layers, 2]. Calls that copy or wait run without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <string>
#include <vector>

#include "vllm/kvstore.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Raised for KVS_INVALID, and for everything else; made in Python so that they read well there.
PyObject *invalid_error, *store_error;

[[noreturn]] void raise(PyObject* type, const std::string& text) {
  PyErr_SetString(type, text.c_str());
  throw nb::python_error();
}

void done(int code) {
  if (code == KVS_OK) return;
  raise(code == KVS_INVALID ? invalid_error : store_error, kvs_error());
}

// A call that copies or waits, without the GIL.
template <typename Call>
void unlocked(Call call) {
  int code;
  {
    nb::gil_scoped_release released;
    code = call();
  }
  done(code);
}

using TokenArray = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TokenAddresses = nb::ndarray<uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AddressArray = nb::ndarray<uint64_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// int32 tokens of whatever was given; numbers that do not fit are a TypeError.
class TokenList {
 public:
  explicit TokenList(nb::handle given) {
    if (given.is_none()) return;
    if (nb::try_cast(given, array_)) {
      data_ = array_.data();
      size_ = array_.size();
      return;
    }
    nb::object items = nb::steal(PySequence_Fast(given.ptr(), "tokens are a list of ints"));
    if (!items.is_valid()) throw nb::python_error();
    size_ = PySequence_Fast_GET_SIZE(items.ptr());
    numbers_.resize(size_);
    PyObject** item = PySequence_Fast_ITEMS(items.ptr());
    for (size_t i = 0; i < size_; ++i) {
      if (!nb::try_cast(nb::handle(item[i]), numbers_[i])) {
        raise(PyExc_TypeError, "token " + std::to_string(i) + " is no 32-bit integer");
      }
    }
    data_ = numbers_.data();
  }
  const int32_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  TokenArray array_;
  std::vector<int32_t> numbers_;
  const int32_t* data_ = nullptr;
  size_t size_ = 0;
};

// What was found stays where it is until this goes.
class Lease {
 public:
  Lease(std::shared_ptr<kvs_cache> cache, uint64_t id) : cache_(std::move(cache)), id_(id) {}
  Lease(const Lease&) = delete;
  ~Lease() { release(); }
  void release() {
    if (id_) kvs_release(cache_.get(), id_);
    id_ = 0;
  }
  bool held() const { return id_ != 0; }

 private:
  std::shared_ptr<kvs_cache> cache_;
  uint64_t id_;
};

// A stretch of memory that Python shows as a buffer. `owner` keeps it good: a lease, or whose memory
// it is.
struct KVTensor {
  uint64_t data = 0;
  size_t length = 0;
  nb::object owner;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* tensor = nb::inst_ptr<KVTensor>(nb::handle(self));
  if (!tensor->data && tensor->length) {
    PyErr_SetString(PyExc_BufferError, "this KVTensor points nowhere");
    return -1;
  }
  // What was found in place is everybody's, and its pages cannot be written.
  const bool readonly = nb::isinstance<Lease>(tensor->owner);
  if (PyBuffer_FillInfo(view, self, reinterpret_cast<void*>(tensor->data), tensor->length, readonly,
                        flags)) {
    return -1;
  }
  if (flags & PyBUF_FORMAT) view->format = const_cast<char*>("c");
  return 0;
}

PyType_Slot tensor_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

class Cache {
 public:
  Cache(kvs_cache* cache, uint32_t layers, uint64_t tensor_bytes)
      : cache_(cache, kvs_free), layers_(layers), tensor_bytes_(tensor_bytes) {}

  size_t update(nb::handle prefix, nb::handle tokens, nb::handle tensors) {
    TokenList head(prefix), body(tokens);
    auto flat = flatten(tensors, body.size(), nullptr);
    size_t updated = 0;
    unlocked([&] {
      return kvs_update(cache_.get(), head.data(), head.size(), body.data(), body.size(),
                        flat.data(), &updated);
    });
    return updated;
  }

  // Fills tensors that have memory, points the others into the store, and returns the match.
  size_t query(nb::handle prefix, nb::handle tokens, nb::handle tensors) {
    TokenList head(prefix), body(tokens);
    std::vector<KVTensor*> objects;
    auto flat = flatten(tensors, body.size(), &objects);
    std::vector<bool> empty(flat.size());
    for (size_t i = 0; i < flat.size(); ++i) empty[i] = flat[i].data == nullptr;
    auto [matched, lease] = find(head, body, flat.data());
    nb::object owner = nb::none();
    if (lease) owner = nb::cast(std::make_shared<Lease>(cache_, lease));
    for (size_t i = 0; i < matched * layers_ * 2; ++i) {
      if (!empty[i]) continue;
      *objects[i] = {reinterpret_cast<uint64_t>(flat[i].data), flat[i].length, owner};
    }
    return matched;
  }

  // (match, lease or None); `where` [tokens] gets the address of each token's tensors, in place.
  nb::tuple locate(nb::handle prefix, nb::handle tokens, TokenAddresses where) {
    TokenList head(prefix), body(tokens);
    if (where.size() != body.size()) raise(invalid_error, "where is not [tokens]");
    static_assert(sizeof(uint64_t) == sizeof(const void*));
    size_t matched = 0;
    uint64_t lease = 0;
    unlocked([&] {
      return kvs_locate(cache_.get(), head.data(), head.size(), body.data(), body.size(),
                        reinterpret_cast<const void**>(where.data()), &matched, &lease);
    });
    nb::object owner = nb::none();
    if (lease) owner = nb::cast(std::make_shared<Lease>(cache_, lease));
    return nb::make_tuple(matched, owner);
  }

  // Copies what is found to the addresses [tokens, layers, 2].
  size_t fill(nb::handle prefix, nb::handle tokens, AddressArray addresses) {
    TokenList head(prefix), body(tokens);
    auto flat = flatten(nb::cast(addresses), body.size(), nullptr);
    return find(head, body, flat.data()).first;
  }

  bool put(nb::bytes key, nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig> blob) {
    check(key, blob.size());
    int stored = 0;
    unlocked([&] { return kvs_put(cache_.get(), bytes(key), blob.data(), &stored); });
    return stored;
  }

  bool get(nb::bytes key, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig> blob) {
    check(key, blob.size());
    int found = 0;
    unlocked([&] { return kvs_get(cache_.get(), bytes(key), blob.data(), &found); });
    return found;
  }

  nb::list contains(nb::list keys) {
    std::string joined;
    for (nb::handle key : keys) {
      auto text = nb::cast<nb::bytes>(key);
      check(text, blob_bytes());
      joined.append(text.c_str(), 32);
    }
    std::vector<uint8_t> there(nb::len(keys));
    unlocked([&] {
      return kvs_contains(cache_.get(), reinterpret_cast<const uint8_t*>(joined.data()),
                          there.size(), there.data());
    });
    nb::list out;
    for (uint8_t one : there) out.append(one != 0);
    return out;
  }

  void remove(nb::bytes key) {
    check(key, blob_bytes());
    unlocked([&] { return kvs_remove(cache_.get(), bytes(key)); });
  }

  uint64_t gc(double ttl) {
    uint64_t removed = 0;
    unlocked([&] { return kvs_gc(cache_.get(), ttl, &removed); });
    return removed;
  }

  void clear() {
    unlocked([&] { return kvs_clear(cache_.get()); });
  }

  nb::dict stat() {
    kvs_stats stats{};
    unlocked([&] { return kvs_stat(cache_.get(), &stats); });
    return as_dict(stats);
  }

  bool attached() { return kvs_attached(cache_.get()); }

  void close() {
    unlocked([&] { return kvs_close(cache_.get()); });
  }

  static nb::dict as_dict(const kvs_stats& stats) {
    nb::dict out;
    out["bytes"] = stats.bytes;
    out["capacity_bytes"] = stats.capacity_bytes;
    out["entries"] = stats.entries;
    out["pinned"] = stats.pinned;
    out["clients"] = stats.clients;
    out["hits"] = stats.hits;
    out["misses"] = stats.misses;
    out["evicted"] = stats.evicted;
    out["damaged"] = stats.damaged;
    out["direct"] = stats.direct;
    return out;
  }

 private:
  static const uint8_t* bytes(const nb::bytes& key) {
    return reinterpret_cast<const uint8_t*>(key.c_str());
  }
  uint64_t blob_bytes() const { return 2 * layers_ * tensor_bytes_; }

  void check(const nb::bytes& key, size_t blob) const {
    if (key.size() != 32) raise(invalid_error, "a key is 32 bytes");
    if (blob != blob_bytes()) {
      raise(invalid_error, "the blob has " + std::to_string(blob) + " bytes, not " +
                               std::to_string(blob_bytes()));
    }
  }

  void expect(const AddressArray& a, size_t tokens) const {
    if (a.shape(0) == tokens && a.shape(1) == layers_ && a.shape(2) == 2) return;
    raise(invalid_error, "the addresses are not [tokens, layers, 2]");
  }

  std::pair<size_t, uint64_t> find(const TokenList& prefix, const TokenList& tokens,
                                   kvs_tensor* tensors) {
    size_t matched = 0;
    uint64_t lease = 0;
    unlocked([&] {
      return kvs_query(cache_.get(), prefix.data(), prefix.size(), tokens.data(), tokens.size(),
                       tensors, &matched, &lease);
    });
    return {matched, lease};
  }

  // The tensors one behind the other; *objects: the KVTensors that they came from.
  std::vector<kvs_tensor> flatten(nb::handle tensors, size_t tokens,
                                  std::vector<KVTensor*>* objects) const {
    std::vector<kvs_tensor> flat;
    AddressArray addresses;
    if (!objects && nb::try_cast(tensors, addresses)) {
      expect(addresses, tokens);
      const uint64_t* address = addresses.data();
      flat.resize(addresses.size());
      for (kvs_tensor& tensor : flat) tensor = {reinterpret_cast<void*>(*address++), tensor_bytes_};
      return flat;
    }
    size_t given = PySequence_Size(tensors.ptr());
    if (PyErr_Occurred()) throw nb::python_error();
    if (given != tokens) {
      raise(invalid_error, std::to_string(tokens) + " tokens, but tensors of " +
                               std::to_string(given));
    }
    flat.reserve(tokens * layers_ * 2);
    if (objects) objects->reserve(tokens * layers_ * 2);
    size_t token = 0;
    for (nb::handle of_token : tensors) {
      if (size_t n = nb::len(of_token); n != layers_) {
        raise(invalid_error, "token " + std::to_string(token) + " has " + std::to_string(n) +
                                 " layers, not " + std::to_string(layers_));
      }
      for (nb::handle of_layer : of_token) {
        if (nb::len(of_layer) != 2) raise(invalid_error, "a layer has no pair of K and V");
        for (nb::handle one : of_layer) {
          KVTensor* tensor;
          if (!nb::try_cast(one, tensor) || !tensor) raise(PyExc_TypeError, "K and V are KVTensors");
          flat.push_back({reinterpret_cast<void*>(tensor->data), tensor->length});
          if (objects) objects->push_back(tensor);
        }
      }
      ++token;
    }
    return flat;
  }

  std::shared_ptr<kvs_cache> cache_;
  uint64_t layers_, tensor_bytes_;
};

// The daemon, of tests and of `vllm kvstore serve`.
class Server {
 public:
  Server(const std::string& socket, uint64_t size, uint64_t slot_bytes) {
    kvs_server* server = nullptr;
    unlocked([&] { return kvs_server_open(socket.c_str(), size, slot_bytes, &server); });
    server_.reset(server);
  }
  void run(double seconds) {
    unlocked([&] { return kvs_server_run(server_.get(), static_cast<int>(seconds * 1000)); });
  }
  nb::dict stat() {
    kvs_stats stats{};
    done(kvs_server_stat(server_.get(), &stats));
    return Cache::as_dict(stats);
  }
  void check() { done(kvs_server_check(server_.get())); }

 private:
  struct Free {
    void operator()(kvs_server* server) const { kvs_server_free(server); }
  };
  std::unique_ptr<kvs_server, Free> server_;
};

kvs_layout layout(const std::string& space, uint32_t layers, uint64_t tensor_bytes, uint32_t rank,
                  uint32_t world_size, uint32_t threads) {
  return {space.c_str(), layers, tensor_bytes, rank, world_size, threads};
}

}  // namespace

NB_MODULE(_kvstore, m) {
  nb::set_leak_warnings(false);  // what a program still holds when it ends is its own affair
  m.doc() = "The shared KV store's C++ library; see vllm.kvstore.";
  store_error = PyErr_NewExceptionWithDoc("vllm.kvstore.KVStoreError",
                                          "The store refused or could not do what was asked.",
                                          PyExc_RuntimeError, nullptr);
  nb::object both = nb::make_tuple(nb::handle(store_error), nb::handle(PyExc_ValueError));
  invalid_error = PyErr_NewExceptionWithDoc("vllm.kvstore.KVStoreValueError",
                                            "An argument is wrong; the text names it.", both.ptr(),
                                            nullptr);
  m.attr("KVStoreError") = nb::handle(store_error);
  m.attr("KVStoreValueError") = nb::handle(invalid_error);

  nb::class_<KVTensor>(m, "KVTensor", nb::type_slots(tensor_slots),
                       "`length` bytes at address `data`; a buffer, without owning the memory "
                       "unless it was found in shared memory.")
      .def(
          "__init__",
          [](KVTensor* self, uint64_t data, size_t length, nb::object owner) {
            new (self) KVTensor{data, length, std::move(owner)};
          },
          "data"_a = 0, "length"_a = 0, "owner"_a = nb::none())
      .def_prop_rw(
          "data", [](const KVTensor& t) { return t.data; },
          [](KVTensor& t, uint64_t data) { t.data = data; })
      .def_prop_rw(
          "length", [](const KVTensor& t) { return t.length; },
          [](KVTensor& t, size_t length) { t.length = length; })
      .def("__repr__", [](const KVTensor& t) {
        return "KVTensor(length=" + std::to_string(t.length) + ")";
      });

  nb::class_<Lease>(m, "Lease", "Keeps what was found where it is, until it is released or gone.")
      .def("release", &Lease::release, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("held", &Lease::held);

  nb::class_<Cache>(m, "Cache", "A cache of the C++ library; `vllm.kvstore.KVCache` is its face.")
      .def_static(
          "files",
          [](const std::string& space, uint32_t layers, uint64_t tensor_bytes, uint32_t rank,
             uint32_t world_size, uint32_t threads, const std::string& root, uint32_t chunk_tokens,
             uint32_t split, uint64_t quota_bytes, double ttl, double gc_interval, double global_ttl,
             double global_gc_interval, int sync, bool direct) {
            kvs_layout l = layout(space, layers, tensor_bytes, rank, world_size, threads);
            kvs_file_config config{root.c_str(), chunk_tokens, split,      quota_bytes,
                                   ttl,          gc_interval,  global_ttl, global_gc_interval,
                                   sync,         direct};
            kvs_cache* cache = nullptr;
            unlocked([&] { return kvs_open_files(&l, &config, &cache); });
            return Cache(cache, layers, tensor_bytes);
          },
          nb::kw_only(), "space"_a, "layers"_a, "tensor_bytes"_a, "rank"_a, "world_size"_a,
          "threads"_a, "root"_a, "chunk_tokens"_a, "split"_a, "quota_bytes"_a, "ttl"_a,
          "gc_interval"_a, "global_ttl"_a, "global_gc_interval"_a, "sync"_a, "direct"_a)
      .def_static(
          "shared",
          [](const std::string& space, uint32_t layers, uint64_t tensor_bytes, uint32_t rank,
             uint32_t world_size, uint32_t threads, const std::string& socket, uint64_t capacity,
             bool checksums, bool lazy, double retry) {
            kvs_layout l = layout(space, layers, tensor_bytes, rank, world_size, threads);
            kvs_shared_config config{socket.c_str(), capacity, checksums, lazy, retry};
            kvs_cache* cache = nullptr;
            unlocked([&] { return kvs_open_shared(&l, &config, &cache); });
            return Cache(cache, layers, tensor_bytes);
          },
          nb::kw_only(), "space"_a, "layers"_a, "tensor_bytes"_a, "rank"_a, "world_size"_a,
          "threads"_a, "socket"_a, "capacity"_a, "checksums"_a, "lazy"_a, "retry"_a)
      .def("update", &Cache::update, "prefix"_a.none(), "tokens"_a, "tensors"_a)
      .def("query", &Cache::query, "prefix"_a.none(), "tokens"_a, "tensors"_a)
      .def("locate", &Cache::locate, "prefix"_a.none(), "tokens"_a, "where"_a)
      .def("fill", &Cache::fill, "prefix"_a.none(), "tokens"_a, "addresses"_a)
      .def("put", &Cache::put, "key"_a, "blob"_a)
      .def("get", &Cache::get, "key"_a, "blob"_a)
      .def("contains", &Cache::contains, "keys"_a)
      .def("remove", &Cache::remove, "key"_a)
      .def("gc", &Cache::gc, "ttl"_a)
      .def("clear", &Cache::clear)
      .def("stat", &Cache::stat)
      .def("attached", &Cache::attached)
      .def("close", &Cache::close);

  nb::class_<Server>(m, "Server", "The daemon: an arena of shared memory behind a socket.")
      .def(nb::init<const std::string&, uint64_t, uint64_t>(), "socket"_a, "size"_a,
           "slot_bytes"_a = 0)
      .def("run", &Server::run, "seconds"_a, "Serve for so long.")
      .def("stat", &Server::stat)
      .def("check", &Server::check, "Raise when an invariant of its index does not hold.");

  m.def(
      "daemon_stat",
      [](const std::string& socket) {
        kvs_stats stats{};
        unlocked([&] { return kvs_daemon_stat(socket.c_str(), &stats); });
        return Cache::as_dict(stats);
      },
      "socket"_a);
  m.def(
      "root_stat",
      [](const std::string& root) {
        kvs_stats stats{};
        unlocked([&] { return kvs_root_stat(root.c_str(), &stats); });
        return Cache::as_dict(stats);
      },
      "root"_a);
  m.def(
      "root_gc",
      [](const std::string& root, double ttl, uint64_t quota_bytes) {
        uint64_t removed = 0;
        unlocked([&] { return kvs_root_gc(root.c_str(), ttl, quota_bytes, &removed); });
        return removed;
      },
      "root"_a, "ttl"_a, "quota_bytes"_a);
  m.def(
      "root_verify",
      [](const std::string& root, bool repair) {
        kvs_stats stats{};
        unlocked([&] { return kvs_root_verify(root.c_str(), repair, &stats); });
        return Cache::as_dict(stats);
      },
      "root"_a, "repair"_a);
}
