#include "tensor/checksum.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "support/numbers.h"

namespace regard {
namespace {

TEST(Checksum, DependsOnEveryBitAndOnTheLength) {
  std::set<uint64_t> seen;
  for (const int64_t length : {0, 1, 7, 8, 31, 32, 33, 64, 100}) {
    std::vector<std::byte> bytes = test::Numbers(501).bytes(length);
    EXPECT_TRUE(seen.insert(checksum(bytes)).second) << length;
    EXPECT_EQ(checksum(bytes), checksum(std::vector<std::byte>(bytes)));
    for (std::byte& byte : bytes)
      for (int bit = 0; bit < 8; ++bit) {
        byte ^= std::byte{1} << bit;
        EXPECT_TRUE(seen.insert(checksum(bytes)).second) << length << " bytes, bit " << bit;
        byte ^= std::byte{1} << bit;
      }
  }
}

TEST(Checksum, ZerosOfDifferentLengthsDiffer) {
  std::set<uint64_t> seen;
  for (size_t length = 0; length < 100; ++length)
    EXPECT_TRUE(seen.insert(checksum(std::vector<std::byte>(length))).second) << length;
}

// The signs of two numbers that the same lane takes, one after the other.
TEST(Checksum, TwoFlippedTopBitsDoNotCancel) {
  std::vector<std::byte> bytes = test::Numbers(502).bytes(128);
  const uint64_t before = checksum(bytes);
  bytes[7] ^= std::byte{0x80};
  bytes[39] ^= std::byte{0x80};
  EXPECT_NE(checksum(bytes), before);
}

}  // namespace
}  // namespace regard
