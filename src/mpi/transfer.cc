#include "mpi/transfer.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "mpi/check.h"
#include "tensor/fail.h"

namespace regard::mpi {
namespace {

using Clock = std::chrono::steady_clock;

// Some 20 microseconds, in which a rank on a core of its own answers.
constexpr int kSpins = 100;
// A rank that has waited for so long sleeps a sixteenth of that again before it looks, and a quarter of a millisecond
// at most: what it waits for is hardly later, and its core is free.
constexpr std::chrono::microseconds kAwake{200};
constexpr int kSleepDivisor = 16;
constexpr std::chrono::microseconds kLongestSleep{250};
// What counts as waiting between two looks: a rank that was itself stopped meanwhile did not wait.
constexpr std::chrono::milliseconds kLongestStep{100};
// How long a rank that has failed waits for messages under way before it lets go of their buffers.
constexpr std::chrono::seconds kPatience{1};

// Takes what has ended out of the list; returns whether anything has.
bool end_requests(std::vector<MPI_Request>& requests) {
  if (requests.empty()) return false;
  int ended = 0;
  std::vector<int> places(requests.size());
  check(MPI_Testsome(static_cast<int>(requests.size()), requests.data(), &ended, places.data(), MPI_STATUSES_IGNORE),
        "MPI_Testsome");
  if (ended > 0) std::erase(requests, MPI_REQUEST_NULL);
  return ended > 0;
}

}  // namespace

bool Family::advance() {
  bool progress = false;
  for (MpiTransfer* transfer : under_way) progress = transfer->advance() || progress;
  return progress;
}

// MPI's own waiting may spin: where ranks share cores, the one that is waited for could not run.
void Family::wait_until(const std::function<bool()>& done) {
  Clock::time_point last = Clock::now();
  Clock::duration waited{0};
  for (int spins = 0; !done(); ++spins) {
    if (advance()) {
      spins = 0;
      waited = {};
      last = Clock::now();
    }
    if (spins < kSpins) continue;
    const auto now = Clock::now();
    waited += std::min<Clock::duration>(now - last, kLongestStep);
    last = now;
    if (waited < kAwake || std::ranges::any_of(under_way, &MpiTransfer::moves))
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::min<Clock::duration>(waited / kSleepDivisor, kLongestSleep));
    roll_call->answer();
    if (timeout.count() > 0 && waited >= timeout) roll_call->fail_after(timeout);
  }
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
                    &sends_.emplace_back(MPI_REQUEST_NULL)),
          "MPI_Isend");
  }
}

void MpiTransfer::wait() {
  family_->wait_until([this] { return over(); });
  require(error_.empty(), "{}", error_);
}

bool MpiTransfer::advance() {
  bool progress = false;
  for (Incoming& incoming : incoming_)
    while (!incoming.rest.empty() && take_message(incoming)) progress = true;
  std::erase_if(incoming_, [](const Incoming& incoming) { return incoming.rest.empty(); });
  progress = end_requests(receives_) || progress;
  return end_requests(sends_) || progress;
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
  check(MPI_Imrecv(piece.data(), bytes, MPI_BYTE, &message, &receives_.emplace_back(MPI_REQUEST_NULL)), "MPI_Imrecv");
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
  for (std::vector<MPI_Request>* requests : {&receives_, &sends_})
    for (MPI_Request& request : *requests) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
}

MpiTransfer::~MpiTransfer() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_;
  const auto end = Clock::now() + kPatience;
  try {
    family_->wait_until([&] { return over() || (unwinding && Clock::now() > end); });
  } catch (const Error&) {
    // MPI itself fails or other ranks are silent, and a destructor can't tell.
  }
  if (!over()) abandon();
  std::erase(family_->under_way, this);
}

}  // namespace regard::mpi
