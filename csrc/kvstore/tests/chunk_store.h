// A chunk store in a folder of its own, and chunks whose bytes are known.
#pragma once

#include <sys/file.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "check.h"
#include "chunks.h"

using namespace kvstore;
namespace fs = std::filesystem;

constexpr size_t TOKENS = 4, PIECES = 8, PIECE = 5000;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("kvs-" + std::to_string(getpid()) + "-" +
                                               std::to_string(std::random_device{}()));
  ~Folder() { fs::remove_all(path); }
};

// A chunk whose bytes follow from its number.
struct Content {
  std::vector<uint8_t> bytes;
  int32_t tokens[TOKENS];
  std::vector<kvs_tensor> tensors;
  Digest key;

  Content(int number, bool filled, size_t piece = PIECE) : bytes(PIECES * piece) {
    for (size_t i = 0; filled && i < bytes.size(); ++i) bytes[i] = (i * 31 + number * 7 + i / 251) & 255;
    for (size_t i = 0; i < TOKENS; ++i) tokens[i] = number * 100 + i;
    for (size_t i = 0; i < PIECES; ++i) tensors.push_back({bytes.data() + i * piece, piece});
    key = chain(Digest{}, tokens, TOKENS);
  }
  Chunk chunk() const { return {key, tokens, TOKENS, tensors.data()}; }
};

inline ChunkStore::Config config_of(const Folder& folder, size_t piece = PIECE) {
  ChunkStore::Config config;
  config.root = folder.path;
  config.space = Digest{1, 2, 3};
  config.pieces = PIECES;
  config.piece_bytes = piece;
  config.threads = 2;
  return config;
}

inline std::unique_ptr<ChunkStore> open_store(const ChunkStore::Config& config) {
  std::unique_ptr<ChunkStore> store;
  Status status = ChunkStore::open(config, store);
  if (!status.ok()) fprintf(stderr, "%s\n", status.text.c_str());
  CHECK(status.ok());
  return store;
}

inline bool put(ChunkStore& store, int number, size_t piece = PIECE) {
  Content content(number, true, piece);
  bool ok;
  store.put({content.chunk()}, &ok);
  return ok;
}

// Whether the chunk is found; if it is, it is right.
inline bool get(ChunkStore& store, int number, size_t piece = PIECE) {
  Content wanted(number, true, piece), got(number, false, piece);
  bool ok;
  store.get({got.chunk()}, &ok);
  CHECK(!ok || got.bytes == wanted.bytes);
  return ok;
}

inline std::vector<fs::path> files(const Folder& folder) {
  std::vector<fs::path> out;
  for (auto& entry : fs::recursive_directory_iterator(folder.path)) {
    if (entry.is_regular_file() && entry.path().filename() != ".usage") out.push_back(entry.path());
  }
  return out;
}

inline uint64_t bytes_there(const Folder& folder) {
  Fd lock(open((folder.path / ".usage").c_str(), O_RDWR));  // no file is seen under both its names
  CHECK(flock(lock.get(), LOCK_EX) == 0);
  uint64_t sum = 0;
  walk_files(folder.path, [&](const std::string&, const char* name, const struct stat& s) {
    if (name != std::string(".usage")) sum += s.st_size;
  });
  return sum;
}

inline uint64_t sum_kept(const Folder& folder) {
  uint64_t sum[2] = {};
  std::ifstream(folder.path / ".usage", std::ios::binary).read(reinterpret_cast<char*>(sum), 16);
  CHECK(sum[1] == ~sum[0]);
  return sum[0];
}

inline void set_age(const fs::path& path, double seconds) {
  struct stat s;
  CHECK(stat(path.c_str(), &s) == 0);
  timespec times[2] = {{0, UTIME_OMIT}, {s.st_mtim.tv_sec - static_cast<time_t>(seconds), 0}};
  CHECK(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
}

inline fs::path file_of(const Folder& folder, int number) {
  std::string name = hex(Content(number, false).key.data(), 32);
  for (auto& path : files(folder)) {
    if (path.filename() == name) return path;
  }
  return {};
}

// Those of the chunks from `first` to before `end`, so that a file aside can be made there.
inline void make_folders(const Folder& folder, int first, int end) {
  for (int i = first; i < end; ++i) {
    fs::create_directory(folder.path / "0102030000000000" / hex(Content(i, false).key.data(), 1));
  }
}
