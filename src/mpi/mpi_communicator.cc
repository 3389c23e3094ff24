#include "mpi/mpi_communicator.h"

#include <algorithm>
#include <exception>

#include "mpi/check.h"
#include "parallel/own_part.h"
#include "tensor/fail.h"

namespace regard::mpi {
namespace {

// What MPI allows in tags everywhere. An exchange has the tag of its number, so that bytes nobody has asked for never
// pass for those of a later one.
constexpr int kTags = 1 << 15;

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm handle, std::shared_ptr<Family> family, size_t largest_message)
    : handle_(handle), largest_message_(largest_message), family_(std::move(family)) {
  check(MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(handle_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(handle_, &size_), "MPI_Comm_size");
}

// Collective by MPI's rules, so neither after the end nor on the way out of a failed rank.
MpiCommunicator::~MpiCommunicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&handle_);
}

std::unique_ptr<Communicator::Transfer> MpiCommunicator::start_exchange(
    std::span<const std::span<const std::byte>> send, std::span<const std::span<std::byte>> receive) {
  copy_own_part(*this, send, receive);
  auto transfer = std::make_unique<MpiTransfer>(family_, handle_, exchanges_, largest_message_);
  exchanges_ = (exchanges_ + 1) % kTags;
  // Each rank begins with its neighbours, so that not all send to the same one.
  for (int step = 1; step < size_; ++step) {
    const int from = (rank_ + size_ - step) % size_;
    const int to = (rank_ + step) % size_;
    transfer->receive(receive[static_cast<size_t>(from)], from);
    transfer->send(send[static_cast<size_t>(to)], to);
    family_->bytes_sent += static_cast<int64_t>(send[static_cast<size_t>(to)].size());
  }
  return transfer;
}

std::shared_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  require(color >= 0, "split: color is {}, expected 0 or more", color);
  // While a rank splits it moves nothing, and others may wait for what it has under way before they come to this.
  family_->wait_until([&] { return std::ranges::all_of(family_->under_way, &MpiTransfer::over); });
  // MPI's split has no timeout.
  MPI_Request barrier = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(handle_, &barrier), "MPI_Ibarrier");
  family_->wait_until([&] {
    int ended = 0;
    check(MPI_Test(&barrier, &ended, MPI_STATUS_IGNORE), "MPI_Test");
    return ended != 0;
  });
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(handle_, color, key, &part), "MPI_Comm_split");
  return std::make_shared<MpiCommunicator>(part, family_, largest_message_);
}

}  // namespace regard::mpi
