// SHA-256 and XXH64 against published vectors, whole and in pieces.
#include <string>

#include "check.h"
#include "hash.h"

using namespace kvstore;

static std::string sha(const std::string& text) {
  Sha256 s;
  s.update(text.data(), text.size());
  Digest digest = s.finish();
  return hex(digest.data(), digest.size());
}

int main() {
  CHECK(sha("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha(std::string(1000000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");

  CHECK(checksum("", 0) == 0xEF46DB3751D8E999);
  CHECK(checksum("abc", 3) == 0x44BC2CF5AD770999);

  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7);
  for (size_t length : {0, 1, 31, 32, 33, 63, 64, 65, 100, 999}) {
    Sha256 pieces;
    for (size_t at = 0; at < length; at += 13) {
      pieces.update(text.data() + at, std::min<size_t>(13, length - at));
    }
    Digest digest = pieces.finish();
    CHECK(hex(digest.data(), 32) == sha(text.substr(0, length)));
    Checksum sum;
    for (size_t at = 0; at < length; at += 64) {
      sum.update(text.data() + at, std::min<size_t>(64, length - at));
    }
    CHECK(sum.finish() == checksum(text.data(), length));
  }

  Sha256 one, other;  // fields do not run into each other
  one.field("ab", 2), one.field("c", 1);
  other.field("a", 1), other.field("bc", 2);
  CHECK(one.finish() != other.finish());
}
