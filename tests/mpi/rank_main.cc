#include <gtest/gtest.h>

#include <iostream>

#include "regard/mpi.h"

namespace {

// What goes wrong on ranks other than 0, which alone tells of the tests that run.
class Complaints : public testing::EmptyTestEventListener {
 public:
  explicit Complaints(int rank) : rank_(rank) {}

 private:
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.passed()) return;
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::cout << "rank " << rank_ << ", " << (test == nullptr ? "" : test->name()) << ": " << result.file_name() << ':'
              << result.line_number() << ": " << result.message() << std::endl;
  }

  int rank_;
};

}  // namespace

// Every rank runs the same tests, in the same order; one that fails fails them all.
int main(int argc, char** argv) {
  const regard::mpi::Session session;
  testing::InitGoogleTest(&argc, argv);
  const auto world = regard::mpi::world(session);
  if (world->rank() > 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Complaints(world->rank()));
  }
  const int failed = RUN_ALL_TESTS();
  for (const int other : world->gather(failed))
    if (other != 0) return 1;
  return 0;
}
