// The chunk store gives back what was stored, and nothing else.
#include "chunk_store.h"

void gives_back_what_it_stores() {
  for (bool direct : {false, true}) {
    for (size_t piece : {size_t{3}, PIECE, size_t{1} << 20}) {  // 8 MiB: more than one transfer
      Folder folder;
      auto config = config_of(folder, piece);
      config.direct = direct;
      config.sync = direct ? KVS_SYNC_ALL : KVS_SYNC_DATA;
      auto store = open_store(config);
      CHECK(!direct || store->direct());
      CHECK(!get(*store, 1, piece));
      CHECK(put(*store, 1, piece) && put(*store, 1, piece) && put(*store, 2, piece));
      CHECK(get(*store, 1, piece) && get(*store, 2, piece) && !get(*store, 3, piece));
      CHECK(get(*open_store(config), 1, piece));
      store->remove(Content(1, false).key);
      CHECK(!get(*store, 1, piece) && get(*store, 2, piece));
      store->clear();
      CHECK(!get(*store, 2, piece) && files(folder).empty() && sum_kept(folder) == 0);
    }
  }
}

void notices_every_damage() {
  Folder folder;
  auto store = open_store(config_of(folder));
  auto damage = [&](auto spoil) {
    CHECK(put(*store, 1) && get(*store, 1));
    spoil(file_of(folder, 1));
    CHECK(!get(*store, 1));
    CHECK(!get(*store, 1) && put(*store, 1) && get(*store, 1));  // it was deleted, and comes back
  };
  const size_t head = 4096, whole = fs::file_size([&] { put(*store, 1); return file_of(folder, 1); }());
  auto flip = [](size_t at) {
    return [at](const fs::path& path) {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      char byte = file.get() ^ 4;
      file.seekp(at);
      file.put(byte);
    };
  };
  for (size_t at = 0; at < sizeof(Header) + TOKENS * 4; ++at) damage(flip(at));  // the header, byte by byte
  for (size_t at : {head - 1, head, head + PIECES * PIECE / 2, head + PIECES * PIECE - 1}) damage(flip(at));
  for (size_t size : {size_t{0}, size_t{1}, head, whole - 4096, whole - 1, whole + 1}) {
    damage([&](const fs::path& path) { fs::resize_file(path, size); });
  }
  CHECK(put(*store, 2));
  damage([&](const fs::path& path) {  // another chunk's bytes
    fs::copy_file(file_of(folder, 2), path, fs::copy_options::overwrite_existing);
  });
  damage([&](const fs::path& path) {  // the same key's bytes of another cache
    auto config = config_of(folder);
    config.space = Digest{9};
    auto other = open_store(config);
    CHECK(put(*other, 1));
    for (auto& p : files(folder)) {
      if (p.filename() == path.filename() && p != path) {
        fs::copy_file(p, path, fs::copy_options::overwrite_existing);
      }
    }
  });
  CHECK(get(*store, 2));
  CHECK(store->stats().damaged > 0);
}

void equal_tokens_behind_other_prefixes_are_other_chunks() {
  Folder folder;
  auto store = open_store(config_of(folder));
  Content first(1, true), second(1, true), got(1, false);
  second.key = chain(first.key, second.tokens, TOKENS);
  second.bytes[0] ^= 1;
  bool ok[2];
  store->put({first.chunk(), second.chunk()}, ok);
  CHECK(ok[0] && ok[1]);
  fs::path one = file_of(folder, 1);
  for (auto& path : files(folder)) {
    if (path != one) fs::copy_file(one, path, fs::copy_options::overwrite_existing);
  }
  got.key = second.key;
  store->get({got.chunk()}, ok);
  CHECK(!ok[0] && get(*store, 1));
}

void a_file_of_another_size_is_written_anew() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  uint64_t before = sum_kept(folder);
  fs::resize_file(file_of(folder, 1), 4096);
  CHECK(put(*store, 1) && get(*store, 1));
  CHECK(sum_kept(folder) == 2 * before - 4096);  // it never counted for less than it was
  uint64_t removed;
  CHECK(root_gc(folder.path, 0, 0, removed).ok() && sum_kept(folder) == before);
}

void a_link_or_folder_is_no_chunk() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1) && put(*store, 2));
  fs::path one = file_of(folder, 1), two = file_of(folder, 2);
  fs::remove(one);
  fs::create_symlink(two, one);
  CHECK(!get(*store, 1) && !store->contains(Content(1, false).key));
  fs::remove(one);
  CHECK(mkfifo(one.c_str(), 0600) == 0);  // opening one would wait for a writer
  CHECK(!get(*store, 1) && get(*store, 2));
}

void keeps_spaces_and_shapes_apart() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  auto config = config_of(folder);
  config.space = Digest{1, 2, 4};
  CHECK(!get(*open_store(config), 1));
  CHECK(get(*store, 1));
}

void refuses_a_folder_that_others_write() {
  Folder folder;
  auto config = config_of(folder);
  open_store(config);
  for (auto& entry : fs::directory_iterator(folder.path)) {
    if (entry.is_directory()) fs::permissions(entry.path(), fs::perms(0770));
  }
  std::unique_ptr<ChunkStore> store;
  CHECK(ChunkStore::open(config, store).code == KVS_INVALID);
}

void is_private() {
  Folder folder;
  umask(0);
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  for (auto& entry : fs::recursive_directory_iterator(folder.path)) {
    auto mode = entry.status().permissions();
    CHECK(mode == (entry.is_directory() ? fs::perms(0700) : fs::perms(0600)));
  }
  umask(022);
}

void finds_chunks_that_lie_one_folder_deeper() {
  Folder folder;
  auto config = config_of(folder);
  {
    auto store = open_store(config);
    for (int i = 0; i < 3; ++i) CHECK(put(*store, i));
  }
  for (auto& path : files(folder)) {
    fs::path below = path.parent_path() / path.filename().string().substr(2, 2);
    fs::create_directory(below);
    fs::rename(path, below / path.filename());
  }
  auto store = open_store(config);
  for (int i = 0; i < 3; ++i) CHECK(get(*store, i));
  CHECK(files(folder).size() == 3 && sum_kept(folder) == bytes_there(folder));
}

void a_root_is_verified_and_repaired() {
  Folder folder;
  auto store = open_store(config_of(folder));
  for (int i = 0; i < 5; ++i) CHECK(put(*store, i));
  fs::resize_file(file_of(folder, 0), 5000);
  fs::copy_file(file_of(folder, 1), file_of(folder, 2), fs::copy_options::overwrite_existing);
  kvs_stats seen{};
  CHECK(root_verify(folder.path, false, seen).ok() && seen.entries == 5 && seen.damaged == 2);
  seen = {};
  CHECK(root_verify(folder.path, true, seen).ok() && seen.damaged == 2);
  seen = {};
  CHECK(root_verify(folder.path, true, seen).ok() && seen.entries == 3 && seen.damaged == 0);
  CHECK(sum_kept(folder) == bytes_there(folder));
  CHECK(!root_verify(folder.path.string() + "-not-there", false, seen).ok());
}

int main() {
  gives_back_what_it_stores();
  notices_every_damage();
  equal_tokens_behind_other_prefixes_are_other_chunks();
  a_file_of_another_size_is_written_anew();
  a_link_or_folder_is_no_chunk();
  keeps_spaces_and_shapes_apart();
  refuses_a_folder_that_others_write();
  is_private();
  finds_chunks_that_lie_one_folder_deeper();
  a_root_is_verified_and_repaired();
  return 0;
}
