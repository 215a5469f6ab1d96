// What goes from a chunk store: by quota, by age, and what dead writers left.
#include <signal.h>
#include <sys/wait.h>

#include "chunk_store.h"

void evicts_the_least_recently_used() {
  Folder folder;
  auto config = config_of(folder);
  uint64_t each = Shape{config.space, PIECES, PIECE}.record_bytes(TOKENS);
  config.quota = 4 * each;
  auto store = open_store(config);
  for (int i = 0; i < 4; ++i) {
    CHECK(put(*store, i));
    set_age(file_of(folder, i), 1000 - i);
  }
  CHECK(get(*store, 0));  // refreshes it
  CHECK(put(*store, 4));
  CHECK(!get(*store, 1) && get(*store, 0) && get(*store, 4));
  // What came after the scan counts too, though it is not in the index: 4 is older than all now.
  for (int i : {0, 2, 3}) CHECK(get(*store, i));
  set_age(file_of(folder, 4), 5000);
  for (int i : {0, 2, 3}) CHECK(put(*store, i));
  CHECK(put(*store, 5));
  CHECK(!get(*store, 4) && get(*store, 0) && get(*store, 2) && get(*store, 3));
  CHECK(bytes_there(folder) == sum_kept(folder));
  // A smaller quota is kept from the next chunk on; one that no chunk fits stores nothing.
  store.reset();
  config.quota = 2 * each;
  CHECK(put(*open_store(config), 6) && bytes_there(folder) <= config.quota);
  config.quota = each - 1;
  CHECK(!put(*open_store(config), 7));
}

void a_full_store_writes_over_what_goes() {
  Folder folder, elsewhere;
  auto config = config_of(folder);
  uint64_t each = Shape{config.space, PIECES, PIECE}.record_bytes(TOKENS);
  config.quota = 3 * each;
  auto store = open_store(config);
  for (int i = 0; i < 3; ++i) {
    CHECK(put(*store, i));
    set_age(file_of(folder, i), 1000 - i);
  }
  make_folders(folder, 3, 5);
  fs::create_directory(elsewhere.path);
  fs::path second_name = elsewhere.path / "kept";
  fs::create_hard_link(file_of(folder, 1), second_name);
  auto whole = [](const Fd& fd, int number) {
    std::string key = hex(Content(number, false).key.data(), 32);
    return check_record(fd.get(), key, "010203") == Found::WHOLE;
  };
  Fd first(open(file_of(folder, 0).c_str(), O_RDONLY)), second(open(second_name.c_str(), O_RDONLY));
  CHECK(whole(first, 0) && whole(second, 1));
  CHECK(put(*store, 3) && get(*store, 3) && !get(*store, 0) && whole(first, 3));
  CHECK(put(*store, 4) && get(*store, 4) && !get(*store, 1));
  CHECK(whole(second, 1));  // it has a name that is not ours
  CHECK(store->stats().evicted == 2 && sum_kept(folder) == 3 * each);
  CHECK(bytes_there(folder) == 3 * each);
}

void age_is_of_use_and_not_of_reading_times() {
  Folder folder;
  auto config = config_of(folder);
  auto store = open_store(config);
  for (int i = 0; i < 3; ++i) {
    CHECK(put(*store, i));
    set_age(file_of(folder, i), 100);
  }
  CHECK(get(*store, 1) && put(*store, 2));
  CHECK(store->gc(50) == 1);
  CHECK(!get(*store, 0) && get(*store, 1) && get(*store, 2));
  CHECK(bytes_there(folder) == sum_kept(folder));
}

