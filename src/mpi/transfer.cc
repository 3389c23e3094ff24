#include "mpi/transfer.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "mpi/check.h"
#include "tensor/fail.h"

namespace regard::mpi {
namespace {

// Some 20 microseconds, in which a rank on a core of its own answers.
constexpr int kSpins = 100;
// How long a rank that has failed waits for messages under way before it lets go of their buffers.
constexpr std::chrono::seconds kPatience{1};

}  // namespace

void Family::advance() {
  for (MpiTransfer* transfer : under_way) transfer->advance();
}

MpiTransfer::MpiTransfer(std::shared_ptr<Family> family, MPI_Comm group, int tag, size_t largest_message)
    : family_(std::move(family)), group_(group), tag_(tag), largest_message_(largest_message) {
  family_->under_way.push_back(this);
}

// A message is received only when it is there and its size is known: MPI leaves open what happens to the memory behind
// a place that is too small, and Open MPI 4 does write there. Little is lost by that: messages that are too large to be
// sent ahead move only while both ranks call MPI anyway.
void MpiTransfer::receive(std::span<std::byte> part, int from) {
  if (!part.empty()) incoming_.push_back({.from = from, .part_size = part.size(), .rest = part});
}

void MpiTransfer::send(std::span<const std::byte> part, int to) {
  for (size_t first = 0; first < part.size(); first += largest_message_) {
    const auto piece = part.subspan(first, std::min(largest_message_, part.size() - first));
    check(MPI_Isend(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, to, tag_, group_,
                    &requests_.emplace_back(MPI_REQUEST_NULL)),
          "MPI_Isend");
  }
}

// MPI's own waiting may spin: where ranks share cores, the one that is waited for could not run.
void MpiTransfer::wait() {
  for (int spins = 0; !over(); ++spins) {
    if (spins >= kSpins) std::this_thread::yield();
    family_->advance();
  }
  require(error_.empty(), "{}", error_);
}

void MpiTransfer::advance() {
  for (Incoming& incoming : incoming_)
    while (!incoming.rest.empty() && take_message(incoming)) {
    }
  std::erase_if(incoming_, [](const Incoming& incoming) { return incoming.rest.empty(); });
  if (requests_.empty()) return;
  int done = 0;
  check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
  if (done != 0) requests_.clear();
}

bool MpiTransfer::take_message(Incoming& incoming) {
  int found = 0;
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  check(MPI_Improbe(incoming.from, tag_, group_, &found, &message, &status), "MPI_Improbe");
  if (found == 0) return false;
  int bytes = 0;
  check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
  const auto piece = incoming.rest.first(std::min(largest_message_, incoming.rest.size()));
  if (static_cast<size_t>(bytes) != piece.size()) {
    refuse(incoming, message, bytes);
    return true;
  }
  incoming.rest = incoming.rest.subspan(piece.size());
  check(MPI_Imrecv(piece.data(), bytes, MPI_BYTE, &message, &requests_.emplace_back(MPI_REQUEST_NULL)), "MPI_Imrecv");
  return true;
}

// The message has to go somewhere: its sender may be waiting for that.
void MpiTransfer::refuse(Incoming& incoming, MPI_Message message, int bytes) {
  int rank = 0;
  check(MPI_Comm_rank(group_, &rank), "MPI_Comm_rank");
  error_ =
      fmt::format("exchange: rank {} sends {} bytes to rank {}, expected the {} that it receives", incoming.from,
                  incoming.part_size - incoming.rest.size() + static_cast<size_t>(bytes), rank, incoming.part_size);
  incoming.rest = {};
  std::vector<std::byte> nowhere(static_cast<size_t>(bytes));
  check(MPI_Mrecv(nowhere.data(), bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE), "MPI_Mrecv");
}

// The rank is about to abort. What is still to come would be written where nothing is any more.
void MpiTransfer::abandon() {
  for (MPI_Request& request : requests_) {
    if (request == MPI_REQUEST_NULL) continue;
    MPI_Cancel(&request);
    MPI_Request_free(&request);
  }
}

MpiTransfer::~MpiTransfer() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  try {
    while (!over() && !(unwinding && std::chrono::steady_clock::now() > end)) {
      family_->advance();
      std::this_thread::yield();
    }
  } catch (const Error&) {
    // MPI itself fails, and there is nobody to tell.
  }
  if (!over()) abandon();
  std::erase(family_->under_way, this);
}

}  // namespace regard::mpi
