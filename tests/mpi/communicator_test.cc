#include "regard/communicator.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>

#include "mpi/mpi_communicator.h"
#include "regard/mpi.h"
#include "support/expect_error.h"
#include "support/parts.h"

// Collective tests, for any number of ranks: rank_main.cc.
namespace regard::test {
namespace {

size_t uneven(int sender, int receiver) { return static_cast<size_t>((sender * 3 + receiver * 5) % 7); }
size_t nothing(int /*sender*/, int /*receiver*/) { return 0; }
// Well above what MPI sends without asking, and not the same for all.
size_t megabytes(int sender, int receiver) { return (size_t{3} << 20) + uneven(sender, receiver); }
size_t from_even_ranks_only(int sender, int /*receiver*/) { return sender % 2 == 0 ? 1000 : 0; }

class MpiRanks : public testing::Test {
 protected:
  // Ranks that share a core see each other's failures late; a barrier keeps tests apart.
  void TearDown() override { (void)world_->gather(0); }

  mpi::Session session_;
  std::shared_ptr<Communicator> world_ = mpi::world(session_);
};

TEST_F(MpiRanks, AreLaunched) {
  EXPECT_TRUE(mpi::launched());
  EXPECT_GE(mpi::cores_per_rank(session_), 1);
}

TEST_F(MpiRanks, ExchangePartsOfAllSizes) {
  for (const auto sizes : {uneven, nothing, from_even_ranks_only, megabytes, uneven}) {
    TestExchange exchange(*world_, sizes);
    exchange.wait();
    EXPECT_TRUE(exchange.came());
  }
}

TEST_F(MpiRanks, TransfersOverlapAndEndInAnyOrder) { expect_overlapping_transfers(*world_, megabytes, uneven); }

TEST_F(MpiRanks, TransfersMayBeUnderWayWhileRanksSplit) {
  TestExchange exchange(*world_, megabytes);
  if (world_->rank() % 2 == 0) exchange.wait();
  const auto all = world_->split(0, 0);
  exchange.wait();
  EXPECT_TRUE(exchange.came());
}

TEST_F(MpiRanks, ATransferThatNobodyWaitsForEndsWithItsObject) {
  { const TestExchange dropped(*world_, megabytes); }
  EXPECT_EQ(world_->gather(7), std::vector<int>(static_cast<size_t>(world_->size()), 7));
}

TEST_F(MpiRanks, PartsAboveTheLargestMessageTravelInPieces) {
  for (const size_t largest : {size_t{1}, size_t{100'000}, size_t{3} << 20, (size_t{3} << 20) - 1}) {
    MPI_Comm handle = MPI_COMM_NULL;
    MPI_Comm_dup(MPI_COMM_WORLD, &handle);
    mpi::MpiCommunicator group(handle, std::make_shared<mpi::Family>(std::make_shared<mpi::RollCall>(), mpi::kTimeout),
                               largest);
    const auto sizes = [&](int sender, int receiver) {
      return largest == 1 ? uneven(sender, receiver) : megabytes(sender, receiver);
    };
    TestExchange exchange(group, sizes);
    exchange.wait();
    EXPECT_TRUE(exchange.came()) << largest;
  }
}

TEST_F(MpiRanks, SplitOrdersByKeyThenByRank) {
  const int rank = world_->rank();
  std::vector<int> own_half;
  for (int other = rank % 2; other < world_->size(); other += 2) own_half.push_back(other);
  EXPECT_EQ(world_->split(rank % 2, 5)->gather(rank), own_half);
  const auto backwards = world_->split(rank % 2, -rank);
  std::ranges::reverse(own_half);
  EXPECT_EQ(backwards->gather(rank), own_half);
  EXPECT_EQ(backwards->split(backwards->rank(), 0)->gather(rank), std::vector{rank});
  EXPECT_ERROR(world_->split(-1, 0), "split: color is -1, expected 0 or more");
}

TEST_F(MpiRanks, GroupsDoNotMixUpEachOthersBytes) {
  const auto turned = world_->split(0, (world_->rank() + 1) % world_->size());
  TestExchange in_world(*world_, megabytes);
  TestExchange in_turned(*turned, megabytes);
  in_turned.wait();
  in_world.wait();
  EXPECT_TRUE(in_world.came());
  EXPECT_TRUE(in_turned.came());
}

TEST_F(MpiRanks, CountBytesSentToOthersThroughAllGroups) {
  const auto half = world_->split(world_->rank() % 2, 0);
  EXPECT_EQ(world_->bytes_sent(), 0);
  (void)half->gather(1);
  const int64_t in_half = int64_t{4} * (half->size() - 1);
  EXPECT_EQ(world_->bytes_sent(), in_half);
  (void)world_->gather(1);
  EXPECT_EQ(half->bytes_sent(), in_half + int64_t{4} * (world_->size() - 1));
}

// Rank 0 sends so many bytes to rank 1, which expects others.
void expect_refused(Communicator& world, size_t sent, size_t expected) {
  Parts send(static_cast<size_t>(world.size()));
  Parts receive(static_cast<size_t>(world.size()));
  if (world.rank() == 0) send[1].resize(sent);
  if (world.rank() == 1) receive[0].resize(expected);
  const auto exchange = [&] { world.exchange(views(send), places(receive)); };
  if (world.rank() == 1)
    EXPECT_ERROR(exchange(), fmt::format("exchange: rank 0 sends {} bytes to rank 1, expected the {} that it receives",
                                         sent, expected));
  else
    exchange();
}

TEST_F(MpiRanks, TheReceiverHearsOfSizesThatDoNotFit) {
  if (world_->size() == 1) GTEST_SKIP() << "needs two ranks";
  const std::pair<size_t, size_t> sizes[] = {{8, 4}, {4, 8}, {1 << 20, 1 << 19}, {1 << 19, 1 << 20}};
  for (const auto& [sent, expected] : sizes) expect_refused(*world_, sent, expected);
  // And nothing is left over from that.
  EXPECT_EQ(world_->gather(3), std::vector<int>(static_cast<size_t>(world_->size()), 3));
}

// Ranks that share a core take turns: a thousand rounds take a second or two where waiting yields, and minutes, which
// the time limit of the test cuts, where it keeps the core from the rank that is waited for.
TEST_F(MpiRanks, ManySmallExchangesEndOnSharedCores) {
  for (int round = 0; round < 1000; ++round) {
    const auto numbers = world_->gather(world_->rank() + round);
    ASSERT_EQ(numbers.back(), world_->size() - 1 + round);
  }
}

// A rank that waits leaves its core to others: it sleeps most of the time.
TEST_F(MpiRanks, SleepWhileTheyWait) {
  if (world_->size() == 1) GTEST_SKIP() << "needs two ranks";
  constexpr std::chrono::milliseconds kBusy{1000};
  if (world_->rank() == 0) std::this_thread::sleep_for(kBusy);
  const std::clock_t start = std::clock();
  (void)world_->gather(0);
  const double processor_seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_LT(processor_seconds, 0.3);
}

}  // namespace
}  // namespace regard::test