void collects_in_the_background() {
  Folder folder;
  auto config = config_of(folder);
  auto other = open_store(config);
  CHECK(put(*other, 1) && put(*other, 2));
  set_age(file_of(folder, 1), 100);
  set_age(file_of(folder, 2), 100);
  config.ttl = 0.4, config.gc_interval = 0.05;
  auto store = open_store(config);
  CHECK(put(*store, 3));
  for (int i = 0; i < 20; ++i) {  // in use: it stays
    usleep(40'000);
    CHECK(get(*store, 3));
  }
  CHECK(!file_of(folder, 1).empty());  // another client's
  for (int i = 0; i < 100 && !file_of(folder, 3).empty(); ++i) usleep(20'000);
  CHECK(file_of(folder, 3).empty() && !file_of(folder, 1).empty());
  config.gc_interval = 0, config.global_ttl = 50, config.global_gc_interval = 0.05;
  auto global = open_store(config);
  for (int i = 0; i < 100 && !files(folder).empty(); ++i) usleep(20'000);
  CHECK(files(folder).empty());
}

void a_dead_writers_file_goes_and_a_living_ones_stays() {
  Folder folder;
  auto store = open_store(config_of(folder));
  CHECK(put(*store, 1));
  Quota quota;
  CHECK(quota.open(folder.path, 0).ok());
  std::string aside = folder.path / (std::string(ASIDE) + "0123");
  Fd living;
  CHECK(quota.make(aside, 1000, O_RDWR, living) == Quota::Made::YES);
  CHECK(bytes_there(folder) == sum_kept(folder));
  CHECK(store->gc(1e6) == 0 && fs::exists(aside));
  { Fd closed = std::move(living); }
  CHECK(store->gc(1e6) == 1 && !fs::exists(aside));
  CHECK(bytes_there(folder) == sum_kept(folder) && get(*store, 1));
}

void a_wrong_sum_is_put_right() {
  Folder folder;
  auto config = config_of(folder);
  auto store = open_store(config);
  for (int i = 0; i < 3; ++i) CHECK(put(*store, i));
  for (auto nonsense : {"short", "as long as it should be, and more"}) {
    std::ofstream(folder.path / ".usage", std::ios::binary) << nonsense;
    CHECK(put(*store, nonsense[0]) && sum_kept(folder) == bytes_there(folder));
  }
  uint64_t high = uint64_t{1} << 60, both[2] = {high, ~high};
  std::ofstream(folder.path / ".usage", std::ios::binary).write(reinterpret_cast<char*>(both), 16);
  config.quota = 1 << 20;
  CHECK(put(*open_store(config), 4) && get(*store, 0) && sum_kept(folder) == bytes_there(folder));
}

// Many processes write, read and collect; some are killed in the middle. The quota holds at every
// look, nobody reads a wrong byte, and what is left is whole.
void many_processes() {
  Folder folder;
  auto config = config_of(folder);
  uint64_t each = Shape{config.space, PIECES, PIECE}.record_bytes(TOKENS);
  config.quota = 20 * each;
  open_store(config);
  auto worker = [&](int seed) {
    auto store = open_store(config);
    std::mt19937 random(seed);
    for (int i = 0; i < 1000; ++i) {
      int number = random() % 60;
      if (random() % 3 == 0) {
        put(*store, number);
      } else {
        get(*store, number);
      }
      if (random() % 300 == 0) store->gc(0.05);
    }
  };
  std::vector<pid_t> children;
  auto start = [&](int seed) {
    fflush(stderr);
    pid_t child = fork();
    if (child == 0) {
      worker(seed);
      _exit(0);
    }
    children.push_back(child);
  };
  for (int i = 0; i < 4; ++i) start(i);
  std::mt19937 random(99);
  int killed = 0;
  for (int seed = 100; seed < 130; ++seed) {
    start(seed);
    usleep(5'000 + random() % 30'000);
    killed += kill(children.back(), SIGKILL) == 0;
    CHECK(bytes_there(folder) <= config.quota);
  }
  CHECK(killed == 30);
  for (pid_t child : children) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    CHECK(bytes_there(folder) <= config.quota);
  }
  kvs_stats seen{};
  CHECK(root_verify(folder.path, false, seen).ok() && seen.damaged == 0 && seen.entries > 0);
  CHECK(sum_kept(folder) >= bytes_there(folder));
  uint64_t removed = 0;
  CHECK(root_gc(folder.path, 0, 5 * each, removed).ok());
  CHECK(bytes_there(folder) <= 5 * each && sum_kept(folder) == bytes_there(folder));
  for (auto& path : files(folder)) CHECK(is_chunk(path.filename().c_str()));
}

int main() {
  evicts_the_least_recently_used();
  a_full_store_writes_over_what_goes();
  age_is_of_use_and_not_of_reading_times();
  collects_in_the_background();
  a_dead_writers_file_goes_and_a_living_ones_stays();
  a_wrong_sum_is_put_right();
  many_processes();
  return 0;
}
