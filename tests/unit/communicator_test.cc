#include "regard/communicator.h"

#include <gtest/gtest.h>

#include <atomic>

#include "support/expect_error.h"
#include "support/parts.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

size_t uneven(int sender, int receiver) { return static_cast<size_t>((sender * 3 + receiver * 5) % 7); }
size_t hundred(int /*sender*/, int /*receiver*/) { return 100; }
size_t nothing(int /*sender*/, int /*receiver*/) { return 0; }

TEST(SingleRank, CopiesItsOwnPart) {
  const auto single = Communicator::single();
  EXPECT_EQ(single->rank(), 0);
  EXPECT_EQ(single->size(), 1);
  TestExchange exchange(*single, [](int, int) { return size_t{9}; });
  exchange.wait();
  EXPECT_TRUE(exchange.came());
  EXPECT_EQ(single->gather(42), std::vector<int>{42});
  EXPECT_EQ(single->split(3, 5)->size(), 1);
  EXPECT_EQ(single->bytes_sent(), 0);
}

TEST(SingleRank, RefusesPartsThatDoNotFit) {
  const auto single = Communicator::single();
  Parts one(1, std::vector<std::byte>(4));
  Parts other(1, std::vector<std::byte>(5));
  Parts two(2);
  EXPECT_ERROR(single->exchange(views(two), places(one)),
               "exchange: send has 2 parts, expected one for each of 1 ranks");
  EXPECT_ERROR(single->exchange(views(one), places(two)),
               "exchange: receive has 2 parts, expected one for each of 1 ranks");
  EXPECT_ERROR(single->exchange(views(one), places(other)),
               "exchange: rank 0 sends 4 bytes to itself, expected the 5 that it receives");
  EXPECT_ERROR(single->split(-1, 0), "split: color is -1, expected 0 or more");
}

TEST(ThreadRanks, ExchangeUnevenAndEmptyParts) {
  for (const int count : {1, 2, 3, 4, 8})
    run_ranks(count, [&](const std::shared_ptr<Communicator>& world) {
      EXPECT_EQ(world->size(), count);
      for (const auto sizes : {uneven, nothing}) {
        TestExchange exchange(*world, sizes);
        exchange.wait();
        EXPECT_TRUE(exchange.came());
      }
    });
}

TEST(ThreadRanks, TransfersOverlapAndEndInAnyOrder) {
  run_ranks(4,
            [](const std::shared_ptr<Communicator>& world) { expect_overlapping_transfers(*world, hundred, uneven); });
}

TEST(ThreadRanks, SplitOrdersByKeyThenByRank) {
  run_ranks(6, [](const std::shared_ptr<Communicator>& world) {
    const int rank = world->rank();
    const auto backwards = world->split(rank % 2, -rank);
    EXPECT_EQ(backwards->gather(rank), (rank % 2 == 0 ? std::vector{4, 2, 0} : std::vector{5, 3, 1}));
    const auto equal_keys = world->split(rank / 4, 7);
    EXPECT_EQ(equal_keys->gather(rank), (rank < 4 ? std::vector{0, 1, 2, 3} : std::vector{4, 5}));
    // A part of a part; and the groups do not mix up each other's bytes.
    const auto half = backwards->split(backwards->rank() == 0 ? 0 : 1, 0);
    EXPECT_EQ(half->size(), rank >= 4 ? 1 : 2);
    EXPECT_EQ(world->gather(rank), (std::vector{0, 1, 2, 3, 4, 5}));
  });
}

TEST(ThreadRanks, CountBytesSentToOthersThroughAllGroups) {
  run_ranks(4, [](const std::shared_ptr<Communicator>& world) {
    const auto pair = world->split(world->rank() / 2, 0);
    EXPECT_EQ(world->bytes_sent(), 0) << "splitting does not count";
    (void)pair->gather(1);
    EXPECT_EQ(world->bytes_sent(), 4);
    (void)world->gather(1);
    EXPECT_EQ(world->bytes_sent(), 16);
    EXPECT_EQ(pair->bytes_sent(), 16);
  });
}

TEST(ThreadRanks, BothSidesHearOfSizesThatDoNotFit) {
  std::atomic<int> complaints = 0;
  run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
    // Rank 0 sends 5 bytes, rank 1 expects 4.
    Parts send(2, std::vector<std::byte>(5));
    Parts receive(2, std::vector<std::byte>(5));
    if (world->rank() == 1) receive[0].resize(4);
    complaints +=
        missing_error([&] { world->exchange(views(send), places(receive)); },
                      "exchange: rank 0 sends 5 bytes to rank 1, expected the 4 that it receives") == std::nullopt
            ? 1
            : 0;
  });
  EXPECT_EQ(complaints, 2);
}

TEST(ThreadRanks, ARankThatThrowsWakesThoseThatWaitForIt) {
  const auto run = [] {
    run_ranks(3, [](const std::shared_ptr<Communicator>& world) {
      (void)world->gather(1);
      if (world->rank() == 1) throw Error("out of luck");
      EXPECT_ERROR(world->gather(2), "exchange: rank 1 has failed");
    });
  };
  EXPECT_ERROR(run(), "out of luck");
}

TEST(ThreadRanks, ARankThatThrowsWithATransferUnderWayDoesNotWaitForIt) {
  const auto run = [] {
    run_ranks(2, [](const std::shared_ptr<Communicator>& world) {
      if (world->rank() == 0) {
        TestExchange transfer(*world, uneven);
        throw Error("out of luck");
      }
      // Rank 1 never comes to the exchange.
    });
  };
  EXPECT_ERROR(run(), "out of luck");
}

TEST(ThreadRanks, ARankThatEndsEarlyIsMissed) {
  const auto run = [] {
    run_ranks(2, [](const std::shared_ptr<Communicator>& world) {
      if (world->rank() == 0) (void)world->gather(1);
    });
  };
  EXPECT_ERROR(run(), "exchange: rank 1 has ended, expected its part of an exchange");
}

}  // namespace
}  // namespace regard::test
